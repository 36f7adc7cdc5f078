"""`build` of a collection: its progress on stderr, its summary, and what it would do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import as_options, columns, count, print_json, printable, span, table
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.cli.summary import about, rejected_warning
from lance_prep.collection import (
    CollectionPreview,
    CollectionProgress,
    CollectionReport,
    open_collection,
    preview_collection,
    run_collection,
)
from lance_prep.engine import Progress, RunOptions
from lance_prep.errors import OutputError, counted, size
from lance_prep.plan import Estimate, added
from lance_prep.recipe import builtin_collections, refuse_unread

if TYPE_CHECKING:
    from lance_prep.collection import CollectionPlan, SourceJob, SourcePreview, SourceReport, Unlisted
    from lance_prep.model import Plan
    from lance_prep.store import Receipt


def build_many(source: str, options: RunOptions, overrides: dict[str, Any], *, recursive: bool, as_json: bool) -> None:
    """Build a collection and print what became of its sources.

    Raises:
        OutputError: some sources failed.
    """
    collection = open_collection(source, overrides, recursive=recursive)
    refuse_unread(collection.sources[0].recipe, overrides)
    with screen() as shown:
        report = run_collection(collection, options, _Shown(shown))
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(summary(report)))
    for each in report.unlisted:
        _say(f"warning: {_without_source(each, report)}", _what_to_do(each))
    _say_failures(report.failed, "failed", collection)
    if report.failed:
        raise OutputError(
            f"{len(report.failed)} of {len(report.sources)} sources failed, so {report.output}/manifest.json was not "
            "written",
            "fix them as said above, then run the same command again: sources that are built are not built again; "
            f"or {_leave_out(collection)}",
        )


def preview_many(
    source: str, options: RunOptions, overrides: dict[str, Any], *, recursive: bool, as_json: bool
) -> None:
    """Print what the build of a collection would do.

    Raises:
        OutputError: some sources would fail.
    """
    collection = open_collection(source, overrides, recursive=recursive)
    refuse_unread(collection.sources[0].recipe, overrides)
    preview = preview_collection(collection, options)
    if as_json:
        print_json(preview.as_json())
    else:
        click.echo(printable(preview_text(preview)))
    _say_failures(preview.failed, "would fail", collection)
    if preview.failed:
        said = f"{len(preview.failed)} of {len(preview.sources)} sources would fail, and no manifest would be written"
        raise OutputError(said, f"fix them as said above, or {_leave_out(collection)}")


def _leave_out(collection: CollectionPlan) -> str:
    """Say how to build a collection without the sources that fail."""
    if collection.asked in builtin_collections():
        return f"leave them out of a copy: lance-prep recipes {collection.asked} > mine.yaml"
    if Path(collection.asked).is_dir():
        return f"move their files out of {collection.asked}"
    return f"leave them out of {collection.asked}"


def _say(what: str, advice: str, keep: Container[str] = ()) -> None:
    click.echo(printable(as_options(what, keep)), err=True)
    if advice:
        click.echo(printable(f"  try: {as_options(advice, keep)}"), err=True)


def _say_failures(failed: Iterable[SourceReport | SourcePreview], what: str, collection: CollectionPlan) -> None:
    """Print what is wrong with sources and what to do. Sources that fail alike share an entry."""
    alike: dict[tuple[str, str], list[str]] = {}
    for source in failed:
        assert source.error is not None
        said = str(source.error).removeprefix(f"building {source.name}: ").replace(source.uri, "its dataset")
        alike.setdefault((said, source.error.advice), []).append(source.name)
    for (said, advice), names in alike.items():
        _say(f"{what}: {', '.join(names)}: {said}", advice, collection.fixed)


def _without_source(each: Unlisted, report: CollectionReport) -> str:
    if each.same_as is not None:
        what = f"{each.name} is now {each.same_as}, which has the same rows"
    else:
        what = f"{each.name} has no source" + (" any more" if each.listed_before else "")
    listed = "does not list it" if report.manifest is not None else "will not list it"
    return f"{what}; {each.path} ({each.tokens:,} tokens) is kept, and the manifest {listed}"


def _what_to_do(each: Unlisted) -> str:
    if each.same_as is not None:
        return f"remove {each.path}"
    return f"remove {each.path}; or put its source back, which lists it again without building it"


def summary(report: CollectionReport) -> str:
    """Describe a finished build of a collection: a line for each source and category, and the totals."""
    total = sum(source.split.tokens for source in report.sources if source.split) or 1
    rows = [["source", "category", "state", "sequences", "tokens", "share"]]
    for source in report.sources:
        split = source.split
        figures = [f"{split.sequences:,}", f"{split.tokens:,}", f"{split.tokens / total:.1%}"] if split else [""] * 3
        rows.append([source.name, source.category, _state(source), *figures])
    lines = [columns(rows, numbers=3), ""]
    if report.manifest is not None:
        lines += _against_target(report, total)
        sets = report.manifest.validation.values()
        aside = f"; {sum(split.tokens for split in sets):,} tokens set aside for validation" if sets else ""
        lines.append(
            f"{report.output}/manifest.json: {counted(len(report.manifest.splits), 'split')}, {total:,} tokens{aside}"
        )
    builds = [build for source in report.sources if source.build for build in (source.build, source.build.validation)]
    read = sum(build.text_bytes for build in builds if build is not None)
    whole = all(source.status == "built" for source in report.sources)
    speed = f", {size(read / report.seconds)}/s of text" if whole else ""
    lines.append(f"{counted(len(report.sources) - len(report.failed), 'source')} in {span(report.seconds)}{speed}")
    for build in builds:
        if build is not None and build.status in ("built", "resumed"):
            lines += [f"{build.uri}: {said}" for said in rejected_warning(build.ledger)]
            if build.rejected_file:
                lines.append(f"{build.uri}: rejected rows are in {build.rejected_file}")
    return "\n".join(lines)


def _against_target(report: CollectionReport, total: int) -> list[str]:
    """Compare the categories' shares of the tokens with their targets. Nothing if there are no targets."""
    if report.manifest is None or not report.manifest.categories:
        return []
    rows = [["category", "tokens", "share", "target"]]
    targets = report.manifest.categories
    for category in dict.fromkeys([*targets, *(source.category for source in report.sources)]):
        tokens = sum(source.split.tokens for source in report.sources if source.split and source.category == category)
        target = f"{targets[category]:.1%}" if category in targets else "none"
        rows.append([category, f"{tokens:,}", f"{tokens / total:.1%}", target])
    return [columns(rows, numbers=1), ""]


