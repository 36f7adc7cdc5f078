"""Formats: how a file's schema is found, how it is cut into pieces, and how its rows are read.

To add a format, write a subclass of `Format`, and register it with `register_format` (or in `registry`, for a format
of this package).
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.formats.base import (
        DATA_BYTES,
        Chunk,
        CutJob,
        Format,
        PartJob,
        Piece,
        plain_type,
        row_chunk,
        row_chunks,
    )
    from lance_prep.formats.generated import TOPICS, hand_over, is_read_once, partition_file, stream_file, topics_file
    from lance_prep.formats.ids import IDS, LENGTH_COLUMNS, delivered_type, with_ids
    from lance_prep.formats.megatron import Index, read_index
    from lance_prep.formats.parquet import KEPT_FOOTERS
    from lance_prep.formats.registry import (
        COMPRESSIONS,
        check_one_family,
        find_registered,
        format_named,
        format_of,
        is_data,
        register_format,
        registered,
        require_format,
        without_extensions,
    )
    from lance_prep.formats.tables import pin_lance

__getattr__, __dir__, __all__ = lazy_exports(__name__)
