"""What of a collection is downloaded, what is missing, and what fetching it would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lance_prep.collection.folder import LINES, SourceStats, check_folder, local_folder, read_stats
from lance_prep.collection.load import Collection, load_collection
from lance_prep.collection.model import CollectionRecipe
from lance_prep.collection.report import error_as_json
from lance_prep.collection.unfinished import State, Unfinished
from lance_prep.collection.wanted import Wanted, make_text_plan, select
from lance_prep.errors import AccessDenied, LancePrepError, OutputExists, translating
from lance_prep.model import Plan
from lance_prep.store import LocalFiles

# Planning is waiting: for the Hub's answers about names, and for the footers of files.
_THREADS = 8

Kind = Literal["complete", "unfinished", "missing", "differs"]


@dataclass(frozen=True)
class Have:
    """What is in the folder of a source.

    Attributes:
        kind: `differs` is a file that is not what the recipe describes; `error` says how.
        stats: of a complete file.
        state: of an unfinished one. A complete file may have one too, if it is being downloaded again.
    """

    kind: Kind
    stats: SourceStats | None = None
    state: State | None = None
    error: LancePrepError | None = None


@dataclass(frozen=True)
class SourceStatus:
    """A source of a collection, in the folder and in the recipe.

    Attributes:
        category, name: of the source.
        status: see `Have.kind`.
        rows, characters, bytes: of the text in the folder.
        max_rows, max_tokens: as the recipe limits them.
        rows_at_source: rows of the source; None if that is not known before they are read.
        to_fetch: bytes to read from the source; None if it cannot be planned.
        at_most: whether fewer bytes may do, because the limit may be reached earlier.
        gated: whether the recipe says that access has to be requested, or the Hub refuses it.
        share: target share within the category; None if it is in proportion to tokens.
        plan: of what is missing.
        error: why the file is not what the recipe describes, or why the source cannot be planned.
    """

    category: str
    name: str
    status: Kind
    rows: int = 0
    characters: int = 0
    bytes: int = 0
    max_rows: int | None = None
    max_tokens: int | None = None
    rows_at_source: int | None = None
    to_fetch: int | None = 0
    at_most: bool = False
    gated: bool = False
    share: float | None = None
    plan: Plan | None = None
    error: LancePrepError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON, except `share`, which `CollectionStatus.as_json` puts into context."""
        said = {name: value for name, value in vars(self).items() if name not in ("share", "plan", "error")}
        commit = self.plan.source.commit if self.plan is not None else None
        return {**said, "commit": commit, "error": error_as_json(self.error)}


