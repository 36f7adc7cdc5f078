"""Reads runs of steps for a loader: when asked, ahead on a thread, or in worker processes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lance_prep.keyed import Indices
from lance_prep.train.samples import Batch, CompactBatch
from lance_prep.train.sources import Samples

Collate = Callable[[Any], Any]


class RunReader(Dataset[list[Any]]):
    """Reads the batches of a run of steps from its sample indices, in the thread or process that asks."""

    def __init__(self, data: Samples, share: int, collate: Collate | None) -> None:
        self._data, self._share, self._collate = data, share, collate

    def lazily(self, indices: Indices) -> Iterable[Any]:
        """Return the batches of a run. A compact batch is converted to int64 step by step, at first use."""
        batch = self._data.__getitems__(indices)
        if self._collate is None and isinstance(batch, CompactBatch):
            return (batch[i : i + self._share].collated() for i in range(0, len(batch), self._share))
        return self._steps(batch)

    def __getitem__(self, indices: Indices) -> list[Any]:
        return self._steps(self._data.__getitems__(indices))

    def _steps(self, batch: Batch | list[Any]) -> list[Any]:
        share = self._share
        if self._collate is not None:
            return [self._collate(batch[i : i + share]) for i in range(0, len(batch), share)]
        if not isinstance(batch, Batch):  # items that a transform made
            return [default_collate(batch[i : i + share]) for i in range(0, len(batch), share)]
        whole = batch.collated()
        if len(batch) == share:
            return [whole]
        if batch.lists:
            return [batch[i : i + share].collated() for i in range(0, len(batch), share)]
        parts = [torch.split(values, share) for values in whole.values()]
        return [dict(zip(whole, step, strict=True)) for step in zip(*parts, strict=True)]


def read_runs_ahead(runs: Iterator[Indices], read: RunReader, depth: int, *, at_once: bool) -> Iterator[Iterable[Any]]:
    """Yield runs in order, reading up to `depth` of them ahead on a thread.

    Args:
        runs: the sample indices of each run.
        read: reads a run.
        depth: number of runs to read ahead.
        at_once: read ahead from the start. Otherwise begin once the training loop is slower than reading.
    """
    pending: deque[Future[Iterable[Any]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lance-prep-read-ahead")
    ahead = at_once
    try:
        for indices in runs:
            if ahead:
                pending.append(pool.submit(read.lazily, indices))
                if len(pending) > depth:
                    yield pending.popleft().result()
                continue
            started = time.perf_counter()
            run = read.lazily(indices)
            given = time.perf_counter()
            yield run
            ahead = time.perf_counter() - given > 2 * (given - started)
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Turn:
    """The sampler of the worker processes' DataLoader: the runs of the current pass."""

    runs: Iterator[Indices] = iter(())

    def __iter__(self) -> Iterator[Indices]:
        return self.runs


def _unchanged(value: Any) -> Any:
    return value


class Workers:
    """Worker processes that read runs of steps, and are kept for the next pass.

    Args:
        read: reads a run.
        share: samples per step of this rank, which `read` was made for.
        count: processes.
        context: how the processes are started.
        prefetch: runs that each reads ahead.
    """

    def __init__(self, read: RunReader, share: int, count: int, context: str | None, prefetch: int) -> None:
        self._share, self._owner = share, os.getpid()
        self._turn = _Turn()
        self._loader: DataLoader[Any] = DataLoader(
            read,
            batch_size=None,
            sampler=self._turn,
            num_workers=count,
            multiprocessing_context=context,
            prefetch_factor=prefetch,
            persistent_workers=True,
            collate_fn=_unchanged,
        )

    def serve(self, share: int) -> bool:
        """Return whether this process started them, for the same number of samples per step."""
        return (share, os.getpid()) == (self._share, self._owner)

    def read(self, runs: Iterator[Indices]) -> Iterator[list[Any]]:
        """Yield the batches of each run, in order."""
        self._turn.runs = runs
        yield from self._loader

    def close(self) -> None:
        """End the processes. In a forked child, do nothing, because they belong to its parent."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None and os.getpid() == self._owner:
            iterator._shutdown_workers()
