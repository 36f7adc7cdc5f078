"""The rows of each global batch: pure arithmetic over positions, for the sampler, the loader and the mixture.

Global batch k holds the positions `[k * B, (k + 1) * B)` of the epoch's order, whatever the number of ranks or workers.
Each rank takes its contiguous part. Elasticity follows from that: the rows of a step depend only on the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.train.permutation import KeyedPermutation

Tail = Literal["drop", "pad", "repeat"]

#: Index of a sample that is all padding: what `tail="pad"` fills the last global batch with.
PAD_ROW = -(1 << 62)

DEFAULT_SEED = 1337
DEFAULT_WINDOW = 16


class PositionMap(Protocol):
    """Maps positions in an epoch's order to sample indices. Immutable."""

    def __getitem__(self, position: Indices, /) -> Indices: ...


@dataclass(frozen=True)
class Share:
    """A contiguous part `[start, stop)` of a global batch."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def even_split(total: int, parts: int, part: int) -> Share:
    """Return the `part`-th of `parts` contiguous shares of `total`; the first `total % parts` are one longer.

    The rule is that of grain's `even_split` (grain/_src/core/sharding.py).
    """
    size, extra = divmod(total, parts)
    start = part * size + min(part, extra)
    return Share(start, start + size + (part < extra))


@dataclass(frozen=True)
class Place:
    """Which rank this process is, of how many. Validates itself.

    Raises:
        UsageError: the rank is outside 0..world_size-1.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank must be between 0 and world_size - 1, got rank={self.rank}, world_size={self.world_size}",
                "pass the rank of this process and the number of processes",
            )

    def share(self, global_batch_size: int) -> Share:
        """Return this rank's part of a global batch.

        Raises:
            UsageError: a rank would get no sample.
        """
        if global_batch_size < self.world_size:
            raise UsageError(
                f"global_batch_size={global_batch_size} over {self.world_size} ranks leaves ranks without a sample",
                "use a global_batch_size of at least the number of ranks",
            )
        return even_split(global_batch_size, self.world_size, self.rank)


@dataclass(frozen=True)
class OrderOptions:
    """How an epoch is shuffled and cut into global batches. Validates itself.

    Args:
        global_batch_size: B, samples per step over all ranks.
        seed: of the shuffle.
        tail: what happens to the last `n % B` samples. "drop" leaves them out. "pad" delivers them in a last step,
            filled up with samples that are all padding, so every sample is seen exactly once. "repeat" fills that
            step with samples from the start of the same order.
        shuffle: False keeps the dataset's own order.
        locality: number of neighbouring rows that are shuffled as one run, or None. Rows are then shuffled again
            within each window of `window` runs. For object stores, where a run is one request.
        window: runs in a window.

    Raises:
        UsageError: a value is invalid.
    """

    global_batch_size: int
    seed: int = DEFAULT_SEED
    tail: Tail = "drop"
    shuffle: bool = True
    locality: int | None = None
    window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise UsageError(f"global_batch_size must be at least 1, got {self.global_batch_size}")
        if self.tail not in ("drop", "pad", "repeat"):
            raise UsageError(f"invalid tail {self.tail!r}", "use 'drop', 'pad' or 'repeat'")
        if self.locality is not None and (self.locality < 1 or self.window < 1):
            raise UsageError(f"locality and window must be at least 1, got {self.locality} and {self.window}")
        if self.locality is not None and not self.shuffle:
            raise UsageError("locality shapes the shuffle, so it cannot be combined with shuffle=False", "remove one")


@dataclass(frozen=True)
class Order:
    """The order of a dataset's epochs, cut into global batches. Validates itself.

    Args:
        n: samples in an epoch.
        options: how they are shuffled and cut.
        endless: epoch e consists of the samples from `e * n` on instead of those of epoch 0 (for a mixture).

    Raises:
        UsageError: an epoch would have no step.
    """

    n: int
    options: OrderOptions
    endless: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError("the dataset has no samples", "check its filter, or run `lance-prep info` on it")
        if self.steps == 0:
            raise UsageError(
                f"{self.n} samples do not fill one global batch of {self.global_batch_size}, and tail='drop'",
                "use a smaller global_batch_size, or tail='pad' or 'repeat'",
            )

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all ranks."""
        return self.options.global_batch_size

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same for every rank."""
        full, rest = divmod(self.n, self.global_batch_size)
        return full + (rest > 0 and self.options.tail != "drop")

    def positions(self, epoch: int) -> PositionMap | None:
        """Return the order of an epoch, or None if it is the dataset's own."""
        chosen = self.options
        if not chosen.shuffle:
            return None
        if chosen.locality is None:
            return KeyedPermutation(self.n, chosen.seed, epoch)
        return RunOrder(self.n, chosen.seed, epoch, run=chosen.locality, window=chosen.window)

    def indices(self, epoch: int, first: int, steps: int, share: Share) -> Indices:
        """Return the sample indices of a share of `steps` steps from step `first` of an epoch.

        Returns:
            int64 `[steps, len(share)]`, `PAD_ROW` in the padding of the last step.
        """
        step = np.arange(first, first + steps, dtype=np.int64)
        position = step[:, None] * self.global_batch_size + np.arange(share.start, share.stop, dtype=np.int64)
        over = position >= self.n
        some_over = bool(over.any())
        if some_over:
            position %= self.n
        order = self.positions(epoch)
        found = position if order is None else order[position]
        if self.endless:
            found = found + epoch * self.n
        if some_over and self.options.tail == "pad":
            found[over] = PAD_ROW
        return found

    def index_blocks(self, epoch: int, first: int, share: Share, at_once: int) -> Iterator[Indices]:
        """Yield the sample indices from step `first` to the end of an epoch: int64 `[at_once or fewer, len(share)]`."""
        for step in range(first, self.steps, at_once):
            yield self.indices(epoch, step, min(at_once, self.steps - step), share)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must record for the same rows to follow."""
        return {"n": self.n, "endless": self.endless, **asdict(self.options)}


class RunOrder:
    """Permutes runs of `run` rows, then the rows inside each window of `window` runs: a bijection of `range(n)`.

    Like `KeyedPermutation`, which does both levels, it needs O(1) memory and gives any position at once. The last run
    may be short, and can end up anywhere.
    """

    def __init__(self, n: int, seed: int, epoch: int, *, run: int, window: int) -> None:
        self.n, self.seed, self.epoch, self.run = n, seed, epoch, run
        self.window_rows = run * window
        self._runs = KeyedPermutation(-(-n // run), seed, epoch, stream="runs")
        self._short = n - (len(self._runs) - 1) * run
        self._short_start = self._runs.inverse(len(self._runs) - 1) * run

    def __getitem__(self, position: Indices, /) -> Indices:
        flat = np.asarray(position, np.int64).reshape(-1)
        mixed = np.empty_like(flat)
        windows = flat // self.window_rows
        for window in np.unique(windows).tolist():  # neighbouring positions share a window: one or two in a batch
            here = windows == window
            start = window * self.window_rows
            inside = self._inside(window, min(self.window_rows, self.n - start))
            mixed[here] = start + inside[flat[here] - start]
        return self._row(mixed).reshape(np.shape(position))

    def _inside(self, window: int, size: int) -> KeyedPermutation:
        return KeyedPermutation(size, self.seed, self.epoch, stream=f"window/{window}")

    def _row(self, slot: Indices) -> Indices:
        """Return the row at a slot of the permuted runs laid end to end."""
        after = slot >= self._short_start + self._short
        run, offset = np.divmod(slot + np.where(after, self.run - self._short, 0), self.run)
        return self._runs[run] * self.run + offset
