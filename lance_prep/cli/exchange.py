"""`lance-prep export`: datasets as files of other formats."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import (
    check_storage_options,
    command,
    count,
    json_option,
    print_json,
    printable,
    storage_option,
    table,
)
from lance_prep.cli.completion import paths, tags
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.exchange import ExportReport

GB = 10**9
#: The options of `export` that are fields of `ExportOptions`.
_OPTIONS = ("shard_size", "max_seq_length", "mask_boundaries", "by", "skip_special_tokens")


def _shard_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return bytes. A number without a unit is in GB."""
    from lance_prep.recipe import parse_size

    if value is None:
        return None

    try:
        found = int(float(value) * GB) if value.replace(".", "", 1).isdigit() else parse_size(value)
    except ValueError as error:
        raise click.BadParameter("not a valid size; write a number of GB, or one with a unit such as 500MB") from error
    return int(found)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if value is not None else None


@command(
    "export sample.lance -o sample-parquet --max-seq-length 128",
    "export sample.lance -o sample-small --max-seq-length 128 --shard-size 500MB --dry-run",
    "export sample.lance -o sample-bin --format bin",
    "export sample.lance -o sample-megatron --format megatron",
    about="""SOURCE is a dataset, or a folder with manifest.json, all of whose sources are exported.

Run again on the same output, export continues an interrupted export, or says that it is up to date.""",
)
@click.argument("source", shell_complete=paths)
@click.option("-o", "--output", required=True, metavar="DIR", help="Local folder for the files.")
@click.option(
    "--format",
    default="parquet",
    show_default=True,
    metavar="NAME",
    help="Format of the files: parquet; jsonl (decoded text); bin (ids end to end, as nanoGPT reads them); megatron "
    "(.bin and .idx); mds (MosaicML streaming); litdata.",
)
@click.option(
    "--for",
    "trainer",
    type=click.Choice(["trl"]),
    help="With Parquet: write rows as this trainer packs them. trl: labels that are not shifted, and seq_lengths.",
)
@click.option(
    "--version", metavar="N|TAG", shell_complete=tags, help="Version or tag of a dataset.  [default: the latest]"
)
@click.option("--splits", metavar="A,B,...", callback=_names, help="Sources to export.  [default: all]")
@click.option(
    "--shard-size",
    metavar="GB",
    callback=_shard_size,
    help="Maximum size of a file: GB, or with a unit, such as 500MB.  [default: 2; 64MiB for mds and litdata; for "
    "bin and megatron, one file of any size]",
)
@click.option(
    "--max-seq-length",
    type=click.IntRange(min=1),
    help="Tokens per row, for layouts with rows of different lengths: rows, each followed by EOS, are joined and cut.",
)
@click.option("--mask-boundaries", is_flag=True, help="Label the last token of each document with -100.")
@click.option(
    "--by",
    type=click.Choice(["row", "document"]),
    default="row",
    show_default=True,
    help="What a line of JSONL holds, or what stays together in other formats. Documents are put together from blocks "
    "that follow each other; parts that the shuffle moved apart stay apart.",
)
@click.option("--skip-special-tokens", is_flag=True, help="Leave special tokens, such as EOS, out of decoded text.")
@click.option("--force", is_flag=True, help="Write into a folder with other files; replace shards made otherwise.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@storage_option
@json_option
def export(source: str, trainer: str | None, as_json: bool, **arguments: Any) -> None:
    from lance_prep import exchange

    if trainer is not None:
        if arguments["format"] not in ("parquet", trainer):
            raise click.UsageError(f"--for {trainer} has no effect with --format {arguments['format']}: remove it")
        arguments["format"] = trainer

    check_storage_options(arguments["storage_options"], source)
    options = exchange.ExportOptions(**{name: arguments.pop(name) for name in _OPTIONS})
    with screen() as shown:
        report = exchange.export(source, options=options, progress=_Shown(shown), **arguments)
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(_summary(report)))


class _Shown:
    """Counts what is written, and shows how fast."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._started = time.monotonic()
        self._rows = self._done = self._before = self._tokens = 0
        self._name = ""

    def planned(self, rows: int, done: int) -> None:
        self._rows, self._done, self._before = rows, done, done
        self._screen.begin("export")

    def advanced(self, name: str, rows: int, tokens: int) -> None:
        self._name = name
        self._done += rows
        self._tokens += tokens
        self._screen.show("export", self._line, self._done, self._rows)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        speed = self._tokens / seconds
        # Shards of an earlier run took no time now.
        remaining = left(seconds, self._done - self._before, self._rows - self._before)
        done = f"{count(self._done)} of {count(self._rows)} rows, {count(self._tokens)} tokens"
        return f"{self._name}: {done}" + (f", {count(int(speed))} tokens/s" if self._tokens else "") + remaining


def _summary(report: ExportReport) -> str:
    rows = [("output", report.output), ("format", report.format)]
    for source in report.sources:
        said = f"{source.status}: {source.rows:,} rows, {count(source.tokens)} tokens"
        written = f", {counted(source.shards, 'file')}, {size(source.bytes)}" if source.status != "planned" else ""
        rows.append((source.name, said + written))
    rows += [(name, "not in the manifest: no longer in SOURCE, or of other options") for name in report.left_out]
    return table(rows)
