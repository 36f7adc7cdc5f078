"""The collection recipe: categories with target shares, and named sources in each.

The models are frozen and refuse unknown fields. The JSON Schema for editors is made from them: field descriptions and
docstrings are what an editor shows.

A source is a `Recipe` with a few fields of its own, so whatever a single build can read, a collection can too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from lance_prep.recipe import Maximum, Recipe, SourceNames, TextUnit, make_recipe

#: Becomes part of file names.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
#: Ends of names that files beside a source's have, such as `<source>.rejected.jsonl` and `<source>.val.lance`.
_TAKEN = (".lance", ".part", ".plan", ".rejected", ".stats", ".val")


def _free(name: str) -> str:
    if name.lower().endswith(_TAKEN):
        raise ValueError(f"a name cannot end with {name[name.rindex('.') :]}, as files that lance-prep writes do")
    return name


Name = Annotated[str, Field(pattern=f"^{NAME}$"), AfterValidator(_free)]


_JINJA_WORDS = ("and", "else", "false", "False", "if", "in", "is", "none", "None", "not", "or", "true", "True")
#: Fields of a source that `Recipe` has too, and those that have another name there.
_SAME = (
    *("source", "config", "split", "revision", "filter", "text_column", "template"),
    *("text_unit", "delimiter", "max_tokens"),
)
_RENAMED = {"max_rows": "max_source_rows"}
#: Fields that have an effect only on sources without, or only on sources with `chat`.
OF_TEXTS = ("special_tokens", "add_special_tokens")
_OF_CHATS = ("chat_template",)


Limit = Annotated[
    Maximum, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}, {"type": "null"}]})
]


class CollectionSource(BaseModel):
    """One named source of a collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceNames = Field(description="Hub id owner/name, hf:// URL, or local files")
    config: str | None = Field(None, description="configuration (subset) of a Hub dataset")
    split: str | None = Field(None, description="split of a Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    filter: str | None = Field(None, description="SQL condition on the source's columns")
    text_column: str | None = Field(None, description="column with the text")
    template: str | None = Field(None, description="jinja2 template that makes the text of a record from its columns")
    chat: bool | None = Field(
        None,
        description="write the conversations in `messages` with the tokenizer's chat template, and record what the "
        "assistant wrote; false writes each turn as text; by default as the category says",
    )
    messages: str | None = Field(
        None,
        description="column with a conversation, written turn by turn; a turn has role and content, or from and value; "
        "with `chat`, also two columns (prompt,completion) or three (instruction,input,output)",
    )
    text_unit: TextUnit | None = Field(None, description="unit that is a record of a .txt or .md file")
    delimiter: str | None = Field(None, description="character between the fields of a CSV file")
    max_rows: Limit = Field(
        None, description="use only the first N records that are neither empty nor filtered, or all"
    )
    max_tokens: Limit = Field(None, description="stop after the record whose tokens reach this number")
    share: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = Field(
        None, description="target share within the category; by default in proportion to tokens"
    )
    license: str | None = Field(None, description="note on the license")
    gated: bool = Field(False, description="access has to be requested on the Hub")

    @field_validator("messages")
    @classmethod
    def _nameable(cls, column: str | None, info: ValidationInfo) -> str | None:
        """Refuse what `{{ column | turns }}` would read as something else, such as `my-messages`, a subtraction."""
        if info.data.get("chat"):
            return column
        names = column.split(".") if column is not None else []
        if not all(name.isidentifier() and name not in _JINJA_WORDS for name in names):
            raise ValueError("a template cannot name this column; rename it in the source")
        return column

    @model_validator(mode="after")
    def _one_text(self) -> CollectionSource:
        given = [name for name in ("text_column", "template", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.chat and self.messages is None:
            raise ValueError("chat needs messages, which names the column with conversations")
        return self

    def recipe(self, defaults: Mapping[str, Any], *, where: str = "the source", **overrides: Any) -> Recipe:
        """Return the recipe that builds this source by itself.

        Args:
            defaults: `CollectionRecipe.defaults`.
            where: the source's place, for messages.
            overrides: fields of `Recipe`, which take precedence over the collection's.

        Raises:
            RecipeError: the source and the defaults do not fit together.
            UsageError: an override is invalid.
        """
        fields = {name: getattr(self, name) for name in _SAME}
        fields |= {there: getattr(self, name) for name, there in _RENAMED.items()}
        if self.chat:
            fields["messages"] = self.messages
        elif self.messages is not None:
            fields["template"] = _turn_by_turn(self.messages)
        given = {name: value for name, value in fields.items() if value is not None}
        return make_recipe({**self.used(defaults), **given}, self.used(overrides), where)

    def used(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of fields for all sources that have an effect on this one, on text or on conversations."""
        return {name: value for name, value in fields.items() if name not in (OF_TEXTS if self.chat else _OF_CHATS)}


def _turn_by_turn(column: str) -> str:
    """Return the template that writes the turns of a conversation one after another."""
    return f"{{{{ {column} | turns }}}}"


class Category(BaseModel):
    """Sources that together get a share of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = Field(
        description="target share of the category; shares are normalised"
    )
    chat: bool = Field(False, description="`chat` of its sources, unless they say otherwise")
    sources: dict[Name, CollectionSource] = Field(min_length=1, description="sources by name")

    @model_validator(mode="before")
    @classmethod
    def _chat_of_sources(cls, fields: Any) -> Any:
        """Give the category's `chat` to the sources that do not say it."""
        if (
            not isinstance(fields, dict)
            or fields.get("chat") is not True
            or not isinstance(fields.get("sources"), dict)
        ):
            return fields
        sources = {
            name: {"chat": True, **each} if isinstance(each, dict) else each for name, each in fields["sources"].items()
        }
        return {**fields, "sources": sources}

    @model_validator(mode="after")
    def _all_or_none(self) -> Category:
        without = [name for name, source in self.sources.items() if source.share is None]
        if 0 < len(without) < len(self.sources):
            raise ValueError(f"give each source a share, or none: {', '.join(without)} would have none")
        return self


#: Fields of `Recipe` that `CollectionRecipe.defaults` may not have.
PER_SOURCE = frozenset({*CollectionSource.model_fields, *_RENAMED.values()})
#: Those of them that a build may still set for all sources: limits, as for a trial.
OVERRIDABLE = frozenset({"max_rows", "max_source_rows", "max_tokens"})


class CollectionRecipe(BaseModel):
    """Categories of sources with target shares, from which one dataset per source is built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="name of the collection")
    description: str | None = Field(None, description="what the collection is, in a sentence")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="recipe fields for all sources, such as tokenizer and block_size"
    )
    categories: dict[Name, Category] = Field(min_length=1, description="categories by name")

    @field_validator("defaults")
    @classmethod
    def _for_all_sources(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in PER_SOURCE:
                raise ValueError(f"{name} differs between sources; set it in each source")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> CollectionRecipe:
        # File systems that ignore case would put two sources into one file.
        times = Counter(name.lower() for category in self.categories.values() for name in category.sources)
        twice = [name for name, number in times.items() if number > 1]
        if twice:
            raise ValueError(f"source names must be unique in a collection: {', '.join(twice)}")
        if len({name.lower() for name in self.categories}) < len(self.categories):
            raise ValueError(f"category names must be unique: {', '.join(self.categories)}")
        if not sum(category.share for category in self.categories.values()) > 0:
            raise ValueError("every category has share 0")
        return self

    def shares(self) -> dict[str, float]:
        """Return the target share of each category; they sum to 1."""
        total = sum(category.share for category in self.categories.values())
        return {name: category.share / total for name, category in self.categories.items()}

    def notes(self) -> list[str]:
        """Return what a user should know before the collection is used, a sentence each: how shares are normalised."""
        notes = [_note("the categories", {name: category.share for name, category in self.categories.items()})]
        for name, category in self.categories.items():
            shares = {name: source.share for name, source in category.sources.items() if source.share is not None}
            notes.append(_note(f"the sources of {name}", shares) if shares else "")
        return [note for note in notes if note]

    def sources(self) -> list[tuple[str, str, CollectionSource]]:
        """Return category, name and source of each source, in the recipe's order."""
        return [
            (c, name, source) for c, category in self.categories.items() for name, source in category.sources.items()
        ]


def _note(of: str, shares: Mapping[str, float]) -> str:
    """Say how shares are normalised; nothing if they add up to 100, or are fractions that add up to 1."""
    total = sum(shares.values())
    if any(math.isclose(total, whole, rel_tol=1e-9) for whole in (1, 100)):
        return ""
    parts = ", ".join(f"{name} {share / total:.1%}" for name, share in shares.items())
    return f"The shares of {of} add up to {total:g}, not 100, and are normalised: {parts}."
