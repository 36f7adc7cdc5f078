"""The pass over a source before its shards are built: which documents and lines are dropped from each.

Each shard is read on its own, and what it holds is kept in the journal, so a pass that is killed continues. Then the
shards are compared with each other and with those of the builds that are added to, which gives a list for each shard.
`build_shard` reads the list of its shard. Where shards are built, and how many at once, does not matter to any of this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace

from lance_prep.engine.report import Progress
from lance_prep.engine.shard import BuildJob, ShardTask
from lance_prep.errors import DatasetError, Interrupted
from lance_prep.ledger import Tally
from lance_prep.source import SourceBatch, read_shard
from lance_prep.store import DatasetVersion, Journal
from lance_prep.text import ShardScan, find_later, needs_scan, scan_shard

#: Bytes that comparing shards may take by default.
DEFAULT_MEMORY = 1 << 30


def scan_source(job: BuildJob, before: DatasetVersion | None, progress: Progress, *, threads: int, memory: int) -> None:
    """Write the list of what is dropped from each shard, unless an earlier run did.

    Args:
        before: the version that the build adds to.
        threads: number of shards that are read at once.
        memory: bytes that comparing the shards may take.

    Raises:
        DatasetError: what an earlier build found is missing or damaged.
        SourceError: the source cannot be read.
    """
    if not needs_scan(job.plan.recipe) or all(_is_there(job.journal.dropped, task) for task in job.tasks()):
        return
    left = [task for task in job.tasks() if not _is_there(job.journal.scan, task)]
    _scan_all(left, progress, threads)
    earlier = _earlier(before) if before is not None else []
    scans = [ShardScan.from_arrays(job.journal.scan(shard.index)) for shard in job.plan.shards]
    later = find_later([scan.keys for scan in [*earlier, *scans]], memory)[len(earlier) :]
    for shard, scan, units in zip(job.plan.shards, scans, later, strict=True):
        job.journal.write_dropped(shard.index, scan.dropped(job.plan.recipe, units).as_arrays())


def _is_there(read: Callable[[int], object], task: ShardTask) -> bool:
    try:
        read(task.shard.index)
    except DatasetError:
        return False
    return True


def _earlier(before: DatasetVersion) -> list[ShardScan]:
    return [
        ShardScan.from_arrays(Journal(before.files, build.key).scan(shard))
        for build in before.builds
        for shard in range(build.first_shard, build.first_shard + build.shards)
    ]


def _scan_all(tasks: list[ShardTask], progress: Progress, threads: int) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, min(threads, len(tasks))), thread_name_prefix="scan") as pool:
        running = [pool.submit(_scan, task, progress, stop) for task in tasks]
        try:
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stop.set()
            for future in running:
                future.cancel()


def _scan(task: ShardTask, progress: Progress, stop: threading.Event) -> None:
    # The sides of a split are compared with each other too: otherwise a text could be in both.
    plan = replace(task.plan, recipe=task.plan.recipe.model_copy(update={"side": None}))
    read = read_shard(plan, task.shard, Tally(), task.origin, stop=stop, render=task.render)
    with closing(read) as batches:  # type: ignore[type-var]

        def watched() -> Iterator[SourceBatch]:
            for batch in batches:
                if stop.is_set():
                    raise Interrupted("stopped", "run the same command again: it continues where it stopped")
                yield batch

        scan = scan_shard(watched(), plan.recipe)
    task.journal.write_scan(task.shard.index, scan.as_arrays())
