"""What a format is: how its files are described, cut into pieces and read, and the types that go in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import BadFile
from lance_prep.filter import Where
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Rejected
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

#: Rows in a chunk of a format that has no blocks of its own. Batch sizes are usually multiples of it, which saves
#: copies.
CHUNK_ROWS = 8192
#: Advice for a file that is not what its name says.
ADVICE = "get the file again, or leave it out; its extension must say what it is"
#: The quarantine file holds only the beginning of a row, so no more of it is kept in memory.
DATA_BYTES = 4096
#: A line of JSON may hold more than its text, so a lower `max_text_bytes` does not shorten the longest line.
LONGEST_LINE = 256 << 20


class Format(ABC):
    """A file format. Instances have no state, and threads share them.

    To add a format, subclass this and register an instance with `registry.register_format`.
    """

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return the fields of the recipe that only this format reads, filled in from the files.

        Args:
            files: all files of this format in the source, at least one.

        Raises:
            UsageError, BadFile: a field is needed, and the files do not tell it.
        """
        return {}

    @abstractmethod
    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of all columns of a source whose first file has this format.

        Reads as little as possible. Types may be any that `plain_type` simplifies.

        Args:
            files: in the source's order, at least one; none of them is empty.
            recipe: with the fields of `settle` filled in.

        Raises:
            BadFile: not what its name says.
            SourceError: it cannot be read.
        """

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield the pieces of a file, which are not cut further, in order. By default, one for the whole file."""
        yield Piece(job.file.size, job.file.size)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a small piece of a part, of about `job.least` bytes; None if a file is read from its beginning only.

        Args:
            job: the part's file.
            place: where in the part, from 0 up to 1.
        """
        return None

    def whole_records(self, data: bytes) -> bytes:
        """Return the beginning of a file, cut after its last whole record. By default, after its last line."""
        return data[: data.rfind(b"\n") + 1] or data

    @abstractmethod
    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows of a part in the file's order. Runs in a thread of its own.

        Rows that cannot be read are in `Chunk.rejects`. The last chunk's `end` counts all rows of the part.

        Raises:
            BadFile: damaged, or not what its name says.
            SourceChanged: it is not what was planned.
            SourceError: it cannot be read.
        """


@dataclass(frozen=True)
class CutJob:
    """A file to cut.

    Attributes:
        recipe: with the fields of `Format.settle` filled in.
        read_schema: as in `Plan`; the bytes of other columns do not count.
        least: smallest useful weight of a piece, in bytes.
    """

    file: SourceFile
    recipe: Recipe
    read_schema: pa.Schema
    least: int
    transport: Transport


@dataclass(frozen=True)
class Piece:
    """A part of a file that is not cut further, such as a row group or a range of bytes.

    Attributes:
        weight: bytes that count towards a shard's size.
        stored: bytes that are read.
        start, stop, rows: as in `Part`.
    """

    weight: int
    stored: int
    start: int = 0
    stop: int = 0
    rows: int | None = None


def even_ranges(total: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield `count` half-open ranges of about equal length that cover `total`."""
    return pairwise([total * i // count for i in range(count + 1)])


@dataclass(frozen=True)
class PartJob:
    """A part to read.

    Attributes:
        part: which part of the file.
        first: number of the shard's source rows before this part.
        recipe: as planned.
        schema, read_schema: as in `Plan`.
        where: the compiled filter, for readers that can skip what cannot match.
    """

    file: SourceFile
    part: Part
    first: int
    recipe: Recipe
    schema: pa.Schema
    read_schema: pa.Schema
    where: Where | None
    transport: Transport

    @property
    def text_column(self) -> str | None:
        """The column of `schema` that is tokenized; None for layout `raw`."""
        return str(self.schema.names[0]) if LAYOUTS[self.recipe.layout].tokens else None

    @property
    def longest_line(self) -> int:
        """Most bytes of a record or line that is held whole."""
        return max(self.recipe.max_text_bytes, LONGEST_LINE)

    def rejected(self, position: int, unit: str, reason: str, data: bytes, size: int | None = None) -> Rejected:
        """Return the record of a rejected row. Arguments: see `Rejected`. `size` is needed if `data` is cut already."""
        return Rejected(self.file.url, position, unit, reason, data[:DATA_BYTES], len(data) if size is None else size)

    def too_long(self, what: str, position: int, row: int, data: bytes, size: int, unit: str = "byte") -> Chunk:
        """Return a chunk that rejects row `row` of the shard because it is too long. `data` is its beginning."""
        reason = f"{what} over {self.recipe.max_text_bytes if what == 'text' else self.longest_line:,} bytes"
        rejected = self.rejected(position, unit, reason, data, size)
        return empty_chunk(self.read_schema, row + 1, [(row, rejected)])


@dataclass(frozen=True)
class Chunk:
    """Some rows of a part, as read.

    Attributes:
        columns: at least those of `PartJob.read_schema`, of any type that can become the planned one.
        rows: uint64 `[len(columns)]`, the row in the shard.
        positions: int64 `[len(columns)]`, the row's place in the file, in `unit`s ("row" or "byte").
        end: number of the shard's source rows up to the end of this chunk, including those left out.
        rejects: rows that could not be read, with their rows in the shard.
        missing: uint64, rows in the shard without a text column, ascending. They are rejected after the filter.
        held_out: uint64, rows in the shard that belong to the other side of a split, ascending.
        record: returns a row's record as it is in the file, given its row in the shard; None if the format has none.
    """

    columns: pa.RecordBatch
    rows: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int64]
    unit: str
    end: int
    rejects: list[tuple[int, Rejected]] = field(default_factory=list)
    missing: npt.NDArray[np.uint64] | None = None
    held_out: npt.NDArray[np.uint64] | None = None
    record: Callable[[int], bytes] | None = None


def require_utf8(head: bytes, file: SourceFile) -> None:
    """Refuse a file whose first bytes say that it is UTF-16 or UTF-32. Its text would be read with null characters.

    Args:
        head: at least the first 4 bytes, if there are that many.

    Raises:
        BadFile: says how to convert it.
    """
    wide = head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff"))
    if wide or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        code = "UTF-32" if wide else "UTF-16"
        said = f"{file.url} is {code}, and {file.format} files are read as UTF-8"
        raise BadFile(said, f"convert it first: iconv -f {code} -t UTF-8 OLD > NEW")


def row_chunk(columns: pa.RecordBatch, first: int, file_row: int) -> Chunk:
    """Return a chunk of consecutive rows that begins at row `first` of the shard and row `file_row` of the file."""
    end = first + len(columns)
    rows = np.arange(first, end, dtype=np.uint64)
    positions = np.arange(file_row, file_row + len(columns), dtype=np.int64)
    return Chunk(columns, rows, positions, "row", end)


def row_chunks(batches: Iterator[pa.RecordBatch], job: PartJob, file_row: int = 0) -> Iterator[Chunk]:
    """Yield consecutive rows as chunks; a large batch, which may be a whole file, in several."""
    at = 0
    for batch in batches:
        for start in range(0, len(batch), CHUNK_ROWS):
            piece = batch.slice(start, CHUNK_ROWS)
            yield row_chunk(piece, job.first + at, file_row + at)
            at += len(piece)


def empty_chunk(schema: pa.Schema, end: int, rejects: list[tuple[int, Rejected]] | None = None) -> Chunk:
    """Return a chunk without rows that counts source rows up to `end`."""
    none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    return Chunk(none, np.empty(0, np.uint64), np.empty(0, np.int64), "row", end, rejects or [])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is delivered: dictionaries decoded, views as their offset-based twins."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
