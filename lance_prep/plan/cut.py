"""Files to shards: a function of the files' metadata and the recipe, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from lance_prep.errors import ColumnNotFound, UsageError
from lance_prep.filter import describe
from lance_prep.formats.footer import read_footer
from lance_prep.formats.parquet import leaf_indices
from lance_prep.formats.peek import open_lance, plain_type
from lance_prep.model import Part, Shard, SourceFile
from lance_prep.recipe import TextUnit
from lance_prep.transport import Transport

SHARD_BYTES = 128 << 20
# A small source is cut finer, so that it keeps more than one core busy; below this, starting a shard costs more.
LEAST_SHARD_BYTES = 16 << 20
SHARDS_AT_LEAST = 8
# Footers are small and the Hub is far: their time is all waiting.
_THREADS = 16


@dataclass(frozen=True)
class Piece:
    """What is not cut further: a row group, a run of bytes or of rows, a file.

    Attributes:
        weight: bytes that count towards `SHARD_BYTES`.
        stored: bytes that are read.
    """

    part: Part
    weight: int
    stored: int


def cut_shards(
    files: Sequence[SourceFile],
    read: pa.Schema,
    transport: Transport,
    target: int | None = None,
    *,
    text_unit: TextUnit | None = None,
) -> tuple[Shard, ...]:
    """Shards of about `target` bytes, in the order of the files.

    A file of more than `target` has shards of its own; smaller ones are put together.

    Args:
        target: by default 128 MiB; for a source of less than 1 GiB an eighth of it, but at least 16 MiB.
        read: schema of the columns that will be read; their bytes count, for Parquet.
        text_unit: as in the planned recipe; a text file that is one row is not cut.

    Raises:
        ColumnNotFound: a file lacks a column that the first one has.
        BadFile: not what its name says.
    """
    with ThreadPoolExecutor(min(_THREADS, len(files)) or 1) as pool:
        least = min(target or LEAST_SHARD_BYTES, LEAST_SHARD_BYTES)
        lists = list(
            pool.map(lambda at: list(_pieces(at, files[at], read, transport, least, text_unit)), range(len(files)))
        )
    total = sum(piece.weight for pieces in lists for piece in pieces)
    return _join(lists, target or min(max(total // SHARDS_AT_LEAST, LEAST_SHARD_BYTES), SHARD_BYTES))


def _join(lists: list[list[Piece]], target: int) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    open_pieces: list[Piece] = []
    weight = 0
    for pieces in lists:
        large = sum(piece.weight for piece in pieces) > target
        if large:
            _close(shards, open_pieces)
        for piece in pieces:
            weight = weight + piece.weight if open_pieces else piece.weight
            if open_pieces and weight > target:
                _close(shards, open_pieces)
                weight = piece.weight
            open_pieces.append(piece)
        if large:
            _close(shards, open_pieces)
    _close(shards, open_pieces)
    return tuple(shards)


def _close(shards: list[Shard], pieces: list[Piece]) -> None:
    """Make a shard of the pieces, those that follow each other in a file joined, and empty the list."""
    if not pieces:
        return
    parts: list[Part] = []
    for piece in pieces:
        part = piece.part
        last = parts[-1] if parts else None
        if last and last.file == part.file and last.stop == part.start:
            rows = None if last.rows is None or part.rows is None else last.rows + part.rows
            parts[-1] = Part(part.file, last.start, part.stop, rows)
        else:
            parts.append(part)
    counts = [part.rows for part in parts]
    rows = None if None in counts else sum(count for count in counts if count is not None)
    shards.append(Shard(len(shards), tuple(parts), sum(piece.stored for piece in pieces), rows))
    pieces.clear()


def _pieces(
    index: int,
    file: SourceFile,
    read: pa.Schema,
    transport: Transport,
    least: int,
    text_unit: TextUnit | None,
) -> Iterator[Piece]:
    if file.format == "parquet":
        footer = read_footer(file, transport)
        check_columns(file, footer.schema.to_arrow_schema(), read)
        leaves = leaf_indices(footer, read.names)
        for group in range(footer.num_row_groups):
            meta = footer.row_group(group)
            chunks = [meta.column(leaf) for leaf in leaves]
            weight = sum(chunk.total_uncompressed_size for chunk in chunks)
            stored = sum(chunk.total_compressed_size for chunk in chunks)
            yield Piece(Part(index, group, group + 1, meta.num_rows), weight, stored)
    elif file.format == "text" and text_unit == "file":
        yield Piece(Part(index, rows=1), file.size, file.size)
    elif file.format in ("jsonl", "text") and file.compression is None and file.size > least:
        count = -(-file.size // least)
        edges = [file.size * i // count for i in range(count + 1)]
        for start, stop in pairwise(edges):
            yield Piece(Part(index, start, stop), stop - start, stop - start)
    elif file.format == "lance":
        yield from _lance(index, file, transport, least)
    else:
        yield Piece(Part(index), file.size, file.size)


def _lance(index: int, file: SourceFile, transport: Transport, least: int) -> Iterator[Piece]:
    rows = open_lance(file, transport).count_rows()
    count = max(1, -(-file.size // least)) if file.size else max(1, -(-rows // 1_000_000))
    edges = [rows * i // count for i in range(count + 1)]
    for start, stop in pairwise(edges):
        stored = file.size // count
        if stop > start:
            yield Piece(Part(index, start, stop, stop - start), stored, stored)


def check_columns(file: SourceFile, schema: pa.Schema, read: pa.Schema) -> None:
    """Refuse a file without one of the columns to be read, or with one that cannot become the planned type.

    Raises:
        ColumnNotFound: names the file.
        UsageError: two columns of a name; names the file.
    """
    for want in read:
        if (count := schema.names.count(want.name)) > 1:
            said = f"{file.url}: {count} columns named {want.name!r}"
            raise UsageError(said, "rename all but one in the file")
        at = schema.get_field_index(want.name)
        if at < 0:
            raise ColumnNotFound(
                f"{file.url}: no column {want.name!r}, which the first file has", f"there are {describe(schema)}"
            )
        have = plain_type(schema.field(at).type)
        if have != want.type and pa.types.is_nested(have) != pa.types.is_nested(want.type):
            said = f"{file.url}: column {want.name!r} is {have}, but {want.type} in the first file"
            raise ColumnNotFound(said, "build the files one by one, or name those that agree")
