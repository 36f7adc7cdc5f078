"""Layouts `lines`, `documents` and `raw`: each row comes from one source row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from lance_prep.arrow_text import count_ended, drop_blank, split_lines, without_nulls
from lance_prep.keyed import Indices
from lance_prep.layout.base import LayoutJob, RowMaker, encode_together
from lance_prep.loss_mask import mask_to_runs
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import TokenLists

#: Splits texts into units: returns the units' texts, the index of the text of each, and the number of units, blank ones
#: included. (A text may have fewer units than pieces: no line follows its last newline.)
Split = Callable[[pa.LargeStringArray], tuple[pa.LargeStringArray, Indices, int]]


def text_rows(
    batches: Iterable[SourceBatch], job: LayoutJob, *, split: Split | None = None
) -> Iterator[pa.RecordBatch]:
    """Make a row of each unit, or of each document, with the special tokens that the post-processor adds.

    Args:
        split: how a document is split into units; None to keep documents whole.
    """
    assert job.spec is not None
    affixes = (job.spec.prefix, job.spec.suffix) if job.recipe.adds_special_tokens else ((), ())
    for (batch, parents, units), plain in encode_together(job, _split(batches, split, job)):
        tokens, parents = _without_empty(plain.wrapped(*affixes), parents)
        order = job.order(_admitted(job, tokens, parents))
        job.tally.lengths.add(tokens.lengths, job.doc_ids(batch.rows[parents]))
        _count(job, batch, parents, order, tokens, units if split is not None else None)
        if len(order):
            yield _record_batch(job, batch, parents[order], _ordered(tokens, order, job.recipe))
        if job.exhausted:
            return


def _ordered(tokens: TokenLists, order: Indices, recipe: Recipe) -> TokenLists:
    """Return the rows at `order`. Rows that are not shuffled keep their memory: `take` was half of an import's time."""
    return tokens.take(order) if recipe.shuffle else tokens.slice(0, len(order))


def _admitted(job: LayoutJob, tokens: TokenLists, parents: Indices) -> int:
    """Return how many of the units may be written: those of the source rows that the limit admits."""
    if not job.limit.limits_source:
        return len(tokens)
    starts = np.flatnonzero(np.diff(parents, prepend=-1))  # the first unit of each source row
    bounds = np.append(starts, len(parents))
    return int(bounds[job.admit(np.diff(tokens.offsets[bounds]))])


def _split(
    batches: Iterable[SourceBatch], split: Split | None, job: LayoutJob
) -> Iterator[tuple[tuple[SourceBatch, Indices, int], SourceBatch, Indices, pa.LargeStringArray]]:
    """Yield the texts of each batch that are not blank, with the source row of each, and the number of units."""
    for batch in batches:
        if split is None:
            texts, kept = job.filled(batch)
            yield (batch, kept, len(batch.rows)), batch, kept, texts
            continue
        texts, parents, units = split(without_nulls(batch.columns.column(0)))
        texts, kept = drop_blank(texts)
        yield (batch, parents[kept], units), batch, parents[kept], texts


def _lines(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, Indices, int]:
    lines, parents = split_lines(texts)
    return lines, parents, len(lines) - count_ended(texts)


def _without_empty(tokens: TokenLists, parents: Indices) -> tuple[TokenLists, Indices]:
    # A tokenizer's normalizer may leave nothing of a text.
    lengths = tokens.lengths
    if lengths.all():
        return tokens, parents
    kept = np.flatnonzero(lengths)
    return tokens.take(kept), parents[kept]


def _count(
    job: LayoutJob, batch: SourceBatch, parents: Indices, order: Indices, tokens: TokenLists, units: int | None
) -> None:
    ledger = job.tally.ledger
    rows, used = _distinct(parents), _distinct(parents[np.sort(order)])
    written = len(tokens.ids) if len(order) == len(tokens) else int(tokens.lengths[order].sum())
    ledger.rows_used += used
    ledger.empty += len(batch.rows) - rows
    ledger.over_limit += rows - used
    ledger.tokens_in += len(tokens.ids)
    ledger.tokens_written += written
    ledger.tokens_over_limit += len(tokens.ids) - written
    if tokens.mask is not None:
        learned = tokens.learned[order]
        ledger.tokens_learned += int(learned.sum())
        ledger.rows_not_learned += int(np.count_nonzero(learned == 0))
    if units is not None:
        ledger.lines_in += units
        ledger.lines_used += len(order)
        ledger.lines_empty += units - len(tokens)
        ledger.lines_over_limit += len(tokens) - len(order)


def _distinct(ascending: Indices) -> int:
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def _record_batch(job: LayoutJob, batch: SourceBatch, parents: Indices, tokens: TokenLists) -> pa.RecordBatch:
    columns = [
        tokens.as_arrow(),
        pa.array(tokens.lengths.astype(np.uint32)),
        pa.array(job.doc_ids(batch.rows[parents])),
    ]
    if tokens.mask is not None:
        columns.append(mask_to_runs(tokens.mask, tokens.offsets))
    if batch.columns.num_columns > 1:
        indices = pa.array(parents)
        columns += [column.take(indices) for column in batch.columns.columns[1:]]
    return pa.RecordBatch.from_arrays(columns, schema=job.schema)


def raw_rows(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Pass the source's records on, each batch shuffled."""
    ledger = job.tally.ledger
    for batch in batches:
        order = job.order(job.admit(np.zeros(len(batch.rows), np.int64)))
        ledger.rows_used += len(order)
        ledger.over_limit += len(batch.rows) - len(order)
        if len(order):
            yield batch.columns.take(pa.array(order))
        if job.exhausted:
            return


def text_columns(token: pa.DataType, block_size: int) -> dict[str, pa.DataType]:
    """Return the columns of a row that `text_rows` makes."""
    return {"input_ids": pa.list_(token), "num_tokens": pa.uint32(), "doc_id": pa.uint64()}


LINES = RowMaker(partial(text_rows, split=_lines), text_columns)
DOCUMENTS = RowMaker(text_rows, text_columns)
RAW = RowMaker(raw_rows)
