"""`TokenLoader`: an exact, elastic, resumable stream of batches over a dataset or a mixture.

It reads several steps at once (one `take`, or one gather from memory maps) and delivers them step by step. At 8 samples
a batch that is five times faster than reading batch by batch, because numpy's calls cost more than the bytes.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any

import torch

from lance_prep.errors import StateMismatch, UsageError
from lance_prep.keyed import Indices
from lance_prep.train.collate import moved, on_gpu
from lance_prep.train.order import Place, Share, Tail
from lance_prep.train.runs import Collate, RunReader, Workers, read_runs_ahead
from lance_prep.train.sampler import find_place, order_and_place, runs_of_steps
from lance_prep.train.sources import Origin, Samples

STATE_FORMAT = 1


@dataclass(frozen=True)
class Stats:
    """What a loader has delivered so far.

    Attributes:
        steps: batches delivered.
        tokens: tokens in their `input_ids`.
        seconds: time from the first request for a batch to the last delivery.
        waited: the part of `seconds` that the training loop spent waiting for batches.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens delivered per second of the whole time."""
        return self.tokens / self.seconds if self.seconds else 0.0


class TokenLoader:
    """This rank's batches, in an order that depends only on seed, epoch and step.

    A batch is a dict of int64 tensors `[local_batch, block_size]`: `input_ids`, `labels` (-100 where nothing is
    learned), and what else the dataset was opened with. `local_batch` is this rank's part of `global_batch_size`. Kept
    columns are lists of `local_batch` values. Batches of a raw dataset are dicts of lists. With a `collate_fn`, a batch
    is what that returns.

    Args:
        data: a `LanceDataset`, a `Mixture` or a `JsonlDataset`.
        global_batch_size: B, samples per step over all ranks. Each rank gets a contiguous part of it, in order.
        seed: of the shuffle, 1337 by default. Each epoch has another order. Refused for a `Mixture`, which has its own.
        rank, world_size: by default those of the default process group, else `RANK` and `WORLD_SIZE` (torchrun), else
            0 and 1. They are looked up when a pass begins.
        tail: what happens to the last `n % B` samples: "drop" (the default), "pad" or "repeat" (see `OrderOptions`).
        drop_last: True means tail="drop", False means tail="pad".
        shuffle: True by default, but False for a `Mixture`, which is in shuffled order already.
        locality, window: shuffle runs of `locality` rows, then rows inside windows of `window` runs, 16 by default. For
            object stores, where a run is one request.
        num_workers: processes that read. 0 reads in this process, which is the fastest for memory-mapped data.
        multiprocessing_context: "fork", "forkserver" or "spawn", for these processes.
        collate_fn: makes a batch from a step's samples, e.g. `pad_collate`. By default their tensors are used as they
            are.
        prefetch: runs of steps that are read before they are asked for, on a thread (per process, if there are
            workers). A run has about 64 K tokens of memory maps or 8 M tokens by `take`. `take` always reads ahead.
            Memory maps do so once a training step takes longer than reading it, because below that a thread only
            costs (200 instead of 500 Mtok/s at 8 samples a step). 0 reads when asked. One thread suffices: Lance
            reads with threads of its own, and two of ours were slower on two cores.
        device: where tensors are moved to, in dicts, lists and tuples of any depth. To a GPU they are copied from
            pinned memory while the step before is computed.

    Use it as a context manager, or call `close`, to end reading threads and worker processes early.

    Raises:
        UsageError: an option is invalid or would have no effect. See also `TakeSampler`.
    """

    def __init__(
        self,
        data: Samples,
        global_batch_size: int,
        *,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        shuffle: bool | None = None,
        locality: int | None = None,
        window: int | None = None,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        collate_fn: Collate | None = None,
        prefetch: int = 2,
        device: str | torch.device | None = None,
    ) -> None:
        _check_reading(num_workers, multiprocessing_context, prefetch)
        self.data = data
        self.order, self._given = order_and_place(
            data,
            global_batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            tail=tail,
            drop_last=drop_last,
            shuffle=shuffle,
            locality=locality,
            window=window,
        )
        self.epoch = 0
        self.step = 0
        self._collate = collate_fn
        self._prefetch = prefetch
        self._num_workers = num_workers
        self._context = multiprocessing_context
        self._workers: Workers | None = None
        self._passes = 0
        self._running: weakref.ref[Generator[Any, None, None]] | None = None
        self._device = None if device is None else torch.device(device)
        self._delivered, self._tokens, self._seconds, self._waited = 0, 0, 0.0, 0.0

    @property
    def place(self) -> Place:
        """Rank and world size, as given or as found now.

        Raises:
            UsageError: the rank cannot be determined.
        """
        return self._given or find_place()

    def __len__(self) -> int:
        """Return the number of steps of the next pass: those left in the epoch, or all of the next one at its end."""
        return self.order.steps - self.step if self.step < self.order.steps else self.order.steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch. The current epoch changes nothing."""
        if epoch != self.epoch:
            self._move(epoch, 0)

    def _move(self, epoch: int, step: int) -> None:
        self._passes += 1  # a pass that is under way ends
        self.epoch, self.step = epoch, step

    def stats(self) -> Stats:
        """Return tokens per second, and how long the training loop waited."""
        return Stats(self._delivered, self._tokens, self._seconds, self._waited)

    def trace(self, step: int, rank: int | None = None, epoch: int | None = None) -> list[Origin]:
        """Return where each sample of a step comes from.

        Args:
            step: of the epoch.
            rank: this one by default.
            epoch: the current one by default.
        """
        place = self.place if rank is None else Place(rank, self.place.world_size)
        share = place.share(self.order.global_batch_size)
        epoch = self.epoch if epoch is None else epoch
        return self.data.origins(self.order.indices(epoch, step, 1, share)[0])

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered to the training loop, and from which data: a small JSON object."""
        return {
            "format": STATE_FORMAT,
            "data": self.data._identity(self._position(self.epoch, self.step)),
            "order": self.order.state(),
            "epoch": self.epoch,
            "step": self.step,
        }

    def _position(self, epoch: int, step: int) -> int:
        return epoch * self.order.n + step * self.order.global_batch_size

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch that was delivered, in any process, world size or number of workers.

        Raises:
            StateMismatch: the state is damaged, or was made on other content, filter, block size or order.
                The message shows both values.
        """
        _check_state(state)
        epoch, step = state["epoch"], state["step"]
        order, here = dict(state["order"]), self.order.state()
        if here["endless"] and epoch == 0:
            # A later phase of a mixture may change where its epoch ends, which the first epoch does not depend on.
            order["n"] = here["n"]
        compare_states({**state["data"], **order}, {**self.data._identity(self._position(epoch, step)), **here})
        if step > self.order.steps:
            raise _damaged(f"its step is {step}, and the epoch has {self.order.steps} steps")
        self._move(epoch, step)

    # Batches.

    def __iter__(self) -> Iterator[Any]:
        """Yield batches from `epoch` and `step` to the end of the epoch, then stop at the start of the next one.

        `for epoch in range(3): for batch in loader: ...` trains three epochs. If a loop breaks off, the next one
        continues with the next step. Rank and world size are looked up when the first batch is asked for.

        Raises:
            UsageError: the rank cannot be determined, or another pass over this loader has begun meanwhile.
            DatasetError: the dataset cannot be read, or is no longer the one that was opened.
        """
        batches = self._deliver()
        self._running = weakref.ref(batches)
        _in_use.add(self)
        return batches

    def _deliver(self) -> Generator[Any, None, None]:
        self._passes += 1
        this_pass = self._passes
        if self.step >= self.order.steps:
            self.epoch, self.step = self.epoch + 1, 0
        batches = self._to_device(self._batches(self.epoch, self.step))
        started = time.perf_counter() - self._seconds
        try:
            while True:
                if self._passes != this_pass:
                    raise UsageError(
                        "this pass over the loader cannot continue: another one has begun, or set_epoch or "
                        "load_state_dict has moved the loader",
                        "iterate over the loader again, or make one TokenLoader for each loop",
                    )
                asked = time.perf_counter()
                batch = next(batches, _END)
                if batch is _END:
                    break
                now = time.perf_counter()
                # Before the yield: a batch counts as delivered once `next` has returned it, and not earlier.
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
        share = self.place.share(self.order.global_batch_size)
        runs = runs_of_steps(self.order, share, epoch, step, max(1, self.data._read_rows // len(share)))
        if self._num_workers:
            return chain.from_iterable(self._from_workers(runs, share))
        read = RunReader(self.data, len(share), self._collate)
        if self._prefetch:
            return chain.from_iterable(read_runs_ahead(runs, read, self._prefetch, at_once=self.data._slow))
        return chain.from_iterable(read[indices] for indices in runs)

    def _from_workers(self, runs: Iterator[Indices], share: Share) -> Iterator[list[Any]]:
        if self._workers is None or not self._workers.serve(len(share)):
            read = RunReader(self.data, len(share), self._collate)
            self._workers = Workers(read, len(share), self._num_workers, self._context, self._prefetch)
        yield from self._workers.read(runs)

    def _to_device(self, batches: Iterator[Any]) -> Any:
        if self._device is None:
            return (batch for batch in batches)
        if self._device.type != "cuda":
            return (moved(batch, self._device) for batch in batches)
        return on_gpu(batches, self._device)

    # The end.

    def close(self) -> None:
        """End the current pass, its reading thread and the worker processes.

        The loader stays usable: the next pass continues with the next step.
        """
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def __enter__(self) -> TokenLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_END = object()

#: Loaders with a pass or workers that may still be open when the interpreter ends.
_in_use: weakref.WeakSet[TokenLoader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A generator that is closed after its modules are unloaded cannot end its thread, and prints a traceback.
    for loader in list(_in_use):
        loader.close()


def _check_reading(num_workers: int, context: str | None, prefetch: int) -> None:
    if num_workers < 0 or prefetch < 0:
        raise UsageError(f"num_workers and prefetch must be at least 0, got {num_workers} and {prefetch}")
    if context is not None and not num_workers:
        raise UsageError(
            f"multiprocessing_context={context!r} has no effect without workers",
            "pass num_workers too, or remove multiprocessing_context",
        )
    if num_workers and not prefetch:
        raise UsageError(
            f"prefetch=0 cannot be combined with num_workers={num_workers}: workers always read ahead",
            "use prefetch=1 or more, or num_workers=0",
        )


def _check_state(state: Any) -> None:
    """Refuse a state that `state_dict` cannot have returned.

    Raises:
        StateMismatch: says what is wrong with it.
    """
    if not isinstance(state, dict):
        raise _damaged(f"expected a dict, got {state!r}")
    if state.get("format") != STATE_FORMAT:
        raise StateMismatch(
            f"the state has format {state.get('format')!r}, this loader reads format {STATE_FORMAT}",
            "load it with the version of lance-prep that wrote it",
        )
    for name in ("epoch", "step"):
        value = state.get(name)
        if type(value) is not int or value < 0:  # a bool is an int to isinstance
            raise _damaged(f"its {name} must be a whole number of at least 0, got {value!r}")
    for name in ("data", "order"):
        if not isinstance(state.get(name), dict):
            raise _damaged(f"its {name} must be a dict, got {state.get(name)!r}")


def _damaged(why: str) -> StateMismatch:
    return StateMismatch(f"the loader's state is damaged: {why}", "pass what TokenLoader.state_dict() returned")


def compare_states(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a state whose values differ from this loader's.

    Raises:
        StateMismatch: names every value that differs, and both values.
    """
    differing = [
        f"{name}: {there.get(name, 'absent')!r} in the checkpoint, {here.get(name, 'absent')!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, "absent") != here.get(name, "absent")
    ]
    if differing:
        raise StateMismatch(
            "the checkpoint was made on other data or another order: " + "; ".join(differing),
            "open the version that the checkpoint was made on, with the same options, or start from step 0",
        )


def _tokens(batch: Any) -> int:
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    return int(ids.numel()) if ids is not None else 0
