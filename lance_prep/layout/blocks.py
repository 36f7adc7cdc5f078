"""Layout `blocks`: documents, each ended by EOS, packed into rows of exactly `block_size` tokens.

`concat` cuts the stream of documents every `block_size` tokens, across batches inside a shard, so only the shard's last
block is padded. `best-fit` keeps documents whole (Ding et al., Fewer Truncations Improve Language Modeling, 2024): see
`packing.py`. Either way each token is written once. The ledger counts padding and cut documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from lance_prep.errors import TokenizerError, UsageError
from lance_prep.keyed import Indices
from lance_prep.layout.base import LayoutJob, RowMaker, encode_together
from lance_prep.layout.packing import BestFitPacker, Blocks, ConcatPacker, Packer, whole_rows
from lance_prep.loss_mask import mask_to_runs
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import TokenizerSpec


def block_rows(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Blocks of `block_size` tokens, shuffled among those that a batch of source rows completes.

    Raises:
        TokenizerError: the tokenizer has no known end-of-text token.
    """
    assert job.spec is not None
    if job.recipe.packing == "rows":
        yield from _rows_as_blocks(batches, job)
        return
    packer, counts = _make_packer(job), _BlockCounts(job)
    prefix, suffix = document_affixes(job.spec, job.recipe)
    for (batch, kept), plain in encode_together(job, _documents(batches, job)):
        tokens = plain.wrapped(prefix, suffix)
        docs = job.doc_ids(batch.rows[kept])
        if not tokens.lengths.all():  # the tokenizer's normalizer may leave nothing of a conversation
            some = np.flatnonzero(tokens.lengths)
            tokens, docs = tokens.take(some), docs[some]
        counts.documents(len(batch.rows), len(tokens), len(tokens.ids))
        job.tally.lengths.add(tokens.lengths, docs)
        if job.limit.limits_source:
            admitted = job.admit(tokens.lengths)
            tokens, docs = tokens.slice(0, admitted), docs[:admitted]
        if tokens.mask is not None:
            job.tally.ledger.rows_not_learned += int(np.count_nonzero(tokens.learned == 0))
        yield from _emit(packer.pack(tokens, docs), job, counts)
        if job.exhausted:
            break
    if job.limit.rows != 0:
        yield from _emit(packer.flush(), job, counts)
    counts.finish()


def _documents(
    batches: Iterable[SourceBatch], job: LayoutJob
) -> Iterator[tuple[tuple[SourceBatch, Indices], SourceBatch, Indices, pa.LargeStringArray]]:
    for batch in batches:
        texts, kept = job.filled(batch)
        yield (batch, kept), batch, kept, texts


def _rows_as_blocks(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Make a block of each source row of ids, with the documents that the source says it has.

    Raises:
        UsageError: a row has more ids than a block.
    """
    counts, size = _BlockCounts(job), job.recipe.block_size
    for (batch, kept), tokens in encode_together(job, _documents(batches, job)):
        docs, lengths = job.doc_ids(batch.rows[kept]), batch.columns.column("seq_lengths").take(pa.array(kept))
        counts.documents(len(batch.rows), len(tokens), len(tokens.ids))
        job.tally.lengths.add(tokens.lengths, docs)
        if (longest := int(tokens.lengths.max(initial=0))) > size:
            row = int(batch.rows[kept][int(tokens.lengths.argmax())])
            said = f"shard {job.shard}, source row {row:,} has {longest:,} ids, and block_size is {size:,}"
            raise UsageError(said, f"use block_size={longest}, or packing='concat', which cuts documents")
        admitted = job.admit(tokens.lengths) if job.limit.limits_source else len(tokens)
        tokens, docs, lengths = tokens.slice(0, admitted), docs[:admitted], lengths.slice(0, admitted)
        yield from _emit(whole_rows(tokens, docs, lengths, size, _pad_id(job)), job, counts)
        if job.exhausted:
            break
    counts.finish()


def document_affixes(spec: TokenizerSpec, recipe: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after each document: what the tokenizer's template puts before it, and EOS.

    Conversations have none: their chat template writes all special tokens. Documents of ids have none either: their
    encoder ends each with EOS, which most have already.

    Raises:
        TokenizerError: the tokenizer has no known end-of-text token.
    """
    if recipe.messages is not None or recipe.packing == "rows":
        return (), ()
    if spec.eos_id is None:
        raise TokenizerError(
            f"{spec.name} names no end-of-text token, and its vocabulary has none of the usual ones",
            "name it with eos_token" if recipe.ids_column is None else "give document_end, or a tokenizer that has one",
        )
    if recipe.ids_column is not None:
        return (), ()
    return (spec.prefix if recipe.adds_special_tokens else ()), (spec.eos_id,)


def _make_packer(job: LayoutJob) -> Packer:
    spec, pad_id = job.spec, _pad_id(job)
    assert spec is not None
    if job.recipe.packing == "concat":
        return ConcatPacker(job.recipe.block_size, pad_id, spec.dtype)
    return BestFitPacker(job.recipe.block_size, pad_id, spec.dtype)


def _pad_id(job: LayoutJob) -> int:
    spec = job.spec
    assert spec is not None
    return spec.pad_id if spec.pad_id is not None else spec.eos_id or 0


class _BlockCounts:
    """Counts the documents that were used, also if only some of the blocks are written."""

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
        if blocks.mask is not None:
            self._ledger.tokens_learned += int(np.count_nonzero(blocks.mask[order]))
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
    if blocks.mask is not None:
        mask = blocks.mask[order]
        columns.append(mask_to_runs(mask.reshape(-1), np.arange(len(mask) + 1) * mask.shape[1]))
    yield pa.RecordBatch.from_arrays(columns, schema=job.schema)


def _block_columns(token: pa.DataType, block_size: int) -> dict[str, pa.DataType]:
    return {
        "input_ids": pa.list_(token, block_size),
        "num_tokens": pa.uint32(),
        "seq_lengths": pa.list_(pa.uint32()),
        "doc_ids": pa.list_(pa.uint64()),
    }


def _check_tokenizer(spec: TokenizerSpec, recipe: Recipe) -> None:
    document_affixes(spec, recipe)


BLOCKS = RowMaker(block_rows, _block_columns, _check_tokenizer)
