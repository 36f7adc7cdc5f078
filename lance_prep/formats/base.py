"""What the readers of the formats hand on, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.filter import Where
from lance_prep.ledger import Rejected
from lance_prep.model import Part, Plan, SourceFile
from lance_prep.transport import Transport

# A quarantine file holds the beginning of a row; this is all of it that is kept waiting.
DATA_BYTES = 4096


@dataclass(frozen=True)
class PartJob:
    """A part to read.

    Attributes:
        first: the shard's source rows before this part.
        where: the compiled filter, for readers that can leave out what cannot match.
    """

    plan: Plan
    part: Part
    first: int
    where: Where | None
    transport: Transport

    @property
    def file(self) -> SourceFile:
        return self.plan.files[self.part.file]

    def rejected(self, position: int, unit: str, reason: str, data: bytes) -> Rejected:
        return Rejected(self.file.url, position, unit, reason, data[:DATA_BYTES], len(data))


@dataclass(frozen=True)
class Chunk:
    """Some rows of a part, as read.

    Attributes:
        columns: at least those of `Plan.read_schema`, of any type that can become the planned one.
        rows: uint64 `[len(columns)]`, the row in the shard.
        positions: int64 `[len(columns)]`, where the row stands in the file, in `unit`s (row or byte).
        end: source rows of the shard up to the end of this chunk, those left out included.
        rejects: rows that could not be read, with their rows in the shard.
        missing: uint64, rows in the shard that have no text column, ascending. They are rejected after the filter.
        record: returns a row's record as it is in the file, given its row in the shard; None if the format has none.
    """

    columns: pa.RecordBatch
    rows: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int64]
    unit: str
    end: int
    rejects: list[tuple[int, Rejected]] = field(default_factory=list)
    missing: npt.NDArray[np.uint64] | None = None
    record: Callable[[int], bytes] | None = None


def row_chunk(columns: pa.RecordBatch, first: int, file_row: int) -> Chunk:
    """A chunk of consecutive rows, `first` in the shard and `file_row` in the file."""
    end = first + len(columns)
    rows = np.arange(first, end, dtype=np.uint64)
    positions = np.arange(file_row, file_row + len(columns), dtype=np.int64)
    return Chunk(columns, rows, positions, "row", end)


def empty_chunk(schema: pa.Schema, end: int, rejects: list[tuple[int, Rejected]] | None = None) -> Chunk:
    """No rows, but source rows up to `end`."""
    none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    return Chunk(none, np.empty(0, np.uint64), np.empty(0, np.int64), "row", end, rejects or [])
