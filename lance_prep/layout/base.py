"""What the layouts have in common: a shard's job, how rows are made, and texts encoded several batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.arrow_text import Indices
from lance_prep.keyed import key, permutation
from lance_prep.ledger import Tally
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import Encoder, SpecialTokenGuard, TokenizerSpec, TokenLists

DocIds = npt.NDArray[np.uint64]

T = TypeVar("T")

#: `doc_id = shard << 40 | row`
ROW_BITS = 40

#: 1 GB in batches of 8,192 rows (2 MB) took 1.1 s of calls, in groups of 8 MiB a quarter of that.
GROUP_BYTES = 8 << 20


@dataclass(frozen=True)
class RowMaker:
    """How a layout makes rows. Registered in `lance_prep.layout`, under the layout's name in `lance_prep.layouts`.

    Attributes:
        rows: lays out the batches of one shard: shuffles the rows of each batch, and counts what becomes of them.
        columns: the columns of each row, before the kept ones; called with the type of a token.
        check: refuses a tokenizer that the layout cannot use.
    """

    rows: Callable[[Iterable[SourceBatch], LayoutJob], Iterator[pa.RecordBatch]]
    columns: Callable[[pa.DataType, Recipe], Mapping[str, pa.DataType]] | None = None
    check: Callable[[TokenizerSpec, Recipe], object] | None = None


@dataclass
class LayoutJob:
    """One shard's layout: what it needs, and what it counts.

    Attributes:
        recipe: what to build.
        shard: index of the shard.
        schema: of the rows to make, from `row_schema`.
        tally: counted into.
        encoder, spec: None for `raw`.
        limit: write at most so many rows; None for all.
    """

    recipe: Recipe
    shard: int
    schema: pa.Schema
    tally: Tally
    encoder: Encoder | None = None
    spec: TokenizerSpec | None = None
    limit: int | None = None
    guard: SpecialTokenGuard | None = None
    _batches: int = field(default=0, init=False)

    @property
    def exhausted(self) -> bool:
        """The limit is reached: no further row may be written."""
        return self.limit is not None and self.limit <= 0

    def order(self, n: int) -> Indices:
        """Which of the `n` rows of the next batch are written, in which order: the seeded shuffle, then the limit."""
        batch, self._batches = self._batches, self._batches + 1
        order = (
            permutation(n, key(self.recipe.seed, self.shard, batch))
            if self.recipe.shuffle
            else np.arange(n, dtype=np.int64)
        )
        if self.limit is not None:
            order = order[: self.limit]
            self.limit -= len(order)
        return order

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        """Plain ids of texts, under the recipe's rule for special tokens written in them."""
        assert self.encoder is not None
        if self.guard is not None:
            self.guard.check(texts)
        return self.encoder.encode(texts)

    def doc_ids(self, rows: npt.NDArray[np.uint64]) -> DocIds:
        """uint64 doc_ids of source rows of this shard."""
        return rows | np.uint64(self.shard << ROW_BITS)


def encode_together(
    job: LayoutJob, items: Iterable[tuple[T, SourceBatch, pa.LargeStringArray]]
) -> Iterator[tuple[T, TokenLists]]:
    """Encode several batches per call, and return each item with the ids of its texts, in order.

    Each call to gigatoken has a fixed overhead of 2 ms. Under a row limit each batch is encoded alone: what is read
    after the limit is reached would be counted and not used.

    Args:
        items: each with the batch that it holds, whose memory counts too, and its texts.
    """
    group: list[tuple[T, pa.LargeStringArray]] = []
    held = 0
    for item, batch, texts in items:
        group.append((item, texts))
        held += max(texts.nbytes, batch.columns.nbytes)
        if held >= GROUP_BYTES or job.limit is not None:
            yield from _encode(job, group)
            group, held = [], 0
    if group:
        yield from _encode(job, group)


def _encode(job: LayoutJob, group: list[tuple[T, pa.LargeStringArray]]) -> Iterator[tuple[T, TokenLists]]:
    if len(group) == 1:
        yield group[0][0], job.encode(group[0][1])
        return
    tokens = job.encode(pa.concat_arrays([texts for _, texts in group]))
    start = 0
    for item, texts in group:
        yield item, tokens.slice(start, start + len(texts))
        start += len(texts)


__all__ = [
    "ROW_BITS",
    "DocIds",
    "LayoutJob",
    "RowMaker",
    "SourceBatch",
    "encode_together",
]
