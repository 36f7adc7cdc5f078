"""Turn a built-in name, a YAML file or a mapping into a `CollectionRecipe`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lance_prep.collection.model import Category, CollectionRecipe, CollectionSource
from lance_prep.errors import LancePrepError, RecipeError, did_you_mean, no_such_field
from lance_prep.layouts import PATH_FIELDS
from lance_prep.recipe import builtin_collections, builtin_recipes, make_recipe, resolve_beside

#: What names a collection: a built-in name, a recipe file, its fields, or the recipe itself.
Collection = str | Path | Mapping[str, Any] | CollectionRecipe

#: Length of the path of a source's field. What pydantic adds to it is a member of a union.
_DEEPEST = 5
_SUFFIXES = (".yaml", ".yml")


def is_collection(source: object) -> bool:
    """Return True for a built-in collection, a recipe file with `categories`, a mapping with them, or the recipe.

    An invalid file is not a collection here. Loading it reports the error.
    """
    if isinstance(source, CollectionRecipe):
        return True
    if isinstance(source, Mapping):
        return "categories" in source
    if not isinstance(source, str | Path):
        return False
    if str(source) in builtin_collections():
        return True
    path = Path(source)
    if path.suffix not in _SUFFIXES or not path.is_file():
        return False
    from lance_prep.recipe import read_yaml  # imports yaml, which `--help` does not need

    try:
        return "categories" in read_yaml(path)
    except LancePrepError:
        return False


def load_collection(source: Collection) -> CollectionRecipe:
    """Return the collection recipe that `source` names.

    Relative paths in a recipe file are resolved against the file's folder.

    Raises:
        RecipeError: unknown name, invalid YAML, or a field is invalid.
    """
    if isinstance(source, CollectionRecipe):
        return source
    if isinstance(source, Mapping):
        return _validated(source, "the collection")
    from lance_prep.recipe import parse_yaml, read_yaml

    if str(source) in builtin_collections():
        return _validated(parse_yaml(builtin_collection(str(source)), str(source)), str(source))
    path = Path(source)
    if path.suffix not in _SUFFIXES:
        raise _unknown(str(source))
    if not path.is_file():
        raise RecipeError(f"no such recipe file: {path}", _built_in())
    return _validated(_resolved(read_yaml(path), path), str(path))


def builtin_collection(name: str) -> str:
    """Return the YAML of a built-in collection."""
    return str((resources.files("lance_prep.collection") / "builtin" / f"{name}.yaml").read_text(encoding="utf-8"))


def _built_in() -> str:
    return f"built-in collections: {', '.join(builtin_collections())}"


def _unknown(name: str) -> RecipeError:
    if name in builtin_recipes():
        said = f"{name} is a recipe for a single dataset, not a collection"
        return RecipeError(said, f"run `lance-prep build {name}`, or name a collection; {_built_in()}")
    hint = did_you_mean(name, builtin_collections())
    return RecipeError(f"no such collection: {name}", f"{hint}{_built_in()}; or a .yaml file with categories")


def _resolved(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields with local paths resolved against the folder of the recipe file.

    What is not shaped like a collection is left for the validation.
    """

    def inside(value: Any, *names: str) -> Any:
        if not isinstance(value, dict):
            return value
        if not names:
            return {k: resolve_beside(path, v) if k in PATH_FIELDS else v for k, v in value.items()}
        first, *rest = names
        return {k: inside(v, *rest) if first in (k, "*") else v for k, v in value.items()}

    return dict(inside(inside(fields, "defaults"), "categories", "*", "sources", "*"))


def _validated(fields: Mapping[str, Any], where: str) -> CollectionRecipe:
    try:
        recipe = CollectionRecipe.model_validate(dict(fields))
    except ValidationError as error:
        raise _explained(error, where) from error
    shared = {name: value for name, value in recipe.defaults.items() if name != "chat_template"}
    make_recipe({"source": "any", **shared}, {}, f"{where}: defaults")
    for category, name, source in recipe.sources():
        source.recipe(recipe.defaults, where=f"{where}: categories.{category}.sources.{name}")
    return recipe


def _explained(error: ValidationError, where: str) -> RecipeError:
    """Return the first problem that pydantic found: the field's path, what is wrong, and what to write instead."""
    problems = error.errors()
    path = [str(part) for part in problems[0]["loc"] if part != "[key]"][:_DEEPEST]
    what, advice = _problem(problems[0], path)
    others = len(problems) - 1
    more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
    return RecipeError(": ".join(filter(None, (where, ".".join(path), what + more))), advice)


def _problem(problem: Any, path: list[str]) -> tuple[str, str]:
    """Return what is wrong with a field, and what to do."""
    kind, given, last = problem["type"], problem["input"], path[-1] if path else ""
    fields = _fields_at(len(path) + (kind == "model_type"))
    advice = f"fields: {', '.join(fields)}" if fields else "correct it"
    if last == "sources" and (kind in ("missing", "too_short") or given is None):
        return "a category needs at least one source", "add one: sources: {NAME: {source: owner/name}}"
    if kind == "extra_forbidden":
        return no_such_field(last, fields), advice
    if kind == "missing":
        return "required field is missing", advice
    if kind == "string_pattern_mismatch":
        allowed = "letters, digits, _, - and . only, at most 100, beginning with a letter or digit"
        return f"invalid name {given!r}", f"use {allowed}"
    if kind in ("dict_type", "model_type"):
        return f"must be a mapping, got {_short(given)}", advice
    what = problem["msg"].removeprefix("Value error, ")
    return (f"{what} (given: {_short(given)})" if path and not isinstance(given, dict | list) else what), advice


def _fields_at(depth: int) -> list[str]:
    """Return the fields of the model whose fields are at this depth of a recipe; none below `defaults`."""
    models: dict[int, type[BaseModel]] = {1: CollectionRecipe, 3: Category, 5: CollectionSource}
    return list(models[depth].model_fields) if depth in models else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
