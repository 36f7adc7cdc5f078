"""Best-fit-decreasing packing: whole documents into blocks (Ding et al., Fewer Truncations, 2024, section 2).

A batch of source rows is the window. A document longer than a block gives full blocks and a remainder; documents and
remainders go, longest first, each into the fullest block that still has room for it. A bitmap of the free sizes that
there are finds it in a few machine words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lance_prep.arrow_text import Indices
from lance_prep.layout.base import DocIds
from lance_prep.layout.blocks import Blocks, Pieces
from lance_prep.tokenizer import TokenLists


class BestFitPacker:
    """Packs each batch's documents by best-fit decreasing; a document is cut only where it exceeds a block."""

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
        ids[np.arange(self._size) < num_tokens[:, None]] = pieces.take(order).ids
        owner = owner[order]
        lengths = pieces.lengths[order]
        cut = lengths < tokens.lengths[owner]
        return Blocks(ids, num_tokens, Pieces(block_of[order], docs[owner], lengths, cut))

    def flush(self) -> Blocks:
        return Blocks(np.empty((0, self._size), self._dtype), np.empty(0, np.int64), Pieces.none())

    def _pieces(self, tokens: TokenLists) -> tuple[TokenLists, Indices]:
        """The documents cut where they exceed a block, and int64 the document of each piece."""
        counts = -(-tokens.lengths // self._size)
        owner = np.repeat(np.arange(len(tokens)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = tokens.offsets[owner] + within * self._size
        return TokenLists(np.append(starts, tokens.offsets[-1]), tokens.ids), owner


def best_fit_decreasing(lengths: npt.NDArray[np.int64], size: int) -> tuple[Indices, int]:
    """Which block each piece goes to, int64 `[len(lengths)]`, and the number of blocks.

    Args:
        lengths: of the pieces, 1 to `size` each. Equal lengths go in the order in which they stand.
    """
    block_of = np.empty(len(lengths), np.int64)
    free: list[list[int]] = [[] for _ in range(size + 1)]  # blocks by what is free in them
    sizes = 0  # bit c: there is a block with c tokens free
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
