"""`build` of a collection: its progress, on stderr, and its summary."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import LINE_EVERY, as_options, count, print_json, printable, size, span
from lance_prep.cli.summary import rejected_warning
from lance_prep.collection import (
    CollectionProgress,
    CollectionReport,
    open_collection,
    preview_collection,
    run_collection,
)
from lance_prep.engine import Progress, RunOptions
from lance_prep.errors import OutputError

if TYPE_CHECKING:
    from lance_prep.collection import CollectionPlan, CollectionPreview, SourceJob, SourcePreview, SourceReport
    from lance_prep.model import Plan
    from lance_prep.store import Receipt


def build_many(source: str, options: RunOptions, overrides: dict[str, Any], *, recursive: bool, as_json: bool) -> None:
    """Build a collection and print what became of its sources.

    Raises:
        OutputError: some sources failed.
    """
    collection = open_collection(source, overrides, recursive=recursive)
    with make_progress() as progress:
        report = run_collection(collection, options, progress)
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(summary(report)))
    for name in report.unlisted:
        click.echo(
            printable(
                f"warning: {report.output}/{name} has no source in {collection.asked}, so the manifest does not list "
                "it; remove it if its source was removed or renamed"
            ),
            err=True,
        )
    _print_failures(report.failed, "failed")
    if report.failed:
        raise OutputError(
            f"{len(report.failed)} of {len(report.sources)} sources failed, so manifest.json was not written",
            "fix them as said above, then run the same command again: sources that are built are not built again",
        )


def preview_many(
    source: str, options: RunOptions, overrides: dict[str, Any], *, recursive: bool, as_json: bool
) -> None:
    """Print what a build of a collection would do.

    Raises:
        OutputError: the build of some sources would fail.
    """
    preview = preview_collection(open_collection(source, overrides, recursive=recursive), options)
    if as_json:
        print_json(preview.as_json())
    else:
        click.echo(printable(preview_text(preview)))
    _print_failures(preview.failed, "would fail")
    if preview.failed:
        said = f"{len(preview.failed)} of {len(preview.sources)} sources would fail, and no manifest would be written"
        raise OutputError(said, "do what is said above, or leave these sources out of the recipe")


def preview_text(preview: CollectionPreview) -> str:
    """Describe what a build of a collection would do: a line for each source, and the total."""
    rows = [("source", "category", "would", "files", "shards", "rows", "size")]
    total = 0
    for each in preview.sources:
        if each.build is None:
            rows.append((each.name, each.category, "fail", "", "", "", ""))
            continue
        plan = each.build.plan
        total += (bytes := sum(shard.bytes for shard in plan.shards))
        known = f"{plan.rows:,}" if plan.rows is not None else "?"
        figures = (f"{len(plan.files):,}", f"{len(plan.shards):,}", known, size(bytes))
        rows.append((each.name, each.category, each.build.action, *figures))
    return "\n".join([*preview.notes, _columns(rows), "", f"{size(total)} of source data into {preview.output}"])


def _print_failures(failed: Sequence[SourceReport | SourcePreview], what: str) -> None:
    """Print what is wrong and what to do for each failed source. Sources that fail alike share an entry."""
    alike: dict[tuple[str, str], list[str]] = {}
    for source in failed:
        said = re.sub(rf"^\w+ing {re.escape(source.name)}: ", "", str(source.error)).replace(source.uri, "its dataset")
        alike.setdefault((said, source.error.advice if source.error else ""), []).append(source.name)
    for (said, advice), names in alike.items():
        click.echo(printable(as_options(f"{what}: {', '.join(names)}: {said}")), err=True)
        click.echo(printable(f"  try: {as_options(advice)}"), err=True)


def summary(report: CollectionReport) -> str:
    """Describe a finished build of a collection: a line for each source, and the totals."""
    total = sum(source.split.tokens for source in report.sources if source.split) or 1
    rows = [("source", "category", "state", "sequences", "tokens", "share")]
    for source in report.sources:
        split = source.split
        figures = (f"{split.sequences:,}", f"{split.tokens:,}", f"{split.tokens / total:.1%}") if split else ("",) * 3
        rows.append((source.name, source.category, _state(source), *figures))
    lines = [_columns(rows), ""]
    if report.manifest is not None:
        lines.append(f"{report.output}/manifest.json: {len(report.manifest.splits)} splits, {total:,} tokens")
    seconds = f"{sum(s.split is not None for s in report.sources)} sources in {span(report.seconds)}"
    read = sum(source.build.text_bytes for source in report.sources if source.build)
    lines.append(f"{seconds}, {size(read / report.seconds)}/s of text" if read else seconds)
    for source in report.sources:
        if source.build is not None and source.status != "unchanged":
            lines.extend(f"{source.name}: {said}" for said in rejected_warning(source.build.ledger))
            if source.build.rejected_file:
                lines.append(f"{source.name}: rejected rows are in {source.build.rejected_file}")
    return "\n".join(lines)


def _state(source: SourceReport) -> str:
    return f"rebuilt, version {source.build.version}" if source.status == "rebuilt" and source.build else source.status


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Format a table: text to the left, numbers (from the fourth column) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{c:>{w}}" if i >= 3 else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class _Progress(CollectionProgress):
    """Counts over all sources, and shows them as one line. Workers call it from their own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._sources = self._ended = self._total = self._done = self._tokens = self._text = 0

    def planned(self, collection: CollectionPlan) -> None:
        self._sources = len(collection.sources)
        self._total = sum(source.size or 0 for source in collection.sources)
        for note in collection.notes:
            self.say(note)
        if collection.skipped:
            some = ", ".join(f"{each.path} ({each.reason})" for each in collection.skipped[:3])
            more = f" and {len(collection.skipped) - 3:,} more" if len(collection.skipped) > 3 else ""
            self.say(f"left out of {collection.asked}: {some}{more}")

    def started(self, source: SourceJob) -> Progress:
        return _One(self, source)

    def ended(self, result: SourceReport) -> None:
        tokens = f", {result.split.tokens:,} tokens" if result.split else ""
        with self._lock:  # also while it is printed: the numbers appear in order
            self._ended += 1
            self._print(f"source {self._ended}/{self._sources} {result.name}: {_state(result)}{tokens}")

    def add(self, tokens: int, text_bytes: int) -> None:
        """Count a batch."""
        with self._lock:
            self._tokens += tokens
            self._text += text_bytes
        self.show()

    def line(self) -> str:
        """Return the sources done, tokens and speed of this run."""
        seconds = max(time.monotonic() - self._begun, 1e-3)
        return f"source {self._ended}/{self._sources}, {count(self._tokens)} tokens, {size(self._text / seconds)}/s"

    def say(self, text: str) -> None:
        """Print a line for good."""
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def show(self) -> None:
        """Show how far the run is."""


