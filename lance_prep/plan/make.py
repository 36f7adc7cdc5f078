"""`make_plan`: a recipe made concrete."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa

from lance_prep.errors import BadFile, UsageError, translating
from lance_prep.fetch import HubPath, hub_url_of, parse_hub_url
from lance_prep.formats.peek import find_delimiter, peek_schema
from lance_prep.formats.registry import check_one_family
from lance_prep.layouts import LAYOUTS
from lance_prep.model import PinnedSource, Plan, Skipped, SourceFile
from lance_prep.plan.columns import resolve_columns
from lance_prep.plan.cut import cut_shards
from lance_prep.plan.discover import (
    Found,
    check_no_hub_options,
    find_http,
    find_local,
    find_remote,
    looks_like_hub_id,
    not_found,
)
from lance_prep.recipe import Recipe, TextUnit
from lance_prep.transport import Transport, is_http

TOPICS = "pydoc:topics"
# A larger text file is more likely a dump of many documents than one, so the user has to say what its rows are.
FILE_ROW_BYTES = 64 << 20
TEXT_COMPRESSES = 4


def make_plan(recipe: Recipe, transport: Transport | None = None) -> Plan:
    """Resolve a recipe's source to pinned files, its columns to names, and cut the files into shards.

    Reads metadata and, of files that have none, the first MiB. A path that exists wins over a Hub id of that name.

    Args:
        transport: how to reach the source; by default, with the credentials of the environment.

    Raises:
        SourceError: the source cannot be found or read; which of its subclasses says why.
        UsageError: options that contradict the source, or a filter or template that is none.
    """
    with translating(recipe.asked):
        return _make_plan(recipe, transport or Transport())


def restrict(plan: Plan, files: tuple[SourceFile, ...], transport: Transport, *, first_shard: int) -> Plan:
    """The plan for some of its files alone, its shards numbered from `first_shard`: what an append reads."""
    recipe = plan.recipe
    shards = cut_shards(files, plan.read_schema, transport, recipe.shard_size, text_unit=recipe.text_unit)
    numbered = tuple(replace(shard, index=first_shard + shard.index) for shard in shards)
    return replace(plan, files=files, shards=numbered)


def _make_plan(recipe: Recipe, transport: Transport) -> Plan:
    found = _find(recipe, transport)
    schema = found.schema
    delimiter = _delimiter(recipe, found, transport)
    if schema is None:
        filled = [file for file in found.files if file.size]
        if not filled:
            raise BadFile(f"{recipe.asked}: empty", "name a source with something in it")
        schema = peek_schema(filled, transport, delimiter=delimiter or ",")
        if filled[0].format == "csv":  # whatever the first rows look like: a column that is asked for as text is text
            text = pa.field(recipe.text_column or "text", pa.string())
            schema = pa.schema([text if field.name == text.name else field for field in schema])
    columns = resolve_columns(recipe, schema)
    unit = _text_unit(recipe, found)
    settled = {"split": found.source.split, "text_unit": unit, "delimiter": delimiter}
    resolved = columns.recipe.model_copy(update=settled)
    shards = cut_shards(found.files, columns.read, transport, recipe.shard_size, text_unit=unit)
    return Plan(resolved, found.source, found.files, shards, columns.out, columns.read, found.skipped)


def _find(recipe: Recipe, transport: Transport) -> Found:
    if isinstance(recipe.source, str):
        return _find_one(recipe, recipe.source, transport)
    return _find_several(recipe, recipe.source, transport)


def _find_several(recipe: Recipe, names: tuple[str, ...], transport: Transport) -> Found:
    """Files, folders and globs, one after the other, as one source."""
    files: dict[str, SourceFile] = {}
    skipped: tuple[Skipped, ...] = ()
    for name in names:
        if name == TOPICS or name.startswith("hf://"):
            raise UsageError(f"{name} cannot be combined with other sources", "build it by itself")
        found = _find_one(recipe, name, transport)
        if found.source.repo is not None:
            raise UsageError(f"{name} is a Hub dataset and cannot be combined with other sources", "build it by itself")
        for file in found.files:
            if file.url in files:
                raise UsageError(f"{file.url} is named twice: by {name}, and before it", "name each file once")
            files[file.url] = file
        skipped += found.skipped
    check_one_family(list(files), recipe.asked)
    return Found(PinnedSource(asked=recipe.asked), tuple(files.values()), skipped=skipped)


def _find_one(recipe: Recipe, source: str, transport: Transport) -> Found:
    if source == TOPICS:
        check_no_hub_options(recipe)
        return _topics(source)
    if source.startswith("hf://"):
        from lance_prep.plan.hub import find_hub

        return find_hub(recipe, parse_hub_url(source))
    if is_http(source) and (on_hub := hub_url_of(source)) is not None:
        return _find_one(recipe, on_hub, transport)
    if "://" in source:
        check_no_hub_options(recipe)
        return find_http(source, transport) if is_http(source) else find_remote(source, transport)
    found = find_local(source)
    if found is not None:
        check_no_hub_options(recipe)
        return found
    if looks_like_hub_id(source):
        from lance_prep.plan.hub import find_hub

        return find_hub(recipe, HubPath(source, "", ""))
    raise not_found(source)


def _delimiter(recipe: Recipe, found: Found, transport: Transport) -> str | None:
    """Return the delimiter of the source's CSV files, found in the first that is not empty; None without CSV files.

    Raises:
        UsageError: it is given for a source without CSV files.
    """
    first = next((file for file in found.files if file.format == "csv" and file.size), None)
    if first is not None:
        return recipe.delimiter or find_delimiter(first, transport)
    if recipe.delimiter is not None:
        said = f"delimiter {recipe.delimiter!r} is given, and {recipe.asked} has no CSV files"
        raise UsageError(said, "remove delimiter")
    return None


def _text_unit(recipe: Recipe, found: Found) -> TextUnit | None:
    """Return what a row of a text file is; None if the source has no text files.

    Raises:
        UsageError: the unit is given for a source without text files, or not given for a file too large to be a row.
    """
    texts = [file for file in found.files if file.format == "text"]
    if recipe.text_unit is not None:
        if not texts:
            said = f"text_unit {recipe.text_unit!r} is given, and {recipe.asked} has no text files (.txt, .md)"
            raise UsageError(said, "remove text_unit")
        return recipe.text_unit
    if not texts:
        return None
    if LAYOUTS[recipe.layout].by_line:
        return "line"
    for file in texts:
        most = FILE_ROW_BYTES // (TEXT_COMPRESSES if file.compression else 1)
        if file.size > most:
            said = f"{file.url} has {file.size >> 20:,} MiB, which is more than a row is by default ({most >> 20} MiB)"
            raise UsageError(said, "choose text_unit: file (one row), paragraph (split at blank lines) or line")
    return "file"


def _topics(source: str) -> Found:
    from pydoc_data.topics import topics

    text = "\0".join(f"{key}\0{topics[key]}" for key in sorted(topics)).encode()
    file = SourceFile(source, "topics", len(text), hashlib.sha256(text).hexdigest())
    return Found(PinnedSource(asked=source), (file,))
