"""Files that hold Arrow tables: Arrow IPC files and streams, and Lance datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import SourceChanged, SourceNotFound, translate
from lance_prep.fetch import Prefetch, RangeFile, open_ranges, split_range
from lance_prep.filter import FEW, matching_places
from lance_prep.formats.base import (
    CHUNK_ROWS,
    Chunk,
    CutJob,
    Format,
    PartJob,
    Piece,
    empty_chunk,
    even_ranges,
    row_chunks,
)
from lance_prep.hub_path import lance_place
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport, is_local

_ARROW_PIECE_BYTES = 4 << 20
# Of a Lance dataset whose size is unknown.
_PIECE_ROWS = 1_000_000


class ArrowFile(Format):
    """Arrow IPC files and streams, whichever a file is. `datasets` writes streams. Local files are memory-mapped."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the first file's schema."""
        with _open_arrow(files[0], transport, ahead=False) as reader:
            return reader.schema

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows of a file."""
        with _open_arrow(job.file, job.transport, ahead=True) as reader:
            if hasattr(reader, "get_batch"):
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(reader)
            yield from row_chunks(batches, job)


@contextmanager
def _open_arrow(file: SourceFile, transport: Transport, *, ahead: bool) -> Iterator[Any]:
    """Open a file as a reader of record batches with `schema`. With `ahead`, fetch it from front to back."""
    if is_local(file.url):
        with pa.memory_map(file.url) as source:
            yield _arrow_reader(source)
        return
    ranges = open_ranges(file, transport)
    ahead = ahead and transport.meter is None
    with Prefetch(ranges, split_range(0, file.size, _ARROW_PIECE_BYTES) if ahead else []) as prefetch:
        yield _arrow_reader(pa.PythonFile(RangeFile(prefetch), mode="r"))


def _arrow_reader(source: Any) -> Any:
    magic = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)


class LanceTable(Format):
    """A Lance dataset at the version that was the latest when it was planned. A piece is a range of rows."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the first dataset's schema."""
        return _open_lance(files[0], transport).schema

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield ranges of rows."""
        rows = _open_lance(job.file, job.transport).count_rows()
        size = job.file.size
        count = max(1, -(-size // job.least) if size else -(-rows // _PIECE_ROWS))
        for start, stop in even_ranges(rows, count):
            if stop > start:
                yield Piece(size // count, size // count, start, stop, stop - start)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a run of rows."""
        rows = part.stop - part.start
        if not job.file.size:
            return None
        total = _open_lance(job.file, job.transport).count_rows()
        start = part.start + int(place * rows)
        stop = min(part.stop, start + max(1, job.least * total // job.file.size))
        size = job.file.size * (stop - start) // total
        return Piece(size, size, start, stop, stop - start)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield a range of rows, in the dataset's order; only the columns that are needed.

        Of a remote dataset, a filter's columns are read first, and the other columns of few matching rows only.
        """
        dataset = _open_lance(job.file, job.transport)
        matching = None if is_local(job.file.url) else _matching(dataset, job)
        if matching is None:
            yield from row_chunks(_scan(dataset, job.read_schema.names, job.part), job, job.part.start)
            return
        first, end = job.first - job.part.start, job.first + job.part.stop - job.part.start
        for start in range(0, len(matching), CHUNK_ROWS):
            places = matching[start : start + CHUNK_ROWS]
            table = dataset.take(pa.array(places), columns=job.read_schema.names).combine_chunks()
            (columns,) = table.to_batches(max_chunksize=CHUNK_ROWS)
            last = end if start + CHUNK_ROWS >= len(matching) else int(places[-1]) + 1 + first
            yield Chunk(columns, (places + first).astype(np.uint64), places, "row", last)
        if not len(matching):
            yield empty_chunk(job.read_schema, end)


def _scan(dataset: Any, columns: list[str], part: Part) -> Iterator[pa.RecordBatch]:
    scanner = dataset.scanner(
        columns=columns, offset=part.start, limit=part.stop - part.start, scan_in_order=True, batch_size=CHUNK_ROWS
    )
    yield from scanner.to_batches()


def _matching(dataset: Any, job: PartJob) -> npt.NDArray[np.int64] | None:
    """Return the rows of a part that pass the filter, as their places in the dataset.

    None if the part is better read whole: there is no filter, many rows pass it, its columns are all that is read, or
    their types are not the planned ones, so that they have to be cast before the filter sees them.
    """
    if job.where is None or set(job.where.columns) == set(job.read_schema.names):
        return None
    names = list(job.where.columns)
    if any(dataset.schema.field(name).type != job.read_schema.field(name).type for name in names):
        return None
    places = job.part.start + matching_places(_scan(dataset, names, job.part), job.where.expression)
    return places if len(places) < FEW * (job.part.stop - job.part.start) else None


def pin_lance(url: str, transport: Transport) -> SourceFile:
    """Return a Lance dataset, pinned to its latest version. `size` counts the data files whose size Lance knows.

    Raises:
        SourceNotFound, SourceError: it cannot be opened.
    """
    import lance

    try:
        place, options = lance_place(url, transport)
        dataset = lance.dataset(place, storage_options=options)
    except (OSError, ValueError) as error:
        raise translate(error, f"opening {url}") or SourceNotFound(
            f"{url}: not a Lance dataset", "name the folder that holds `_versions`"
        ) from error
    files = [file for fragment in dataset.get_fragments() for file in fragment.data_files()]
    size = sum(getattr(file, "file_size_bytes", None) or 0 for file in files)
    return SourceFile(url, "lance", size, _lance_identity(dataset))


def _lance_identity(dataset: Any) -> str:
    """Return the version of a Lance dataset and the id of the transaction that made it.

    A dataset that is removed and written again has the same version numbers, but other transactions.
    """
    with suppress(Exception):  # of any kind: its transaction file may be gone or damaged, and the data whole
        return f"version {dataset.version} {dataset.read_transaction(dataset.version).uuid}"
    return f"version {dataset.version}"


def _open_lance(file: SourceFile, transport: Transport) -> Any:
    """Return a Lance dataset at the planned version.

    Raises:
        SourceChanged: the version is gone, or another one has its number.
    """
    import lance

    version = int(file.identity.split()[1])
    advice = "run the same command again; to build from another version, use overwrite=True"
    try:
        place, options = lance_place(file.url, transport)
        dataset = lance.dataset(place, version=version, storage_options=options)
    except ValueError as error:
        raise SourceChanged(f"{file.url}: version {version}, which was planned, is gone ({error})", advice) from error
    if _lance_identity(dataset) != file.identity:
        raise SourceChanged(f"{file.url}: version {version} is another one than was planned", advice)
    return dataset
