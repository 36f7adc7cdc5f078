"""`lance-prep info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_options, json_option, print_json, printable, table

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion


@command()
@dataset_options
@json_option
def info(uri: str, version: str | None, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.dataset import open_version

    opened = open_version(uri, version, storage_options)
    if as_json:
        print_json({"uri": opened.uri, "version": opened.number, **opened.metadata.as_json()})
    else:
        click.echo(printable(_text(opened)))


def _text(opened: DatasetVersion) -> str:
    from lance_prep.cli.summary import ledger_rows

    data, ds = opened.metadata, opened.dataset
    source, tokenizer, recipe = data.source, data.tokenizer, data.recipe
    pinned = f" at {source.commit} (asked: {source.revision})" if source.commit else ""
    layout = data.layout + (f", {data.block_size} tokens, {recipe['packing']}" if data.block_size else "")
    rows = [
        ("dataset", opened.uri),
        ("version", f"{opened.number} of {ds.latest_version}, built {data.build.created}"),
        ("rows", f"{data.rows:,}"),
        ("tokens", f"{data.tokens:,}"),
        ("layout", layout + (f", {data.dtype}" if data.dtype else "")),
        (
            "order",
            f"shuffled in batches of {recipe['shuffle_batch_size']:,}, seed {data.seed}"
            if recipe["shuffle"]
            else "as in the source",
        ),
        ("source", f"{source.asked}{pinned}"),
        *[(name, value) for name, value in (("config", source.config), ("split", source.split)) if value],
        ("files", f"{data.files:,}"),
    ]
    if tokenizer:
        commit = f" at {tokenizer.commit}" if tokenizer.commit else ""
        rows.append(
            (
                "tokenizer",
                f"{tokenizer.name}{commit}, {tokenizer.vocab_size:,} ids, sha256 {tokenizer.sha256[:16]}",
            )
        )
        rows.append(("special ids", f"bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, pad {tokenizer.pad_id}"))
    rows.append(("content hash", data.content_hash))
    rows += ledger_rows(data.ledger, data.layout)
    rows.append(("made with", ", ".join(f"{name} {version}" for name, version in data.versions.items())))
    columns = "\n".join(f"  {field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in ds.schema)
    return f"{table(rows)}\ncolumns\n{columns}"
