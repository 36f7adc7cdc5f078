"""A keyed permutation of 0..n-1 that computes any position directly, to shuffle without an index array.

`randperm` over 10^9 rows needs 8 GB, and takes seconds at every start and resume. A Feistel network over
the smallest power of two that holds n needs a few words of memory and takes 40 to 100 ns per position. Values outside
0..n-1 are permuted again until they are inside (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002).

grain's `index_shuffle` works in the same way. This module differs where that one has defects: the number of bits is
`(n - 1).bit_length()` (grain's is not a bijection at n = 65,537), there are 8 to 16 rounds (4 leave visible structure),
and seed and epoch are hashed into the round keys, so that neighbouring epochs are unrelated.
"""

from __future__ import annotations

import hashlib
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from lance_prep.keyed import Indices

#: uint32 or uint64, depending on n.
_Words = npt.NDArray[Any]

MAX_N = 2**63 - 1

#: The round function multiplies by these odd constants of the finalizers of murmur3 and splitmix64.
_M32 = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35), np.uint32(16))
_M64 = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(32))

#: Use 16 rounds for at most this many bits: short halves mix worse, and their arrays are small.
_SMALL_BITS = 16


class KeyedPermutation:
    """A bijection of `range(n)`, chosen by a seed and an epoch.

    Args:
        n: size of the range, 1 to 2^63 - 1.
        seed: any int.
        epoch: any int. Permutations of different epochs are unrelated.
        stream: a name that distinguishes permutations of the same seed, such as those of a mixture's sources.

    Raises:
        ValueError: n is out of range.

    Equal arguments give equal permutations on every machine. Instances are immutable, so threads may share one. They
    hold only n and the round keys, and pickle in under 1 KB.
    """

    def __init__(self, n: int, seed: int = 0, epoch: int = 0, *, stream: str = "") -> None:
        if not 1 <= n <= MAX_N:
            raise ValueError(f"n must be between 1 and 2^63 - 1, got {n}")
        self.n = int(n)
        self.seed = int(seed)
        self.epoch = int(epoch)
        self.stream = stream
        # Each half needs at least one bit, so n = 1 and 2 use a domain of 4.
        bits = max(2, (self.n - 1).bit_length())
        self._right_bits = bits // 2
        self._left_bits = bits - self._right_bits
        # Use 32-bit words where they suffice: numpy multiplies eight of them at a time.
        self._word = np.dtype(np.uint32 if bits <= 32 else np.uint64)
        rounds = 16 if bits <= _SMALL_BITS else 8
        self._keys = _round_keys(self.seed, self.epoch, stream, rounds).astype(self._word)

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"KeyedPermutation({self.n}, seed={self.seed}, epoch={self.epoch})"

    @overload
    def __getitem__(self, position: int) -> int: ...
    @overload
    def __getitem__(self, position: npt.NDArray[Any]) -> Indices: ...
    def __getitem__(self, position: int | npt.NDArray[Any]) -> int | Indices:
        """Return the value at a position, or at each of an array of positions as int64 of the same shape.

        Raises:
            IndexError: a position is outside 0..n-1.
        """
        return self._apply(position, self._forward)

    @overload
    def inverse(self, value: int) -> int: ...
    @overload
    def inverse(self, value: npt.NDArray[Any]) -> Indices: ...
    def inverse(self, value: int | npt.NDArray[Any]) -> int | Indices:
        """Return the position of a value, or of each of an array of values: `perm.inverse(perm[i]) == i`.

        Raises:
            IndexError: a value is outside 0..n-1.
        """
        return self._apply(value, self._backward)

    def _apply(self, given: int | npt.NDArray[Any], step: Any) -> int | Indices:
        array = np.asarray(given)
        if array.size == 0:
            return np.empty(array.shape, np.int64)
        if array.dtype.kind not in "iu":
            raise IndexError(f"a permutation is indexed by integers, not {array.dtype}")
        if int(array.min()) < 0 or int(array.max()) >= self.n:
            raise IndexError(f"positions {array.min()} to {array.max()} are out of range for a permutation of {self.n}")
        out = step(array.astype(self._word).reshape(-1))
        # Cycle walking: less than half of the domain is outside, so a position takes fewer than two steps on average.
        outside = np.flatnonzero(out >= self.n)
        while outside.size:
            out[outside] = step(out[outside])
            outside = outside[out[outside] >= self.n]
        values: Indices = out.astype(np.int64).reshape(array.shape)
        return int(values) if np.isscalar(given) or values.ndim == 0 else values

    def _forward(self, x: _Words) -> _Words:
        left, right = self._split(x)
        for i in range(0, len(self._keys), 2):
            left ^= _mix(right, self._keys[i], self._left_bits)
            right ^= _mix(left, self._keys[i + 1], self._right_bits)
        return self._join(left, right)

    def _backward(self, x: _Words) -> _Words:
        left, right = self._split(x)
        for i in range(len(self._keys) - 2, -1, -2):
            right ^= _mix(left, self._keys[i + 1], self._right_bits)
            left ^= _mix(right, self._keys[i], self._left_bits)
        return self._join(left, right)

    def _split(self, x: _Words) -> tuple[_Words, _Words]:
        bits, mask = self._word.type(self._right_bits), self._word.type((1 << self._right_bits) - 1)
        return x >> bits, x & mask

    def _join(self, left: _Words, right: _Words) -> _Words:
        left <<= self._word.type(self._right_bits)
        left |= right
        return left


def _mix(half: _Words, key: Any, bits: int) -> _Words:
    """Return `bits` well-mixed bits of a half and a key: the round function. The high bits of a product mix best."""
    first, second, shift = _M32 if half.dtype.itemsize == 4 else _M64
    word = half + key
    word *= first
    word ^= word >> shift
    word *= second
    mixed: _Words = word >> half.dtype.type(8 * half.dtype.itemsize - bits)
    return mixed


def _round_keys(seed: int, epoch: int, stream: str, rounds: int) -> npt.NDArray[np.uint64]:
    digest = hashlib.shake_256(f"lance_prep.permutation.1/{seed}/{epoch}/{stream}".encode()).digest(8 * rounds)
    return np.frombuffer(digest, "<u8").astype(np.uint64)
