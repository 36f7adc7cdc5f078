"""Reading behind the loader: runs of several steps at once, on a thread, in worker processes, and on to a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
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
    """What a loader reads from: a `LanceDataset` or a `Mixture`. Threads may share one; workers get a pickle."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: IndexArray, /) -> Batch: ...

    def origins(self, indices: IndexArray, /) -> list[Origin]:
        """Return where samples come from."""

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what must be equal for a checkpoint made at a position to be resumed from."""

    @property
    def _read_rows(self) -> int:
        """How many samples are best read at once."""

    @property
    def _slow(self) -> bool:
        """Whether reading waits for more than memory, so that reading ahead always pays."""


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
    """Yield runs in order, reading up to `depth` of them ahead on a thread.

    Args:
        runs: the indices of each.
        read: reads one.
        depth: how many runs to read ahead.
        at_once: read ahead from the start, not only once the training loop has turned out slower than reading.
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


def each_tensor(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch with every tensor in it changed: in mappings, lists, tuples and named tuples, nested."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: each_tensor(value, change) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return changed
        # Keep the class, which may carry more than its items, as transformers' BatchEncoding does.
        twin = copy(batch)
        twin.update(changed)
        return twin
    if isinstance(batch, list | tuple):
        parts = [each_tensor(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    return each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))


def on_gpu(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield batches on a GPU. Each is copied on a stream of its own while the one before is in use."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    none = object()
    ahead: Any = none
    for batch in batches:
        pinned = each_tensor(batch, torch.Tensor.pin_memory)
        with torch.cuda.stream(stream):
            copied = moved(pinned, device)
        if ahead is not none:
            yield _ready(ahead, stream, device)
        ahead = copied
    if ahead is not none:
        yield _ready(ahead, stream, device)


def _ready(batch: Any, stream: Any, device: torch.device) -> Any:
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)

    def in_use(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(current)  # its memory must not be reused before the training step is done with it
        return tensor

    return each_tensor(batch, in_use)
