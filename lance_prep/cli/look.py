"""`lance-prep info` and `show`: print what a dataset is, and its rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_options, json_option, print_json, printable, printable_json, table
from lance_prep.errors import counted

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion, ShownDocument, ShownRow

#: Defaults of `show`: rows, and characters of a text.
LIMIT, WIDTH = 5, 500


@command(
    "info sample.lance",
    "info sample.lance --recipe",
    about="A build of the recipe that --recipe prints makes the same rows: the recipe names the commits that the "
    "source and the tokenizer were resolved to.",
)
@dataset_options
@click.option("--recipe", "as_recipe", is_flag=True, help="Print the recipe as YAML, with the source pinned.")
@json_option
def info(uri: str, version: str | None, storage_options: dict[str, str] | None, as_recipe: bool, as_json: bool) -> None:
    if as_recipe and as_json:
        raise click.UsageError("--recipe cannot be combined with --json, which holds the recipe too: remove one")
    from lance_prep.dataset import open_version, pinned_recipe

    opened = open_version(uri, version, storage_options)
    if as_recipe:
        import yaml

        click.echo(yaml.safe_dump(pinned_recipe(opened), sort_keys=False, allow_unicode=True), nl=False)
    elif as_json:
        print_json({"uri": opened.uri, "version": opened.number, **opened.metadata.as_json()})
    else:
        click.echo(printable(_info_text(opened)))


@command(
    "show sample.lance --limit 3",
    "show sample.lance --row 17 --row -1 --ids",
    about="Text is printed as it is, indented by two spaces; control characters are escaped. Of a conversation, what "
    "is learned is between ⟦ and ⟧.",
)
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
            click.echo(_row_text(shown, ids, width or WIDTH))


def _info_text(opened: DatasetVersion) -> str:
    from lance_prep.cli.summary import ledger_rows, length_rows, recipe_rows, rejected_warning

    data = opened.metadata
    columns = (f"{field.name} {field.type}{'?' if field.nullable else ''}" for field in opened.dataset.schema)
    rows = [
        ("dataset", opened.uri),
        ("version", f"{opened.number} of {opened.dataset.latest_version}, {data.build.how} at {data.build.created}"),
        ("rows", f"{data.rows:,}"),
        ("tokens", f"{data.tokens:,}"),
        ("columns", ", ".join(columns)),
        *_source_rows(opened),
        *recipe_rows(data.recipe),
        *length_rows(data.lengths, data.layout, data.ledger),
        *ledger_rows(data.ledger, data.layout),
        ("content hash", data.content_hash),
        ("made with", ", ".join(f"{name} {version}" for name, version in data.versions.items())),
    ]
    return "\n".join([table(rows), *rejected_warning(data.ledger)])


def _source_rows(opened: DatasetVersion) -> list[tuple[str, str]]:
    source, tokenizer, files = opened.metadata.source, opened.metadata.tokenizer, opened.metadata.files
    named = "".join(
        f", {name} {value}" for name, value in (("config", source.config), ("split", source.split)) if value
    )
    rows = [("source", f"{source.asked}{named}, {counted(files, 'file')}")]
    if source.commit:
        rows.append(("commit", f"{source.commit} (asked for: {source.revision})"))
    if tokenizer:
        commit = f" at {tokenizer.commit}" if tokenizer.commit else ""
        ids = f"bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, pad {tokenizer.pad_id}"
        digest = f"sha256 {tokenizer.sha256[:16]}"
        size = f"{tokenizer.vocab_size:,} ids"
        if tokenizer.is_function:
            size = f"a Python function, ids below {tokenizer.vocab_size:,}"
        elif not tokenizer.decodes:
            size = f"the ids came without one, below {tokenizer.vocab_size:,}"
        rows.append(("tokenizer", f"{tokenizer.name}{commit}: {size}, {ids}, {digest}"))
        if tokenizer.chat is not None:
            rows.append(("chat template", f"{tokenizer.chat.origin}, sha256 {tokenizer.chat.template[:16]}"))
    return rows


def _row_text(shown: ShownRow, ids: bool, width: int) -> str:
    if shown.num_tokens is None:
        if ids:
            raise click.UsageError("--ids: the rows of this dataset hold no tokens; remove --ids")
        columns = json.dumps(shown.columns, default=str, ensure_ascii=False)
        return f"row {shown.row}: {printable(_cut(columns, width))}"
    kept = "".join(f", {name}={value!r}" for name, value in shown.columns.items())
    learned = ""
    if shown.learned is not None:
        learned = f", {sum(stop - start for start, stop in shown.learned)} learned"
    lines = [f"row {shown.row}: {shown.num_tokens} tokens{learned}, {_documents(shown.documents)}{printable(kept)}"]
    text = shown.text if shown.marked is None else shown.marked
    if text is not None:
        lines += [f"  {line}" for line in printable(_cut(text, width)).split("\n")]
    if ids or text is None:
        lines.append(f"  {shown.ids}")
    return "\n".join(lines)


def _documents(documents: tuple[ShownDocument, ...]) -> str:
    first = documents[0]
    said = f"shard {first.shard} row {first.source_row}"
    return said if len(documents) == 1 else f"{len(documents)} documents, the first from {said}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
