"""The sources of a collection, as recipes: what SOURCE means to `build_collection`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lance_prep.errors import SourceNotFound, UsageError
from lance_prep.formats import COMPRESSIONS
from lance_prep.model import Skipped
from lance_prep.plan import list_folder
from lance_prep.recipe import Recipe, load_recipe

#: Between the name of a source and `.lance`, in the name of its validation set.
VALIDATION = ".val"


@dataclass(frozen=True)
class SourceJob:
    """One source of a collection.

    Attributes:
        name: of the source. Its dataset is `<name>.lance`.
        recipe: builds it.
        category: of the collection; None for a file that is in no subfolder.
        share: target share in the category; None to share it in proportion to tokens.
        size: bytes of its file, for progress; None if it is not known before planning.
    """

    name: str
    recipe: Recipe
    category: str | None = None
    share: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class CollectionPlan:
    """What `build_collection` builds.

    Attributes:
        asked: SOURCE, as it was given.
        sources: in order.
        categories: target share of each category; empty if there are no targets.
        skipped: what is left out of the folder.
    """

    asked: str
    sources: tuple[SourceJob, ...]
    categories: dict[str, float] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def open_collection(source: str | Path, overrides: Mapping[str, Any]) -> CollectionPlan:
    """Return the sources that SOURCE names: one for each JSONL file below a folder.

    Args:
        overrides: fields of `Recipe` that apply to all sources.

    Raises:
        SourceNotFound: there is no such folder, or no JSONL file below it.
        UsageError: two files would have the same name as sources, or an override is invalid.
        RecipeError: the recipe is invalid.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise SourceNotFound(f"{source}: no such folder", "name a folder with .jsonl files below it")
    files, skipped = list_folder(folder, "jsonl")
    if not files:
        raise _no_jsonl(folder, skipped)
    jobs: dict[str, SourceJob] = {}
    for path in files:
        job = _job(folder, path, overrides)
        if (other := jobs.get(job.name)) is not None:
            raise UsageError(
                f"{other.recipe.asked} and {path} would both be the source {job.name!r}", "rename one of them"
            )
        jobs[job.name] = job
    return CollectionPlan(str(source), tuple(jobs.values()), skipped=skipped)


def _job(folder: Path, path: Path, overrides: Mapping[str, Any]) -> SourceJob:
    name = path.name
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    name = Path(name).stem
    # It becomes a path in the manifest, which programs of other systems read.
    if not name.isprintable() or "\\" in name or name.startswith("."):
        raise UsageError(f"{str(path)!r}: the name of a source has printable characters, and no backslash", "rename it")
    parts = path.relative_to(folder).parts
    return SourceJob(name, load_recipe(path, overrides), parts[0] if len(parts) > 1 else None, size=path.stat().st_size)


def _no_jsonl(folder: Path, skipped: tuple[Skipped, ...]) -> SourceNotFound:
    others = [each.path for each in skipped if each.reason.startswith("not ")]
    there = f"; it holds {', '.join(others[:3])}{' and others' if len(others) > 3 else ''}" if others else ""
    empty = not skipped and not any(folder.iterdir())
    return SourceNotFound(
        f"no .jsonl file in {folder} or in a folder below it{'; it is empty' if empty else there}",
        "name the folder that `lance-prep download` wrote, or one with .jsonl files; "
        "without recursive=True, a folder of any format becomes one dataset",
    )
