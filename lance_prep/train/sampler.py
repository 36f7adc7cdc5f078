"""`TakeSampler`: the rows of each step as a function of the step, for every number of ranks and workers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from lance_prep.errors import UsageError
from lance_prep.train.order import Order, Share, Tail, even_split

#: Positions computed at once: 50 ns each, of which 64 at a time would cost 1,000.
AT_ONCE = 4096


@dataclass(frozen=True)
class Place:
    """Which rank of how many this process is. Validates itself.

    Raises:
        UsageError: a rank outside of 0..world_size-1.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank={self.rank} of world_size={self.world_size}", "ranks are 0 to world_size - 1")

    @classmethod
    def find(cls, rank: int | None = None, world_size: int | None = None) -> Place:
        """As given, else of the default process group, else of `RANK` and `WORLD_SIZE` (torchrun), else 0 of 1.

        Raises:
            UsageError: one is given without the other.
        """
        if (rank is None) != (world_size is None):
            raise UsageError(f"rank={rank} and world_size={world_size}", "give both, or none")
        if rank is not None and world_size is not None:
            return cls(rank, world_size)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def share(self, global_batch_size: int) -> Share:
        """This rank's part of a global batch.

        Raises:
            UsageError: a rank would get nothing.
        """
        if global_batch_size < self.world_size:
            raise UsageError(
                f"global_batch_size={global_batch_size} over {self.world_size} ranks leaves ranks without a row",
                "make it at least the number of ranks",
            )
        return even_split(global_batch_size, self.world_size, self.rank)


def make_order(
    data: Sized | int,
    global_batch_size: int,
    *,
    seed: int,
    tail: Tail | None,
    drop_last: bool | None,
    shuffle: bool | None,
    locality: int | None,
    window: int,
) -> Order:
    """The order of a dataset, from what users give.

    Raises:
        UsageError: `tail` and `drop_last` contradict each other, or a value makes no sense.
    """
    if drop_last is not None:
        meant: Tail = "drop" if drop_last else "pad"
        if tail is not None and (tail == "drop") != drop_last:
            raise UsageError(f"tail={tail!r} and drop_last={drop_last}", "give one of them")
        tail = tail or meant
    n = data if isinstance(data, int) else len(data)
    if shuffle is None:
        # A mixture is in shuffled order already; a second shuffle would undo its shares.
        shuffle = not getattr(data, "endless", False)
    endless = bool(getattr(data, "endless", False))
    return Order(n, global_batch_size, seed, tail or "drop", shuffle, locality, window, endless)


class TakeSampler(Sampler[list[int]]):
    """A batch sampler: this rank's part of each global batch, in a shuffled order that needs no memory.

    Args:
        data: a dataset, or how many samples it has.
        global_batch_size: B, samples a step over all ranks. Ranks get contiguous parts of it in order, the first
            `B % world_size` of them one sample more: concatenated, the ranks' batches are the same rows in the same
            order for every world size.
        seed: of the shuffle; epochs differ.
        rank, world_size: by default of the process group, else of the environment (torchrun), else 0 and 1.
        tail: "drop", "pad" or "repeat": what becomes of the last samples that fill no batch (see `Order`).
        drop_last: True for tail="drop", False for tail="pad".
        epoch: the first epoch.
        start_step: the step at which that epoch begins.
        shuffle: by default True, and False for a `Mixture`, which is in order already.
        locality, window: shuffle whole runs of `locality` rows and rows inside windows of `window` runs (see `Order`).

    Every rank makes the same number of steps. Iterating costs the same at every step; it holds half a MB at any n.
    A `start_step` holds for one pass: the next begins at step 0, in the same epoch unless `set_epoch` is called.

    Raises:
        UsageError: see `Order`, `Place`; or `start_step` lies beyond the epoch.
    """

    def __init__(
        self,
        data: Sized | int,
        global_batch_size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        epoch: int = 0,
        start_step: int = 0,
        shuffle: bool | None = None,
        locality: int | None = None,
        window: int = 16,
    ) -> None:
        self.order = make_order(
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
        if not 0 <= start_step <= self.order.steps:
            raise UsageError(f"start_step={start_step} of an epoch of {self.order.steps} steps", "see len(sampler)")
        self.epoch = epoch
        self.start_step = start_step

    @property
    def batch_size(self) -> int:
        """Samples a step of this rank: trainers ask for it."""
        return len(self._share)

    @property
    def drop_last(self) -> bool:
        """Whether every batch is full of samples: trainers ask for it."""
        return self.order.tail == "drop"

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; the same one changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start_step = epoch, 0

    def __len__(self) -> int:
        """Steps that the next pass makes."""
        return self.order.steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        step, self.start_step = self.start_step, 0
        epoch, steps = self.epoch, self.order.steps
        at_once = max(1, AT_ONCE // len(self._share))
        while step < steps:
            some = min(at_once, steps - step)
            yield from self.order.indices(epoch, step, some, self._share).tolist()
            step += some
