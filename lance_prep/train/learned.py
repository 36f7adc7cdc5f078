"""Finds the learned tokens of rows, from the column `loss_mask`, for `labels="assistant"`.

The column is read once into the cache of the version's index, as the spans that are learned. A batch looks its rows up
there: 8 blocks of 1,024 tokens with 40 spans take 20 us.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lance_prep.errors import DatasetError
from lance_prep.keyed import Indices
from lance_prep.loss_mask import MASK_COLUMN, runs_to_spans
from lance_prep.store import Cache
from lance_prep.train.index import mapped, stored
from lance_prep.train.tokens import list_values, ragged_arange

_NAMES = ("learned_offsets.npy", "learned_starts.npy", "learned_stops.npy")


class Learned:
    """The learned spans of all rows. Threads may share one.

    Args:
        offsets: int64 `[rows + 1]`, where the spans of each row begin.
        starts, stops: uint32 `[spans]`, tokens within the row, ascending.
    """

    def __init__(self, offsets: Indices, starts: npt.NDArray[Any], stops: npt.NDArray[Any]) -> None:
        self._offsets, self._starts, self._stops = offsets, starts, stops

    def bits(self, rows: Indices, begins: Indices, lengths: Indices) -> npt.NDArray[np.bool_]:
        """Return whether each token is learned, for `lengths[i]` tokens from token `begins[i]` of row `rows[i]`."""
        first = self._offsets[rows]
        counts = self._offsets[rows + 1] - first
        at = np.repeat(first, counts) + ragged_arange(counts)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        # Where learned and other tokens take turns, in the result.
        edges = np.zeros(2 * len(at) + 2, np.int64)
        edges[-1] = total
        inner = edges[1:-1].reshape(-1, 2)
        inner[:, 0], inner[:, 1] = self._starts[at], self._stops[at]
        inner -= np.repeat(begins, counts)[:, None]
        np.maximum(inner, 0, out=inner)
        np.minimum(inner, np.repeat(lengths, counts)[:, None], out=inner)
        inner += np.repeat(ends - lengths, counts)[:, None]
        is_learned = np.zeros(len(edges) - 1, np.bool_)
        is_learned[1::2] = True
        return np.repeat(is_learned, edges[1:] - edges[:-1])


def load_learned(cache: Cache) -> Learned | None:
    """Return the spans as they were stored, or None, without opening the dataset."""
    if any(cache.find(name) is None for name in _NAMES):
        return None
    try:
        return Learned(*(mapped(cache, name) for name in _NAMES))
    except (OSError, ValueError, EOFError):
        return None


def build_learned(dataset: Any, cache: Cache, *, column: str) -> Learned:
    """Read the spans of an open `lance.LanceDataset`, and store them.

    Args:
        column: has the tokens of each row, to be compared with.

    Raises:
        DatasetError: the column is damaged.
    """
    counts, starts, stops, row = [np.zeros(1, np.int64)], [np.empty(0, np.uint32)], [np.empty(0, np.uint32)], 0
    for batch in dataset.scanner(columns=[MASK_COLUMN, column], scan_in_order=True).to_batches():
        tokens = batch.column(column).to_numpy().astype(np.int64)
        values, bounds = list_values(batch.column(MASK_COLUMN), MASK_COLUMN)
        try:
            begin, end, offsets = runs_to_spans(values, bounds)
        except ValueError as error:
            raise _damaged(row, len(batch), str(error)) from error
        if (end > np.repeat(tokens, np.diff(offsets))).any():
            raise _damaged(row, len(batch), "a row names more tokens than it has")
        counts.append(np.diff(offsets))
        starts.append(begin.astype(np.uint32))
        stops.append(end.astype(np.uint32))
        row += len(batch)
    made: list[npt.NDArray[Any]] = [np.cumsum(np.concatenate(counts)), np.concatenate(starts), np.concatenate(stops)]
    return Learned(*(stored(cache, name, array) for name, array in zip(_NAMES, made, strict=True)))


def _damaged(row: int, rows: int, why: str) -> DatasetError:
    return DatasetError(
        f"{MASK_COLUMN} of rows {row} to {row + rows} is damaged: {why}",
        "run `lance-prep verify` on the dataset, and build it again",
    )