class _Lines(_Progress):
    """Prints a line every ten seconds, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def show(self) -> None:
        with self._lock:
            due = time.monotonic() - self._last >= LINE_EVERY
            if due:
                self._last = time.monotonic()
        if due:
            self.say(self.line())


class _Bar(_Progress):
    """Draws a bar of finished sources, with the counts beside it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
        )
        self._task = self.bar.add_task("looking for sources", total=None)

    def show(self) -> None:
        self.bar.update(self._task, total=self._sources, completed=self._ended, description=self.line())

    def _print(self, text: str) -> None:
        self.bar.console.print(printable(text), markup=False, highlight=False)


class _One(Progress):
    """Listens to the build of one source."""

    def __init__(self, whole: _Progress, source: SourceJob) -> None:
        self._whole = whole
        self._name = source.name

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        if done:
            self._whole.say(f"{self._name}: {len(done)} of {len(plan.shards)} shards done by an earlier run")

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        self._whole.add(tokens, source_bytes)

    def finished(self, receipt: Receipt) -> None:
        self._whole.show()

    def warned(self, message: str) -> None:
        self._whole.say(f"warning: {self._name}: {message}")


@contextmanager
def make_progress() -> Iterator[CollectionProgress]:
    """Return a bar if stderr is a terminal, otherwise lines."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    progress = _Bar()
    with progress.bar:
        yield progress
