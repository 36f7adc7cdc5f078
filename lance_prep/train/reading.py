"""Reading behind the loader: runs of several steps at once, on a thread, in worker processes, and on to a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from lance_prep.train.dataset import Origin
from lance_prep.train.order import Order, Share
from lance_prep.train.permutation import IndexArray
from lance_prep.train.sampler import AT_ONCE
from lance_prep.train.samples import Batch, CompactBatch

Collate = Callable[[Any], Any]


class Samples(Protocol):
    """What a loader reads from: `LanceDataset` and `Mixture` are."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: IndexArray, /) -> Batch: ...

    def identity(self, position: int = 0) -> dict[str, Any]:
        """What must be equal for a checkpoint made at a position to go on."""

    def where(self, indices: IndexArray, /) -> list[Origin]:
        """Where samples come from."""

    @property
    def read_rows(self) -> int:
        """How many samples are best read at once."""

    @property
    def slow(self) -> bool:
        """Whether reading waits for more than memory, so that reading ahead pays in any case."""


class Runs:
    """Sample indices of runs of steps, from a step of an epoch to its end: int64 `[steps * share]` each."""

    def __init__(self, order: Order, share: Share, epoch: int, step: int, steps: int) -> None:
        self._order, self._share, self._epoch, self._step, self._steps = order, share, epoch, step, steps

    def __iter__(self) -> Iterator[IndexArray]:
        step, end, share = self._step, self._order.steps, len(self._share)
        # The first run is short: the first batch after a start or a resume comes at once.
        size = 1
        while step < end:
            # Positions of many runs at once: for 64 of them the permutation costs 80 us, for 16,384 of them 400.
            some = min(max(4 * AT_ONCE // share, self._steps), end - step)
            found = self._order.indices(self._epoch, step, some, self._share).reshape(-1)
            done = 0
            while done < some:
                yield found[done * share : (done + size) * share]
                done += size
                size = min(size * 4, self._steps)
            step += some


class Turn:
    """The sampler of the worker processes' DataLoader: the runs of the pass that begins."""

    runs: Runs | None = None

    def __iter__(self) -> Iterator[IndexArray]:
        assert self.runs is not None
        return iter(self.runs)


class RunReader(Dataset[list[Any]]):
    """A run of steps by its indices: the batch of each, made where it is read."""

    def __init__(self, data: Samples, share: int, collate: Collate | None) -> None:
        self._data, self._share, self._collate = data, share, collate

    def lazily(self, indices: IndexArray) -> Iterable[Any]:
        """The same, but a compact batch is made int64 step by step when those are asked for."""
        batch = self._data.__getitems__(indices)
        if self._collate is None and isinstance(batch, CompactBatch):
            return (batch[i : i + self._share].collated() for i in range(0, len(batch), self._share))
        return self._steps(batch)

    def __getitem__(self, indices: IndexArray) -> list[Any]:
        return self._steps(self._data.__getitems__(indices))

    def _steps(self, batch: Batch) -> list[Any]:
        share = self._share
        if self._collate is not None:
            return [self._collate(batch[i : i + share]) for i in range(0, len(batch), share)]
        whole = batch.collated()
        if len(batch) == share:
            return [whole]
        if batch.lists:
            return [batch[i : i + share].collated() for i in range(0, len(batch), share)]
        parts = [torch.split(values, share) for values in whole.values()]
        return [dict(zip(whole, step, strict=True)) for step in zip(*parts, strict=True)]


def in_step(runs: Iterator[Iterable[Any]]) -> Iterator[Any]:
    for run in runs:
        yield from run


def read_ahead(runs: Runs, read: RunReader, depth: int, *, at_once: bool) -> Iterator[Iterable[Any]]:
    """Runs in order, up to `depth` of them read before they are asked for.

    Args:
        runs: the indices of each.
        read: reads one.
        depth: how many.
        at_once: read ahead from the start on, and not only when the training loop has turned out slower than the
            reading.
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


def as_it_is(value: Any) -> Any:
    return value


def moved(batch: Any, device: torch.device) -> Any:
    if not isinstance(batch, dict):
        return batch
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def on_gpu(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a GPU: each is copied on a stream of its own while the one before is in use."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: Any = None
    for batch in batches:
        pinned = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with torch.cuda.stream(stream):
            copied = moved(pinned, device)
        if ahead is not None:
            yield _ready(ahead, stream, device)
        ahead = copied
    if ahead is not None:
        yield _ready(ahead, stream, device)


def _ready(batch: dict[str, Any], stream: Any, device: torch.device) -> dict[str, Any]:
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    for value in batch.values():
        if isinstance(value, torch.Tensor):
            value.record_stream(current)  # so that its memory is not reused before the training step is done with it
    return batch
