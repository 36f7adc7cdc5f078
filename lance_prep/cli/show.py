"""`lance-prep show`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.options import dataset_options, json_option

if TYPE_CHECKING:
    from lance_prep.dataset import ShownDocument

EXAMPLES = """\b
Examples:
  lance-prep show sample.lance
  lance-prep show sample.lance --row 17 --row -1 --ids
  lance-prep show sample.lance --rows 3 --json | jq .text
"""


@click.command("show", help="What a dataset's rows say, decoded.", epilog=EXAMPLES)
@dataset_options
@click.option(
    "--rows", "first", type=click.IntRange(min=0), default=5, show_default=True, help="Show the first so many."
)
@click.option("--row", "rows", type=int, multiple=True, help="Show this row; may be repeated, negative from the end.")
@click.option("--ids", is_flag=True, help="Show the token ids too.")
@click.option(
    "--width", type=click.IntRange(min=1), default=500, show_default=True, help="Cut a text after so many characters."
)
@json_option
def command(
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    first: int,
    rows: tuple[int, ...],
    ids: bool,
    width: int,
    as_json: bool,
) -> None:
    from lance_prep.dataset import open_ours, show_rows

    opened = open_ours(uri, version, storage_options)
    for shown in show_rows(opened, rows or range(min(first, opened.dataset.count_rows()))):
        if as_json:
            click.echo(json.dumps(asdict(shown), default=str, ensure_ascii=False))
            continue
        if shown.text is None:
            click.echo(f"row {shown.row}: {_cut(json.dumps(shown.columns, default=str, ensure_ascii=False), width)}")
            continue
        kept = "".join(f", {name}={value!r}" for name, value in shown.columns.items())
        click.echo(f"row {shown.row}: {shown.num_tokens} tokens, {_documents(shown.documents)}{kept}")
        click.echo(f"  {_cut(shown.text, width)!r}")
        if ids:
            click.echo(f"  {shown.ids}")


def _documents(documents: tuple[ShownDocument, ...]) -> str:
    first = documents[0]
    said = f"shard {first.shard} row {first.source_row}"
    return said if len(documents) == 1 else f"{len(documents)} documents, the first from {said}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
