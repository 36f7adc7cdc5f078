"""`download`: the raw text of a collection's sources, as JSON lines by category."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lance_prep.collection.fetch_text import DownloadProgress, Run, Silent, fetch_text
from lance_prep.collection.folder import LINES, RECIPE, SourceStats, check_folder, local_folder, read_recipe
from lance_prep.collection.load import Collection, load_collection
from lance_prep.collection.model import CollectionRecipe
from lance_prep.collection.report import error_as_json
from lance_prep.collection.status import look_at
from lance_prep.collection.unfinished import Unfinished
from lance_prep.collection.wanted import Wanted, make_text_plan, select
from lance_prep.engine import default_workers
from lance_prep.errors import (
    DamagedDataset,
    Interrupted,
    LancePrepError,
    SourceChanged,
    UsageError,
    translate_output,
    translating,
)
from lance_prep.store import LocalFiles, output_lock

Status = Literal["downloaded", "resumed", "unchanged", "failed"]


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

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {
            "category": self.category,
            "source": self.name,
            "status": self.status,
            "stats": asdict(self.stats) if self.stats is not None else None,
            "error": error_as_json(self.error),
        }


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

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        sources = [outcome.as_json() for outcome in self.outcomes]
        return {"ok": not self.failed, "folder": str(self.folder), "sources": sources}


def download(
    collection: Collection,
    output: str | Path,
    *,
    categories: Sequence[str] = (),
    workers: int | None = None,
    force: bool = False,
    progress: DownloadProgress | None = None,
) -> DownloadReport:
    """Write the text of a collection's sources as `<category>/<source>.jsonl`, with stats beside each.

    Sources that are there already are left alone, and an interrupted download continues. A source that fails does not
    stop the others.

    Args:
        collection: a built-in name, a recipe `.yaml`, its fields, or a `CollectionRecipe`.
        output: the folder.
        categories: download only these.
        workers: number of sources downloaded at once; by default the number of cores.
        force: download complete sources again.
        progress: told what happens.

    Raises:
        RecipeError: the collection recipe is invalid.
        UsageError: an unknown category, or a folder that cannot be used.
        OutputLocked: another process downloads into the folder.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers: must be at least 1, got {workers}", "use a larger number")
    recipe, folder = load_collection(collection), local_folder(output).absolute()
    wanted = select(recipe, categories)
    check_folder(folder)
    with output_lock(str(folder), doing="downloaded into"):
        files = LocalFiles(folder)
        told = progress or Silent()
        if left := _left_behind(files, recipe):
            told.warned(f"not in {recipe.name}, and left as they are: {', '.join(left)}")
        files.write(RECIPE, json.dumps(normalised(recipe), indent=2, ensure_ascii=False).encode() + b"\n")
        run = Run(told, threading.Event(), min(workers or default_workers(), len(wanted)))
        outcomes = _all(wanted, lambda each: _one(each, files, run, force=force), run)
    return DownloadReport(folder, tuple(outcomes))


def normalised(recipe: CollectionRecipe) -> dict[str, Any]:
    """Return the recipe as plain JSON, with shares that sum to 100 and without fields that are not set."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    for name, share in recipe.shares().items():
        data["categories"][name]["share"] = 100 * share
    return data


def _left_behind(files: LocalFiles, recipe: CollectionRecipe) -> list[str]:
    """Return the sources of the recipe that was downloaded before, that are there, and that this recipe lacks."""
    with suppress(DamagedDataset):  # it is replaced
        before = read_recipe(files)
        names = [f"{category}/{name}" for category, name, _ in before.sources()] if before is not None else []
        now = {f"{category}/{name}" for category, name, _ in recipe.sources()}
        return [name for name in names if name not in now and files.path(name + LINES).exists()]
    return []


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
    try:
        with translating(str(files.path(wanted.path + LINES)), translate_output):
            status, stats = _fetch(wanted, files, run, force=force)
        outcome = Outcome(wanted.category, wanted.name, status, stats)
    except Interrupted:
        raise
    except LancePrepError as error:
        outcome = Outcome(wanted.category, wanted.name, "failed", error=error)
    run.progress.ended(wanted.path, outcome.status)
    return outcome


def _fetch(wanted: Wanted, files: LocalFiles, run: Run, *, force: bool) -> tuple[Status, SourceStats]:
    unfinished = Unfinished(files, wanted.category, wanted.name)
    have = look_at(wanted, files)
    if have.state is not None and have.state.stats is not None:
        unfinished.settle(have.state.stats)
        have = look_at(wanted, files)
        if not force and have.kind == "complete" and have.stats is not None:
            return "resumed", have.stats
    if not force and have.error is not None:
        raise have.error
    if not force and have.kind == "complete" and have.stats is not None:
        return "unchanged", have.stats
    state = have.state
    if state is not None and state.entry != wanted.entry:
        run.progress.warned(f"{wanted.path}: its entry has changed, so its unfinished download is discarded")
        state = None
    plan = None
    if state is not None:
        plan = unfinished.intact_plan(state) if force else unfinished.plan()
    if plan is None or force:
        fresh = make_text_plan(wanted)
        # With `force`, an unfinished download continues if its source is still the same.
        state = state if fresh == plan else unfinished.begin(fresh, wanted.entry)
        plan = fresh
    assert state is not None
    status: Status = "resumed" if state.shards else "downloaded"
    try:
        return status, fetch_text(wanted, unfinished, plan, state, run)
    except SourceChanged as error:
        raise SourceChanged(str(error), "use force=True to start this source again") from error
