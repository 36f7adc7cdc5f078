"""Finding blocks again in the documents of their shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import drop_blank, without_nulls
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import TokenLists

#: Documents that are encoded at once while a block is filled: the reference encodes 3 MB/s.
AT_ONCE = 16
#: A longer text is not made again: the reference took four minutes for one of 27 MB.
LONGEST_TEXT = 1 << 20


@dataclass
class _Open:
    """A block that is being looked for.

    Attributes:
        block: its real tokens.
        first: tokens of its first document; the block begins within them.
        parts: tokens of the source from that document on.
    """

    block: npt.NDArray[Any]
    first: int = 0
    parts: list[npt.NDArray[Any]] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        return sum(map(len, self.parts)) >= self.first + len(self.block)


class BlockSearch:
    """Takes a shard's batches in order and says of each block whether its tokens are there.

    Args:
        blocks: real tokens of each.
        rows: the source row of the first document of each.
        whole: the block is one stretch of the stream of documents (`concat`), and all of it is compared; else only its
            beginning with that document (`best-fit`).
    """

    def __init__(self, blocks: list[npt.NDArray[Any]], rows: list[int], *, whole: bool, block_size: int) -> None:
        self._blocks = blocks
        self._whole = whole
        self._size = block_size
        self._open: dict[int, _Open] = {}
        self._results: dict[int, bool] = {}
        self.too_long: set[int] = set()  # not compared: a document on the way is longer than LONGEST_TEXT
        self._rows = rows
        self.never = set(range(len(blocks)))  # blocks whose first document has not come

    @property
    def done(self) -> bool:
        return not self.never and not self._open

    def add(self, batch: SourceBatch, encode: Callable[[pa.LargeStringArray], TokenLists]) -> None:
        """The shard's next batch."""
        texts, kept = drop_blank(without_nulls(batch.columns.column(0)))
        rows = batch.rows[kept]
        starts = dict.fromkeys(self._open, 0)
        for i in list(self.never):
            at = int(np.searchsorted(rows, self._rows[i]))
            if at < len(rows) and int(rows[at]) == self._rows[i]:
                self.never.discard(i)
                self._open[i] = _Open(self._blocks[i])
                starts[i] = at
        for i, at in starts.items():
            self._fill(i, texts.slice(at), encode)

    def _fill(self, i: int, texts: pa.LargeStringArray, encode: Callable[[pa.LargeStringArray], TokenLists]) -> None:
        looked = self._open[i]
        while len(texts):
            step = AT_ONCE if looked.parts and self._whole else 1
            if pc.max(pc.binary_length(texts.slice(0, step))).as_py() > LONGEST_TEXT:
                self.too_long.add(i)
                del self._open[i]
                return
            tokens = encode(texts.slice(0, step))
            texts = texts.slice(step)
            if not looked.parts:
                looked.first = len(tokens.ids)
            looked.parts.append(tokens.ids)
            if not self._whole or looked.enough:
                self._close(i)
                return

    def _close(self, i: int) -> None:
        looked = self._open.pop(i)
        find = _in_stream if self._whole else self._in_document
        self._results[i] = find(looked)

    def _in_document(self, looked: _Open) -> bool:
        document = looked.parts[0]
        pieces = [document[k : k + self._size] for k in range(0, len(document), self._size)]
        return any(np.array_equal(looked.block[: len(piece)], piece) for piece in pieces)

    def results(self) -> dict[int, bool]:
        """Whether each block was found; call it after the last batch."""
        for i in list(self._open):
            self._close(i)
        return self._results


def _in_stream(looked: _Open) -> bool:
    stream, block = np.concatenate(looked.parts), looked.block
    starts = np.flatnonzero(stream[: looked.first] == block[0])
    return any(np.array_equal(stream[at : at + len(block)], block) for at in starts.tolist())
