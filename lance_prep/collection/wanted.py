"""A source of a collection as it is to be downloaded: the recipe that reads it, and the fields that decide its text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.collection.model import CollectionRecipe, CollectionSource
from lance_prep.errors import UsageError
from lance_prep.layouts import PATH_FIELDS
from lance_prep.model import Plan
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe
from lance_prep.transport import absolute_uri, is_local

# A shard is what a resumed download reads again.
SHARD_BYTES = 16 << 20

# Fields of a source that do not decide its text.
_NOTES = {"share", "license", "gated"}
_COUNTING = ("tokenizer", "tokenizer_revision", "special_tokens", "add_special_tokens", "eos_token", "layout")


@dataclass(frozen=True)
class Wanted:
    """A source as the collection recipe wants it.

    Attributes:
        category, name: in the collection.
        source: the recipe's entry.
        recipe: reads its text.
        built: builds it, with the collection's layout: that decides what counts as a token.
    """

    category: str
    name: str
    source: CollectionSource
    recipe: Recipe
    built: Recipe

    @property
    def path(self) -> str:
        """`<category>/<source>`: the path of its file in the folder, without the extension."""
        return f"{self.category}/{self.name}"

    @property
    def entry(self) -> dict[str, Any]:
        """The fields that decide the text, as plain JSON. Local paths are absolute."""
        own = self.source.model_dump(mode="json", exclude=_NOTES)
        names = _COUNTING if self.source.max_tokens else ()
        shared = self.built.model_dump(mode="json", include=set(names))
        fields = {name: value for name, value in {**own, **shared}.items() if value is not None}
        return {name: _absolute(value) if name in PATH_FIELDS else value for name, value in fields.items()}


def _absolute(source: str | list[str]) -> str | list[str]:
    """Return local paths as absolute ones, so that they mean the same wherever a command is run."""
    if isinstance(source, list):
        return [os.path.normpath(absolute_uri(each)) if is_local(each) else each for each in source]
    return os.path.normpath(absolute_uri(source)) if is_local(source) and Path(source).exists() else source


def select(recipe: CollectionRecipe, categories: Sequence[str]) -> list[Wanted]:
    """Return the sources of some categories, or of all, in the recipe's order.

    Raises:
        UsageError: an unknown category, or a source of conversations for a chat template.
    """
    for category in categories:
        if category not in recipe.categories:
            raise UsageError(
                f"unknown category {category!r}", f"{recipe.name} has the categories {', '.join(recipe.categories)}"
            )
    sources = [each for each in recipe.sources() if not categories or each[0] in categories]
    chats = [f"{category}.{name}" for category, name, source in sources if source.chat]
    if chats:
        raise UsageError(
            f"{', '.join(chats)} of {recipe.name} cannot be downloaded as text: a chat template makes the text",
            "build the collection from its recipe, or download other categories",
        )
    return [_wanted(recipe, category, name, source) for category, name, source in sources]


def _wanted(recipe: CollectionRecipe, category: str, name: str, source: CollectionSource) -> Wanted:
    where = f"{category}.{name}"
    built = source.recipe(recipe.defaults, where=where)
    small = min(built.shard_size or SHARD_BYTES, SHARD_BYTES)
    # Limits are counted here. A build's `max_rows` would be one of output rows.
    unlimited: dict[str, Any] = {"max_rows": None, "max_source_rows": None, "max_tokens": None}
    reads = source.recipe(recipe.defaults, where=where, layout="documents", shard_size=small, **unlimited)
    return Wanted(category, name, source, reads, built)


def make_text_plan(wanted: Wanted) -> Plan:
    """Return the plan that reads a source's text. Its shards are small."""
    return make_plan(wanted.recipe)
