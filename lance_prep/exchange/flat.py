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

from lance_prep.errors import TokenizerError
from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.store import DatasetVersion
from lance_prep.tokenizer import followed_by, real_ids

#: Tokens in a piece, which is 2 or 4 MB.
PIECE_TOKENS = 1 << 20


class BinEncoder(Encoder):
    """Encodes rows as their ids; see `Encoder`."""

    plain = True
    ids_below = 1 << 32

    def __init__(self, source: Source, options: ExportOptions) -> None:
        opened = source.opened
        self._uri, self._eos, self.dtype = opened.uri, ending(opened), stored_type(opened)
        self._tokenizer = opened.metadata.tokenizer
        self.columns: Sequence[str] = ["input_ids", "num_tokens"]
        self.batch_rows = rows_per_piece(source, PIECE_TOKENS)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        ids, lengths = real_tokens(batch, self._eos)
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


def real_tokens(batch: pa.RecordBatch, eos: int | None) -> tuple[npt.NDArray[Any], Indices]:
    """Return the ids of rows without padding, end to end, and int64 the number of each.

    Args:
        eos: id to put after each row; None for none.
    """
    lengths = batch["num_tokens"].to_numpy().astype(np.int64)
    ids = real_ids(batch["input_ids"], lengths)
    if eos is None:
        return ids, lengths
    return followed_by(np.append(np.zeros(1, np.int64), np.cumsum(lengths)), ids, eos), lengths + 1


def full_rows(batch: pa.RecordBatch) -> tuple[npt.NDArray[Any], Indices]:
    """Return the ids of rows of one length, `[rows, length]` with padding, and int64 the number without it."""
    column = batch["input_ids"]
    ids = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return ids, batch["num_tokens"].to_numpy().astype(np.int64)
