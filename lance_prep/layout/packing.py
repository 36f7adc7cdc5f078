"""Pack documents into blocks: one after the other (concat), or whole documents together (best fit).

Best-fit decreasing follows Ding et al., Fewer Truncations, 2024, section 2. A batch of source rows is the window. A
document longer than a block gives full blocks and a remainder. Documents and remainders are placed longest first, each
into the fullest block that has room for it. A bitmap of the free sizes finds that block in a few machine words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.keyed import Indices
from lance_prep.layout.base import DocIds
from lance_prep.tokenizer import TokenLists


@dataclass(frozen=True)
class Pieces:
    """Documents, or parts of documents, that were packed into blocks.

    Attributes:
        block: int64 `[pieces]`, the block that holds the piece; ascending, and in a block in the order of its tokens.
        doc: uint64 `[pieces]`, the document's doc_id.
        length: int64 `[pieces]`, tokens.
        cut: bool `[pieces]`, the piece is only a part of its document.
    """

    block: Indices
    doc: DocIds
    length: Indices
    cut: npt.NDArray[np.bool_]

    @staticmethod
    def none() -> Pieces:
        return Pieces(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Blocks:
    """Packed blocks.

    Attributes:
        ids: `[n, block_size]`, padded at the end of a row.
        num_tokens: int64 `[n]`, real tokens of each block.
        pieces: the document boundaries: what each block holds.
        mask: bool `[n, block_size]`, the bits of the tokens (see `TokenLists.mask`), False for padding; or None.
    """

    ids: npt.NDArray[Any]
    num_tokens: Indices
    pieces: Pieces
    mask: npt.NDArray[np.bool_] | None = None

    def by_block(self, values: npt.NDArray[Any], order: Indices) -> pa.ListArray:
        """Return values of the pieces as one list per block, for the blocks at `order`."""
        bounds = np.searchsorted(self.pieces.block, np.arange(len(self.ids) + 1))
        return TokenLists(bounds.astype(np.int64), values).take(order).as_arrow()


class Packer(Protocol):
    """Packs a shard's documents, which are passed in the order of the source: all with a mask, or all without."""

    def pack(self, tokens: TokenLists, docs: DocIds) -> Blocks:
        """Add documents, none of them empty, and return the blocks that are now complete."""
        ...

    def flush(self) -> Blocks:
        """Return the last blocks, padded."""
        ...


