"""`lance-prep show`: rows of a dataset, token by token."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_options, json_option, printable, printable_json
from lance_prep.cli.progress import rows_shown, screen
from lance_prep.cli.terminal import coloured

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion, ShownDocument, ShownRow

#: Defaults: rows, and characters of a text.
LIMIT, WIDTH = 5, 500


@dataclass(frozen=True)
class _Look:
    """Options for printing a row."""

    ids: bool
    width: int
    tinted: bool
    search: str | None


@command(
    "show sample.lance --limit 3",
    "show sample.lance --row 17 --row -1 --ids",
    "show sample.lance --random 3 --seed 7",
    "show sample.lance --grep import --limit 1",
    about="On a terminal, tokens are tinted in turn, and a long output is paged. Elsewhere, text is printed as it is, "
    "indented by two spaces, and control characters are escaped. In a conversation, the learned text is underlined, or "
    "between ⟦ and ⟧. NO_COLOR turns tints off, and CLICOLOR_FORCE=1 turns them on.",
)
@dataset_options
@click.option("--limit", type=click.IntRange(min=0), help=f"Number of rows to show.  [default: {LIMIT}]")
@click.option(
    "--row", "rows", type=int, multiple=True, metavar="N", help="Show row N (-1 is the last); may be repeated."
)
@click.option("--random", "number", type=click.IntRange(min=1), metavar="N", help="Show N rows drawn at random.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of --random.  [default: 0]")
@click.option("--grep", "search", metavar="TEXT", help="Show the first rows that contain this text.")
@click.option("--ids", is_flag=True, help="Show the token ids too.")
@click.option("--width", type=click.IntRange(min=1), help=f"Characters of a text to show.  [default: {WIDTH}]")
@json_option
def show(
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    limit: int | None,
    rows: tuple[int, ...],
    number: int | None,
    seed: int | None,
    search: str | None,
    ids: bool,
    width: int | None,
    as_json: bool,
) -> None:
    if rows and limit is not None:
        raise click.UsageError("--limit cannot be combined with --row, which names the rows to show")
    if (bool(rows) + (number is not None) + (search is not None)) > 1 or (number is not None and limit is not None):
        raise click.UsageError("--row, --random, --grep and --limit name rows in different ways: use one of them")
    if seed is not None and number is None:
        raise click.UsageError("--seed has no effect without --random: add it, or remove --seed")
    if as_json and (ids or width is not None):
        raise click.UsageError("--json always prints the ids and the whole text: remove --ids and --width")
    from lance_prep.dataset import open_version, show_rows

    opened = open_version(uri, version, storage_options)
    chosen = rows or _choose(opened, LIMIT if limit is None else limit, number, seed or 0, search)
    shown = show_rows(opened, chosen)
    if as_json:
        for row in shown:
            click.echo(printable_json(json.dumps(row.as_json(), default=str, ensure_ascii=False)))
        return
    look = _Look(ids, width or WIDTH, coloured(), search)
    _print([line for row in shown for line in _row_lines(row, look)])


def _choose(opened: DatasetVersion, limit: int, number: int | None, seed: int, search: str | None) -> Sequence[int]:
    """Return the numbers of the rows to show."""
    total: int = opened.dataset.count_rows()
    if number is not None:
        import numpy as np

        drawn = np.random.default_rng(seed).choice(total, min(number, total), replace=False)
        return [int(row) for row in np.sort(drawn)]
    if search is None:
        return range(min(limit, total))
    from lance_prep.dataset import find_rows

    with screen() as shown:
        found = find_rows(opened, search, limit, rows_shown(shown, "searched", total))
    if not found:
        click.echo(printable(f"no row has the text {search!r}"), err=True)
    return found


def _print(lines: Sequence[str]) -> None:
    """Print lines; page them if they are more than the terminal has."""
    if sys.stdout.isatty() and len(lines) > shutil.get_terminal_size().lines:
        os.environ.setdefault("LESS", "-FRX")
        click.echo_via_pager(f"{line}\n" for line in lines)
        return
    for line in lines:
        click.echo(line, color=True)  # there are no colours in it if none are wanted


def _row_lines(shown: ShownRow, look: _Look) -> Iterator[str]:
    if shown.num_tokens is None:
        if look.ids:
            raise click.UsageError("--ids: the rows of this dataset hold no tokens; remove --ids")
        columns = json.dumps(shown.columns, default=str, ensure_ascii=False)
        yield f"row {shown.row}: {printable(_cut(columns, look))}"
        return
    kept = "".join(f", {name}={value!r}" for name, value in shown.columns.items())
    learned = ""
    if shown.learned is not None:
        learned = f", {sum(stop - start for start, stop in shown.learned)} learned"
    yield f"row {shown.row}: {shown.num_tokens} tokens{learned}, {_documents(shown.documents)}{printable(kept)}"
    text = shown.text if shown.marked is None else shown.marked
    if look.tinted and shown.pieces:
        yield from _tint(shown, look)
    elif text is not None:
        yield from (f"  {line}" for line in printable(_cut(text, look)).split("\n"))
    if (look.ids and not look.tinted) or text is None:
        yield f"  {shown.ids}"


def _tint(shown: ShownRow, look: _Look) -> Iterator[str]:
    """Yield the lines of a row with each token tinted; with ids, each token is followed by its own."""
    from lance_prep.report import TERMINAL_MATCH, TERMINAL_TEXT, TERMINAL_TINTS

    assert shown.text is not None
    begin, stop = _window(shown.text, look)
    found = shown.text.find(look.search) if look.search else -1
    spans = shown.learned or []
    line, at = "  " + "…" * (begin > 0), 0
    for i, piece in enumerate(shown.pieces):
        first, at = at, at + len(piece.text)
        if at <= begin or first >= stop:
            continue
        tint = TERMINAL_TINTS[i % len(TERMINAL_TINTS)]
        if look.search and found >= 0 and first < found + len(look.search) and at > found:
            tint = TERMINAL_MATCH
        learned = any(piece.start < last and piece.stop > start for start, last in spans)
        parts = printable(piece.text).split("\n")
        for part_number, part in enumerate(parts):
            if part_number:
                yield line
                line = "  "
            shape = part or ("" if part_number or len(parts) == 1 else "↵")
            line += click.style(shape, fg=TERMINAL_TEXT, bg=tint, underline=learned or None) if shape else ""
        if look.ids:
            line += click.style(",".join(map(str, shown.ids[piece.start : piece.stop])), dim=True) + " "
    yield line + "…" * (stop < len(shown.text))


def _documents(documents: tuple[ShownDocument, ...]) -> str:
    first = documents[0]
    said = f"shard {first.shard} row {first.source_row}"
    return said if len(documents) == 1 else f"{len(documents)} documents, the first from {said}"


def _window(text: str, look: _Look) -> tuple[int, int]:
    """Return the part of a text that is shown: its beginning, or what is around the text that is searched."""
    found = text.find(look.search) if look.search else -1
    begin = max(0, min(found - look.width // 4, len(text) - look.width)) if found > look.width // 2 else 0
    return begin, begin + look.width


def _cut(text: str, look: _Look) -> str:
    begin, stop = _window(text, look)
    before, after = "…" * (begin > 0), "…" * (stop < len(text))
    return f"{before}{text[begin + len(before) : stop - len(after)]}{after}"
