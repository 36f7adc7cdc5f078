"""`make_plan`: a recipe made concrete."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import BadFile, UsageError, translating, without_credentials
from lance_prep.formats import (
    TOPICS,
    check_one_family,
    find_registered,
    format_named,
    plain_type,
    registered,
    topics_file,
    without_extensions,
)
from lance_prep.hub_path import HubPath, hub_url_of, parse_hub_url
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
from lance_prep.recipe import Recipe, Source, source_names
from lance_prep.transport import Transport, is_http


def make_plan(recipe: Recipe, transport: Transport | None = None) -> Plan:
    """Resolve a recipe's source to pinned files, its columns to names, and cut the files into shards.

    Reads metadata only, and the first MiB of files without metadata. A local path takes precedence over a Hub id of the
    same name.

    Args:
        transport: how to reach the source; by default, with the credentials of the environment.

    Raises:
        SourceError: the source cannot be found or read; which of its subclasses says why.
        UsageError: options that contradict the source, or an invalid filter or template.
    """
    with translating(recipe.asked):
        return _make_plan(recipe, transport or Transport())


def restrict(plan: Plan, files: tuple[SourceFile, ...], transport: Transport, *, first_shard: int) -> Plan:
    """Return the plan for some of its files only, its shards numbered from `first_shard`: what an append reads."""
    shards = cut_shards(files, plan.recipe, plan.read_schema, transport)
    numbered = tuple(replace(shard, index=first_shard + shard.index) for shard in shards)
    return replace(plan, files=files, shards=numbered)


def _make_plan(recipe: Recipe, transport: Transport) -> Plan:
    found = _find(recipe, transport)
    recipe = recipe.model_copy(update={"split": found.source.split, **_settled(recipe, found.files, transport)})
    filled = [file for file in found.files if file.size or not find_registered(file.format).is_file]
    if not filled:
        raise BadFile(f"{recipe.asked}: empty", "name a source with something in it")
    with translating(f"reading {filled[0].url}"):
        peeked = format_named(filled[0].format).peek(filled, recipe, transport)
    columns = resolve_columns(recipe, pa.schema([pa.field(f.name, plain_type(f.type)) for f in peeked]))
    shards = cut_shards(found.files, columns.recipe, columns.read, transport)
    return Plan(columns.recipe, found.source, found.files, shards, columns.out, columns.read, found.skipped)


def _settled(recipe: Recipe, files: Sequence[SourceFile], transport: Transport) -> dict[str, Any]:
    """Return the recipe's fields that only some formats read, filled in from the files.

    Raises:
        UsageError: such a field is given, and no file has a format that reads it.
    """
    settled: dict[str, Any] = {}
    for name in dict.fromkeys(file.format for file in files):
        settled |= format_named(name).settle([file for file in files if file.format == name], recipe, transport)
    for each in registered():
        for option in each.options:
            if option not in settled and (given := getattr(recipe, option)) is not None:
                said = f"{option} {given!r} is given, and {recipe.asked} has no {each.called}"
                raise UsageError(said, f"remove {option}")
    return settled


def _find(recipe: Recipe, transport: Transport) -> Found:
    if isinstance(recipe.source, str):
        return _find_one(recipe, recipe.source, transport)
    return _find_several(recipe, recipe.source, transport)


def _find_several(recipe: Recipe, names: tuple[str, ...], transport: Transport) -> Found:
    """Return files, folders and globs, one after the other, as one source."""
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
        return Found(PinnedSource(asked=source), (topics_file(),))
    if source.startswith("hf://"):
        from lance_prep.plan.hub import find_hub

        return find_hub(recipe, parse_hub_url(source), transport)
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

        return find_hub(recipe, HubPath(source, "", ""), transport)
    raise not_found(source)


def default_output(source: Source) -> str:
    """Return the path of the dataset if no output is given: the source's name with `.lance`, in the current folder.

    Several sources are named by the folder that they share.
    """
    names = tuple(without_credentials(name) for name in source_names(source))
    text = names[0] if len(names) == 1 else f"{_shared_folder(names)}/*".lstrip("/")
    stem = re.split(r"[@*?\[]", text.rstrip("/"))[0].rstrip("/").rpartition("/")[2]
    if stem in ("", ".", ".."):
        stem = Path(text).resolve().name if Path(text).is_dir() else "dataset"
    if stem.endswith(".lance"):
        stem = f"{stem.removesuffix('.lance')}-tokens"  # beside its source, not over it
    stem = without_extensions(stem, ".yaml", ".yml", ".rejected")
    return f"{stem.rpartition(':')[2] or 'dataset'}.lance"


def _shared_folder(names: tuple[str, ...]) -> str:
    try:
        return posixpath.commonpath([posixpath.dirname(name) for name in names])
    except ValueError:  # relative and absolute paths have none
        return ""
