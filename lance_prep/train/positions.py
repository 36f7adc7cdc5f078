"""Computes the source and the sample at each position of a mixture: pure arithmetic, in O(sources) memory.

Simulated epoching: a large run repeats small sources many times, and a small experiment with the same weights would
see each of them less than once. So its results would not carry over. If the experiment is restricted to the fraction
`experiment_tokens / target_tokens` of each source, it repeats every source as often as the large run will. The method
is that of Levanter (`experiment_budget` and `target_budget` in `levanter/data/text.py`; marin-community/marin#718 and
#791), which keeps the first `int(n * fraction)` of n shuffled sequences. This module rounds to the nearest number, and
refuses a source that would be left empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.train.permutation import KeyedPermutation
from lance_prep.train.shares import Shares, make_shares

#: Positions must stay below 2^61 to be exact (see `shares`).
FAR = 1 << 60


@dataclass(frozen=True)
class Simulated:
    """A small run that repeats its sources as often as a large one. Validates itself.

    Attributes:
        experiment_tokens: length of the small run.
        target_tokens: length of the large run.

    Raises:
        UsageError: a length is not a whole number of at least 1, or the small run is the longer one.
    """

    experiment_tokens: int
    target_tokens: int

    def __post_init__(self) -> None:
        both = (self.experiment_tokens, self.target_tokens)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in both)
        if not whole or not 1 <= self.experiment_tokens <= self.target_tokens:
            raise UsageError(
                f"invalid experiment_tokens={both[0]} and target_tokens={both[1]}",
                "pass whole numbers: the tokens of this run, and those of the large run, which is at least as long",
            )

    def size(self, samples: int) -> int:
        """Return how many of a source's samples the small run uses: the nearest whole number, halves up."""
        return (2 * samples * self.experiment_tokens + self.target_tokens) // (2 * self.target_tokens)


def simulated(experiment_tokens: int | None, target_tokens: int | None) -> Simulated | None:
    """Return what the two arguments of a mixture mean, or None if neither is given.

    Raises:
        UsageError: only one is given, or they are invalid.
    """
    if experiment_tokens is None and target_tokens is None:
        return None
    if experiment_tokens is None or target_tokens is None:
        raise UsageError(
            f"got experiment_tokens={experiment_tokens} and target_tokens={target_tokens}", "pass both, or neither"
        )
    return Simulated(experiment_tokens, target_tokens)


@dataclass(frozen=True)
class Pool:
    """The samples of one source that a mixture draws from.

    Attributes:
        size: samples of the source.
        used: how many of them are used: the first ones of its order.
        stream: seeds its order, with the mixture's seed.
    """

    size: int
    used: int
    stream: str

    def samples(self, seed: int, time: int, places: Indices) -> Indices:
        """Return the samples at places in 0..used-1 when the source is used for the `time`-th time, from 0."""
        if self.used == self.size:
            return KeyedPermutation(self.size, seed, time, stream=self.stream)[places]
        if time:  # the same samples as before, in another order
            places = KeyedPermutation(self.used, seed, time, stream=self.stream)[places]
        return KeyedPermutation(self.size, seed, 0, stream=self.stream)[places]


@dataclass(frozen=True)
class Stretch:
    """The positions `[start, stop)` of a phase, and how often each source was used before it."""

    start: int
    stop: int
    shares: Shares
    before: tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """The positions of a mixture.

    Attributes:
        stretches: one per phase. The last one has no end.
        pools: one per source.
        seed: of the order within each source.
        restart: whether each epoch starts every source again; otherwise the sequence continues.
        length: samples in an epoch.
    """

    stretches: tuple[Stretch, ...]
    pools: tuple[Pool, ...]
    seed: int
    restart: bool
    length: int

    @classmethod
    def lay_out(
        cls, phases: Sequence[tuple[Sequence[Fraction], int]], pools: Sequence[Pool], seed: int, *, restart: bool
    ) -> Positions:
        """Return the positions of phases.

        Args:
            phases: of each, the sources' weights per sample, and the position at which it ends; the last one ends at
                `FAR`.
            pools: the sources.
            seed: of the order within each source.
            restart: an epoch ends before the first source would repeat. Otherwise it ends when each was used up once.

        Raises:
            UsageError: an epoch is too long.
        """
        start, before, laid = 0, [0] * len(pools), []
        for weights, stop in phases:
            shares = make_shares(weights)
            laid.append(Stretch(start, stop, shares, tuple(before)))
            before = [b + c for b, c in zip(before, shares.counts(stop - start), strict=True)]
            start = stop
        length = _epoch_length(laid, [pool.used for pool in pools], restart=restart)
        return cls(tuple(laid), tuple(pools), seed, restart, length)

    def counts(self, length: int) -> list[int]:
        """Return the number of samples of each source among the first `length` positions."""
        return _counts(self.stretches, length)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        """Return the source of each position, and the sample of that source: int64 `[positions]` each.

        Args:
            positions: int64, at least 0. Those from `length` on belong to the following epochs.
        """
        epoch = np.zeros_like(positions)
        if self.restart:
            epoch, positions = np.divmod(positions, max(self.length, 1))
        source, ordinal = np.zeros_like(positions), np.zeros_like(positions)
        for stretch in self.stretches:
            here = np.flatnonzero((positions >= stretch.start) & (positions < stretch.stop))
            if here.size:
                found, number = stretch.shares.locate(positions[here] - stretch.start)
                source[here], ordinal[here] = found, number + np.array(stretch.before, np.int64)[found]
        sample = np.zeros_like(ordinal)
        for i in np.unique(source).tolist():
            pool = self.pools[i]
            again, place = np.divmod(ordinal, pool.used)
            times = epoch + again
            for time in np.unique(times[source == i]).tolist():
                here = (source == i) & (times == time)
                sample[here] = pool.samples(self.seed, time, place[here])
        return source, sample


