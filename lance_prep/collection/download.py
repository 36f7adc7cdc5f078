"""`download`: the raw text of a collection's sources, as JSON lines by category."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lance_prep.collection.fetch_text import SHARD_BYTES, Progress, Run, Wanted, fetch_text, make_text_plan
from lance_prep.collection.folder import LINES, RECIPE, SourceStats, read_stats, refuse_dataset
from lance_prep.collection.load import Collection, load_collection
from lance_prep.collection.model import CollectionRecipe, CollectionSource
from lance_prep.collection.unfinished import State, Unfinished
from lance_prep.engine import default_workers
from lance_prep.errors import Interrupted, LancePrepError, OutputExists, UsageError, translate_output, translating
from lance_prep.model import Plan, Shard
from lance_prep.recipe import Recipe
from lance_prep.store import LocalFiles, output_lock

Status = Literal["downloaded", "resumed", "unchanged", "failed"]


class Silent:
    """Progress that tells nobody."""

    def begun(self, wanted: Wanted, plan: Plan, state: State) -> None: ...

    def advanced(self, wanted: Wanted, rows: int, text_bytes: int) -> None: ...

    def shard_read(self, wanted: Wanted, shard: Shard) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...

    def warned(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one source.

    Attributes:
        category, name: of the source.
        status: what was done.
        stats: of its file; None if it failed.
        error: why it failed, else None.
    """

    category: str
    name: str
    status: Status
    stats: SourceStats | None = None
    error: LancePrepError | None = None


@dataclass(frozen=True)
class DownloadReport:
    """What a download did.

    Attributes:
        folder: the folder.
        outcomes: one for each source, in the recipe's order.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """The sources that failed."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]


def download(
    collection: Collection,
    output: str | Path,
    *,
    categories: Sequence[str] = (),
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> DownloadReport:
    """Write the text of a collection's sources as `<category>/<source>.jsonl`, with stats beside each.

    Sources that are there already are left alone, and an interrupted download continues. A source that fails does not
    stop the others.

    Args:
        collection: a built-in name, a recipe `.yaml`, its fields, or a `CollectionRecipe`.
        output: the folder.
        categories: download only these.
        workers: number of sources downloaded at once; by default the number of cores.
        force: download again what is there already.
        progress: told what happens.

    Raises:
        RecipeError: the collection recipe is invalid.
        UsageError: an unknown category, or a folder that cannot be used.
        OutputLocked: another process downloads into the folder.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers: must be at least 1, got {workers}", "use a larger number")
    recipe, folder = load_collection(collection), Path(output).absolute()
    wanted = select(recipe, categories)
    refuse_dataset(folder)
    with output_lock(str(folder)):
        files = LocalFiles(folder)
        files.write(RECIPE, json.dumps(normalised(recipe), indent=2, ensure_ascii=False).encode() + b"\n")
        run = Run(progress or Silent(), threading.Event(), min(workers or default_workers(), len(wanted)))
        outcomes = _all(wanted, lambda each: _one(each, files, run, force=force), run)
    return DownloadReport(folder, tuple(outcomes))


def select(recipe: CollectionRecipe, categories: Sequence[str]) -> list[Wanted]:
    """Return the sources of some categories, or of all, in the recipe's order.

    Raises:
        UsageError: an unknown category.
    """
    for category in categories:
        if category not in recipe.categories:
            raise UsageError(
                f"unknown category {category!r}", f"{recipe.name} has the categories {', '.join(recipe.categories)}"
            )
    return [
        Wanted(category, name, source, _recipe(recipe, source, f"{category}.{name}"))
        for category, name, source in recipe.sources()
        if not categories or category in categories
    ]


def normalised(recipe: CollectionRecipe) -> dict[str, Any]:
    """Return the recipe as plain JSON, with shares that sum to 1 and without fields that are not set."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    for name, share in recipe.shares().items():
        data["categories"][name]["share"] = share
    return data


def _recipe(recipe: CollectionRecipe, source: CollectionSource, where: str) -> Recipe:
    read = source.recipe(recipe.defaults, where=where, layout="documents", shard_size=SHARD_BYTES)
    # Counted here: a limit of the recipe would be one of output rows.
    unlimited = {"max_rows": None, "max_source_rows": None, "max_tokens": None}.keys() & Recipe.model_fields.keys()
    return read.model_copy(update=dict.fromkeys(unlimited))


def _all(wanted: Sequence[Wanted], fetch: Callable[[Wanted], Outcome], run: Run) -> list[Outcome]:
    """Return the outcome of each source, in order. Sources are fetched at the same time, each on a thread."""
    pool = ThreadPoolExecutor(run.at_once, thread_name_prefix="source")
    try:
        futures = [pool.submit(fetch, each) for each in wanted]
        return [future.result() for future in futures]
    finally:
        run.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _one(wanted: Wanted, files: LocalFiles, run: Run, *, force: bool) -> Outcome:
    path = files.path(f"{wanted.category}/{wanted.name}{LINES}")
    try:
        with translating(str(path), translate_output):
            status, stats = _fetch(wanted, files, run, force=force)
        return Outcome(wanted.category, wanted.name, status, stats)
    except Interrupted:
        raise
    except LancePrepError as error:
        return Outcome(wanted.category, wanted.name, "failed", error=error)


def _fetch(wanted: Wanted, files: LocalFiles, run: Run, *, force: bool) -> tuple[Status, SourceStats]:
    unfinished = Unfinished(files, wanted.category, wanted.name)
    state = unfinished.state()
    if state is not None and state.stats is not None:
        unfinished.settle(state.stats)
        state = None
    if not force and (there := kept(wanted, files)) is not None:
        return "unchanged", there
    if state is not None and state.entry != wanted.entry:
        run.progress.warned(
            f"{wanted.name}: its entry in the recipe has changed, so its unfinished download is discarded"
        )
        state = None
    if state is not None and not force:
        return "resumed", fetch_text(wanted, unfinished, unfinished.plan(), state, run)
    plan = make_text_plan(wanted)
    if state is not None and plan == unfinished.plan():
        return "resumed", fetch_text(wanted, unfinished, plan, state, run)
    return "downloaded", fetch_text(wanted, unfinished, plan, unfinished.begin(plan, wanted.entry), run)


def kept(wanted: Wanted, files: LocalFiles) -> SourceStats | None:
    """Return the stats of a source that is there already; None if it is not.

    Raises:
        OutputExists: a file of its name is there that is not what the recipe describes.
        DamagedDataset: its stats are invalid.
    """
    path = files.path(f"{wanted.category}/{wanted.name}{LINES}")
    stats = read_stats(files, wanted.category, wanted.name)
    if not path.exists():
        return None
    if stats is None:
        raise OutputExists(f"{path} exists, and was not downloaded", "move it away, or use force=True to replace it")
    if (size := path.stat().st_size) != stats.bytes:
        raise OutputExists(
            f"{path} has {size:,} bytes; as downloaded, it had {stats.bytes:,}",
            "move it away, or use force=True to download it again",
        )
    if changed := differences(stats.entry, wanted.entry):
        raise OutputExists(f"{path} was downloaded with {changed}", "use force=True to download it again")
    return stats


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the fields of an entry that differ, with both values; empty if none does."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {_short(before.get(name))} (the recipe says {_short(now.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = "unset" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
