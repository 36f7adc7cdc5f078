"""Layout stage: `SourceBatch`es in, `pa.RecordBatch`es of rows out, shuffled a batch and counted."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from lance_prep.layout.blocks import block_rows, document_affixes
from lance_prep.layout.model import ROW_BITS, LayoutJob, row_schema
from lance_prep.layout.rows import raw_rows, text_rows
from lance_prep.source import SourceBatch


def lay_out(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """The rows of one shard, in the recipe's layout."""
    layouts = {"lines": text_rows, "documents": text_rows, "blocks": block_rows, "raw": raw_rows}
    return layouts[job.recipe.layout](batches, job)


__all__ = ["ROW_BITS", "LayoutJob", "document_affixes", "lay_out", "row_schema"]
