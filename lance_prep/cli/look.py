"""`lance-prep info`: describe a dataset or a collection, and how it was built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import columns, command, dataset_options, json_option, print_json, printable, table
from lance_prep.errors import counted

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion, Parts

#: Sources of a collection that are listed, so that its categories fit on the same screen.
_MOST_SOURCES = 8


@command(
    "info sample.lance",
    "info sample.lance --recipe",
    about="The recipe that --recipe prints builds the same rows: it names the commits that the source and the "
    "tokenizer were resolved to. DATASET can be a collection, which is a folder with a manifest.json.",
)
@dataset_options
@click.option("--recipe", "as_recipe", is_flag=True, help="Print the recipe as YAML, with the source pinned.")
@json_option
def info(uri: str, version: str | None, storage_options: dict[str, str] | None, as_recipe: bool, as_json: bool) -> None:
    if as_recipe and as_json:
        raise click.UsageError("--recipe cannot be combined with --json, which holds the recipe too: remove one")
    from lance_prep.dataset import open_parts, pinned_recipe

    parts = open_parts(uri, version, storage_options)
    if parts.manifest is not None:
        if as_recipe:
            raise click.UsageError(f"--recipe has no effect: {uri} is a collection; name one of its datasets")
        if as_json:
            click.echo(parts.manifest.text(), nl=False)
        else:
            click.echo(printable(_collection_text(uri, parts)))
        return
    opened = parts.opened[""]
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


def _collection_text(uri: str, parts: Parts) -> str:
    """Describe a collection: its sources with the most tokens, and the share of each category beside its target."""
    manifest = parts.manifest
    assert manifest is not None
    splits = sorted(manifest.splits.items(), key=lambda each: (-each[1].tokens, each[0]))
    tokens = sum(split.tokens for _, split in splits)
    about = [
        ("collection", f"{uri}, of {manifest.input_path}"),
        ("tokenizer", str(manifest.tokenizer)),
        ("rows", f"{sum(split.sequences for _, split in splits):,}"),
        ("tokens", f"{tokens:,}"),
    ]
    if manifest.validation:
        held_out = sum(split.tokens for split in manifest.validation.values())
        about.append(("validation", f"{counted(len(manifest.validation), 'set')}, {held_out:,} tokens"))
    sources = [["source", "category", "rows", "tokens", "share"]]
    for name, split in splits[:_MOST_SOURCES]:
        share = f"{split.tokens / max(tokens, 1):.1%}"
        sources.append([name, split.category or "", f"{split.sequences:,}", f"{split.tokens:,}", share])
    found = [table(about), "", columns(sources, numbers=2)]
    if (more := len(splits) - _MOST_SOURCES) > 0:
        found.append(f"and {more:,} more; --json lists all")
    if manifest.categories:
        shares = [["category", "tokens", "share", "target"]]
        for name, target in manifest.categories.items():
            own = sum(split.tokens for _, split in splits if split.category == name)
            shares.append([name, f"{own:,}", f"{own / max(tokens, 1):.1%}", f"{target:.1%}"])
        found += ["", columns(shares, numbers=1)]
    found += [f"warning: {name}: {why}" for name, why in parts.left_out.items() if name in manifest.splits]
    return "\n".join(found)


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
        digest = f"sha256 {tokenizer.sha256[:16]}"
        size = f"{tokenizer.vocab_size:,} ids"
        if tokenizer.is_function:
            size = f"a Python function, ids below {tokenizer.vocab_size:,}"
        elif not tokenizer.decodes:
            size = f"the ids came without one, below {tokenizer.vocab_size:,}"
        rows.append(("tokenizer", f"{tokenizer.name}{commit}: {size}, {ids}{digest}"))
        if tokenizer.chat is not None:
            rows.append(("chat template", f"{tokenizer.chat.origin}, sha256 {tokenizer.chat.template[:16]}"))
    return rows
