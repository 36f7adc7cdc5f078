"""Formats: how a file's schema is found, how it is cut into pieces, and how its rows are read.

To add a format, write a subclass of `Format`, and register it with `register_format` (or in `registry`, for a format
of this package).
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.formats.base import Chunk, CutJob, Format, PartJob, Piece, row_chunks
    from lance_prep.formats.registry import COMPRESSIONS, format_named, format_of, register_format, registered

__all__ = [
    "COMPRESSIONS",
    "Chunk",
    "CutJob",
    "Format",
    "PartJob",
    "Piece",
    "format_named",
    "format_of",
    "register_format",
    "registered",
    "row_chunks",
]

__getattr__, __dir__ = lazy_exports(__name__)
