"""`TokenLoader`: an exact, elastic, resumable stream of batches over a dataset or a mixture.

It reads several steps at once (a run of samples of one `take`, or of one gather) and hands them out step by step: at 8
samples a batch that is five times faster than a batch at a time, for the numpy calls of a batch cost more than its
bytes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from lance_prep.errors import StateMismatch, UsageError
from lance_prep.train.dataset import Origin
from lance_prep.train.order import Order, Share, Tail
from lance_prep.train.permutation import IndexArray
from lance_prep.train.sampler import AT_ONCE, Place, make_order
from lance_prep.train.samples import Batch

STATE_FORMAT = 1

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


@dataclass(frozen=True)
class Stats:
    """What a loader did since it was made.

    Attributes:
        steps: batches delivered.
        tokens: in their `input_ids`.
        seconds: from the first batch asked for to the last one delivered.
        waited: seconds of those in which the training loop waited for a batch.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens delivered a second of the whole time."""
        return self.tokens / self.seconds if self.seconds else 0.0


class TokenLoader:
    """Batches of this rank, in an order that depends on seed, epoch and step alone.

    Args:
        data: a `LanceDataset` or a `Mixture`.
        global_batch_size: samples a step over all ranks; see `TakeSampler` for it and for `seed`, `rank`,
            `world_size`, `tail`, `drop_last`, `shuffle`, `locality` and `window`.
        num_workers: processes that read; 0 reads on a thread, which memory-mapped data outruns no trainer with.
        multiprocessing_context: "fork", "forkserver" or "spawn", for those.
        collate_fn: makes a step's batch of its samples, e.g. `pad_collate`; by default their tensors as they are.
        read_ahead: runs of steps (64 samples of maps, 8,192 by `take`) that are read before they are asked for, on a
            thread: by `take` always, of maps as soon as a training step takes longer than reading it, for below
            that a thread only costs (200 instead of 500 Mtok/s at 8 samples a step). 0 reads when asked. One thread:
            Lance reads a `take` on threads of its own, and two of ours were slower on two cores.
        device: where tensors go. To a GPU they are copied from pinned memory while the step before is computed.

    Iterating goes on from `loader.epoch`, `loader.step` to the end of the epoch, and then stands at the start of the
    next one: `for epoch in range(3): for batch in loader: ...` trains three. A loop that breaks off goes on there.

    Raises:
        UsageError: see `TakeSampler`.
    """

    def __init__(
        self,
        data: Samples,
        global_batch_size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        shuffle: bool | None = None,
        locality: int | None = None,
        window: int = 16,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        collate_fn: Collate | None = None,
        read_ahead: int = 2,
        device: str | torch.device | None = None,
    ) -> None:
        if read_ahead < 0 or num_workers < 0:
            raise UsageError(f"read_ahead={read_ahead}, num_workers={num_workers}", "both are 0 or more")
        self.data = data
        self.order: Order = make_order(
            data,
            global_batch_size,
            seed=seed,
            tail=tail,
            drop_last=drop_last,
            shuffle=shuffle,
            locality=locality,
            window=window,
        )
        self.place = Place.find(rank, world_size)
        self._share = self.place.share(global_batch_size)
        self.epoch = 0
        self.step = 0
        self._collate = collate_fn
        self._read_ahead = read_ahead
        self._num_workers = num_workers
        self._context = multiprocessing_context
        self._workers: DataLoader[Any] | None = None
        self._device = None if device is None else torch.device(device)
        self._delivered, self._tokens, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def __len__(self) -> int:
        """Steps left in the epoch."""
        return self.order.steps - self.step

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; the same one changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def stats(self) -> Stats:
        """Tokens a second, and how long the training loop waited."""
        return Stats(self._delivered, self._tokens, self._seconds, self._waited)

    def trace(self, step: int, rank: int | None = None, epoch: int | None = None) -> list[Origin]:
        """Source, row and document of each sample of a step, of this rank and epoch by default."""
        place = self.place if rank is None else Place(rank, self.place.world_size)
        share = place.share(self.order.global_batch_size)
        epoch = self.epoch if epoch is None else epoch
        return self.data.where(self.order.indices(epoch, step, 1, share)[0])

    # State.

    def state_dict(self) -> dict[str, Any]:
        """What was delivered to the training loop, and on what: small, and JSON."""
        order = self.order.state()
        return {
            "format": STATE_FORMAT,
            "data": self.data.identity(self._position()),
            "order": order,
            "epoch": self.epoch,
            "step": self.step,
        }

    def _position(self) -> int:
        return self.epoch * self.order.n + self.step * self.order.global_batch_size

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the row after the last one delivered, in whatever process, world size or number of workers.

        Raises:
            StateMismatch: it was made on another dataset, version, filter, block size or order; shows both values.
        """
        if state.get("format") != STATE_FORMAT:
            raise StateMismatch(
                f"the state's format is {state.get('format')!r}, this loader's is {STATE_FORMAT}",
                "load it with the version of lance-prep that wrote it",
            )
        epoch, step = int(state["epoch"]), int(state["step"])
        order, here = dict(state["order"]), self.order.state()
        if here["endless"] and epoch == 0:
            # A later phase of a mixture may change where its epoch ends, which the first epoch does not depend on.
            order["n"] = here["n"]
        position = epoch * self.order.n + step * self.order.global_batch_size
        compare_states({**state["data"], **order}, {**self.data.identity(position), **here})
        if not 0 <= step <= self.order.steps:
            raise StateMismatch(f"the state's step is {step}, the epoch has {self.order.steps}", "it is damaged")
        self.epoch, self.step = epoch, step

    # Batches.

    def __iter__(self) -> Iterator[Any]:
        if self.step >= self.order.steps:
            self.epoch, self.step = self.epoch + 1, 0
        batches = self._to_device(self._batches(self.epoch, self.step))
        started = time.perf_counter() - self._seconds
        try:
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                now = time.perf_counter()
                # Before the yield: what `next` has returned is delivered, and nothing else is.
                self.step += 1
                self._delivered += 1
                self._tokens += _tokens(batch)
                self._seconds = now - started
                self._waited += now - asked
                yield batch
            self.epoch, self.step = self.epoch + 1, 0
        finally:
            batches.close()

    def _batches(self, epoch: int, step: int) -> Iterator[Any]:
        runs = _Runs(self.order, self._share, epoch, step, max(1, self.data.read_rows // len(self._share)))
        read = _RunReader(self.data, len(self._share), self._collate)
        if self._num_workers:
            return _in_step(self._from_workers(runs, read))
        if self._read_ahead:
            return _in_step(_ahead(runs, read, self._read_ahead, at_once=self.data.slow))
        return _in_step(read[indices] for indices in runs)

    def _from_workers(self, runs: _Runs, read: _RunReader) -> Iterator[list[Any]]:
        if self._workers is None:
            self._workers = DataLoader(
                read,
                batch_size=None,
                sampler=_Turn(),
                num_workers=self._num_workers,
                multiprocessing_context=self._context,
                prefetch_factor=max(1, self._read_ahead),
                persistent_workers=True,
                collate_fn=_as_it_is,
            )
        turn = self._workers.sampler
        assert isinstance(turn, _Turn)
        turn.runs = runs
        yield from self._workers

    def _to_device(self, batches: Iterator[Any]) -> Any:
        if self._device is None:
            return (batch for batch in batches)
        if self._device.type != "cuda":
            return (_moved(batch, self._device) for batch in batches)
        return _on_gpu(batches, self._device)


class _Runs:
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


class _Turn:
    """The sampler of the worker processes' DataLoader: the runs of the pass that begins."""

    runs: _Runs | None = None

    def __iter__(self) -> Iterator[IndexArray]:
        assert self.runs is not None
        return iter(self.runs)


class _RunReader(Dataset[list[Any]]):
    """A run of steps by its indices: the batch of each, made where it is read."""

    def __init__(self, data: Samples, share: int, collate: Collate | None) -> None:
        self._data, self._share, self._collate = data, share, collate

    def __getitem__(self, indices: IndexArray) -> list[Any]:
        batch = self._data.__getitems__(indices)
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


def _in_step(runs: Iterator[list[Any]]) -> Iterator[Any]:
    for run in runs:
        yield from run


def _ahead(runs: _Runs, read: _RunReader, depth: int, *, at_once: bool) -> Iterator[list[Any]]:
    """Runs in order, up to `depth` of them read before they are asked for.

    Args:
        runs: the indices of each.
        read: reads one.
        depth: how many.
        at_once: read ahead from the start on, and not only when the training loop has turned out slower than the
            reading.
    """
    pending: deque[Future[list[Any]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lance-prep-read-ahead")
    ahead = at_once
    try:
        for indices in runs:
            if ahead:
                pending.append(pool.submit(read.__getitem__, indices))
                if len(pending) > depth:
                    yield pending.popleft().result()
                continue
            started = time.perf_counter()
            run = read[indices]
            given = time.perf_counter()
            yield run
            ahead = time.perf_counter() - given > 2 * (given - started)
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_it_is(value: Any) -> Any:
    return value


def _tokens(batch: Any) -> int:
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    return int(ids.numel()) if ids is not None else 0


def _moved(batch: Any, device: torch.device) -> Any:
    if not isinstance(batch, dict):
        return batch
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _on_gpu(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a GPU: each is copied on a stream of its own while the one before is in use."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: Any = None
    for batch in batches:
        pinned = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with torch.cuda.stream(stream):
            copied = _moved(pinned, device)
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


def compare_states(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a state whose values are not this loader's.

    Raises:
        StateMismatch: names every value that differs, both ways.
    """
    differing = [
        f"{name}: {there.get(name, 'absent')!r} in the checkpoint, {here.get(name, 'absent')!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, "absent") != here.get(name, "absent")
    ]
    if differing:
        raise StateMismatch(
            "the checkpoint was made on other data or another order: " + "; ".join(differing),
            "open the dataset at the checkpoint's version and with its options, or start anew",
        )