class ConcatPacker:
    """Cuts the stream of documents every `block_size` tokens."""

    def __init__(self, block_size: int, pad_id: int, dtype: np.dtype[Any]) -> None:
        self._size = block_size
        self._pad = pad_id
        self._stream = 0  # position in the shard's stream of the first token not yet in a block
        self._ids: npt.NDArray[Any] = np.empty(0, dtype)
        self._stops: Indices = np.empty(0, np.int64)  # where the documents of `_ids` end in the stream
        self._lengths: Indices = np.empty(0, np.int64)
        self._docs: DocIds = np.empty(0, np.uint64)
        self._mask = np.empty(0, np.bool_)  # of `_ids`; stays empty if tokens have no mask

    def pack(self, tokens: TokenLists, docs: DocIds) -> Blocks:
        stops = self._stream + len(self._ids) + tokens.offsets[1:]
        self._ids = np.concatenate([self._ids, tokens.ids])
        if tokens.mask is not None:
            self._mask = np.concatenate([self._mask, tokens.mask])
        self._lengths = np.concatenate([self._lengths, tokens.lengths])
        self._stops = np.concatenate([self._stops, stops])
        self._docs = np.concatenate([self._docs, docs])
        return self._cut(len(self._ids) // self._size * self._size)

    def flush(self) -> Blocks:
        return self._cut(len(self._ids))

    def _cut(self, length: int) -> Blocks:
        """Return blocks of the first `length` tokens held, and keep the rest."""
        n = -(-length // self._size)
        num_tokens = np.full(n, self._size, np.int64)
        ids = _filled_up(self._ids[:length], n * self._size, self._pad)
        if n * self._size > length:
            num_tokens[-1] = length - (n - 1) * self._size
        mask = None
        if len(self._mask):
            mask = _filled_up(self._mask[:length], n * self._size, False).reshape(n, self._size)
            self._mask = self._mask[length:].copy()
        pieces = self._pieces(length)
        self._stream += length
        self._ids = self._ids[length:].copy()
        held = self._stops > self._stream
        self._stops, self._lengths, self._docs = self._stops[held], self._lengths[held], self._docs[held]
        return Blocks(ids.reshape(n, self._size), num_tokens, pieces, mask)

    def _pieces(self, length: int) -> Pieces:
        stops = np.minimum(self._stops - self._stream, length)
        starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
        inside = starts < stops
        first, last = starts[inside] // self._size, (stops[inside] - 1) // self._size
        counts = last - first + 1
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        block = np.repeat(first, counts) + within
        owner = np.repeat(np.flatnonzero(inside), counts)
        begin = np.maximum(starts[owner], block * self._size)
        lengths = np.minimum(stops[owner], (block + 1) * self._size) - begin
        return Pieces(block, self._docs[owner], lengths, lengths < self._lengths[owner])


def whole_rows(tokens: TokenLists, docs: DocIds, lengths: pa.LargeListArray, size: int, pad_id: int) -> Blocks:
    """Return each row as a block.

    Args:
        docs: the doc_id of each row, which all its documents get.
        lengths: of the documents in each row.
        size: of a block; no row is longer.
    """
    n, num_tokens = len(tokens), tokens.lengths
    ids = tokens.ids.reshape(n, size) if (num_tokens == size).all() else np.full((n, size), pad_id, tokens.ids.dtype)
    if len(tokens.ids) < ids.size:
        ids[np.arange(size) < num_tokens[:, None]] = tokens.ids
    block = np.repeat(np.arange(n), np.diff(lengths.offsets.to_numpy()))
    sizes = lengths.flatten().to_numpy().astype(np.int64)
    return Blocks(ids, num_tokens, Pieces(block, docs[block], sizes, np.zeros(len(block), np.bool_)))


def _filled_up(values: npt.NDArray[Any], length: int, fill: Any) -> npt.NDArray[Any]:
    if len(values) == length:
        return values
    return np.concatenate([values, np.full(length - len(values), fill, values.dtype)])


class BestFitPacker:
    """Packs each batch's documents by best-fit decreasing. Only documents longer than a block are cut."""

    def __init__(self, block_size: int, pad_id: int, dtype: np.dtype[Any]) -> None:
        self._size = block_size
        self._pad = pad_id
        self._dtype = dtype

    def pack(self, tokens: TokenLists, docs: DocIds) -> Blocks:
        pieces, owner = self._pieces(tokens)
        block_of, n = best_fit_decreasing(pieces.lengths, self._size)
        # Ascending blocks; in a block, pieces in the order of the source.
        order = np.argsort(block_of, kind="stable")
        num_tokens = np.bincount(block_of, weights=pieces.lengths, minlength=n).astype(np.int64)
        ids = np.full((n, self._size), self._pad, self._dtype)
        is_token = np.arange(self._size) < num_tokens[:, None]
        placed = pieces.take(order)
        ids[is_token] = placed.ids
        mask = None
        if placed.mask is not None:
            mask = np.zeros(ids.shape, np.bool_)
            mask[is_token] = placed.mask
        owner = owner[order]
        lengths = pieces.lengths[order]
        cut = lengths < tokens.lengths[owner]
        return Blocks(ids, num_tokens, Pieces(block_of[order], docs[owner], lengths, cut), mask)

    def flush(self) -> Blocks:
        return Blocks(np.empty((0, self._size), self._dtype), np.empty(0, np.int64), Pieces.none())

    def _pieces(self, tokens: TokenLists) -> tuple[TokenLists, Indices]:
        """Cut the documents where they exceed a block; also return the document of each piece, int64."""
        counts = -(-tokens.lengths // self._size)
        owner = np.repeat(np.arange(len(tokens)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = tokens.offsets[owner] + within * self._size
        return TokenLists(np.append(starts, tokens.offsets[-1]), tokens.ids, tokens.mask), owner


def best_fit_decreasing(lengths: npt.NDArray[np.int64], size: int) -> tuple[Indices, int]:
    """Return the block of each piece, int64 `[len(lengths)]`, and the number of blocks.

    Args:
        lengths: of the pieces, 1 to `size` each. Pieces of equal length are placed in their order.
    """
    block_of = np.empty(len(lengths), np.int64)
    free: list[list[int]] = [[] for _ in range(size + 1)]  # blocks by what is free in them
    sizes = 0  # bit c: some block has c tokens free
    n = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fits = sizes >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            block = free[room].pop()
            if not free[room]:
                sizes ^= 1 << room
        else:
            room, block, n = size, n, n + 1
        block_of[piece] = block
        if room > length:
            free[room - length].append(block)
            sizes |= 1 << (room - length)
    return block_of, n
