"""Layout stage: `SourceBatch`es in, `pa.RecordBatch`es of rows out, shuffled a batch and counted."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from lance_prep.layout.base import ROW_BITS, LayoutJob
from lance_prep.layout.blocks import BLOCKS, document_affixes
from lance_prep.layout.rows import RAW, TEXTS
from lance_prep.model import Plan
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.tokenizer import TokenizerSpec

#: How each layout of `lance_prep.layouts` makes its rows.
ROW_MAKERS = {"lines": TEXTS, "documents": TEXTS, "blocks": BLOCKS, "raw": RAW}


def lay_out(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Make the rows of one shard, in the recipe's layout.

    Yields:
        Batches in the schema of `row_schema`.

    Raises:
        TokenizerError: the tokenizer cannot be used with the layout.
    """
    return ROW_MAKERS[job.recipe.layout].rows(batches, job)


def row_schema(plan: Plan, spec: TokenizerSpec | None) -> pa.Schema:
    """Return the schema of the dataset's rows, without its metadata."""
    columns = ROW_MAKERS[plan.recipe.layout].columns
    if columns is None or spec is None:
        return plan.schema
    made = columns(pa.from_numpy_dtype(spec.dtype), plan.recipe)
    return pa.schema([*(pa.field(name, kind, nullable=False) for name, kind in made.items()), *list(plan.schema)[1:]])


def check_tokenizer(spec: TokenizerSpec, recipe: Recipe) -> None:
    """Refuse a tokenizer that the recipe's layout cannot use.

    Raises:
        TokenizerError: says what it lacks.
    """
    check = ROW_MAKERS[recipe.layout].check
    if check is not None:
        check(spec, recipe)


__all__ = ["ROW_BITS", "ROW_MAKERS", "LayoutJob", "check_tokenizer", "document_affixes", "lay_out", "row_schema"]
