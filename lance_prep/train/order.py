"""Which rows a global batch holds: pure arithmetic over positions, shared by the sampler, the loader and the mixture.

Global batch k is the positions `[k * B, (k + 1) * B)` of the epoch's order, whatever the number of ranks or workers;
a rank takes its contiguous part. That is all of elasticity: the rows of a step are a function of the step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from lance_prep.errors import UsageError
from lance_prep.train.permutation import IndexArray, KeyedPermutation

Tail = Literal["drop", "pad", "repeat"]

#: Index of a sample that is all padding: what `tail="pad"` fills the last global batch with.
PAD_ROW = -(1 << 62)


class PositionMap(Protocol):
    """Position of an epoch's order to sample index; stateless, so threads and processes may share it."""

    def __getitem__(self, position: IndexArray, /) -> IndexArray: ...


@dataclass(frozen=True)
class Share:
    """A contiguous part `[start, stop)` of a global batch."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def even_split(total: int, parts: int, part: int) -> Share:
    """The `part`-th of `parts` contiguous shares of `total`, the first `total % parts` of them one longer.

    As grain's `even_split` does (grain/_src/core/sharding.py).
    """
    size, extra = divmod(total, parts)
    start = part * size + min(part, extra)
    return Share(start, start + size + (part < extra))


@dataclass(frozen=True)
class Order:
    """The order of an epoch and how it is cut into global batches. Validates itself.

    Args:
        n: samples in an epoch.
        global_batch_size: B, samples a step over all ranks.
        seed: of the shuffle.
        tail: what becomes of the last `n % B` samples: "drop" leaves them out; "pad" gives them in a last step filled
            up with samples that are all padding (every sample exactly once, no token learned twice); "repeat" fills
            it up from the start of the same order.
        shuffle: False for the samples' own order.
        locality: rows in a run that stays together on disk, or None. Runs are permuted whole, then rows inside a
            window of `window` runs: for object stores, where a run is one request.
        window: runs in a window.
        endless: epoch e is the samples `e * n` and on, not those of epoch 0 once more (a mixture's).

    Raises:
        UsageError: a value that makes no sense, or an epoch of no step.
    """

    n: int
    global_batch_size: int
    seed: int = 0
    tail: Tail = "drop"
    shuffle: bool = True
    locality: int | None = None
    window: int = 16
    endless: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError("the dataset holds no samples", "look at the filter, or at `lance-prep info`")
        if self.global_batch_size < 1:
            raise UsageError(f"global_batch_size={self.global_batch_size}", "it is 1 or more")
        if self.tail not in ("drop", "pad", "repeat"):
            raise UsageError(f"tail={self.tail!r}", "tail is 'drop', 'pad' or 'repeat'")
        if self.locality is not None and (self.locality < 1 or self.window < 1):
            raise UsageError(f"locality={self.locality}, window={self.window}", "both are 1 or more")
        if self.locality is not None and not self.shuffle:
            raise UsageError("locality= shapes a shuffle, and shuffle=False", "give one of them")
        if self.steps == 0:
            raise UsageError(
                f"{self.n} samples make no global batch of {self.global_batch_size} with tail='drop'",
                "take a smaller batch, or tail='pad' or 'repeat'",
            )

    @property
    def steps(self) -> int:
        """Steps of an epoch: the same for every rank."""
        full, rest = divmod(self.n, self.global_batch_size)
        return full + (rest > 0 and self.tail != "drop")

    def positions(self, epoch: int) -> PositionMap | None:
        """The order of an epoch; None where it is the samples' own."""
        if not self.shuffle:
            return None
        if self.locality is None:
            return KeyedPermutation(self.n, self.seed, epoch)
        return RunOrder(self.n, self.seed, epoch, run=self.locality, window=self.window)

    def indices(self, epoch: int, first: int, steps: int, share: Share) -> IndexArray:
        """Sample indices of a share of `steps` steps from step `first` of an epoch: int64 `[steps, len(share)]`.

        `PAD_ROW` stands where the last step is padded.
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
        if some_over and self.tail == "pad":
            found[over] = PAD_ROW
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint must say of an order for the same rows to follow."""
        return asdict(self)


class RunOrder:
    """Runs of `run` rows permuted, then rows inside each window of `window` runs: a bijection of `range(n)`.

    O(1) memory and any position at once, as `KeyedPermutation`; both levels are one. The last run may be short, and
    stands wherever the permutation puts it.
    """

    def __init__(self, n: int, seed: int, epoch: int, *, run: int, window: int) -> None:
        self.n, self.seed, self.epoch, self.run = n, seed, epoch, run
        self.window_rows = run * window
        self._runs = KeyedPermutation(-(-n // run), seed, epoch, stream="runs")
        self._short = n - (len(self._runs) - 1) * run
        self._short_start = self._runs.inverse(len(self._runs) - 1) * run

    def __getitem__(self, position: IndexArray, /) -> IndexArray:
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

    def _row(self, slot: IndexArray) -> IndexArray:
        """The row at a slot of the permuted runs laid end to end."""
        after = slot >= self._short_start + self._short
        run, offset = np.divmod(slot + np.where(after, self.run - self._short, 0), self.run)
        return self._runs[run] * self.run + offset
