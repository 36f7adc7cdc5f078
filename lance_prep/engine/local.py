"""Shards on threads of this process. Tokenizing, decompressing and writing release the interpreter's lock."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Self

from lance_prep.engine.schedule import Schedule, register_engine
from lance_prep.engine.shard import Encoders, Hooks, build_shard
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
        with ThreadPoolExecutor(at_once, thread_name_prefix="shard") as pool:
            _build_all(schedule, hooks, pool, at_once)


class SharedEngine:
    """Builds the shards of several builds at a time, on the same threads and with the same encoders.

    For builds with one tokenizer, each run from a thread of its own. Many small builds keep every core busy that way,
    and each encoder is made once and knows the words of the builds before. Builds of conversations have encoders of
    their own, because the chat template decides how they treat special tokens.

    Args:
        workers: shards built at once; by default one for each core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or default_workers()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="shard")
        self._encoders: dict[str, Encoders] = {}
        self._running: set[threading.Event] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Stop the shards in work, if a block ends early, and wait for their threads."""
        with self._lock:
            for stop in self._running:
                stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        with self._lock:
            key = hooks.encoders.key
            if key not in self._encoders:
                self._encoders[key] = hooks.encoders.sized(self.workers, parallel=False)
            self._running.add(hooks.stop)
        try:
            _build_all(schedule, replace(hooks, encoders=self._encoders[key]), self._pool, self.workers)
        finally:
            with self._lock:
                self._running.discard(hooks.stop)


def _build_all(schedule: Schedule, hooks: Hooks, pool: ThreadPoolExecutor, at_once: int) -> None:
    """Build what the schedule hands out, this number of shards at once, until it is done."""
    running: set[Future[Receipt]] = set()
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
        for future in running:
            future.cancel()
        wait(running)


register_engine("local", LocalEngine)
