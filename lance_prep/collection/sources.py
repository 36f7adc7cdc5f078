"""The sources of a collection, each with the recipe that builds it: what SOURCE means to `build_collection`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lance_prep.collection.folder import RECIPE, read_download
from lance_prep.collection.load import Collection, is_collection, load_collection
from lance_prep.collection.model import OF_TEXTS, OVERRIDABLE, PER_SOURCE, CollectionRecipe
from lance_prep.errors import SourceNotFound, UsageError
from lance_prep.model import Skipped
from lance_prep.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class SourceJob:
    """One source of a collection.

    Attributes:
        name: of the source. Its dataset is `<name>.lance`.
        recipe: builds it.
        category: of the collection, or the folder that a file of one's own is in.
        share: target share in the category; None to share it in proportion to tokens.
        size: bytes of its file, for progress; None if it is not known before planning.
    """

    name: str
    recipe: Recipe
    category: str
    share: float | None = None
    size: int | None = None

    @property
    def is_chat(self) -> bool:
        """Whether its records are conversations, which the chat template writes."""
        return self.recipe.messages is not None


@dataclass(frozen=True)
class CollectionPlan:
    """What `build_collection` builds.

    Attributes:
        asked: SOURCE, as it was given.
        name: of the collection, or of the folder.
        sources: in order.
        categories: target share of each category; empty if there are no targets.
        notes: what a user should know before it is built, a sentence each.
        skipped: what is left out of the folder.
        fixed: fields of `Recipe` that only the collection recipe can set, because they differ between its sources.
    """

    asked: str
    name: str
    sources: tuple[SourceJob, ...]
    categories: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    fixed: frozenset[str] = frozenset()


def is_download(source: str | Path) -> bool:
    """Return True for a folder that `download` wrote."""
    return (Path(source) / RECIPE).is_file()


def open_collection(source: Collection, overrides: Mapping[str, Any], *, recursive: bool = False) -> CollectionPlan:
    """Return the sources of a collection recipe, or one for each `.jsonl` file below a folder.

    Args:
        overrides: fields of `Recipe` that apply to all sources.
        recursive: SOURCE is a folder, also if a collection has the same name.

    Raises:
        SourceNotFound: there is no such folder, or no `.jsonl` file below it.
        RecipeError: the collection recipe is invalid.
        UsageError: an override is invalid.
        DatasetError: two files would be the same source.
    """
    if not (recursive and isinstance(source, str | Path) and Path(source).is_dir()) and is_collection(source):
        return _from_recipe(load_collection(source), source, overrides)
    if not isinstance(source, str | Path):
        raise UsageError(f"{source!r} is not a collection", "name a folder, a collection or a .yaml with categories")
    return _from_folder(source, overrides)


def _from_recipe(recipe: CollectionRecipe, source: Collection, overrides: Mapping[str, Any]) -> CollectionPlan:
    fixed = PER_SOURCE - OVERRIDABLE
    own = [name for name in overrides if name in fixed]
    if own:
        raise UsageError(
            f"{own[0]} differs between the sources of {recipe.name}",
            f"remove {own[0]}, or set it in a copy of the recipe, for each source",
        )
    if "chat_template" in overrides and not any(each.chat for _, _, each in recipe.sources()):
        raise UsageError(
            f"chat_template has no effect: {recipe.name} has no source with `chat: true`",
            "leave chat_template out, or set `chat: true` in a category or a source",
        )
    _check_texts(recipe, overrides)
    jobs = [
        SourceJob(name, each.recipe(recipe.defaults, where=f"{recipe.name}: {name}", **overrides), category, each.share)
        for category, name, each in recipe.sources()
    ]
    notes = recipe.notes()
    if isinstance(source, str) and is_download(source):
        notes.append(f"{source} is the built-in collection; for the folder of that name, write ./{source}")
    asked = str(source) if isinstance(source, str | Path) else recipe.name
    return CollectionPlan(asked, recipe.name, tuple(jobs), recipe.shares(), tuple(notes), fixed=fixed)


def _check_texts(recipe: CollectionRecipe, overrides: Mapping[str, Any]) -> None:
    """Refuse options of texts for a collection that has only conversations."""
    if not all(each.chat for _, _, each in recipe.sources()):
        return
    for name in OF_TEXTS:
        default = Recipe.model_fields[name].default
        given = next((fields[name] for fields in (overrides, recipe.defaults) if name in fields), default)
        if given != default:
            raise UsageError(
                f"{name} has no effect: all sources of {recipe.name} are conversations, and the chat template decides",
                f"remove {name}",
            )


def _from_folder(source: str | Path, overrides: Mapping[str, Any]) -> CollectionPlan:
    folder = Path(source)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise SourceNotFound(
            f"{source}: {what}",
            "name a folder with .jsonl files below it; for one dataset of a file, a Hub dataset or a recipe, run "
            f"`lance-prep build {source}`",
        )
    for name in ("config", "split", "revision"):
        if name in overrides:
            raise UsageError(f"{name} has no effect on a folder, only on Hub datasets", f"leave {name} out")
    found = read_download(folder)
    sizes = {each.path: each.path.stat().st_size for each in found.sources}
    blank = {each.path for each in found.sources if _is_blank(each.path)}
    skipped = (*found.skipped, *(Skipped(str(path.relative_to(folder)), "empty") for path in sorted(blank)))
    sources = [each for each in found.sources if each.path not in blank]
    if not sources:
        raise _no_jsonl(folder, skipped)
    defaults = found.recipe.defaults if found.recipe is not None else {}
    shares = {name: each.share for _, name, each in found.recipe.sources()} if found.recipe is not None else {}
    jobs = []
    for each in sources:
        fields = {**defaults, "source": str(each.path)}
        if each.stats is not None:
            fields["text_column"] = "text"
        recipe = make_recipe(fields, dict(overrides), str(each.path))
        share = shares.get(each.name) if each.stats is not None else None
        jobs.append(SourceJob(each.name, recipe, each.category, share, sizes[each.path]))
    notes = [
        f"{category}/{name} of the collection is not in {source}; fetch it with `lance-prep download`"
        for category, name in found.missing()
    ]
    categories = found.recipe.shares() if found.recipe is not None else {}
    name = folder.resolve().name
    return CollectionPlan(str(source), name, tuple(jobs), categories, tuple(notes), skipped)


def _is_blank(path: Path) -> bool:
    """Return whether a file holds only white space. Reads up to the first other byte."""
    with path.open("rb") as file:
        return not any(part.strip() for part in iter(lambda: file.read(1 << 20), b""))


def _no_jsonl(folder: Path, skipped: tuple[Skipped, ...]) -> SourceNotFound:
    said = [f"{each.path} ({each.reason})" for each in skipped[:3]]
    more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    there = f"; what it holds is left out: {', '.join(said)}{more}" if said else "; it is empty"
    return SourceNotFound(
        f"no .jsonl file with text in {folder} or in a folder below it{there}",
        "name the folder that `lance-prep download` wrote, or one with .jsonl files; for one dataset of a folder in "
        f"another format, run `lance-prep build {folder}`",
    )
