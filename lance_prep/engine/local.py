"""Shards on threads of this process. Tokenizing, decompressing and writing release the interpreter's lock."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from lance_prep.engine.schedule import Schedule, register_engine
from lance_prep.engine.shard import Hooks, build_shard
from lance_prep.store import Receipt


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """Builds `workers` shards at once, each on a thread; by default one for each core."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or default_workers()

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        at_once = max(1, min(self._workers, len(schedule.tasks)))
        hooks = replace(hooks, encoders=hooks.encoders.sized(at_once, parallel=at_once < self._workers))
        running: set[Future[Receipt]] = set()
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="shard")
        try:
            while not schedule.done:
                while len(running) < at_once and (job := schedule.next()) is not None:
                    running.add(pool.submit(build_shard, *job, hooks))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    schedule.add(future.result())
        finally:
            # Also stops shards that were begun but, under a row limit, are not needed.
            hooks.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


register_engine("local", LocalEngine)
