"""Exact duplicates among any number of texts, found by a 128-bit hash of each: 16 bytes of memory per text."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lance_prep.keyed import Indices
from lance_prep.text import group_equal

#: Hashes that are sorted together. Sorting takes 64 bytes each for a moment.
SORTED_ROWS = 1 << 21

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Place:
    """A row of a file.

    Attributes:
        file: number of the file.
        row: number of the row in it.
    """

    file: int
    row: int


@dataclass
class Duplicates:
    """Rows whose text is that of an earlier row. Files have an order, and rows within a file.

    Attributes:
        pairs: number of them, by the file of the first row with the text and the file of the row.
        examples: the first few of them: the first row with the text, and the row.
    """

    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    examples: list[tuple[Place, Place]] = field(default_factory=list)


class TextHashes:
    """The hashes of all texts, in order."""

    def __init__(self) -> None:
        self._parts: list[Hashes] = []
        self._files: list[int] = []  # rows before each file
        self._rows = 0

    def begin_file(self) -> None:
        """Number rows from 0 again."""
        self._files.append(self._rows)

    def add(self, count: int, rows: list[npt.NDArray[np.uint64]], hashes: list[Hashes]) -> None:
        """Add the next rows of a file.

        Args:
            count: how many there are, with those without a text.
            rows: ascending numbers among them of those with a text.
            hashes: of their texts, see `hash_texts`.
        """
        part = np.zeros((count, 2), np.uint64)
        for some, values in zip(rows, hashes, strict=True):
            part[some] = values
        self._parts.append(part)
        self._rows += count

    def duplicates(self, examples: int) -> Duplicates:
        """Find the rows whose text is that of an earlier row.

        Args:
            examples: how many of them to name.
        """
        found = Duplicates()
        named: list[tuple[int, int]] = []
        # Each pass sorts the hashes whose lowest bits are the same. Equal texts are in one pass.
        passes = 1 << max(0, self._rows // SORTED_ROWS).bit_length()
        for low in range(passes):
            first, later = _repeated(*self._select(low, passes))
            pairs, counts = np.unique(
                np.stack([self._file_of(first), self._file_of(later)]), axis=1, return_counts=True
            )
            for one, other, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
                found.pairs[one, other] = found.pairs.get((one, other), 0) + count
            some = np.argsort(later, kind="stable")[:examples]
            named = sorted([*named, *zip(later[some].tolist(), first[some].tolist(), strict=True)])[:examples]
        found.examples = [(self._place(one), self._place(other)) for other, one in named]
        return found

    def _select(self, low: int, passes: int) -> tuple[Hashes, Indices]:
        """Return hashes with the same lowest bits, and the row of each."""
        hashes, rows, start = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)], 0
        for part in self._parts:
            found = np.flatnonzero((part[:, 0] & np.uint64(passes - 1) == low) & part.any(axis=1))
            hashes.append(part[found])
            rows.append(found + start)
            start += len(part)
        return np.concatenate(hashes), np.concatenate(rows)

    def _file_of(self, rows: Indices) -> Indices:
        found: Indices = np.searchsorted(np.array(self._files), rows, "right") - 1
        return found

    def _place(self, row: int) -> Place:
        file = int(self._file_of(np.array([row]))[0])
        return Place(file, row - self._files[file])


def _repeated(hashes: Hashes, rows: Indices) -> tuple[Indices, Indices]:
    """Return the first row with a hash and the row, for each row whose hash an earlier one has. Rows ascend."""
    order, again = group_equal(*(np.ascontiguousarray(half) for half in hashes.T))
    rows = rows[order]
    firsts = rows[~again][np.cumsum(~again) - 1] if len(rows) else rows
    return firsts[again], rows[again]
