"""`lance-prep index`: random access to JSONL files in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, json_option, print_json, printable, span
from lance_prep.cli.completion import paths
from lance_prep.cli.progress import Screen, part_shown, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.dataset import Indexed

_NAMED = 5


@command(
    "index data                   # data/**/*.jsonl; the index is data/.jsonl_index.lance",
    "index 'data/*.jsonl' -o index.lance",
    about="""Writes where each record begins and how long it is, 16 bytes a record. The text is not copied.
`lance_prep.train.JsonlDataset(SOURCE)` then reads any record in place.

SOURCE is a folder, which is searched with its subfolders, a file or a glob. Files are in natural order: part-2 is
before part-10. Blank lines are skipped. Records are not parsed. Hidden files and folders are left out, links are not
followed, and compressed files cannot be indexed.

Run it again after files were added, changed or removed: it reads only files whose size or time of change differs, and
JsonlDataset refuses such files until then.""",
)
@click.argument("source", metavar="SOURCE", shell_complete=paths)
@click.option(
    "-o", "--output", metavar="PATH", help="Where to write the index.  [default: a hidden name in the folder]"
)
@click.option("--rescan", is_flag=True, help="Read all files again, also those that seem unchanged.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Number of reading threads.  [default: the CPUs, at most 8]"
)
@json_option
def index(source: str, output: str | None, rescan: bool, workers: int | None, as_json: bool) -> None:
    from lance_prep.dataset import index_jsonl

    with screen() as shown:
        found = index_jsonl(source, output=output, rescan=rescan, workers=workers, on_bytes=_bytes_shown(shown))
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(printable(_text(found)))


def _bytes_shown(screen: Screen) -> Callable[[int, int], None]:
    return part_shown(screen, "index", lambda done, total: f"{size(done)} of {size(total)} read")


def _text(found: Indexed) -> str:
    held = f"{counted(found.rows, 'record')} in {counted(found.files, 'file')}"
    lines = [f"{found.status}: {held} ({size(found.bytes)}): {found.index}"]
    if found.scanned_bytes:
        rate = size(found.scanned_bytes / max(found.seconds, 1e-6))
        lines.append(f"read {size(found.scanned_bytes)} in {span(found.seconds)} ({rate}/s)")
    for verb, names in (("new", found.added), ("changed", found.changed), ("removed", found.removed)):
        if names and found.status == "updated":
            lines.append(f"{verb}: {_named(names)}")
    reasons = sorted({reason for _, reason in found.left_out})
    for reason in reasons:
        lines.append(f"left out ({reason}): {_named([path for path, why in found.left_out if why == reason])}")
    return "\n".join(lines)


def _named(names: list[str]) -> str:
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
