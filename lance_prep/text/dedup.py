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

#: Bytes that each key of a range takes while it is sorted, if all of them repeat others.
SORT_BYTES = 64
#: Largest number of keys in a range: twice as fast as four million, which do not fit into the processor's caches.
RANGE_KEYS = 1 << 20
#: The keys of a shard are sorted by the other bits of their low half, at least.
_LOWEST_BITS = 24


@dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard, each once.

    Attributes:
        low, high: the halves of the keys, uint64, sorted by the 40 highest bits of `low`.
        units: the first unit with each key, uint64.
    """

    low: U64
    high: U64
    units: U64

    def between(self, start: int, stop: int) -> slice:
        """Return where the keys with `start <= low < stop` are. Both are multiples of 2^24."""
        places = (len(self.low) if at >> 64 else np.searchsorted(self.low, np.uint64(at)) for at in (start, stop))
        return slice(*map(int, places))


def first_units(keys: U64, units: U64) -> tuple[ShardKeys, U64]:
    """Return the keys of a shard, and the units of which an earlier one has a key, ascending.

    Args:
        keys: uint64 `[n, 2]`.
        units: uint64 `[n]`, ascending; a unit with several keys, all different, is repeated.
    """
    low, high = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
    order, repeats = group_equal(low, high)
    firsts = order[~repeats]
    return ShardKeys(low[firsts], high[firsts], units[firsts]), np.unique(units[order[repeats]])


def find_later(shards: Sequence[ShardKeys], memory: int) -> list[U64]:
    """Return the units of each shard that have a key of an earlier shard, ascending.

    Args:
        shards: in order.
        memory: bytes that sorting may take. What is found takes 8 bytes for each unit beside that.
    """
    found: list[list[U64]] = [[] for _ in shards]
    most = max(1, min(memory // SORT_BYTES, RANGE_KEYS))
    ranges = max(1, -(-sum(len(shard.low) for shard in shards) // most))
    bounds = [((1 << 40) * i // ranges) << _LOWEST_BITS for i in range(ranges + 1)]
    for start, stop in pairwise(bounds):
        parts = [(shard, shard.between(start, stop)) for shard in shards]
        shared = _in_several([shard.low[place] for shard, place in parts])
        if not len(shared):
            continue
        places = [place.start + _places_of(shard.low[place], shared) for shard, place in parts]
        low = np.concatenate([shard.low[place] for (shard, _), place in zip(parts, places, strict=True)])
        high = np.concatenate([shard.high[place] for (shard, _), place in zip(parts, places, strict=True)])
        order, repeats = group_equal(low, high)
        later = np.zeros(len(low), bool)
        later[order[repeats]] = True
        ends = np.cumsum([len(place) for place in places])
        for number, mine in enumerate(np.split(later, ends[:-1])):
            if mine.any():
                found[number].append(parts[number][0].units[places[number][mine]])
    return [np.unique(np.concatenate(units)) if units else np.empty(0, np.uint64) for units in found]


def group_equal(low: U64, high: U64) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Return an order in which equal keys are neighbours, the first one first, and whether each equals its neighbour.

    The order is by as many bits of the low half as leave room for a key's place, so that sorting one array of integers
    gives both: a seventh of the time that sorting by both halves takes. If keys that differ agree in these bits (a
    hundredth of the shards of half a million keys), equal keys may be apart, and both halves are sorted.
    """
    bits = np.uint64(min(len(low).bit_length(), _LOWEST_BITS))
    if len(low) >> _LOWEST_BITS:
        order = np.argsort(low >> bits, kind="stable")
    else:
        place = (np.uint64(1) << bits) - np.uint64(1)
        packed = (low & ~place) | np.arange(len(low), dtype=np.uint64)
        packed.sort()
        order = (packed & place).astype(np.int64)
    for exact in (False, True):
        if exact:
            order = np.lexsort((high, low))
        one, other = low[order], high[order]
        alike = np.flatnonzero(one[1:] >> bits == one[:-1] >> bits)
        equal = (one[alike + 1] == one[alike]) & (other[alike + 1] == other[alike])
        if equal.all():
            break
    repeats = np.zeros(len(low), bool)
    repeats[alike[equal] + 1] = True
    return order, repeats


def _in_several(lows: Sequence[U64]) -> U64:
    """Return the low halves, ascending, that several keys have. Sorting values alone is quick."""
    every = np.concatenate([np.empty(0, np.uint64), *lows])
    every.sort()
    return np.unique(every[1:][every[1:] == every[:-1]])


def _places_of(values: U64, wanted: U64) -> Indices:
    """Return where those values are that are among the wanted ones, which ascend."""
    nearest = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
    return np.flatnonzero(wanted[nearest] == values)
