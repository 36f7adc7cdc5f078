"""Exchange stage: a dataset, or a folder with a manifest, in; files of other formats out."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.exchange.base import GB, TARGETS, By, Encoder, ExportOptions, Piece, Source, Target, register_target
    from lance_prep.exchange.ids import ImportOptions, import_ids
    from lance_prep.exchange.run import ExportedSource, ExportProgress, ExportReport, export

__getattr__, __dir__, __all__ = lazy_exports(__name__)
