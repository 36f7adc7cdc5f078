"""The pass over a source before its shards are built: which documents and lines are dropped from each.

Each shard is read on its own, and what it holds is kept in the journal, so a pass that is killed continues. Then the
shards are compared with each other and with those of the builds that are added to, which gives a list for each shard.
`build_shard` reads the list of its shard. Where shards are built, and how many at once, does not matter to any of this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace

from lance_prep.engine.report import Progress
from lance_prep.engine.shard import BuildJob, ShardTask
from lance_prep.errors import DatasetError, Interrupted, UsageError
from lance_prep.keyed import U64
from lance_prep.layouts import ROW_BITS
from lance_prep.ledger import Tally
from lance_prep.model import Plan
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch, read_shard
from lance_prep.store import ArrayHeap, DatasetVersion, Journal
from lance_prep.text import (
    Benchmark,
    ShardScan,
    detector_version,
    detects_language,
    find_later,
    items_of,
    minhash_version,
    needs_scan,
    scan_shard,
)
from lance_prep.transport import Transport

#: Bytes that comparing shards may take by default.
DEFAULT_MEMORY = 1 << 30
LEAST_MEMORY = 1 << 20
#: Files that are written at once: each waits for the disk, ten milliseconds on a busy one.
_WRITERS = 8


def pin_texts(plan: Plan, transport: Transport) -> Plan:
    """Return a plan that names what else decides which texts are dropped: versions of algorithms, and the benchmark.

    Raises:
        UsageError: a library that is needed is not installed.
        SourceError: the benchmark cannot be read.
    """
    recipe, pinned = plan.recipe, dict(plan.pinned)
    if recipe.dedup == "minhash":
        pinned["minhash"] = minhash_version()
    if detects_language(recipe):
        pinned["language"] = detector_version(recipe)
    if recipe.decontaminate is not None:
        pinned["decontaminate"] = _benchmark(recipe, transport).digest
    return replace(plan, pinned=pinned) if pinned else plan


def _benchmark(recipe: Recipe, transport: Transport) -> Benchmark:
    """Read a benchmark. It is a source whose records are kept as they are."""
    assert recipe.decontaminate is not None
    plan = make_plan(Recipe.model_validate({"source": recipe.decontaminate, "layout": "raw"}), transport)
    batches = (batch.columns for shard in plan.shards for batch in read_shard(plan, shard, Tally(), transport))
    benchmark = Benchmark(items_of(batches), recipe.decontaminate_ngram)
    if benchmark.too_short == benchmark.items:
        said = f"decontaminate: no text of {recipe.decontaminate} has {recipe.decontaminate_ngram} words"
        raise UsageError(said, "use a smaller decontaminate_ngram, or name a benchmark with longer texts")
    return benchmark


@dataclass(frozen=True)
class ScanOptions:
    """How to run a pass. Nothing here changes what it finds.

    Attributes:
        threads: number of shards that are read at once.
        memory: bytes that comparing the shards may take.
    """

    threads: int
    memory: int


def groups_to_scan(tasks: list[ShardTask], options: ScanOptions) -> Iterator[list[ShardTask]]:
    """Yield the first shards of a build, more each time, to be scanned and then built: all at once without a limit.

    What is dropped from a shard depends only on the shards before it. So under a limit that the first shards reach, the
    rest of the source is not read.
    """
    count = options.threads
    while tasks and count < len(tasks) and tasks[0].plan.recipe.limit.limits and needs_scan(tasks[0].plan.recipe):
        yield tasks[:count]
        count *= 4
    yield tasks


def scan_source(
    job: BuildJob, tasks: list[ShardTask], before: DatasetVersion | None, progress: Progress, options: ScanOptions
) -> None:
    """Write the list of what is dropped from each shard, unless an earlier run did.

    Args:
        tasks: the first shards of the build, or all.
        before: the version that the build adds to.

    Raises:
        DatasetError: what an earlier build found is missing or damaged.
        SourceError: the source cannot be read.
    """
    recipe, shards = job.plan.recipe, [task.shard.index for task in tasks]
    if not needs_scan(recipe) or all(_is_there(job.journal.dropped, shard) for shard in shards):
        return
    left = [task for task in tasks if not _is_there(job.journal.scan, task.shard.index)]
    benchmark = _benchmark(recipe, job.origin) if recipe.decontaminate is not None else None
    if benchmark is not None and benchmark.too_short:
        said = f"{benchmark.too_short:,} of {benchmark.items:,} texts of {recipe.decontaminate} have fewer than"
        progress.warned(
            f"{said} {recipe.decontaminate_ngram} words and cannot be found: use a smaller decontaminate_ngram"
        )
    _scan_all(left, benchmark, progress, options.threads)
    earlier = _earlier(before) if before is not None and recipe.dedup != "none" else []
    found = _scans_of([*earlier, *((job.journal, shard) for shard in shards)])
    later = find_later([scan.keys for scan in found], options.memory)[len(earlier) :]

    def write(shard: int, scan: ShardScan, units: U64) -> None:
        job.journal.write_dropped(shard, scan.dropped(recipe, units).as_arrays())

    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="dropped") as pool:
        list(pool.map(write, shards, found[len(earlier) :], later))


def _is_there(read: Callable[[int], object], shard: int) -> bool:
    try:
        read(shard)
    except DatasetError:
        return False
    return True


def _scans_of(shards: list[tuple[Journal, int]]) -> list[ShardScan]:
    """Return what passes over shards found. If there are many, their files are copied into one mapping."""
    journals = {journal.key: journal for journal, _ in shards}
    heap = ArrayHeap.if_many(len(shards), lambda: sum(journal.scan_bytes() for journal in journals.values()))
    return [_scan_of(journal, shard, heap) for journal, shard in shards]


def _scan_of(journal: Journal, shard: int, heap: ArrayHeap | None = None) -> ShardScan:
    arrays = journal.scan(shard)
    try:
        return ShardScan.from_arrays(heap.add(arrays) if heap is not None else arrays)
    except ValueError as error:
        said = f"the texts of shard {shard} of build {journal.key} were not compared: {error}"
        raise DatasetError(said, "build again with overwrite=True") from error


def _earlier(before: DatasetVersion) -> list[tuple[Journal, int]]:
    return [
        (Journal(before.files, build.key), shard)
        for build in before.builds
        for shard in range(build.first_shard, build.first_shard + build.shards)
    ]


def _scan_all(tasks: list[ShardTask], benchmark: Benchmark | None, progress: Progress, threads: int) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, min(threads, len(tasks))), thread_name_prefix="scan") as pool:
        running = [pool.submit(_scan, task, benchmark, progress, stop) for task in tasks]
        try:
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stop.set()
            for future in running:
                future.cancel()


def _scan(task: ShardTask, benchmark: Benchmark | None, progress: Progress, stop: threading.Event) -> None:
    # The sides of a split are compared with each other too: otherwise a text could be in both.
    plan = replace(task.plan, recipe=task.plan.recipe.model_copy(update={"side": None}))
    shard, hits = task.shard.index, list[bytes]()
    read = read_shard(plan, task.shard, Tally(), task.origin, stop=stop, render=task.render)
    with closing(read) as batches:  # type: ignore[type-var]
        watched = _watched(batches, shard, progress, stop)
        scan = scan_shard(
            watched, plan.recipe, benchmark, lambda hit: hits.append(hit.as_json(shard, shard << ROW_BITS | hit.row))
        )
    # Before what it found: that says that the shard is done.
    task.journal.write_hits(shard, b"".join(hits))
    task.journal.write_scan(shard, scan.as_arrays())


def _watched(
    batches: Iterable[SourceBatch], shard: int, progress: Progress, stop: threading.Event
) -> Iterator[SourceBatch]:
    for batch in batches:
        if stop.is_set():
            raise Interrupted("stopped", "run the same command again: it continues where it stopped")
        progress.compared(shard, len(batch.rows), batch.source_bytes)
        yield batch
