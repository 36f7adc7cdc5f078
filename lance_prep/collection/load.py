"""Turn a built-in name, a YAML file or a mapping into a `CollectionRecipe`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lance_prep.collection.model import Category, CollectionRecipe, CollectionSource
from lance_prep.errors import LancePrepError, RecipeError
from lance_prep.recipe import builtin_recipes, make_recipe, resolve_beside

#: What names a collection: a built-in name, a recipe file, its fields, or the recipe itself.
Collection = str | Path | Mapping[str, Any] | CollectionRecipe

_SUFFIXES = (".yaml", ".yml")


def builtin_collections() -> list[str]:
    """Return the names of the built-in collections, sorted."""
    return sorted(p.name.removesuffix(".yaml") for p in _builtin_folder().iterdir() if p.name.endswith(".yaml"))


def is_collection(source: object) -> bool:
    """Return True for a built-in collection, a recipe file with `categories`, a mapping with them, or the recipe.

    Invalid files are not collections here: whoever reads the file next reports the error.
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
    return str((_builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _builtin_folder() -> Any:
    return resources.files("lance_prep.collection") / "builtin"


def _built_in() -> str:
    return f"built-in collections: {', '.join(builtin_collections())}"


def _unknown(name: str) -> RecipeError:
    if name in builtin_recipes():
        said = f"{name} is a recipe for a single dataset, not a collection"
        return RecipeError(said, f"run `lance-prep build {name}`, or name a collection; {_built_in()}")
    close = difflib.get_close_matches(name, builtin_collections(), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return RecipeError(f"no such collection: {name}", f"{hint}{_built_in()}; or a .yaml file with categories")


def _resolved(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields with local paths resolved against the folder of the recipe file.

    What is not shaped like a collection is left for the validation.
    """

    def inside(value: Any, *names: str) -> Any:
        if not isinstance(value, dict):
            return value
        if not names:
            return {k: resolve_beside(path, v) if k in ("source", "tokenizer") else v for k, v in value.items()}
        first, *rest = names
        return {k: inside(v, *rest) if first in (k, "*") else v for k, v in value.items()}

    return dict(inside(inside(fields, "defaults"), "categories", "*", "sources", "*"))


def _validated(fields: Mapping[str, Any], where: str) -> CollectionRecipe:
    try:
        recipe = CollectionRecipe(**fields)
    except ValidationError as error:
        raise _explained(error, where) from error
    make_recipe({"source": "any", **recipe.defaults}, {}, f"{where}: defaults")
    for category, name, source in recipe.sources():
        source.recipe(recipe.defaults, where=f"{where}: categories.{category}.sources.{name}")
    return recipe


def _explained(error: ValidationError, where: str) -> RecipeError:
    """Return the first problem that pydantic found: the field's path, what is wrong, and what to write instead."""
    problems = error.errors()
    problem = problems[0]
    loc = [str(part) for part in problem["loc"] if part != "[key]"]
    if problem["loc"][-1:] == ("[key]",) and problem["type"] == "string_type":
        said = f"{where}: {'.'.join(loc[:-1])}: a name is {_short(problem['input'])}, which is not text"
        return RecipeError(said, "quote it: YAML reads yes, no, on, off and numbers without quotes as other types")
    path, last = ".".join(loc), loc[-1] if loc else ""
    others = len(problems) - 1
    more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
    fields = _fields_at(loc)
    advice = f"fields: {', '.join(fields)}" if fields else "fix it"
    what = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(last, fields, 1)
        what = "no such field" + (f"; did you mean {close[0]}?" if close else "")
    elif last == "sources" and (problem["type"] in ("missing", "too_short") or problem["input"] is None):
        what = "a category needs at least one source"
        advice = "add one: sources: {NAME: {source: owner/name}}"
    elif problem["type"] == "missing":
        what = "required field is missing"
    elif problem["type"] == "string_pattern_mismatch":
        what = f"invalid name {problem['input']!r}"
        advice = "use letters, digits, _, - and . only, at most 100, beginning with a letter or digit"
    elif path and not isinstance(problem["input"], dict | list):
        what = f"{what} (given: {_short(problem['input'])})"
    return RecipeError(f"{where}: {f'{path}: ' if path else ''}{what}{more}", advice)


def _fields_at(loc: list[str]) -> list[str]:
    """Return the fields of the model that the last part of a path is in."""
    models: dict[int, type[BaseModel]] = {1: CollectionRecipe, 3: Category, 5: CollectionSource}
    model = models.get(len(loc))
    return list(model.model_fields) if model is not None else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
