"""Parquet: only the column chunks that are needed, of the row groups that can match the filter.

Which row groups can match is our own reading of their statistics (`filter`). Arrow's, `ParquetFileFragment.subset`,
was compared with it (pyarrow 26) and drops rows: writers leave NaN out of the bounds, and Arrow then takes a group of
1.0 and NaN for one of 1.0 alone, so `f != 1` and `NOT f > 1` lose the NaN. It also reads dictionary columns whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lance_prep.errors import BadFile, ColumnNotFound, SourceChanged, UsageError, translating
from lance_prep.fetch import RANGE_BYTES, Prefetch, Range, RangeFile, Ranges, open_ranges, split_range
from lance_prep.filter import Statistics, Where, describe
from lance_prep.formats.base import (
    ADVICE,
    CHUNK_ROWS,
    Chunk,
    CutJob,
    Format,
    PartJob,
    Piece,
    empty_chunk,
    plain_type,
    row_chunk,
)
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport, is_local

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Column chunks are read through a buffer of this size, not whole: a row group of 1 GB takes no more memory than one of
# 10 MB. 256 KiB reads the 1 GB corpus as fast as whole chunks do (1.6 s against 1.7 s).
_BUFFER = 256 << 10
# Footers of files with a few dozen columns and row groups take 10 to 60 KB: one request each.
_TAIL_BYTES = 64 << 10

# Footers by pinned content: the plan reads them all, and each shard of a file needs its footer again. The bytes before
# the footer in its request are kept with it, so that none is fetched twice. For a small file, that is the whole file.
KEPT_FOOTERS = 64
_footers: OrderedDict[tuple[str, str], tuple[pq.FileMetaData, bytes, int]] = OrderedDict()
_lock = threading.Lock()


class Parquet(Format):
    """Parquet files. A piece is a row group."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the first file's schema."""
        return read_footer(files[0], transport).schema.to_arrow_schema()

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield the row groups, weighed by the uncompressed size of the columns that are read.

        Raises:
            ColumnNotFound, UsageError: the columns are not those of the first file.
        """
        footer = read_footer(job.file, job.transport)
        _check_columns(job.file, footer.schema.to_arrow_schema(), job.read_schema)
        leaves = _leaf_indices(footer, job.read_schema.names)
        for group in range(footer.num_row_groups):
            meta = footer.row_group(group)
            chunks = [meta.column(leaf) for leaf in leaves]
            weight = sum(chunk.total_uncompressed_size for chunk in chunks)
            stored = sum(chunk.total_compressed_size for chunk in chunks)
            yield Piece(weight, stored, group, group + 1, meta.num_rows)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece:
        """Return the row group at this place of the stored bytes."""
        pieces = list(self.pieces(job))[part.start : part.stop]
        at = place * sum(piece.stored for piece in pieces)
        ends = accumulate(piece.stored for piece in pieces)
        return next((piece for piece, end in zip(pieces, ends, strict=True) if end > at), pieces[-1])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows of a run of row groups."""
        file, part = job.file, job.part
        footer = read_footer(file, job.transport)
        if part.stop > footer.num_row_groups:
            said = f"{file.url}: {footer.num_row_groups} row groups, and {part.stop} when it was planned"
            raise SourceChanged(said, "build it again with overwrite=True")
        rows = [footer.row_group(g).num_rows for g in range(part.stop)]
        wanted = [g for g in range(part.start, part.stop) if rows[g] and _can_match(footer, g, job.where)]
        before = sum(rows[: part.start])
        size = min(CHUNK_ROWS, job.recipe.shuffle_batch_size)
        with _open(job, footer, wanted) as reader:
            for run in _runs(wanted):
                at = sum(rows[part.start : run[0]])
                names = job.read_schema.names
                for batch in reader.iter_batches(size, row_groups=run, columns=names, use_threads=False):
                    yield row_chunk(batch, job.first + at, before + at)
                    at += len(batch)
        yield empty_chunk(job.read_schema, job.first + sum(rows[part.start :]))


def _runs(groups: Sequence[int]) -> list[list[int]]:
    """Return runs of consecutive row groups: one reader over many is faster than one for each."""
    runs: list[list[int]] = []
    for group in groups:
        if runs and runs[-1][-1] + 1 == group:
            runs[-1].append(group)
        else:
            runs.append([group])
    return runs


