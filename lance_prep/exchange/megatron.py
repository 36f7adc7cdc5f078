"""The target `megatron`: `.bin` and `.idx` of Megatron's `IndexedDataset`.

A sequence is a document: its part in a block or, by document, the whole. In Megatron's index each sequence is a
document of its own. Rows of other layouts get EOS at their end, as with `preprocess_data.py --append-eod`. Padding is
left out.

The index is made from the dataset once the tokens are written, so nothing but tokens has to survive a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from lance_prep.errors import DamagedDataset
from lance_prep.exchange.base import ExportOptions, Source, Written
from lance_prep.exchange.checks import VERIFY
from lance_prep.exchange.flat import PIECE_TOKENS, BinEncoder, rows_per_piece
from lance_prep.keyed import Indices

MAGIC = b"MMIDIDX\0\0"
#: Megatron's codes of the types that ids can have.
CODES = {"uint16": 8, "int32": 4}
#: Megatron itself writes uint16 only for vocabularies smaller than this.
_SMALL_VOCABULARY = 65_500
#: Pointers that are written together.
_TOGETHER = 1 << 20


class MegatronEncoder(BinEncoder):
    """Encodes rows as their ids, and makes the index; see `Encoder`."""

    ids_below = 1 << 31

    def __init__(self, source: Source, options: ExportOptions) -> None:
        super().__init__(source, options)
        self._source = source
        tokenizer = source.opened.metadata.tokenizer
        small = self.dtype.itemsize == 2 and (tokenizer is None or tokenizer.vocab_size < _SMALL_VOCABULARY)
        self.dtype = np.dtype("<u2" if small else "<i4")

    def beside(self, files: Sequence[Written]) -> Iterator[tuple[str, Iterable[Any]]]:
        start = 0
        for file in files:
            lengths = self._lengths(start, file.rows)
            if int(lengths.sum()) * self.dtype.itemsize != file.bytes:
                raise DamagedDataset(f"{self._uri}: seq_lengths do not add up to num_tokens", VERIFY)
            yield file.name.removesuffix(".bin") + ".idx", self._index(lengths)
            start += file.rows

    def _lengths(self, start: int, rows: int) -> Indices:
        """Return the number of tokens of each sequence of some rows."""
        column = "seq_lengths" if self._eos is None and self._source.length is not None else "num_tokens"
        found, size = [np.empty(0, np.int64)], rows_per_piece(self._source, PIECE_TOKENS)
        with closing(self._source.batches(start, size, [column])) as batches:
            for batch in batches:
                if rows <= 0:
                    break
                values = batch.slice(0, rows)[column]
                values = values.flatten() if column == "seq_lengths" else values
                found.append(values.to_numpy().astype(np.int64))
                rows -= batch.num_rows
        return np.concatenate(found) + (0 if self._eos is None else 1)

    def _index(self, lengths: Indices) -> Iterator[bytes]:
        """Yield the contents of an index: the head, and the length, the place and the number of each sequence."""
        count = len(lengths)
        yield MAGIC + (1).to_bytes(8, "little") + bytes([CODES[self.dtype.name]])
        yield count.to_bytes(8, "little") + (count + 1).to_bytes(8, "little")
        yield lengths.astype("<i4").tobytes()
        at = 0
        for first in range(0, count, _TOGETHER):
            sizes = lengths[first : first + _TOGETHER] * self.dtype.itemsize
            ends = at + np.cumsum(sizes)
            yield (ends - sizes).astype("<i8").tobytes()
            at = int(ends[-1])
        for first in range(0, count + 1, _TOGETHER):
            yield np.arange(first, min(first + _TOGETHER, count + 1), dtype="<i8").tobytes()
