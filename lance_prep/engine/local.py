"""Shards on threads of this process. Tokenizing, decompressing and writing release the interpreter's lock."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from lance_prep.engine.report import Progress
from lance_prep.engine.schedule import Schedule
from lance_prep.engine.shard import BuildJob, Worker
from lance_prep.store import Receipt


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(job: BuildJob, schedule: Schedule, *, workers: int, progress: Progress) -> None:
    """Build what the schedule hands out, `workers` shards at once.

    Raises:
        LancePrepError: the first that a shard raised. The others are stopped; finished shards keep their receipts.
        KeyboardInterrupt: likewise.
    """
    at_once = max(1, min(workers, len(job.plan.shards)))
    job = replace(job, at_once=at_once, parallel_encode=at_once < workers)
    stop = threading.Event()
    reference = job.make_reference()
    disagreed = threading.Event()
    idle = [Worker(job, reference, progress, stop, disagreed) for _ in range(at_once)]
    running: dict[Future[Receipt], Worker] = {}
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="shard")
    try:
        while not schedule.done:
            while idle and (task := schedule.next()) is not None:
                worker = idle.pop()
                running[pool.submit(worker.build_shard, *task)] = worker
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                idle.append(running.pop(future))
                schedule.add(future.result())
    finally:
        # After the end this stops shards that were begun but, under a row limit, turned out not to be needed.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
