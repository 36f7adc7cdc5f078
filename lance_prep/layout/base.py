"""Code that the layouts share: a shard's job, the interface of a layout, and encoding of several batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.arrow_text import drop_blank, without_nulls
from lance_prep.errors import TokenizerError
from lance_prep.keyed import Indices, key, permutation
from lance_prep.layouts import LAYOUTS, ROW_BITS
from lance_prep.ledger import Tally
from lance_prep.loss_mask import MASK_COLUMN, MASK_TYPE
from lance_prep.model import Plan
from lance_prep.recipe import Limit, Recipe
from lance_prep.source import SourceBatch
from lance_prep.text import Dropped, keep_texts
from lance_prep.tokenizer import Encoder, SpecialTokenGuard, TextRefused, TokenizerSpec, TokenLists

DocIds = npt.NDArray[np.uint64]

T = TypeVar("T")

#: 1 GB in batches of 8,192 rows (2 MB) took 1.1 s of calls, in groups of 8 MiB a quarter of that.
GROUP_BYTES = 8 << 20


@dataclass(frozen=True)
class RowMaker:
    """How a layout makes rows. The layout's `maker` in `lance_prep.layouts` names it.

    Attributes:
        rows: lays out the batches of one shard, in order: uses the source rows that `LayoutJob.admit` admits, shuffles
            the rows of each batch by `LayoutJob.order`, and counts source rows and tokens in the ledger. Its result
            depends only on the batches and the job. Several threads call it at once, each with its own job.
        columns: the columns of each row, before the kept ones, of the type of a token and the block size. None if rows
            are the source's records.
        check: refuses a tokenizer that the layout cannot use.
    """

    rows: Callable[[Iterable[SourceBatch], LayoutJob], Iterator[pa.RecordBatch]]
    columns: Callable[[pa.DataType, int], Mapping[str, pa.DataType]] | None = None
    check: Callable[[TokenizerSpec, Recipe], object] | None = None


def row_maker(layout: str) -> RowMaker:
    """Load the code that makes a layout's rows."""
    maker: RowMaker | str = LAYOUTS[layout].maker
    if isinstance(maker, RowMaker):
        return maker
    module, _, name = maker.partition(":")
    loaded: RowMaker = getattr(import_module(module), name)
    return loaded


