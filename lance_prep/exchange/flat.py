"""The target `bin`: token ids end to end, as nanoGPT reads them with `np.memmap`.

A file has no header: it is little-endian uint16, or uint32 for a vocabulary beyond 65,536 ids. The statistics name the
type. Padding is left out. Blocks are written in the order of the dataset, with the EOS that ends each document. Rows of
other layouts are each followed by EOS. So EOS is all that is left of document boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import DamagedDataset, TokenizerError
from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.store import DatasetVersion
from lance_prep.tokenizer import followed_by, real_ids

#: Tokens in a piece.
PIECE_TOKENS = 1 << 22


class BinEncoder(Encoder):
    """Encodes rows as their ids; see `Encoder`."""

    plain = True

    def __init__(self, source: Source, options: ExportOptions) -> None:
        opened = source.opened
        self._uri, self._eos, self.dtype = opened.uri, ending(opened), stored_type(opened)
        self._tokenizer = opened.metadata.tokenizer
        self.columns: Sequence[str] = ["input_ids", "num_tokens"]
        self.batch_rows = rows_per_piece(source, PIECE_TOKENS)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        ids, lengths = real_tokens(batch, self._uri, self._eos)
        data = ids.astype(self.dtype, copy=False)
        ends: Indices = np.cumsum(lengths) * self.dtype.itemsize
        return Piece([data.view(np.uint8)], data.nbytes, batch.num_rows, len(data), ends=ends, row_tokens=lengths)

    def about(self) -> dict[str, Any]:
        return {"dtype": self.dtype.name, "eos_id": self._tokenizer and self._tokenizer.eos_id}


def stored_type(opened: DatasetVersion) -> np.dtype[Any]:
    """Return the type of a dataset's tokens, little-endian."""
    return np.dtype(opened.metadata.dtype or "uint32").newbyteorder("<")


def ending(opened: DatasetVersion) -> int | None:
    """Return the id to write after each row, so that documents stay apart; None if blocks have it already.

    Raises:
        TokenizerError: it is needed, and the tokenizer has no EOS token.
    """
    if LAYOUTS[opened.metadata.layout].packed:
        return None
    tokenizer = opened.metadata.tokenizer
    if tokenizer is None or tokenizer.eos_id is None:
        raise TokenizerError(
            f"{opened.uri}: its tokenizer has no EOS token to end rows with", "build it with layout blocks"
        )
    return tokenizer.eos_id


def rows_per_piece(source: Source, tokens: int) -> int:
    """Return how many rows of a source have about this number of tokens."""
    mean = source.length or source.opened.metadata.tokens // max(source.rows, 1)
    return min(max(tokens // max(mean, 1), 1), 1 << 16)


def real_tokens(batch: pa.RecordBatch, uri: str, eos: int | None) -> tuple[npt.NDArray[Any], Indices]:
    """Return the ids of rows without padding, end to end, and int64 the number of each.

    Args:
        uri: of the dataset, for messages.
        eos: id to put after each row; None for none.

    Raises:
        DamagedDataset: `num_tokens` contradicts `input_ids`.
    """
    column = batch["input_ids"]
    lengths = batch["num_tokens"].to_numpy().astype(np.int64)
    if pa.types.is_fixed_size_list(column.type):
        whole = lengths <= column.type.list_size
    else:
        whole = np.diff(column.offsets.to_numpy().astype(np.int64)) == lengths
    if not whole.all():
        raise DamagedDataset(f"{uri}: num_tokens differs from input_ids", "`lance-prep verify` names the damage")
    ids = real_ids(column, lengths)
    if eos is None:
        return ids, lengths
    return followed_by(np.append(np.zeros(1, np.int64), np.cumsum(lengths)), ids, eos), lengths + 1


def full_rows(batch: pa.RecordBatch, uri: str) -> tuple[npt.NDArray[Any], Indices]:
    """Return the ids of rows of one length, `[rows, length]` with padding, and int64 the number without it.

    Raises:
        DamagedDataset: `num_tokens` or an id is out of range.
    """
    column = batch["input_ids"]
    size = column.type.list_size
    ids = column.flatten().to_numpy().reshape(-1, size)
    lengths = batch["num_tokens"].to_numpy().astype(np.int64)
    if (lengths > size).any() or (ids.dtype.itemsize > 2 and ids.max(initial=0) > np.iinfo(np.int32).max):
        raise DamagedDataset(f"{uri}: num_tokens or input_ids are out of range", "`lance-prep verify` names the damage")
    return ids, lengths
