"""`lance-prep download`: fetch the raw text of a collection, or print how much of it was fetched."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import columns, command, count, json_option, print_json, printable
from lance_prep.cli.completion import sources
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.collection import CollectionStatus, DownloadReport, SourceStatus
    from lance_prep.errors import LancePrepError
    from lance_prep.model import Plan, Shard

ABOUT = """RECIPE is a built-in collection or a .yaml file with categories; `lance-prep recipes` lists them. Each source
becomes DIR/CATEGORY/SOURCE.jsonl, a JSON object per line with the record's text, and SOURCE.stats.json, with counts,
the hash of the file and the commit that it is from.

Sources that were downloaded before are skipped, and an interrupted download continues where it stopped. A source that
fails does not stop the others: failures are listed at the end, and the exit code is then 1.

Put your own .jsonl files into DIR/NAME/; verify and build use them too."""


def _split(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for each in value for name in each.split(",") if name.strip()))


@command(
    "download distillation -o raw --status-only",
    "download distillation -o raw --category math_reasoning,code",
    about=ABOUT,
)
@click.argument("recipe", shell_complete=sources)
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder for the text.")
@click.option(
    "--category", "categories", multiple=True, callback=_split, metavar="A,B,...", help="Only these; may be repeated."
)
@click.option(
    "--status-only",
    is_flag=True,
    help="Print which sources are complete, which are missing, and how much is to be fetched.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and fetch no text.")
@click.option("--workers", type=click.IntRange(min=1), help="Sources fetched at once.  [default: number of cores]")
@click.option("--force", is_flag=True, help="Fetch all sources again, with the current recipe.")
@json_option
@click.pass_context
def download(
    ctx: click.Context,
    recipe: str,
    output: str,
    categories: tuple[str, ...],
    status_only: bool,
    dry_run: bool,
    workers: int | None,
    force: bool,
    as_json: bool,
) -> None:
    if status_only and dry_run:
        raise click.UsageError("--status-only cannot be combined with --dry-run: use one of them")
    from lance_prep import collection

    if status_only or dry_run:
        status = collection.collection_status(recipe, output, categories=categories, force=force)
        if as_json:
            print_json(status.as_json())
        else:
            click.echo(printable(status_text(status) if status_only else plan_text(status)))
            _say_errors([(f"{s.category}/{s.name}", s.error) for s in status.sources])
        if dry_run and any(source.error is not None for source in status.sources):
            ctx.exit(1)
        return
    with screen() as shown:
        report = collection.download(
            recipe, output, categories=categories, workers=workers, force=force, progress=_Shown(shown)
        )
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(report_text(report)))
    _say_errors([(f"{o.category}/{o.name}", o.error) for o in report.outcomes])
    if report.failed:
        ctx.exit(1)


def _say_errors(found: list[tuple[str, LancePrepError | None]]) -> None:
    """Print what is wrong with sources, and what to do about each. Fields that a message names are the recipe's."""
    for name, error in found:
        if error is not None:
            click.echo(printable(f"error: {name}: {error}"), err=True)
            click.echo(printable(f"  try: {error.advice.replace('force=True', '--force')}"), err=True)


def report_text(report: DownloadReport) -> str:
    """Describe a finished download: a line for each source, and the next command."""
    rows = []
    for outcome in report.outcomes:
        text = outcome.stats
        have = [f"{text.rows:,} rows", size(text.bytes)] if text is not None else ["", ""]
        rejected = text.ledger.get("rejected", 0) if text is not None else 0
        note = f"{rejected:,} records rejected: {text.rejected}" if text is not None and rejected else ""
        rows.append([f"{outcome.category}/{outcome.name}", outcome.status, *have, note])
    failed = len(report.failed)
    total = (
        f"{failed} of {len(rows)} sources failed" if failed else f"{counted(len(rows), 'source')} in {report.folder}"
    )
    return "\n".join([columns(rows), total])


def status_text(status: CollectionStatus) -> str:
    """Describe how much of a collection is there, as a table, with a row for each category and each source."""
    rows = [["category", "source", "have", "want", "share", "target", "to fetch", "gated"]]
    for category, target in status.targets().items():
        sources = [source for source in status.sources if source.category == category]
        fetch = [source.to_fetch for source in sources]
        known = sum(size for size in fetch if size is not None)
        more = " or more" if None in fetch else ""
        share = f"{status.share_of(*sources):.1%}"
        rows.append([category, "", _have(*sources), "", share, f"{target:.1%}", f"{size(known)}{more}", ""])
        for source in sources:
            part = status.target_of(source)
            rows.append(
                [
                    "",
                    source.name,
                    _have(source),
                    _want(source),
                    f"{status.share_of(source):.1%}",
                    f"{part:.1%}" if part is not None else "",
                    _to_fetch(source),
                    "yes" if source.gated else "no",
                ]
            )
    said = "Shares are parts of the downloaded text, by characters."
    return "\n".join([columns(rows), "", *status.recipe.notes(), said])


