"""Assigns a source to each position of a mixture, so that every prefix is within one sample of the exact shares.

Any position is computed directly. A binary tree has the sources as leaves. Of the first i samples that reach a node,
`floor(a * i + 1/2)` go left, where a is the left side's share. (For two sources this is a Sturmian word, the most even
sequence possible.) The error of a source's count is at most half of a sum over the nodes on its path, whose terms are
the source's weight divided by the weight of the child on the path. The tree with the smallest bound is chosen. For up
to four sources that bound is at most 1. Shares are 62-bit fixed-point numbers, exact for positions up to
2^61.

For a few combinations of six or more weights no tree has a bound of at most 1. They use a precomputed period of up to
65,536 samples instead, by R. Tijdeman, "The chairman assignment problem", Discrete Math. 32 (1980), whose error for k
sources is at most 1 - 1/(2k - 2). If the common denominator of the shares is larger than the period, they are rounded
to 1/65,536. `exact` holds the shares in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm
from typing import Protocol

import numpy as np

from lance_prep.keyed import Indices

_ONE = 1 << 62
_LOW = np.uint64((1 << 31) - 1)
_HALF_SHIFT = np.uint64(31)
_HALF = np.uint64(1 << 61)

#: The longest period, in samples: 0.4 MB of tables.
_PERIOD = 65_536
#: Search for a tree only up to this many sources (3^8 splits).
_MOST_IN_TREE = 8


class Shares(Protocol):
    """An even sequence over sources. Immutable."""

    #: The shares in use; they sum to 1.
    exact: tuple[Fraction, ...]

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        """Return the source of each position, and the number of samples of that source before it."""

    def counts(self, length: int) -> list[int]:
        """Return the number of samples of each source among the first `length`."""


def make_shares(weights: Sequence[Fraction]) -> Shares:
    """Return an even sequence for weights. Weights may be 0."""
    total = sum(weights)
    exact = tuple(weight / total for weight in weights)
    used = [i for i, share in enumerate(exact) if share]
    if len(used) <= _MOST_IN_TREE:
        tree, bound = _best_tree(exact, used)
        if bound <= 1:
            return TreeShares(exact, tree)
    return PeriodShares(exact)


@dataclass(frozen=True)
class _Node:
    """A split of the sources. `share` is the left side's part, in units of 1 / 2^62."""

    share: int
    left: _Node | int
    right: _Node | int


