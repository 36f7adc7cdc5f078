"""`lance-prep info`: print what a dataset is and how it was built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_options, json_option, print_json, printable, table
from lance_prep.errors import counted

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion


@command(
    "info sample.lance",
    "info sample.lance --recipe",
    about="The recipe that --recipe prints builds the same rows: it names the commits that the source and the "
    "tokenizer were resolved to.",
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


def _info_text(opened: DatasetVersion) -> str:
    from lance_prep.cli.summary import ledger_rows, length_rows, recipe_rows, rejected_warning

    data = opened.metadata
    fields = opened.dataset.schema
    columns = (f"{field.name} {_short(str(field.type))}{'?' if field.nullable else ''}" for field in fields)
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


def _short(kind: str) -> str:
    """Return `list<uint16>[512]` for the type `fixed_size_list<item: uint16>[512]`, so that `info` fits a screen."""
    return re.sub(r"(fixed_size_)?list<(item|element): ", "list<", kind)


def _source_rows(opened: DatasetVersion) -> list[tuple[str, str]]:
    source, tokenizer, files = opened.metadata.source, opened.metadata.tokenizer, opened.metadata.files
    named = "".join(
        f", {name} {value}" for name, value in (("config", source.config), ("split", source.split)) if value
    )
    kind = "partition" if source.asked == "DataFrame" else "file"
    rows = [("source", f"{source.asked}{named}, {counted(files, kind)}")]
    if source.commit:
        rows.append(("commit", f"{source.commit} (asked for: {source.revision})"))
    if tokenizer:
        commit = f" at {tokenizer.commit}" if tokenizer.commit else ""
        known = (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id))
        ids = "".join(f"{name} {token}, " for name, token in known if token is not None)
        digest = f"sha256 {tokenizer.sha256[:12]}"
        size = f"{tokenizer.vocab_size:,} ids"
        if tokenizer.is_function:
            size = f"a Python function, ids below {tokenizer.vocab_size:,}"
        elif not tokenizer.decodes:
            size = f"the ids came without one, below {tokenizer.vocab_size:,}"
        rows.append(("tokenizer", f"{tokenizer.name}{commit}: {size}, {ids}{digest}"))
        if tokenizer.chat is not None:
            rows.append(("chat template", f"{tokenizer.chat.origin}, sha256 {tokenizer.chat.template[:16]}"))
    return rows
