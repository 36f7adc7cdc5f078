"""Layouts `lines`, `documents` and `raw`: each row comes from one source row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from lance_prep.arrow_text import Indices, count_ended, drop_blank, split_lines, without_nulls
from lance_prep.layout.base import LayoutJob, RowMaker, SourceBatch, encode_together
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe
from lance_prep.tokenizer import TokenLists


def text_rows(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """A row a line, or a row a document, with the special tokens that the post-processor adds."""
    assert job.spec is not None
    affixes = (job.spec.prefix, job.spec.suffix) if job.recipe.add_special_tokens else ((), ())
    by_line = LAYOUTS[job.recipe.layout].by_line
    for (batch, parents, found), plain in encode_together(job, _split(batches, by_line=by_line)):
        tokens, parents = _without_empty(plain.wrapped(*affixes), parents)
        order = job.order(len(tokens))
        job.tally.lengths.add(tokens.lengths, job.doc_ids(batch.rows[parents]))
        _count(job, batch, parents, order, tokens, found if by_line else None)
        if len(order):
            yield _record_batch(job, batch, parents[order], tokens.take(order))
        if job.exhausted:
            return


def _split(
    batches: Iterable[SourceBatch], *, by_line: bool
) -> Iterator[tuple[tuple[SourceBatch, Indices, int], SourceBatch, pa.LargeStringArray]]:
    """Yield the texts of each batch, with the source row of each and how many there were with the blank ones."""
    for batch in batches:
        texts = without_nulls(batch.columns.column(0))
        parents = np.arange(len(texts), dtype=np.int64)
        after_the_last = 0
        if by_line:
            after_the_last = count_ended(texts)
            texts, parents = split_lines(texts)
        found = len(texts) - after_the_last
        texts, kept = drop_blank(texts)
        yield (batch, parents[kept], found), batch, texts


def _without_empty(tokens: TokenLists, parents: Indices) -> tuple[TokenLists, Indices]:
    # A tokenizer's normalizer may leave nothing of a text.
    lengths = tokens.lengths
    if lengths.all():
        return tokens, parents
    kept = np.flatnonzero(lengths)
    return tokens.take(kept), parents[kept]


def _count(
    job: LayoutJob, batch: SourceBatch, parents: Indices, order: Indices, tokens: TokenLists, lines: int | None
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
    if lines is not None:
        ledger.lines_in += lines
        ledger.lines_used += len(order)
        ledger.lines_empty += lines - len(tokens)
        ledger.lines_over_limit += len(tokens) - len(order)


def _distinct(ascending: Indices) -> int:
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def _record_batch(job: LayoutJob, batch: SourceBatch, parents: Indices, tokens: TokenLists) -> pa.RecordBatch:
    columns = [
        tokens.as_arrow(),
        pa.array(tokens.lengths.astype(np.uint32)),
        pa.array(job.doc_ids(batch.rows[parents])),
    ]
    if batch.columns.num_columns > 1:
        indices = pa.array(parents)
        columns += [column.take(indices) for column in batch.columns.columns[1:]]
    return pa.RecordBatch.from_arrays(columns, schema=job.schema)


def raw_rows(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """The source's own records, shuffled a batch."""
    ledger = job.tally.ledger
    for batch in batches:
        order = job.order(len(batch.rows))
        ledger.rows_used += len(order)
        ledger.over_limit += len(batch.rows) - len(order)
        if len(order):
            yield batch.columns.take(pa.array(order))
        if job.exhausted:
            return


def _text_columns(token: pa.DataType, recipe: Recipe) -> dict[str, pa.DataType]:
    return {"input_ids": pa.list_(token), "num_tokens": pa.uint32(), "doc_id": pa.uint64()}


TEXTS = RowMaker(text_rows, _text_columns)
RAW = RowMaker(raw_rows)
