"""Counts the lengths of rows and documents in one scan of a dataset's small columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lance_prep.errors import reading_dataset
from lance_prep.layouts import LAYOUTS
from lance_prep.store import DatasetVersion

#: Bars of a histogram for each doubling of the length.
PER_DOUBLING = 4

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """Lengths counted in bars, each wider than the one before by a fixed factor.

    Attributes:
        counts: int64; bar `i` holds the lengths from `edge(i)` up to, but not including, `edge(i + 1)`.
        total: sum of the lengths.
        longest: the longest length.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(64 * PER_DOUBLING, np.int64))
    total: int = 0
    longest: int = 0

    @property
    def number(self) -> int:
        """Number of lengths that were counted."""
        return int(self.counts.sum())

    def add(self, lengths: npt.NDArray[Any]) -> None:
        """Count lengths."""
        if not len(lengths):
            return
        bars = np.floor(np.log2(np.maximum(lengths, 1)) * PER_DOUBLING + 1e-9).astype(np.int64)
        self.counts += np.bincount(bars, minlength=len(self.counts))
        self.total += int(lengths.sum(dtype=np.int64))
        self.longest = max(self.longest, int(lengths.max()))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    @staticmethod
    def edge(bar: int) -> float:
        """Return the shortest length of a bar."""
        return float(2 ** (bar / PER_DOUBLING))

    def bars(self) -> list[tuple[float, float, int]]:
        """Return the bars from the first to the last that is not empty, each as (from, to, number of lengths)."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return []
        span = range(int(used[0]), int(used[-1]) + 1)
        return [(self.edge(bar), self.edge(bar + 1), int(self.counts[bar])) for bar in span]

    def by_doubling(self) -> list[tuple[int, int, int]]:
        """Return the counts by powers of two, each as (shortest, longest, number of lengths), without empty ends."""
        counts = self.counts.reshape(-1, PER_DOUBLING).sum(axis=1)
        used = np.flatnonzero(counts)
        span = range(int(used[0]), int(used[-1]) + 1) if len(used) else range(0)
        return [(2**power, 2 ** (power + 1) - 1, int(counts[power])) for power in span]

    def as_json(self) -> dict[str, Any]:
        """Return the counts by powers of two, as plain JSON."""
        bars = [{"from": low, "to": high, "number": number} for low, high, number in self.by_doubling()]
        return {"number": self.number, "total": self.total, "longest": self.longest, "bars": bars}


@dataclass
class Measured:
    """Lengths in tokens.

    Attributes:
        rows: of the rows, without padding.
        documents: of the documents. With `lines` and `documents`, each row is one; with `blocks`, a document that is
            cut counts once for each block.
    """

    rows: Histogram = field(default_factory=Histogram)
    documents: Histogram = field(default_factory=Histogram)

    def scan(
        self, opened: DatasetVersion, on_rows: Callable[[int], None] = lambda rows: None, *, filter: str | None = None
    ) -> None:
        """Add the lengths of a dataset, which is read in bounded memory. Layout `raw` has none.

        Args:
            on_rows: called with the number of rows in each batch.
            filter: only count rows that pass it, in SQL.
        """
        layout = LAYOUTS[opened.metadata.layout]
        if not layout.tokens:
            on_rows(opened.metadata.rows)
            return
        columns = ["num_tokens", *(["seq_lengths"] if layout.packed else [])]
        with reading_dataset(opened.uri):
            for batch in opened.dataset.to_batches(columns=columns, filter=filter):
                lengths = batch.column("num_tokens").to_numpy()
                self.rows.add(lengths)
                self.documents.add(batch.column("seq_lengths").flatten().to_numpy() if layout.packed else lengths)
                on_rows(len(batch))
