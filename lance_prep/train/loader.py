"""`TokenLoader`: an exact, elastic, resumable stream of batches over a dataset or a mixture.

It reads several steps at once (a run of samples of one `take`, or of one gather) and hands them out step by step: at 8
samples a batch that is five times faster than a batch at a time, for the numpy calls of a batch cost more than its
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from lance_prep.errors import StateMismatch, UsageError
from lance_prep.train.dataset import Origin
from lance_prep.train.order import Order, Tail
from lance_prep.train.reading import (
    Collate,
    RunReader,
    Runs,
    Samples,
    Turn,
    as_it_is,
    in_step,
    moved,
    on_gpu,
    read_ahead,
)
from lance_prep.train.sampler import Place, make_order

STATE_FORMAT = 1


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
        num_workers: processes that read. 0, this process, is the fastest for memory-mapped data.
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
        """Steps that the next pass makes: those left in the epoch, or all of the next one at its end."""
        return self.order.steps - self.step if self.step < self.order.steps else self.order.steps

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
        runs = Runs(self.order, self._share, epoch, step, max(1, self.data.read_rows // len(self._share)))
        read = RunReader(self.data, len(self._share), self._collate)
        if self._num_workers:
            return in_step(self._from_workers(runs, read))
        if self._read_ahead:
            return in_step(read_ahead(runs, read, self._read_ahead, at_once=self.data.slow))
        return in_step(read[indices] for indices in runs)

    def _from_workers(self, runs: Runs, read: RunReader) -> Iterator[list[Any]]:
        if self._workers is None:
            self._workers = DataLoader(
                read,
                batch_size=None,
                sampler=Turn(),
                num_workers=self._num_workers,
                multiprocessing_context=self._context,
                prefetch_factor=max(1, self._read_ahead),
                persistent_workers=True,
                collate_fn=as_it_is,
            )
        turn = self._workers.sampler
        assert isinstance(turn, Turn)
        turn.runs = runs
        yield from self._workers

    def _to_device(self, batches: Iterator[Any]) -> Any:
        if self._device is None:
            return (batch for batch in batches)
        if self._device.type != "cuda":
            return (moved(batch, self._device) for batch in batches)
        return on_gpu(batches, self._device)


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


def _tokens(batch: Any) -> int:
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    return int(ids.numel()) if ids is not None else 0
