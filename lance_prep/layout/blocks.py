"""Layout `blocks`: documents, each ended by EOS, packed into rows of exactly `block_size` tokens.

`concat` cuts the stream of documents every `block_size` tokens, across batches inside a shard: no padding but in the
shard's last block. `best-fit` keeps documents whole (Ding et al., Fewer Truncations Improve Language Modeling, 2024):
see `bestfit.py`. Either way each token is written once; the ledger tells padding and documents cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.arrow_text import Indices, drop_blank, without_nulls
from lance_prep.errors import TokenizerError
from lance_prep.layout.base import DocIds, LayoutJob, RowMaker, SourceBatch, encode_together
from lance_prep.recipe import Recipe
from lance_prep.tokenizer import TokenizerSpec, TokenLists


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
    """

    ids: npt.NDArray[Any]
    num_tokens: Indices
    pieces: Pieces

    def by_block(self, values: npt.NDArray[Any], order: Indices) -> pa.ListArray:
        """Values of the pieces as one list per block, for the blocks at `order`."""
        bounds = np.searchsorted(self.pieces.block, np.arange(len(self.ids) + 1))
        return TokenLists(bounds.astype(np.int64), values).take(order).as_arrow()


class Packer(Protocol):
    """Packs a shard's documents; they come in the order of the source."""

    def pack(self, tokens: TokenLists, docs: DocIds) -> Blocks:
        """Blocks that are ready once these documents (none of them empty) are in."""
        ...

    def flush(self) -> Blocks:
        """What is left, padded."""
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

    def pack(self, tokens: TokenLists, docs: DocIds) -> Blocks:
        stops = self._stream + len(self._ids) + tokens.offsets[1:]
        self._ids = np.concatenate([self._ids, tokens.ids])
        self._lengths = np.concatenate([self._lengths, tokens.lengths])
        self._stops = np.concatenate([self._stops, stops])
        self._docs = np.concatenate([self._docs, docs])
        return self._cut(len(self._ids) // self._size * self._size)

    def flush(self) -> Blocks:
        return self._cut(len(self._ids))

    def _cut(self, length: int) -> Blocks:
        """Blocks of the first `length` tokens held; the rest is kept."""
        n = -(-length // self._size)
        num_tokens = np.full(n, self._size, np.int64)
        ids = self._ids[:length]
        if n * self._size > length:
            num_tokens[-1] = length - (n - 1) * self._size
            ids = np.concatenate([ids, np.full(n * self._size - length, self._pad, ids.dtype)])
        pieces = self._pieces(length)
        self._stream += length
        self._ids = self._ids[length:].copy()
        held = self._stops > self._stream
        self._stops, self._lengths, self._docs = self._stops[held], self._lengths[held], self._docs[held]
        return Blocks(ids.reshape(n, self._size), num_tokens, pieces)

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


def block_rows(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Blocks of `block_size` tokens, shuffled among those that a batch of source rows completes.

    Raises:
        TokenizerError: the tokenizer has no known end-of-text token.
    """
    assert job.spec is not None
    packer, counts = _make_packer(job), _BlockCounts(job)
    prefix, suffix = document_affixes(job.spec, add_special_tokens=job.recipe.add_special_tokens)
    for (batch, kept), plain in encode_together(job, _documents(batches)):
        tokens = plain.wrapped(prefix, suffix)
        docs = job.doc_ids(batch.rows[kept])
        counts.documents(len(batch.rows), len(kept), len(tokens.ids))
        job.tally.lengths.add(tokens.lengths, docs)
        yield from _emit(packer.pack(tokens, docs), job, counts)
        if job.exhausted:
            break
    if not job.exhausted:
        yield from _emit(packer.flush(), job, counts)
    counts.finish()


def _documents(
    batches: Iterable[SourceBatch],
) -> Iterator[tuple[tuple[SourceBatch, Indices], SourceBatch, pa.LargeStringArray]]:
    for batch in batches:
        texts, kept = drop_blank(without_nulls(batch.columns.column(0)))
        yield (batch, kept), batch, texts


def document_affixes(spec: TokenizerSpec, *, add_special_tokens: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after each document: what the tokenizer's template puts before it, and EOS.

    Raises:
        TokenizerError: the tokenizer has no known end-of-text token.
    """
    if spec.eos_id is None:
        raise TokenizerError(
            f"{spec.name} names no end-of-text token, and its vocabulary has none of the usual ones",
            "name it with eos_token",
        )
    return (spec.prefix if add_special_tokens else ()), (spec.eos_id,)


def _make_packer(job: LayoutJob) -> Packer:
    spec = job.spec
    assert spec is not None
    pad_id = spec.pad_id if spec.pad_id is not None else spec.eos_id or 0
    if job.recipe.packing == "concat":
        return ConcatPacker(job.recipe.block_size, pad_id, spec.dtype)
    from lance_prep.layout.bestfit import BestFitPacker

    return BestFitPacker(job.recipe.block_size, pad_id, spec.dtype)


class _BlockCounts:
    """Tells which documents were used when only some of the blocks are written."""

    def __init__(self, job: LayoutJob) -> None:
        self._ledger = job.tally.ledger
        self._documents = 0
        self._next = 0  # doc_ids below it were counted if a part of them is written

    def documents(self, rows: int, documents: int, tokens: int) -> None:
        self._documents += documents
        self._ledger.empty += rows - documents
        self._ledger.tokens_in += tokens

    def written(self, blocks: Blocks, order: Indices) -> None:
        docs, cut = blocks.pieces.doc, blocks.pieces.cut
        if len(order) < len(blocks.ids):
            written = np.isin(blocks.pieces.block, order)
            docs, cut = docs[written], cut[written]
        # Documents come in ascending order: one that was counted before is at most the highest so far.
        new = docs >= np.uint64(self._next)
        self._ledger.rows_used += len(np.unique(docs[new]))
        self._ledger.documents_cut += len(np.unique(docs[new & cut]))
        if len(docs):
            self._next = max(self._next, int(docs.max()) + 1)
        tokens = int(blocks.num_tokens[order].sum())
        self._ledger.tokens_written += tokens
        self._ledger.padding += blocks.ids.shape[1] * len(order) - tokens

    def finish(self) -> None:
        ledger = self._ledger
        ledger.over_limit += self._documents - ledger.rows_used
        ledger.tokens_over_limit += ledger.tokens_in - ledger.tokens_written


def _emit(blocks: Blocks, job: LayoutJob, counts: _BlockCounts) -> Iterator[pa.RecordBatch]:
    if not len(blocks.ids):
        return
    order = job.order(len(blocks.ids))
    counts.written(blocks, order)
    if not len(order):
        return
    ids = blocks.ids[order] if job.recipe.shuffle else blocks.ids[: len(order)]
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1]),
        pa.array(blocks.num_tokens[order].astype(np.uint32)),
        blocks.by_block(blocks.pieces.length.astype(np.uint32), order),
        blocks.by_block(blocks.pieces.doc, order),
    ]
    yield pa.RecordBatch.from_arrays(columns, schema=job.schema)


def _block_columns(token: pa.DataType, recipe: Recipe) -> dict[str, pa.DataType]:
    return {
        "input_ids": pa.list_(token, recipe.block_size),
        "num_tokens": pa.uint32(),
        "seq_lengths": pa.list_(pa.uint32()),
        "doc_ids": pa.list_(pa.uint64()),
    }


def _check_tokenizer(spec: TokenizerSpec, recipe: Recipe) -> None:
    document_affixes(spec, add_special_tokens=recipe.add_special_tokens)


BLOCKS = RowMaker(block_rows, _block_columns, _check_tokenizer)