class TreeShares:
    """An even sequence by a tree of two-way splits."""

    def __init__(self, exact: tuple[Fraction, ...], tree: _Node | int) -> None:
        self.exact = exact
        self._tree = tree

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        flat = np.asarray(positions, np.int64).reshape(-1)
        source, ordinal = np.zeros(flat.shape, np.int64), np.zeros(flat.shape, np.int64)
        todo: list[tuple[_Node | int, Indices, Indices]] = [(self._tree, np.arange(flat.size), flat)]
        while todo:
            node, where, at = todo.pop()
            if isinstance(node, int):
                source[where], ordinal[where] = node, at
                continue
            before = _left_of(at, node.share)
            left = _left_of(at + 1, node.share) > before
            todo.append((node.left, where[left], before[left]))
            todo.append((node.right, where[~left], (at - before)[~left]))
        return source.reshape(np.shape(positions)), ordinal.reshape(np.shape(positions))

    def counts(self, length: int) -> list[int]:
        out = [0] * len(self.exact)
        todo: list[tuple[_Node | int, int]] = [(self._tree, length)]
        while todo:
            node, count = todo.pop()
            if isinstance(node, int):
                out[node] = count
                continue
            left = (node.share * count + _ONE // 2) // _ONE
            todo += [(node.left, left), (node.right, count - left)]
        return out


def _left_of(count: Indices, share: int) -> Indices:
    """Return `floor(share * count / 2^62 + 1/2)` for counts below 2^61, by halves: the product has 124 bits."""
    x = count.astype(np.uint64)
    a_high, a_low = np.uint64(share >> 31), np.uint64(share & ((1 << 31) - 1))
    high, low = x >> _HALF_SHIFT, x & _LOW
    carry = (a_low * low + _HALF) >> _HALF_SHIFT
    middle = a_high * low + a_low * high + carry
    left: Indices = (a_high * high + (middle >> _HALF_SHIFT)).astype(np.int64)
    return left


def _best_tree(exact: Sequence[Fraction], used: list[int]) -> tuple[_Node | int, float]:
    """Return the tree with the smallest bound on the error of a count, and that bound."""
    weight = [float(exact[i]) for i in used]
    everything = (1 << len(used)) - 1

    def size(part: int) -> float:
        return sum(w for i, w in enumerate(weight) if part >> i & 1)

    @cache
    def room(part: int) -> tuple[float, int]:
        """Return the largest sum of 1 / weight over the nodes above `part` that keeps the bound, and the best split."""
        if part & (part - 1) == 0:
            return 1 / size(part), 0
        best, split, lowest = float("-inf"), 0, part & -part
        left = (part - 1) & part
        while left:
            if left & lowest:
                found = min(room(left)[0], room(part ^ left)[0])
                if found > best:
                    best, split = found, left
            left = (left - 1) & part
        return (best if part == everything else best - 1 / size(part)), split

    def build(part: int) -> _Node | int:
        split = room(part)[1]
        if not split:
            return used[part.bit_length() - 1]
        inside = [exact[used[i]] for i in range(len(used)) if part >> i & 1]
        left = [exact[used[i]] for i in range(len(used)) if split >> i & 1]
        share = round(sum(left) / sum(inside) * _ONE)
        return _Node(share, build(split), build(part ^ split))

    # If no room is negative, every source's sum of ratios is at most 2, so its bound is at most 1.
    return build(everything), 1.0 if room(everything)[0] >= 0 else float("inf")


class PeriodShares:
    """An even sequence that repeats a precomputed period."""

    def __init__(self, exact: tuple[Fraction, ...]) -> None:
        period = lcm(*(share.denominator for share in exact))
        if period > _PERIOD:
            period = _PERIOD
        self._parts = _rounded(exact, period)
        self._period = period
        self.exact = tuple(Fraction(part, period) for part in self._parts)
        self._source = _chairmen(self._parts, period)
        self._ordinal = np.zeros(period, np.int32)
        for i in range(len(exact)):
            here = self._source == i
            self._ordinal[here] = np.arange(int(here.sum()))

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        whole, rest = np.divmod(np.asarray(positions, np.int64), self._period)
        source = self._source[rest].astype(np.int64)
        ordinal: Indices = whole * np.array(self._parts, np.int64)[source] + self._ordinal[rest]
        return source, ordinal

    def counts(self, length: int) -> list[int]:
        whole, rest = divmod(length, self._period)
        begun = np.bincount(self._source[:rest], minlength=len(self._parts)).tolist()
        return [whole * part + count for part, count in zip(self._parts, begun, strict=True)]


def _rounded(exact: Sequence[Fraction], period: int) -> list[int]:
    """Return the samples of each source in a period, by largest remainder, at least 1 for each used source."""
    parts = [max(int(share * period), 1 if share else 0) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: exact[i] * period - parts[i], reverse=True)
    i = 0
    while sum(parts) < period:
        parts[order[i % len(order)]] += 1 if exact[order[i % len(order)]] else 0
        i += 1
    while sum(parts) > period:
        parts[parts.index(max(parts))] -= 1
    return parts


def _chairmen(parts: Sequence[int], period: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Return Tijdeman's sequence: each element is the due source that can wait least."""
    share = np.array(parts, np.float64) / period
    share[share == 0] = 1e-300
    slack = 1 / (2 * max(len([p for p in parts if p]), 2) - 2)
    count = np.zeros(len(parts))
    out = np.zeros(period, np.int16)
    for n in range(1, period + 1):
        due = share * n - count
        wait = (1 - slack - due) / share
        wait[due < slack - 1e-9] = np.inf
        chosen = int(wait.argmin())
        out[n - 1] = chosen
        count[chosen] += 1
    return out