def _state(source: SourceReport) -> str:
    return f"rebuilt, version {source.build.version}" if source.status == "rebuilt" and source.build else source.status


def preview_text(preview: CollectionPreview) -> str:
    """Describe what a build of a collection would do: a line for each source, and what all of it costs."""
    rows = [["source", "category", "would", "files", "shards", "rows", "size", "tokens", "disk"]]
    for source in preview.sources:
        if source.build is None:
            rows.append([source.name, source.category, "fail", *[""] * 6])
            continue
        plan, costs = source.build.plan, source.costs
        read = source.build.cost.source_rows if source.build.cost is not None else None
        known = f"{plan.rows:,}" if plan.rows is not None else _cell(read, count)
        stored = size(sum(shard.bytes for shard in plan.shards))
        figures = [f"{len(plan.files):,}", f"{len(plan.shards):,}", known, stored]
        sums = [added(cost.tokens for cost in costs), added(cost.disk for cost in costs)] if costs else [None] * 2
        figures += [_cell(sums[0], count), _cell(sums[1], size)]
        rows.append([source.name, source.category, source.build.action, *figures])
    return "\n".join([*preview.notes, columns(rows, numbers=3), "", table(_total_rows(preview))])


def _cell(estimate: Estimate | None, write: Callable[[float], str]) -> str:
    """Write an estimate without its error, or nothing for a source that would not be built."""
    if estimate is None:
        return ""
    return about(replace(estimate, error=0 if estimate.error == 0 else None), write).replace("about ", "~")


