"""Sample indices for torch: `TakeSampler` yields them step by step, `runs_of_steps` several steps at once.

The rows of a step depend only on the step, for every number of ranks and workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.train.order import DEFAULT_SEED, DEFAULT_WINDOW, Order, OrderOptions, Place, Share, Tail

#: Positions computed per call. A position costs 50 ns at this size, and 1,000 ns when 64 are computed at a time.
AT_ONCE = 4096


def find_place() -> Place:
    """Return the rank and world size of the default process group, else of RANK and WORLD_SIZE, else 0 and 1.

    Trainers set these up after the data loader was made, so call this when a pass begins.

    Raises:
        UsageError: the environment contradicts the process group, is incomplete without one, or holds no number.
    """
    environment = _environment()
    said = ", ".join(f"{name}={value}" for name, value in environment.items())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        place = Place(torch.distributed.get_rank(), torch.distributed.get_world_size())
        group = {"RANK": place.rank, "WORLD_SIZE": place.world_size}
        if any(group[name] != value for name, value in environment.items()):
            raise UsageError(
                f"the process group has rank {place.rank} of {place.world_size}, but the environment says {said}",
                "pass rank= and world_size=, or correct RANK and WORLD_SIZE",
            )
        return place
    if len(environment) == 1:
        raise UsageError(
            f"the environment sets only one of RANK and WORLD_SIZE ({said}), and torch.distributed is not initialized",
            "initialize it before the first batch, set both variables, or pass rank= and world_size=",
        )
    return Place(environment.get("RANK", 0), environment.get("WORLD_SIZE", 1))


def _environment() -> dict[str, int]:
    found = {}
    for name in ("RANK", "WORLD_SIZE"):
        if text := os.environ.get(name):
            try:
                found[name] = int(text)
            except ValueError:
                raise UsageError(f"{name}={text!r} is not a number", f"correct or unset {name}") from None
    return found


def order_and_place(
    data: Sized | int,
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
) -> tuple[Order, Place | None]:
    """Return the order of a dataset and, if the caller chose it, this process's place among the ranks.

    Raises:
        UsageError: arguments contradict each other, would have no effect, or are invalid.
    """
    if drop_last is not None:
        if tail is not None and (tail == "drop") != drop_last:
            raise UsageError(f"tail={tail!r} contradicts drop_last={drop_last}", "pass one of them")
        tail = tail or ("drop" if drop_last else "pad")
    endless = bool(getattr(data, "endless", False))
    if shuffle is None:
        shuffle = not endless  # a second shuffle of a mixture would undo its shares
    if seed is not None and not shuffle:
        raise UsageError(
            f"seed={seed} has no effect: the samples are read in their own order",
            "pass the seed to Mixture" if endless else "remove seed, or shuffle",
        )
    if window is not None and locality is None:
        raise UsageError(f"window={window} has no effect without locality", "pass locality too, or remove window")
    options = OrderOptions(
        global_batch_size,
        seed=DEFAULT_SEED if seed is None else seed,
        tail=tail or "drop",
        shuffle=shuffle,
        locality=locality,
        window=DEFAULT_WINDOW if window is None else window,
    )
    order = Order(data if isinstance(data, int) else len(data), options, endless)
    if rank is None and world_size is None:
        return order, None
    if rank is None or world_size is None:
        raise UsageError(f"got rank={rank} and world_size={world_size}", "pass both, or neither")
    place = Place(rank, world_size)
    place.share(global_batch_size)  # refuse too many ranks here rather than at the first batch
    return order, place


class TakeSampler(Sampler[list[int]]):
    """A batch sampler that yields this rank's part of each global batch, in a shuffled order that needs no memory.

    Args:
        data: a dataset, or its number of samples.
        global_batch_size: B, samples per step over all ranks. Each rank gets a contiguous part of it, in order; the
            first `B % world_size` ranks get one sample more. The ranks' batches, concatenated, are the same rows in
            the same order for every world size.
        seed: of the shuffle, 1337 by default. Each epoch has another order.
        rank, world_size: by default those of the default process group, else `RANK` and `WORLD_SIZE` (torchrun), else
            0 and 1. They are looked up when a pass begins, so the sampler can be made before a trainer sets them up.
        tail: "drop" (the default), "pad" or "repeat": what happens to the last samples (see `OrderOptions`).
        drop_last: True means tail="drop", False means tail="pad".
        epoch: the first epoch.
        start_step: the step at which that epoch begins.
        shuffle: True by default, but False for a `Mixture`, which is in shuffled order already.
        locality, window: shuffle runs of `locality` rows, then rows inside windows of `window` runs, 16 by default
            (see `OrderOptions`).

    Every rank makes the same number of steps. Each step costs the same, and memory stays at half a MB for any number
    of samples. `start_step` holds for one pass: the next begins at step 0, in the same epoch unless `set_epoch` is
    called.

    Accelerate and Lightning divide a batch sampler among ranks once more, which is refused when there are several
    ranks. Use `TokenLoader`, which both leave alone; in Lightning, `Trainer(use_distributed_sampler=False)` works too.

    Raises:
        UsageError: an option is invalid (see `OrderOptions` and `Place`), or `start_step` is beyond the epoch. When a
            pass begins: the rank cannot be determined. When a trainer would divide the batches again: see
            `batch_size`.
    """

    def __init__(
        self,
        data: Sized | int,
        global_batch_size: int,
        *,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        epoch: int = 0,
        start_step: int = 0,
        shuffle: bool | None = None,
        locality: int | None = None,
        window: int | None = None,
    ) -> None:
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
        if not 0 <= start_step <= self.order.steps:
            raise UsageError(
                f"start_step={start_step} is outside of an epoch of {self.order.steps} steps",
                f"use a step from 0 to {self.order.steps}",
            )
        self.epoch = epoch
        self.start_step = start_step

    @property
    def place(self) -> Place:
        """Rank and world size, as given or as found now.

        Raises:
            UsageError: see `find_place`.
        """
        return self._given or find_place()

    @property
    def batch_size(self) -> int:
        """Samples per step of this rank.

        Trainers ask for it before they divide a batch sampler among ranks, which this one has done already:
        Accelerate would silently skip half of the samples on two ranks.

        Raises:
            UsageError: there are several ranks.
        """
        place = self.place
        if place.world_size > 1:
            raise UsageError(
                f"TakeSampler has divided each global batch among {place.world_size} ranks already; a trainer that "
                "asks for its batch_size would divide it again",
                "use TokenLoader(dataset, global_batch_size=...) instead; with Lightning, or set "
                "Trainer(use_distributed_sampler=False); with Accelerate, or do not pass this DataLoader to prepare()",
            )
        return self.order.global_batch_size

    @property
    def drop_last(self) -> bool:
        """Whether every batch is full of samples."""
        return self.order.options.tail == "drop"

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch. The current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start_step = epoch, 0

    def __len__(self) -> int:
        """Return the number of steps of the next pass."""
        return self.order.steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample indices of each step: a list of int, `PAD_ROW` for padding samples."""
        share = self.place.share(self.order.global_batch_size)
        step, self.start_step = self.start_step, 0
        for block in self.order.index_blocks(self.epoch, step, share, max(1, AT_ONCE // len(share))):
            yield from block.tolist()


def runs_of_steps(order: Order, share: Share, epoch: int, step: int, steps: int) -> Iterator[Indices]:
    """Yield the sample indices of runs of steps, from a step of an epoch to its end: int64 `[steps * len(share)]` each.

    Args:
        order, share: what each step holds.
        epoch, step: where to begin.
        steps: the most steps in a run. The first runs are shorter, so that the first batch is ready at once.
    """
    size, samples = 1, len(share)
    # Compute positions of many runs at once: 64 of them cost the permutation 80 us, 16,384 cost 400 us.
    for block in order.index_blocks(epoch, step, share, max(4 * AT_ONCE // samples, steps)):
        flat, done = block.reshape(-1), 0
        while done < len(block):
            yield flat[done * samples : (done + size) * samples]
            done += size
            size = min(size * 4, steps)