def plan_text(status: CollectionStatus) -> str:
    """Describe what a download would do, a line for each source."""
    lines = [f"{source.category}/{source.name}: {_would(source)}" for source in status.sources]
    known = [source.to_fetch for source in status.sources if source.to_fetch is not None]
    return "\n".join([*lines, f"{size(sum(known))} to fetch into {status.folder}"])


def _would(source: SourceStatus) -> str:
    plan = source.plan
    if plan is None:
        return "would fail" if source.error is not None else f"is there: {_have(source)}"
    pinned = f" at {plan.source.commit}" if plan.source.commit else ""
    rows = f", {plan.rows:,} rows" if plan.rows is not None else ""
    verb = "would continue with" if source.status == "unfinished" else "would download"
    where = f"{plan.source.asked}{pinned}, {_pieces(plan)}{rows}"
    return f"{verb} {where}; want {_want(source)}, {_to_fetch(source)} to fetch"


def _have(*sources: SourceStatus) -> str:
    rows, text = sum(source.rows for source in sources), sum(source.bytes for source in sources)
    note = f" ({sources[0].status})" if len(sources) == 1 and sources[0].status in ("unfinished", "differs") else ""
    return f"{count(rows)} rows, {size(text)}{note}" if rows or note else "-"


def _want(source: SourceStatus) -> str:
    limits = [f"{count(source.max_rows)} rows"] if source.max_rows is not None else []
    limits += [f"{count(source.max_tokens)} tokens"] if source.max_tokens is not None else []
    at_source = f" {count(source.rows_at_source)} rows" if source.rows_at_source is not None else ""
    return " or ".join(limits) if limits else f"all{at_source}"


def _to_fetch(source: SourceStatus) -> str:
    if source.to_fetch is None:
        return "?"
    return f"at most {size(source.to_fetch)}" if source.at_most else size(source.to_fetch)


def _pieces(plan: Plan) -> str:
    files, shards = len(plan.files), len(plan.shards)
    return f"{files:,} file{'s' * (files != 1)} in {shards:,} shard{'s' * (shards != 1)}"


class _Source:
    """Progress of one source."""

    def __init__(self, plan: Plan, done: int) -> None:
        self.started = time.monotonic()
        self.shards, self.done, self.before = len(plan.shards), done, done
        self.rows = self.bytes = 0

    def line(self) -> str:
        """Return rows, bytes, speed and shards."""
        seconds = max(time.monotonic() - self.started, 1e-3)
        speed = f"{size(self.bytes)}, {size(self.bytes / seconds)}/s"
        return f"{count(self.rows)} rows, {speed}, shard {self.done}/{self.shards}"

    def left(self) -> str:
        """Return the time left if all shards are read. Shards of an earlier run took no time now."""
        return left(time.monotonic() - self.started, self.done - self.before, self.shards - self.before)


class _Shown:
    """Counts what is read of each source, and shows it."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}

    def begun(self, name: str, plan: Plan, shards_done: int) -> None:
        with self._lock:
            self._sources[name] = _Source(plan, shards_done)
        resumed = f", {shards_done} of them written by an earlier run" if shards_done else ""
        self._screen.begin(name, f"{name}: {_pieces(plan)}{resumed}")

    def advanced(self, name: str, rows: int, text_bytes: int) -> None:
        with self._lock:
            source = self._sources[name]
            source.rows += rows
            source.bytes += text_bytes
        self._show(name, source)

    def shard_read(self, name: str, shard: Shard) -> None:
        with self._lock:
            source = self._sources[name]
            source.done += 1
        self._show(name, source)

    def ended(self, name: str, status: str) -> None:
        with self._lock:
            source = self._sources.pop(name, None)
        self._screen.end(name)
        self._screen.say(f"{name}: {status}" + (f", {source.line()}" if source is not None else ""))

    def warned(self, message: str) -> None:
        self._screen.say(f"warning: {message}")

    def _show(self, name: str, source: _Source) -> None:
        self._screen.show(name, lambda: f"{name}: {source.line()}", source.done, source.shards)
