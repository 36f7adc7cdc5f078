"""`lance-prep show`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_options, json_option, printable, printable_json

if TYPE_CHECKING:
    from lance_prep.dataset import ShownDocument, ShownRow

EXAMPLES = """\b
Examples:
  lance-prep show sample.lance
  lance-prep show sample.lance --row 17 --row -1 --ids
  lance-prep show sample.lance --limit 3 --json | jq .text

\b
Text is printed as it is, indented by two spaces; control characters are escaped.
"""

LIMIT, WIDTH = 5, 500


@command(EXAMPLES)
@dataset_options
@click.option("--limit", type=click.IntRange(min=0), help=f"Number of rows to show.  [default: {LIMIT}]")
@click.option(
    "--row", "rows", type=int, multiple=True, metavar="N", help="Show row N (-1 is the last); may be repeated."
)
@click.option("--ids", is_flag=True, help="Show the token ids too.")
@click.option("--width", type=click.IntRange(min=1), help=f"Characters of a text to show.  [default: {WIDTH}]")
@json_option
def show(
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    limit: int | None,
    rows: tuple[int, ...],
    ids: bool,
    width: int | None,
    as_json: bool,
) -> None:
    if rows and limit is not None:
        raise click.UsageError("--limit cannot be combined with --row, which names the rows to show")
    if as_json and (ids or width is not None):
        raise click.UsageError("--json always prints the ids and the whole text: remove --ids and --width")
    from lance_prep.dataset import open_version, show_rows

    opened = open_version(uri, version, storage_options)
    first = min(LIMIT if limit is None else limit, opened.dataset.count_rows())
    for shown in show_rows(opened, rows or range(first)):
        if as_json:
            click.echo(printable_json(json.dumps(asdict(shown), default=str, ensure_ascii=False)))
        else:
            click.echo(_text(shown, ids, width or WIDTH))


def _text(shown: ShownRow, ids: bool, width: int) -> str:
    if shown.text is None:
        if ids:
            raise click.UsageError("--ids: the rows of this dataset hold no tokens; remove --ids")
        columns = json.dumps(shown.columns, default=str, ensure_ascii=False)
        return f"row {shown.row}: {printable(_cut(columns, width))}"
    kept = "".join(f", {name}={value!r}" for name, value in shown.columns.items())
    lines = [f"row {shown.row}: {shown.num_tokens} tokens, {_documents(shown.documents)}{printable(kept)}"]
    lines += [f"  {line}" for line in printable(_cut(shown.text, width)).split("\n")]
    if ids:
        lines.append(f"  {shown.ids}")
    return "\n".join(lines)


def _documents(documents: tuple[ShownDocument, ...]) -> str:
    first = documents[0]
    said = f"shard {first.shard} row {first.source_row}"
    return said if len(documents) == 1 else f"{len(documents)} documents, the first from {said}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
