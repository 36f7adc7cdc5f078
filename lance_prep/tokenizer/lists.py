"""Token ids of many texts as two numpy arrays, and their passage to Arrow without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ids = npt.NDArray[Any]  # uint16 or uint32: the dtype of the dataset
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenLists:
    """Token ids of `n` texts.

    Attributes:
        offsets: int64 `[n + 1]`, ascending, `offsets[0] == 0`.
        ids: uint16 or uint32 `[offsets[-1]]`.
    """

    offsets: Offsets
    ids: Ids

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Offsets:
        """int64 `[n]`, tokens of each text."""
        return np.diff(self.offsets)

    def equals(self, other: TokenLists) -> bool:
        """The same ids of the same texts."""
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.ids, other.ids)

    def slice(self, start: int, stop: int) -> TokenLists:
        """The texts `start` to `stop`, over the same ids."""
        offsets = self.offsets[start : stop + 1]
        return TokenLists(offsets - offsets[0], self.ids[offsets[0] : offsets[-1]])

    def take(self, indices: npt.NDArray[np.int64]) -> TokenLists:
        """The texts at `indices`, in their order.

        Rows are moved as Arrow binary values: its `take` copies each row whole.
        """
        size = self.ids.dtype.itemsize
        buffers = [None, pa.py_buffer(self.offsets * size), pa.py_buffer(np.ascontiguousarray(self.ids))]
        taken = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers).take(pa.array(indices))
        offsets = np.frombuffer(taken.buffers()[1], np.int64, len(taken) + 1) // size
        data = taken.buffers()[2]
        ids = np.frombuffer(data, self.ids.dtype, int(offsets[-1])) if data else np.empty(0, self.ids.dtype)
        return TokenLists(offsets, ids)

    def replaced(self, rows: Offsets, by: TokenLists) -> TokenLists:
        """Return the same texts, with the ids of those at `rows` (ascending) replaced by the texts of `by`."""
        lengths = self.lengths
        lengths[rows] = by.lengths
        pieces: list[Ids] = []
        at = 0
        for i, row in enumerate(rows.tolist()):
            pieces += [self.ids[at : self.offsets[row]], by.ids[by.offsets[i] : by.offsets[i + 1]]]
            at = self.offsets[row + 1]
        pieces.append(self.ids[at:])
        return TokenLists(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.concatenate(pieces))

    def wrapped(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> TokenLists:
        """Each text between the ids `prefix` and `suffix`."""
        extra = len(prefix) + len(suffix)
        if not extra:
            return self
        offsets = self.offsets + extra * np.arange(len(self) + 1)
        ids = np.empty(int(offsets[-1]), self.ids.dtype)
        is_text = np.ones(len(ids), bool)
        for i, token in enumerate(prefix):
            ids[offsets[:-1] + i] = token
            is_text[offsets[:-1] + i] = False
        for i, token in enumerate(suffix):
            ids[offsets[1:] - len(suffix) + i] = token
            is_text[offsets[1:] - len(suffix) + i] = False
        ids[is_text] = self.ids
        return TokenLists(offsets, ids)

    def as_arrow(self) -> pa.ListArray:
        """`list<uint16|uint32>` over the same memory.

        Raises:
            OverflowError: more than 2^31 - 1 ids, which 32-bit list offsets cannot say.
        """
        if self.offsets[-1] > np.iinfo(np.int32).max:
            raise OverflowError(f"{self.offsets[-1]} tokens in one batch are more than a list array can hold")
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.ids))


def join(pieces: Sequence[TokenLists], dtype: np.dtype[Any]) -> TokenLists:
    """The texts of all pieces, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    lengths = [piece.lengths for piece in pieces]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))]).astype(np.int64)
    return TokenLists(offsets, np.concatenate([np.empty(0, dtype), *(piece.ids for piece in pieces)]))


def call_gigatoken(
    tokenizer: Any, texts: pa.LargeStringArray, dtype: np.dtype[Any], *, parallel: bool = False
) -> TokenLists:
    """Encode texts by a `gigatoken.Tokenizer`, from Arrow's buffers to numpy without a copy of the text."""
    if not len(texts):
        return TokenLists(np.zeros(1, np.int64), np.empty(0, dtype))
    answer = tokenizer.encode_batch(_as_awkward(texts), parallel=parallel).layout
    # The answer's offsets need not start at zero.
    offsets = np.asarray(answer.offsets.data).astype(np.int64, copy=False)
    ids = np.asarray(answer.content.data)[offsets[0] : offsets[-1]].astype(dtype)
    return TokenLists(offsets - offsets[0] if offsets[0] else offsets, ids)


def _as_awkward(texts: pa.LargeStringArray) -> Any:
    import awkward as ak
    from awkward.contents import ListOffsetArray, NumpyArray
    from awkward.index import Index64

    _, offsets, data = texts.buffers()
    index = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    chars = NumpyArray(content, parameters={"__array__": "char"})
    return ak.Array(ListOffsetArray(Index64(index), chars, parameters={"__array__": "string"}))
