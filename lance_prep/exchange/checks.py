"""Checks rows before they are exported.

A file whose bytes have changed usually still reads as rows. Without these checks an export would copy the damage, and
training would fail on an id that the model does not have, or learn from tokens that it should not see.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import DamagedDataset, UsageError
from lance_prep.exchange.base import Encoder, Source
from lance_prep.keyed import Indices
from lance_prep.loss_mask import MASK_COLUMN

VERIFY = "run `lance-prep verify` on the dataset, then restore the damaged files or build it again"


def check_rows(batch: pa.RecordBatch, first: int, source: Source, encoder: Encoder) -> None:
    """Check token ids, and the columns that count them, as far as a batch has them.

    Takes 1 to 2 % of the CPU time of an export to Parquet, and 6 % of one to `bin` or `mds`.

    Args:
        batch: rows of `source`, the first of which is row `first`.

    Raises:
        DamagedDataset: an id is beyond the vocabulary, or columns contradict each other.
        UsageError: an id is too large for the files that `encoder` writes.
    """
    names = batch.schema.names
    if "input_ids" not in names:
        return
    column, where = batch["input_ids"], _Place(source, first)
    sizes, lengths = list_lengths(column), batch["num_tokens"].to_numpy()
    if pa.types.is_fixed_size_list(column.type):
        where.require(lengths <= sizes, "num_tokens is larger than the number of its ids")
    else:
        where.require(lengths == sizes, "num_tokens differs from the number of its ids")
    _check_ids(column.flatten().to_numpy(), sizes, where, encoder)
    if "seq_lengths" in names:
        where.require(_sums(batch["seq_lengths"]) == lengths, "seq_lengths do not add up to num_tokens")
    if MASK_COLUMN in names:
        where.require(_sums(batch[MASK_COLUMN]) <= lengths, f"{MASK_COLUMN} has more tokens than num_tokens")


class _Place:
    """Says where rows that fail a check are."""

    def __init__(self, source: Source, first: int) -> None:
        self.source, self._first = source, first

    def row(self, index: int) -> str:
        return f"{self.source.opened.uri}: {self.source.unit} {self._first + index:,}"

    def require(self, good: npt.NDArray[np.bool_], said: str) -> None:
        if not good.all():
            raise DamagedDataset(f"{self.row(int(np.flatnonzero(~good)[0]))}: {said}", VERIFY)


def _check_ids(ids: npt.NDArray[np.unsignedinteger], sizes: Indices, where: _Place, encoder: Encoder) -> None:
    tokenizer = where.source.opened.metadata.tokenizer
    known = tokenizer.vocab_size if tokenizer is not None else encoder.ids_below
    below = min(known, encoder.ids_below)
    if below > np.iinfo(ids.dtype).max or int(ids.max(initial=0)) < below:
        return
    at = int(np.flatnonzero(ids >= below)[0])
    row = where.row(int(np.searchsorted(np.cumsum(sizes), at, side="right")))
    if ids[at] >= known:
        raise DamagedDataset(f"{row} has the id {ids[at]:,}, and its tokenizer has {known:,} ids", VERIFY)
    said = f"{row} has the id {ids[at]:,}, and these files hold ids below {below:,}"
    raise UsageError(said, "export it with format='bin'")


def list_lengths(lists: pa.Array) -> Indices:
    """Return the number of values in each list."""
    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size)
    found: Indices = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    return found


def _sums(lists: pa.Array) -> Indices:
    """Return the sum of each list."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    ends = np.append(np.zeros(1, np.int64), np.cumsum(lists.flatten().to_numpy(), dtype=np.int64))
    found: Indices = np.diff(ends[offsets - offsets[0]])
    return found