def _total_rows(preview: CollectionPreview) -> list[tuple[str, str]]:
    total, building = preview.total, len(preview.to_build)
    rows = [("into", preview.output), ("to build", f"{building} of {len(preview.sources)} sources")]
    if building > total.unknown:
        requests = f", in {about(total.requests, count)} requests" if total.requests.value else ""
        rows += [
            ("source bytes", about(total.source_bytes, size) + requests),
            ("source rows", about(total.source_rows, count)),
            ("tokens", about(total.tokens, count)),
            ("disk", f"{about(total.disk, size)}; {size(total.free)} free"),
            ("time", f"about {span(total.seconds)}, at the speeds of the samples"),
        ]
    if total.unknown:
        rows.append(("not estimated", counted(total.unknown, "source")))
    return rows


class _Shown(CollectionProgress):
    """Counts over all sources, and shows them as one line. Called from several threads."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._ended = self._done = self._tokens = self._text = 0
        self._to_do: dict[str, int | None] = {}  # bytes to read of each source; None if unknown
        screen.begin("collection")

    def planned(self, collection: CollectionPlan) -> None:
        self._to_do = {source.name: source.size for source in collection.sources}
        for note in collection.notes:
            self.say(note)
        if collection.skipped:
            some = ", ".join(f"{each.path} ({each.reason})" for each in collection.skipped[:3])
            more = f" and {len(collection.skipped) - 3:,} more" if len(collection.skipped) > 3 else ""
            self.say(f"left out of {collection.asked}: {some}{more}")

    def warned(self, message: str) -> None:
        self.say(f"warning: {as_options(message)}")

    def started(self, source: SourceJob) -> Progress:
        return _One(self, source)

    def ended(self, result: SourceReport) -> None:
        tokens = f", {result.split.tokens:,} tokens" if result.split else ""
        with self._lock:  # also while it is printed, so that the numbers are in order
            self._ended += 1
            if result.status in ("unchanged", "failed"):
                self._to_do[result.name] = 0
            self.say(f"source {self._ended}/{len(self._to_do)} {result.name}: {_state(result)}{tokens}")

    def to_read(self, source: str, stored: int) -> None:
        """Note the bytes that are read of a source."""
        with self._lock:
            self._to_do[source] = stored

    def add(self, tokens: int = 0, text_bytes: int = 0, stored: int = 0) -> None:
        """Count tokens, bytes of text, and bytes of finished shards."""
        with self._lock:
            self._tokens += tokens
            self._text += text_bytes
            self._done += stored
        self._show()

    def _line(self) -> str:
        """Return finished sources, tokens and speed of this run, and the time left."""
        seconds = max(time.monotonic() - self._begun, 1e-3)
        line = f"source {self._ended}/{len(self._to_do)}, {count(self._tokens)} tokens, {size(self._text / seconds)}/s"
        sizes = list(self._to_do.values())
        total = sum(filter(None, sizes))
        return line if None in sizes else line + left(seconds, self._done, total)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._screen.say(text)

    def _show(self) -> None:
        self._screen.show("collection", self._line, self._ended, len(self._to_do))


class _One(Progress):
    """Listens to the build of one source."""

    def __init__(self, whole: _Shown, source: SourceJob) -> None:
        self._whole = whole
        self._name = source.name
        self._plan: Plan | None = None
        self._stored = 0

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        self._plan = plan  # of the training set; later of the validation set
        self._stored += sum(shard.bytes for shard in plan.shards if shard.index not in done)
        self._whole.to_read(self._name, self._stored)
        if done:
            self._whole.say(f"{self._name}: {len(done)} of {len(plan.shards)} shards are done by an earlier run")

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        self._whole.add(tokens, source_bytes)

    def finished(self, receipt: Receipt) -> None:
        if self._plan is not None:
            self._whole.add(stored=self._plan.shard(receipt.shard).bytes)

    def warned(self, message: str) -> None:
        self._whole.say(f"warning: {self._name}: {message}")
