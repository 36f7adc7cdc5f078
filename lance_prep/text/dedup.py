"""Find units (documents or lines) that repeat an earlier one, by 128-bit keys.

A unit has one key if texts must be equal, and several, one for each band of its MinHash, if they may differ a little.
A unit is dropped if an earlier unit has one of its keys, whether that one was dropped or not. So what happens to a unit
depends only on itself and on what comes before it: the answer is the same for any number of workers, and for a source
that is built in one go or added to in pieces.

    first_units    the keys of one shard, sorted, each with the first unit that has it; and the units that repeat one
    find_later     the units of each shard that repeat a key of an earlier shard

The keys of a shard are a file of 24 bytes for each unique key, mapped into memory. `find_later` sorts them range by
range, and the ranges are as large as the memory allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lance_prep.keyed import U64, Indices

#: Bytes that each key of a range takes while it is sorted: low and high half, shard, order, and copies of some of them.
SORT_BYTES = 64


@dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard, each once.

    Attributes:
        low, high: the halves of the keys, uint64, sorted by `low`.
        units: the first unit with each key, uint64.
    """

    low: U64
    high: U64
    units: U64

    def between(self, start: int, stop: int) -> slice:
        """Return where the keys with `start <= low < stop` are."""
        first, last = np.searchsorted(self.low, np.array([start, min(stop, (1 << 64) - 1)], np.uint64))
        return slice(int(first), len(self.low) if stop >> 64 else int(last))


def first_units(keys: U64, units: U64) -> tuple[ShardKeys, U64]:
    """Return the keys of a shard, and the units of which an earlier one has a key, ascending.

    Args:
        keys: uint64 `[n, 2]`.
        units: uint64 `[n]`, ascending; a unit with several keys, all different, is repeated.
    """
    order, repeats = _sorted(keys[:, 0], keys[:, 1])
    firsts = order[~repeats]
    kept = ShardKeys(keys[firsts, 0], keys[firsts, 1], units[firsts])
    return kept, np.unique(units[order[repeats]])


def find_later(shards: Sequence[ShardKeys], memory: int) -> list[U64]:
    """Return the units of each shard that have a key of an earlier shard, ascending.

    Args:
        shards: in order.
        memory: bytes that sorting may take. What is found takes 8 bytes for each unit beside that.
    """
    found: list[list[U64]] = [[] for _ in shards]
    ranges = max(1, -(-sum(len(shard.low) for shard in shards) * SORT_BYTES // memory))
    bounds = [(1 << 64) * i // ranges for i in range(ranges + 1)]
    for start, stop in pairwise(bounds):
        places = [shard.between(start, stop) for shard in shards]
        low = np.concatenate([shard.low[place] for shard, place in zip(shards, places, strict=True)])
        high = np.concatenate([shard.high[place] for shard, place in zip(shards, places, strict=True)])
        order, repeats = _sorted(low, high)
        later = np.sort(order[repeats])
        ends = np.cumsum([0, *(place.stop - place.start for place in places)])
        cuts = np.searchsorted(later, ends)
        for number, (shard, place) in enumerate(zip(shards, places, strict=True)):
            if len(mine := later[cuts[number] : cuts[number + 1]] - ends[number]):
                found[number].append(shard.units[place][mine])
    return [np.unique(np.concatenate(units)) if units else np.empty(0, np.uint64) for units in found]


def _sorted(low: U64, high: U64) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Return an order in which equal keys are neighbours, in their own order, and whether each equals its neighbour.

    Sorts by the low half alone, which is three times as fast. Two keys that differ share it once in 2^64 pairs; then
    both halves are sorted.
    """
    order = np.argsort(low, kind="stable")
    for sort in (False, True):
        if sort:
            order = np.lexsort((high, low))
        one, other = low[order], high[order]
        same = one[1:] == one[:-1]
        repeats = np.zeros(len(low), bool)
        repeats[1:] = same & (other[1:] == other[:-1])
        if np.array_equal(repeats[1:], same):
            break
    return order, repeats