#: Positions that are looked up at once.
_AT_ONCE = 4096
#: Epochs of at most this many positions are remembered as a whole after the first lookup, in 16 MB.
_REMEMBERED = 1 << 20


class Lookup:
    """Looks many positions up at once, and remembers them. Threads may share one.

    Looking up 8 positions of three sources takes 650 us, almost all of it in numpy's calls; 4,096 positions in a row
    take 1,500 us. Most readers ask for the next positions. A DataLoader that shuffles asks for any.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        #: The first position of the last run that was looked up, and what is there.
        self._run = (0, np.empty((2, 0), np.int64))
        self._known = np.zeros(-(-positions.length // _AT_ONCE), np.bool_)
        self._table: npt.NDArray[np.int64] | None = None

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        """Return what `Positions.locate` returns."""
        if not positions.size:
            return self._positions.locate(positions)
        low, high = int(positions.min()), int(positions.max())
        start, run = self._run
        if not start <= low <= high < start + run.shape[1]:
            if high - low >= _AT_ONCE:
                return self._scattered(positions, high)
            start, run = low, self._look_up(low, _AT_ONCE)
            self._run = (start, run)
        inside = positions - start
        return run[0][inside], run[1][inside]

    def _look_up(self, start: int, count: int) -> npt.NDArray[np.int64]:
        return np.stack(self._positions.locate(np.arange(start, start + count, dtype=np.int64)))

    def _scattered(self, positions: Indices, high: int) -> tuple[Indices, Indices]:
        length = self._positions.length
        if high >= length or length > _REMEMBERED:
            return self._positions.locate(positions)
        if self._table is None:
            self._table = np.empty((2, len(self._known) * _AT_ONCE), np.int64)
        table = self._table
        blocks = np.unique(positions // _AT_ONCE)
        for block in blocks[~self._known[blocks]].tolist():
            start = block * _AT_ONCE
            table[:, start : start + _AT_ONCE] = self._look_up(start, _AT_ONCE)
            self._known[block] = True  # last: another thread may look here meanwhile
        return table[0][positions], table[1][positions]


def _counts(stretches: Sequence[Stretch], length: int) -> list[int]:
    for stretch in reversed(stretches):
        if length >= stretch.start:
            inside = stretch.shares.counts(length - stretch.start)
            return [b + c for b, c in zip(stretch.before, inside, strict=True)]
    return []


def _epoch_length(stretches: Sequence[Stretch], sizes: Sequence[int], *, restart: bool) -> int:
    """Return the positions before the first source repeats (`restart`), or until every used source was used up.

    Counts never decrease, so both are found by bisection.
    """
    last = stretches[-1].shares.exact

    def done(length: int) -> bool:
        counts = _counts(stretches, length)
        if restart:
            return any(count > size for count, size in zip(counts, sizes, strict=True))
        return all(count >= size for count, size, share in zip(counts, sizes, last, strict=True) if share)

    low, high = 0, 1
    while not done(high):
        low, high = high, high * 2
        if high > FAR:
            raise UsageError(
                f"an epoch would have more than {FAR} samples", "use larger weights for the smallest sources"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if done(middle) else (middle, high)
    return low if restart else high