def lay_out(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Leave out the dropped texts of a shard, and make rows of the rest in the recipe's layout.

    Yields:
        Batches in the schema of `row_schema`.

    Raises:
        TokenizerError: the tokenizer cannot be used with the layout.
    """
    kept = keep_texts(batches, job.recipe, job.tally, job.dropped)
    return row_maker(job.recipe.layout).rows(kept, job)


def row_columns(layout: str, token: pa.DataType, block_size: int | None) -> Mapping[str, pa.DataType]:
    """Return the columns that a layout makes, without kept ones; none if rows are the source's records."""
    columns = row_maker(layout).columns
    return columns(token, block_size or 0) if columns is not None else {}


def row_schema(plan: Plan, spec: TokenizerSpec | None) -> pa.Schema:
    """Return the schema of the dataset's rows, without its metadata."""
    if spec is None:
        return plan.schema
    made = dict(row_columns(plan.recipe.layout, pa.from_numpy_dtype(spec.dtype), plan.recipe.block_size))
    if spec.chat is not None:
        made[MASK_COLUMN] = MASK_TYPE
    kept = [field for field in list(plan.schema)[1:] if field.name in plan.recipe.keep_columns]
    return pa.schema([*(pa.field(name, kind, nullable=False) for name, kind in made.items()), *kept])


def check_tokenizer(spec: TokenizerSpec, recipe: Recipe) -> None:
    """Refuse a tokenizer that the recipe's layout cannot use.

    Raises:
        TokenizerError: the tokenizer lacks something that the layout needs.
    """
    check = row_maker(recipe.layout).check
    if check is not None:
        check(spec, recipe)


@dataclass
class LayoutJob:
    """The input of a shard's layout, and its counts.

    Attributes:
        recipe: what to build.
        shard: index of the shard.
        schema: of the rows to make, from `row_schema`.
        tally: counts of the shard.
        encoder, spec: None if rows hold no tokens.
        limit: the remaining limit.
        guard: refuses special tokens that are written in a text, if the recipe says so.
        dropped: what is dropped because of its text; None if the recipe needs no pass over the source to know it.
    """

    recipe: Recipe
    shard: int
    schema: pa.Schema
    tally: Tally
    encoder: Encoder | None = None
    spec: TokenizerSpec | None = None
    limit: Limit = field(default_factory=Limit)
    guard: SpecialTokenGuard | None = None
    dropped: Dropped | None = None
    _batches: int = field(default=0, init=False)

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached: no further source row or row may be written."""
        return self.limit.reached

    def admit(self, tokens: Indices) -> int:
        """Return how many of a batch's source rows may be used, from the first on, and take them off the limit.

        Args:
            tokens: number of tokens of each source row that can be used, in the source's order; 0 for a record.
        """
        n = len(tokens)
        if self.limit.source_rows is not None:
            n = min(n, self.limit.source_rows)
        if self.limit.tokens is not None:
            n = min(n, int(np.searchsorted(np.cumsum(tokens), self.limit.tokens)) + 1)
        self.limit = self.limit.after(source_rows=n, tokens=int(tokens[:n].sum()))
        return n

    def order(self, n: int) -> Indices:
        """Return which of the `n` rows of the next batch to write, and in which order: shuffled, then limited."""
        batch, self._batches = self._batches, self._batches + 1
        order = (
            permutation(n, key(self.recipe.seed, self.shard, batch))
            if self.recipe.shuffle
            else np.arange(n, dtype=np.int64)
        )
        order = order[: self.limit.rows]
        self.limit = self.limit.after(rows=len(order))
        return order

    def filled(self, batch: SourceBatch) -> tuple[pa.Array, Indices]:
        """Return the texts of a batch that are not blank, or the lists of ids that are not empty, and their rows."""
        column = batch.columns.column(0)
        if self.recipe.ids_column is None:
            return drop_blank(without_nulls(column))
        kept = np.flatnonzero(np.diff(column.offsets.to_numpy()))
        return (column if len(kept) == len(column) else column.take(pa.array(kept))), kept

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        """Return the plain ids of texts, under the recipe's rule for special tokens written in them."""
        assert self.encoder is not None
        if self.guard is not None:
            self.guard.check(texts)
        return self.encoder.encode(texts)

    def doc_ids(self, rows: npt.NDArray[np.uint64]) -> DocIds:
        """Return the doc_ids, uint64, of source rows of this shard."""
        return rows | np.uint64(self.shard << ROW_BITS)


def encode_together(
    job: LayoutJob, items: Iterable[tuple[T, SourceBatch, Indices, pa.LargeStringArray]]
) -> Iterator[tuple[T, TokenLists]]:
    """Encode several batches per call, and return each item with the ids of its texts, in order.

    Each call to gigatoken has a fixed overhead of 2 ms. Under a limit each batch is encoded alone: what is read
    after the limit is reached would be counted and not used.

    Args:
        items: each with the batch that it holds, whose memory counts too, the row of the batch that each text is of,
            and the texts.

    Raises:
        TokenizerError: a Python function as tokenizer failed on a text. Names the source row.
    """
    group: list[_Texts[T]] = []
    held = 0
    for item, batch, parents, texts in items:
        group.append(_Texts(item, batch.rows, parents, texts))
        held += max(texts.nbytes, batch.columns.nbytes)
        if held >= GROUP_BYTES or job.limit.limits:
            yield from _encode(job, group)
            group, held = [], 0
    if group:
        yield from _encode(job, group)


@dataclass(frozen=True)
class _Texts(Generic[T]):
    """The texts of an item, and where they come from: `rows[parents]`."""

    item: T
    rows: npt.NDArray[np.uint64]
    parents: Indices
    texts: pa.LargeStringArray


def _encode(job: LayoutJob, group: list[_Texts[T]]) -> Iterator[tuple[T, TokenLists]]:
    try:
        tokens = job.encode(group[0].texts if len(group) == 1 else pa.concat_arrays([each.texts for each in group]))
    except TextRefused as error:
        rows = np.concatenate([each.rows[each.parents] for each in group])
        said = f"shard {job.shard}, source row {rows[error.index]:,}: {error}"
        raise TokenizerError(said, error.advice) from error
    if len(group) == 1:
        yield group[0].item, tokens
        return
    start = 0
    for each in group:
        yield each.item, tokens.slice(start, start + len(each.texts))
        start += len(each.texts)
