"""What a layout works with, and the schema of the rows that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.keyed import key, permutation
from lance_prep.ledger import Tally
from lance_prep.plan import Plan
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import Encoder, SpecialTokenGuard, TokenizerSpec, TokenLists

Indices = npt.NDArray[np.int64]
DocIds = npt.NDArray[np.uint64]

#: `doc_id = shard << 40 | row`
ROW_BITS = 40


def row_schema(plan: Plan, spec: TokenizerSpec | None) -> pa.Schema:
    """The schema of the dataset's rows (design: "On disk")."""
    if plan.recipe.layout == "raw" or spec is None:
        return plan.schema
    token = pa.from_numpy_dtype(spec.dtype)
    if plan.recipe.layout == "blocks":
        columns = {
            "input_ids": pa.list_(token, plan.recipe.block_size),
            "num_tokens": pa.uint32(),
            "seq_lengths": pa.list_(pa.uint32()),
            "doc_ids": pa.list_(pa.uint64()),
        }
    else:
        columns = {"input_ids": pa.list_(token), "num_tokens": pa.uint32(), "doc_id": pa.uint64()}
    ours = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema([*ours, *list(plan.schema)[1:]])


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


__all__ = ["ROW_BITS", "DocIds", "Indices", "LayoutJob", "SourceBatch", "row_schema"]
