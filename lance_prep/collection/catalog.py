"""The built-in recipes, single datasets and collections alike, and the JSON Schema of a collection recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BeforeValidator

from lance_prep.collection.load import builtin_collection, load_collection
from lance_prep.collection.model import PER_SOURCE, CollectionRecipe
from lance_prep.errors import RecipeError, did_you_mean
from lance_prep.recipe import Recipe, builtin_collections, builtin_recipe, builtin_recipes

#: Name of the schema file, in this package and beside the recipe of a user.
SCHEMA_FILE = "collection.schema.json"
_HINT = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
# Editors with YAML support complete and check this file if the schema is beside it:
#   lance-prep recipes --schema > {SCHEMA_FILE}

"""


@dataclass(frozen=True)
class CatalogEntry:
    """A built-in recipe.

    Attributes:
        kind: `dataset` for a single build, or `collection`.
        sources: number of sources.
        licenses: source -> note on its license.
        gated: sources for which access has to be requested on the Hub.
    """

    name: str
    kind: Literal["dataset", "collection"]
    description: str
    sources: int
    licenses: dict[str, str]
    gated: tuple[str, ...] = ()


def list_recipes() -> list[CatalogEntry]:
    """Return the built-in recipes: collections first, each kind sorted by name."""
    return [*map(_collection, builtin_collections()), *map(_dataset, builtin_recipes())]


def recipe_text(name: str) -> str:
    """Return the YAML of a built-in recipe, to copy and edit.

    Raises:
        RecipeError: unknown name; lists the names.
    """
    if name in builtin_collections():
        return _HINT + builtin_collection(name)
    if name in builtin_recipes():
        return builtin_recipe(name)
    names = [entry.name for entry in list_recipes()]
    advice = f"{did_you_mean(name, names)}built-in recipes: {', '.join(names)}"
    raise RecipeError(f"no built-in recipe is called {name!r}", advice)


def collection_schema() -> dict[str, Any]:
    """Return the JSON Schema of a collection recipe, for editors. It is of draft 7: many editors know no later one."""
    schema = CollectionRecipe.model_json_schema(ref_template="#/definitions/{model}")
    models = schema.pop("$defs")
    for model in (schema, *models.values()):
        _plain(model)
    schema["properties"]["defaults"] = {
        "type": "object",
        "description": schema["properties"]["defaults"]["description"],
        "additionalProperties": False,
        "properties": _default_fields(),
    }
    about = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "lance-prep collection recipe"}
    return {**about, **{name: value for name, value in schema.items() if name != "title"}, "definitions": models}


def _default_fields() -> dict[str, Any]:
    """Return the schemas of the recipe's fields that may be set for all sources."""
    schema = Recipe.model_json_schema()
    _plain(schema)
    fields = {name: field for name, field in schema["properties"].items() if name not in PER_SOURCE}
    for name, field in fields.items():
        # Such a field takes text as well, for example "128MiB". pydantic describes what the text becomes.
        takes_text = any(isinstance(each, BeforeValidator) for each in Recipe.model_fields[name].metadata)
        if takes_text and "anyOf" not in field:  # a number that is never null
            kept = ("title", "description", "default")
            number = {key: field.pop(key) for key in list(field) if key not in kept}
            field["anyOf"] = [number]
        if takes_text and {"type": "string"} not in field["anyOf"]:
            field["anyOf"].insert(0, {"type": "string"})
    return fields


def _plain(model: dict[str, Any]) -> None:
    """Remove titles, which repeat the names, and defaults of null. Refuse names that the model refuses."""
    for field in model["properties"].values():
        field.pop("title", None)
        if "patternProperties" in field:
            field["additionalProperties"] = False
        if field.get("default", ...) is None:
            del field["default"]


def _collection(name: str) -> CatalogEntry:
    recipe = load_collection(name)
    sources = {name: source for _, name, source in recipe.sources()}
    licenses = {name: source.license or "not stated" for name, source in sources.items()}
    gated = tuple(name for name, source in sources.items() if source.gated)
    return CatalogEntry(name, "collection", recipe.description or "", len(sources), licenses, gated)


def _dataset(name: str) -> CatalogEntry:
    """Return the entry of a single recipe, whose file says in comments what it is."""
    lines = builtin_recipe(name).splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    stated = [text.removeprefix("License: ") for text in comments if text.startswith("License: ")]
    description = " ".join(text for text in comments if not text.startswith("License: "))
    return CatalogEntry(name, "dataset", description, 1, {name: " ".join(stated) or "not stated"})