@contextmanager
def _open(job: PartJob, footer: pq.FileMetaData, groups: Sequence[int]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    file = job.file
    options = {
        "metadata": footer,
        "buffer_size": _BUFFER,
        "pre_buffer": False,
        "page_checksum_verification": True,  # costs nothing where a file has no checksums
    }
    if is_local(file.url):
        with pq.ParquetFile(file.url, **options) as reader:
            yield reader
        return
    ranges = _with_tail(open_ranges(file, job.transport), file)
    pieces = []
    if job.transport.meter is None:
        pieces = _plan_ranges(footer, groups, _leaf_indices(footer, job.read_schema.names))
    with Prefetch(ranges, pieces) as prefetch:
        yield pq.ParquetFile(pa.PythonFile(RangeFile(prefetch), mode="r"), **options)


def _plan_ranges(footer: pq.FileMetaData, groups: Sequence[int], leaves: Sequence[int]) -> list[Range]:
    """Return the byte ranges of the column chunks, in the order in which they are read.

    Chunks that touch are fetched together up to 8 MiB; longer ones are cut, and the columns of a row group take turns,
    because its columns are read side by side.
    """
    pieces: list[Range] = []
    for group in groups:
        meta = footer.row_group(group)
        turns: list[tuple[int, Range]] = []
        for start, stop in sorted(_chunk_range(meta.column(leaf)) for leaf in leaves):
            turns += enumerate(split_range(start, stop))
        for _, (start, stop) in sorted(turns):
            if pieces and pieces[-1][1] == start and stop - pieces[-1][0] <= RANGE_BYTES:
                pieces[-1] = (pieces[-1][0], stop)
            else:
                pieces.append((start, stop))
    return pieces


def _chunk_range(column: pq.ColumnChunkMetaData) -> Range:
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return start, start + column.total_compressed_size


def _can_match(footer: pq.FileMetaData, group: int, where: Where | None) -> bool:
    if where is None:
        return True
    meta = footer.row_group(group)
    leaves: Mapping[str, int] = {meta.column(i).path_in_schema: i for i in range(meta.num_columns)}

    def lookup(path: tuple[str, ...]) -> Statistics | None:
        leaf = leaves.get(".".join(path))
        return None if leaf is None else _statistics(meta.column(leaf), meta.num_rows)

    return where.tree.can_match(lookup)


def _statistics(column: pq.ColumnChunkMetaData, rows: int) -> Statistics | None:
    known = column.statistics
    if known is None:
        return None
    nulls = known.null_count if known.has_null_count else None
    try:
        low, high = (known.min, known.max) if known.has_min_max else (None, None)
    except (UnicodeDecodeError, ValueError, OverflowError):
        low = high = None
    return Statistics(rows, nulls, low, high)


def _leaf_indices(footer: pq.FileMetaData, names: Sequence[str]) -> list[int]:
    """Return the indices of the leaf columns under the top-level columns `names`."""
    wanted = set(names)
    columns = [footer.schema.column(i).path.split(".") for i in range(footer.num_columns)]
    # A top-level name may hold dots itself, so any prefix of the path may be it.
    return [i for i, path in enumerate(columns) if any(".".join(path[:n]) in wanted for n in range(1, len(path) + 1))]


def _check_columns(file: SourceFile, schema: pa.Schema, read: pa.Schema) -> None:
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


class _WithTail:
    """Ranges of a file of which `tail`, from byte `at`, was fetched already."""

    def __init__(self, ranges: Ranges, tail: bytes, at: int) -> None:
        self.size = ranges.size
        self._ranges, self._tail, self._at = ranges, tail, at

    def fetch(self, start: int, stop: int) -> bytes:
        end = self._at + len(self._tail)
        if stop > end or stop <= self._at:
            return self._ranges.fetch(start, stop)
        known = self._tail[max(0, start - self._at) : stop - self._at]
        return known if start >= self._at else self._ranges.fetch(start, self._at) + known


def _with_tail(ranges: Ranges, file: SourceFile) -> Ranges:
    """Return the same ranges, without a request for bytes that were fetched along with the footer."""
    with _lock:
        kept = _footers.get((file.url, file.identity))
    return _WithTail(ranges, kept[1], kept[2]) if kept and kept[1] else ranges


def read_footer(file: SourceFile, transport: Transport) -> pq.FileMetaData:
    """Return the metadata of a Parquet file.

    Raises:
        BadFile: it is cut short or no Parquet file.
        HubUnreachable, AccessDenied, SourceNotFound: it cannot be read.
    """
    key = (file.url, file.identity)
    with _lock:
        if key in _footers:
            _footers.move_to_end(key)
            return _footers[key][0]
    with translating(f"reading {file.url}"):
        kept = _read(file, transport)
    with _lock:
        _footers[key] = kept
        while len(_footers) > KEPT_FOOTERS:
            _footers.popitem(last=False)
    return kept[0]


def _read(file: SourceFile, transport: Transport) -> tuple[pq.FileMetaData, bytes, int]:
    """Return the footer, the bytes before it that came along, and where they begin."""
    import pyarrow.parquet as pq

    url, size = file.url, file.size
    if size < 12:
        raise BadFile(f"{url}: {size} bytes, which is too short for a Parquet file", ADVICE)
    if is_local(url):
        return pq.read_metadata(url), b"", size
    ranges = open_ranges(file, transport)
    tail = ranges.fetch(max(0, size - _TAIL_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise BadFile(f"{url}: no Parquet footer at its end: cut short, or no Parquet file", ADVICE)
    if length > len(tail):
        tail = ranges.fetch(size - length, size - len(tail)) + tail
    # A file of nothing but the footer: metadata is read from the end alone.
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-length:]))
    return metadata, tail[:-length], size - len(tail)
