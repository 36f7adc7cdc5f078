"""The collection recipe: categories with target shares, and named sources in each.

A source is a `Recipe` with a few fields of its own, so whatever a single build can read, a collection can too.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lance_prep.recipe import Recipe

#: Becomes part of file names.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]


def _parse_limit(value: Any) -> Any:
    return None if value == "all" else value


Limit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_parse_limit)]


class CollectionSource(BaseModel):
    """One named source of a collection. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | tuple[str, ...] = Field(description="Hub id owner/name, hf:// URL, or local files")
    config: str | None = Field(None, description="configuration (subset) of a Hub dataset")
    split: str | None = Field(None, description="split of a Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    filter: str | None = Field(None, description="SQL condition on the source's columns")
    text_column: str | None = Field(None, description="column with the text")
    template: str | None = Field(None, description="jinja2 template that makes the text of a record from its columns")
    messages: str | None = Field(None, description="column with the turns of a conversation, written one after another")
    max_rows: Limit = Field(None, description="maximum number of source rows to use; all by default")
    max_tokens: Limit = Field(None, description="stop with the source row that reaches this number of tokens")
    share: Annotated[float, Field(gt=0)] | None = Field(
        None, description="target share within the category; by default in proportion to tokens"
    )
    license: str | None = Field(None, description="note on the license")
    gated: bool = Field(False, description="access has to be requested on the Hub")

    @model_validator(mode="after")
    def _one_text(self) -> CollectionSource:
        given = [name for name in ("text_column", "template", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        return self


class Category(BaseModel):
    """Sources that together get a share of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Annotated[float, Field(ge=0)] = Field(description="target share of the category; shares are normalised")
    sources: dict[Name, CollectionSource] = Field(min_length=1)


class CollectionRecipe(BaseModel):
    """What a collection consists of.

    Attributes:
        name: of the collection.
        defaults: fields of `Recipe` that apply to all sources, such as `tokenizer` and `block_size`.
        categories: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    description: str | None = None
    defaults: dict[str, Any] = Field(default_factory=dict)
    categories: dict[Name, Category] = Field(min_length=1)

    @field_validator("defaults")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(value.keys() - (Recipe.model_fields.keys() - CollectionSource.model_fields.keys()))
        if unknown:
            raise ValueError(f"no such field for all sources: {', '.join(unknown)}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> CollectionRecipe:
        names = [name for category in self.categories.values() for name in category.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names must be unique in a collection: {', '.join(twice)}")
        if not sum(category.share for category in self.categories.values()) > 0:
            raise ValueError("every category has share 0")
        return self

    def shares(self) -> dict[str, float]:
        """Return the target share of each category; they sum to 1."""
        total = sum(category.share for category in self.categories.values())
        return {name: category.share / total for name, category in self.categories.items()}

    def sources(self) -> list[tuple[str, str, CollectionSource]]:
        """Return category, name and source of each source, in the recipe's order."""
        return [
            (c, name, source) for c, category in self.categories.items() for name, source in category.sources.items()
        ]
