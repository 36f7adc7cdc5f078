"""Turn what a user types into a `Recipe`: a built-in name, a YAML file, or sources, with some fields overridden."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lance_prep.errors import RecipeError, UsageError, did_you_mean, no_such_field
from lance_prep.layouts import LAYOUTS, PATH_FIELDS, unread_options
from lance_prep.recipe.model import Recipe

#: Options that decide which others have an effect.
_DECIDING = ("layout", "packing", "shuffle", "dedup", "decontaminate", "ids_column")
_ADVICE = "`lance-prep build --help` lists the fields and their values"
#: What can be built: a built-in recipe, a recipe file, a path, glob, Hub id or URL, several paths, or a `Recipe`.
Source = str | Path | Recipe | Sequence[str | Path]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def builtin_recipes() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _builtin_folder().iterdir() if path.name.endswith(".yaml")
    )


def builtin_collections() -> list[str]:
    """Return the names of the built-in collections, sorted. `lance_prep.collection` loads them."""
    folder = resources.files("lance_prep") / "collection" / "builtin"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def builtin_recipe(name: str) -> str:
    """Return the YAML of a built-in recipe."""
    return str((_builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def load_recipe(source: Source, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe that `source` names, with fields overridden.

    Args:
        source: a built-in name, a `.yaml` file, a `Recipe`, or anything that `Recipe.source` takes. A local path takes
            precedence over a Hub id of the same name.
        overrides: fields of `Recipe`.

    Raises:
        RecipeError: unknown recipe name, or a field of the recipe is invalid.
        UsageError: an override is invalid.
    """
    if isinstance(source, Recipe):
        return make_recipe(source.model_dump(), overrides or {}, "the recipe")
    names = source_names(source)
    fields = _fields(names[0]) if len(names) == 1 else _several(names)
    return make_recipe(fields, overrides or {}, ", ".join(names))


def refuse_unread(recipe: Recipe, given: Collection[str]) -> None:
    """Refuse fields that have no effect in a recipe, also those with their default: a user has typed them.

    Raises:
        UsageError: names the first of them.
    """
    for name, why in unread_options(recipe.__dict__).items():
        if name in given:
            raise UsageError(f"{name} has no effect with {why}", f"leave `{name}` out")


def source_names(source: Source) -> tuple[str, ...]:
    """Return the paths, names or URLs that a source consists of."""
    given = source.source if isinstance(source, Recipe) else source
    return (str(given),) if isinstance(given, str | Path) else tuple(str(name) for name in given)


def _several(names: tuple[str, ...]) -> dict[str, Any]:
    recipes = [name for name in names if name in builtin_recipes() or name.endswith((".yaml", ".yml"))]
    if recipes:
        raise UsageError(f"{recipes[0]} is a recipe and cannot be combined with other sources", "build it by itself")
    return {"source": names}


def _fields(source: str) -> dict[str, Any]:
    if not source:
        raise UsageError("SOURCE is empty", "name a recipe, a Hub id, a file, a folder or a glob")
    from lance_prep.recipe.yaml_text import parse_yaml, read_yaml  # imports yaml, which `--help` does not need

    if source in builtin_recipes():
        return parse_yaml(builtin_recipe(source), source)
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.exists():
            raise RecipeError(f"no such recipe file: {source}", f"built-in recipes: {', '.join(builtin_recipes())}")
        fields = read_yaml(path)
        if "categories" in fields:
            raise _is_collection(source)
        named = fields.get("source")
        if isinstance(named, str) and named in builtin_recipes():
            return {**_fields(named), **{name: value for name, value in fields.items() if name != "source"}}
        return {**fields, **{f: resolve_beside(path, fields[f]) for f in PATH_FIELDS if f in fields}}
    if "://" not in source and not _HUB_ID.fullmatch(source) and not _looks_like_path(source):
        if source in builtin_collections():
            raise _is_collection(source)
        hint = did_you_mean(source, [*builtin_recipes(), *builtin_collections()])
        raise RecipeError(
            f"no such recipe or file: {source}",
            f"{hint}built-in recipes: {', '.join(builtin_recipes())}; or a Hub id owner/name, file, folder or glob",
        )
    return {"source": source}


def _is_collection(source: str) -> RecipeError:
    said = f"{source} is a collection of several sources, not a recipe for a single dataset"
    return RecipeError(said, f"run `lance-prep build {source}`, or call lance_prep.collection.build_collection")


def _looks_like_path(source: str) -> bool:
    return "/" in source or "." in source or "*" in source or source.startswith("pydoc:") or Path(source).exists()


def resolve_beside(recipe: Path, source: Any) -> Any:
    """Resolve a relative path in a recipe file against the file's own folder. Return other sources unchanged."""
    if isinstance(source, list):
        return [resolve_beside(recipe, each) for each in source]
    if not isinstance(source, str) or not source or "://" in source or Path(source).is_absolute():
        return source
    beside = recipe.parent / source
    if beside.exists() or any(mark in source for mark in "*?[") or source.startswith("."):
        return str(beside)
    return source


def make_recipe(fields: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe with these fields.

    Args:
        where: what gave `fields`, for messages.

    Raises:
        RecipeError: a field is unknown or invalid.
        UsageError: an override is.
    """
    given = [name for name in ("val_fraction", "val_tokens") if overrides.get(name) is not None]
    if len(given) == 2:
        raise UsageError("val_fraction and val_tokens exclude each other", "give one of them")
    if given:  # the recipe of a dataset holds both
        fields = {name: value for name, value in fields.items() if name not in ("val_fraction", "val_tokens")}
    try:
        return Recipe(**{**_still_read(fields, overrides), **overrides})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            what = no_such_field(name, Recipe.model_fields)
        elif name and problem["type"] != "missing":
            what = f"{what} (given: {problem['input']!r})"
        if name in Recipe.model_fields and name in overrides:
            raise UsageError(f"{name}: {what}", _ADVICE) from error
        if problem["type"] == "no_effect":
            unread = problem["ctx"]["name"]
            kind = UsageError if unread in overrides else RecipeError
            raise kind(what if kind is UsageError else f"{where}: {what}", f"leave `{unread}` out") from error
        if not name and overrides:
            raise UsageError(what, _ADVICE) from error
        raise RecipeError(f"{where}: {f'{name}: ' if name else ''}{what}", f"fields: {_known()}") from error


def _still_read(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's own fields without those that an override leaves without effect, such as layout='raw'."""
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    asked = {**defaults, **fields, **overrides}
    if asked["layout"] not in LAYOUTS:
        return dict(fields)  # the recipe refuses it
    before = unread_options({**asked, **{name: fields.get(name, defaults[name]) for name in _DECIDING}})
    dropped = unread_options(asked).keys() - before.keys()
    # Columns to keep are asked for by name: to lose them has to be said.
    return {name: value for name, value in fields.items() if name not in dropped - {"keep_columns"}}


def _known() -> str:
    return ", ".join(Recipe.model_fields)


def _builtin_folder() -> Any:
    return resources.files("lance_prep.recipe") / "builtin"
