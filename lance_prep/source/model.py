"""What the source stage delivers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class SourceBatch:
    """`Recipe.batch_size` source rows that passed the filter (fewer at the end of the shard, or when they
    hold 64 MiB of text), in source order.

    Attributes:
        columns: schema `Plan.schema`; the text column is first, `large_string`, valid UTF-8, and may hold nulls.
        rows: uint64 `[len(columns)]`, the row in the shard (counting all source rows), ascending.
        source_bytes: bytes of text in it, for progress.
    """

    columns: pa.RecordBatch
    rows: npt.NDArray[np.uint64]
    source_bytes: int
