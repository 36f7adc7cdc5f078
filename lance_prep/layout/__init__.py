"""Layout stage: `SourceBatch`es in, `pa.RecordBatch`es of rows out, shuffled a batch and counted."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.layout.base import LayoutJob, RowMaker, check_tokenizer, lay_out, row_columns, row_schema
    from lance_prep.layout.blocks import document_affixes

__getattr__, __dir__, __all__ = lazy_exports(__name__)