@dataclass(frozen=True)
class CollectionStatus:
    """How much of a collection is downloaded.

    Attributes:
        folder: the folder.
        recipe: the collection recipe.
        sources: in the recipe's order.
    """

    folder: Path
    recipe: CollectionRecipe
    sources: tuple[SourceStatus, ...]

    def share_of(self, *sources: SourceStatus) -> float:
        """Return the part of the downloaded characters that some sources have; 0 if nothing is downloaded."""
        total = sum(source.characters for source in self.sources)
        return sum(source.characters for source in sources) / total if total else 0.0

    def targets(self) -> Mapping[str, float]:
        """Return the target share of each category that was asked about."""
        shares = self.recipe.shares()
        return {category: shares[category] for category in dict.fromkeys(source.category for source in self.sources)}

    def target_of(self, source: SourceStatus) -> float | None:
        """Return the target share of a source; None if its category's is divided in proportion to tokens."""
        entries = self.recipe.categories[source.category].sources.values()
        weights = [entry.share for entry in entries if entry.share is not None]
        if source.share is None or len(weights) < len(entries):
            return None
        return self.recipe.shares()[source.category] * source.share / sum(weights)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON. Each `share` is a part of the downloaded characters."""
        of = {category: [s for s in self.sources if s.category == category] for category in self.targets()}
        return {
            "folder": str(self.folder),
            "notes": self.recipe.notes(),
            "categories": {
                name: {"share": self.share_of(*of[name]), "target": target} for name, target in self.targets().items()
            },
            "sources": [
                {**source.as_json(), "share": self.share_of(source), "target": self.target_of(source)}
                for source in self.sources
            ],
        }


def collection_status(
    collection: Collection, output: str | Path, *, categories: Sequence[str] = (), force: bool = False
) -> CollectionStatus:
    """Compare a folder with a collection recipe. Reads metadata of the sources that are missing, and writes nothing.

    Args:
        collection, output, categories, force: as in `download`.

    Raises:
        RecipeError: the collection recipe is invalid.
        UsageError: an unknown category, or a folder that cannot be used.
    """
    recipe, folder = load_collection(collection), local_folder(output).absolute()
    check_folder(folder)
    files, wanted = LocalFiles(folder), select(recipe, categories)
    with ThreadPoolExecutor(min(_THREADS, len(wanted))) as pool:
        sources = pool.map(lambda each: _status(each, files, force=force), wanted)
        return CollectionStatus(folder, recipe, tuple(sources))


def look_at(wanted: Wanted, files: LocalFiles) -> Have:
    """Return what is there of a source. Nothing is written.

    Raises:
        DamagedDataset: the stats of its file are invalid.
    """
    path = files.path(wanted.path + LINES)
    state = Unfinished(files, wanted.category, wanted.name).state()
    if state is not None and state.stats is not None:  # complete but for its name
        return Have("complete", stats=state.stats, state=state)
    stats = read_stats(files, wanted.category, wanted.name)
    if not path.exists():
        return Have("unfinished" if state is not None else "missing", state=state)
    if (error := _differs(str(path), path.stat().st_size, stats, wanted)) is not None:
        return Have("differs", stats, state, error)
    return Have("complete", stats, state)


def _differs(path: str, size: int, stats: SourceStats | None, wanted: Wanted) -> OutputExists | None:
    if stats is None:
        return OutputExists(f"{path} exists, and was not downloaded", "move it away, or use force=True to replace it")
    if size != stats.bytes:
        said = f"{path} has {size:,} bytes; as downloaded, it had {stats.bytes:,}"
        return OutputExists(said, "move it away, or use force=True to download it again")
    if changed := _differences(stats.entry, wanted.entry):
        return OutputExists(f"{path} was downloaded with {changed}", "use force=True to download it again")
    return None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the fields of an entry that differ, with both values; empty if none does."""
    names = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {_short(before.get(name))} (now {_short(now.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = "unset" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _status(wanted: Wanted, files: LocalFiles, *, force: bool) -> SourceStatus:
    source = wanted.source
    known = SourceStatus(
        wanted.category,
        wanted.name,
        "missing",
        max_rows=source.max_rows,
        max_tokens=source.max_tokens,
        gated=source.gated,
        share=source.share,
    )
    try:
        have = look_at(wanted, files)
        known = _with_text(known, have)
        if have.kind in ("complete", "differs") and not force:
            return replace(known, error=have.error)
        with translating(wanted.recipe.asked):
            return _with_plan(known, wanted, have.state, files)
    except AccessDenied as error:
        return replace(known, to_fetch=None, gated=True, error=error)
    except LancePrepError as error:
        return replace(known, to_fetch=None, error=error)


def _with_text(status: SourceStatus, have: Have) -> SourceStatus:
    text = have.stats if have.stats is not None else have.state
    if text is None:
        return replace(status, status=have.kind)
    return replace(status, status=have.kind, rows=text.rows, characters=text.characters, bytes=text.bytes)


def _with_plan(status: SourceStatus, wanted: Wanted, state: State | None, files: LocalFiles) -> SourceStatus:
    if state is not None and state.entry == wanted.entry:
        plan = Unfinished(files, wanted.category, wanted.name).plan()
        done, rows = state.shards, state.rows
    else:
        plan, done, rows = make_text_plan(wanted), 0, 0
    left = plan.shards[done:]
    limit = wanted.source.max_rows
    at_most = wanted.source.max_tokens is not None
    if limit is not None:
        needed, at = 0, rows
        while needed < len(left) and at < limit:
            at += left[needed].rows or 0
            needed += 1
        at_most = at_most or any(shard.rows is None for shard in left[:needed])
        left = left[:needed]
    to_fetch = sum(shard.bytes for shard in left)
    return replace(status, rows_at_source=plan.rows, to_fetch=to_fetch, at_most=at_most, plan=plan)
