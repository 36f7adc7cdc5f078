"""Flat files of token ids: ids end to end, without a header, as nanoGPT reads them.

A file says nothing of itself: the recipe's `ids_dtype` says the type of an id, and `document_end` the id that ends a
document, which becomes a row. Without it, a row is `block_size` ids. A document belongs to the part that contains its
first id. A `.bin` with an index beside it belongs to a Megatron pair, and gives no rows by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from lance_prep.errors import BadFile, UsageError
from lance_prep.formats.base import Chunk, CutJob, Format, PartJob, Piece, even_ranges, row_chunk
from lance_prep.formats.ids import GET_AGAIN, WINDOW, Ids, dtype_of, ids_columns, ids_schema, local_path
from lance_prep.formats.megatron import index_beside, read_index
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

#: Ids in which a document has to end. Otherwise `document_end` is wrong, and each shard would read the file to its end.
_LONGEST = 1 << 27


class FlatIds(Format):
    """Ids end to end, without a header, as nanoGPT reads them. A piece is a range of bytes."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return the type of an id. Raise UsageError unless the recipe says it."""
        flat = [file for file in files if index_beside(file) is None]
        if flat and recipe.ids_dtype is None:
            said = f"{flat[0].url} holds ids end to end, and nothing says their type"
            raise UsageError(
                said, "give ids_dtype: uint16, uint32 or int32, as the program that wrote the file chose it"
            )
        if flat and recipe.document_end is not None and recipe.document_end > np.iinfo(dtype_of(recipe)).max:
            said = (
                f"document_end={recipe.document_end} cannot be an id in {flat[0].url}, which holds {recipe.ids_dtype}"
            )
            raise UsageError(said, "give the document_end and ids_dtype that the file was written with")
        return {"ids_dtype": recipe.ids_dtype} if flat else {}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of one column."""
        if (index := index_beside(files[0])) is not None:
            return ids_schema(read_index(index).dtype)
        return ids_schema(dtype_of(recipe))

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield ranges of bytes that begin with an id, or with a block if no id ends a document."""
        file, size = job.file, job.file.size
        if index_beside(file) is not None:
            return
        local_path(file)
        item = dtype_of(job.recipe).itemsize
        if size % item:
            said = f"{file.url}: {size:,} bytes are not a whole number of {dtype_of(job.recipe).name}"
            raise BadFile(said, f"{GET_AGAIN} if it is cut short; or give another ids_dtype")
        unit = item if job.recipe.document_end is not None else item * job.recipe.block_size
        for start, stop in even_ranges(-(-size // unit), max(1, size // max(job.least, 1))):
            first, last = start * unit, min(stop * unit, size)
            if last > first:
                yield Piece(last - first, last - first, first, last)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a range of about `job.least` bytes."""
        unit = dtype_of(job.recipe).itemsize * (1 if job.recipe.document_end is not None else job.recipe.block_size)
        start = part.start + int(place * max(part.stop - part.start - job.least, 0)) // unit * unit
        stop = min(part.stop, start + -(-job.least // unit) * unit)
        return Piece(stop - start, stop - start, start, stop)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield documents, or blocks if no id ends a document."""
        with Path(local_path(job.file)).open("rb") as file:
            yield from _documents(job, file) if job.recipe.document_end is not None else _blocks(job, file)


def _blocks(job: PartJob, file: BinaryIO) -> Iterator[Chunk]:
    """Yield rows of `block_size` ids. The file's last row may have fewer."""
    dtype, size = dtype_of(job.recipe), job.recipe.block_size
    start, stop = job.part.start // dtype.itemsize, (job.part.stop or job.file.size) // dtype.itemsize
    row = 0
    for at in range(start, stop, window := max(WINDOW // size, 1) * size):
        ids = _read(file, job.file, at, min(at + window, stop), dtype)
        offsets = np.append(np.arange(0, len(ids), size, dtype=np.int64), len(ids))
        yield row_chunk(ids_columns(ids, offsets), job.first + row, at // size)
        row += len(offsets) - 1


def _documents(job: PartJob, file: BinaryIO) -> Iterator[Chunk]:
    """Yield the documents that begin in a part, each with the id that ends it."""
    dtype = dtype_of(job.recipe)
    start, stop, size = (n // dtype.itemsize for n in (job.part.start, job.part.stop or job.file.size, job.file.size))
    # From the id before: if it ends a document, the part begins with a document of its own.
    at, skip, row = max(start - 1, 0), start > 0, 0
    waiting: list[Ids] = []
    held = 0  # ids that wait for the end of their document, or are skipped until it
    while at < size and at - held < stop:
        ids = _read(file, job.file, at, min(at + WINDOW, size), dtype)
        ends = np.flatnonzero(ids == job.recipe.document_end) + 1
        at += len(ids)
        if not len(ends) and at < size:
            held += len(ids)
            if held > _LONGEST:
                said = f"{job.file.url}: id {job.recipe.document_end} is not among {held:,} ids that end at {at:,}"
                raise BadFile(said, "give the document_end or ids_dtype that the file was written with")
            if not skip:
                waiting.append(ids)
            continue
        if skip:
            first = int(ends[0]) if len(ends) else len(ids)
            ids, ends, skip, held = ids[first:], ends[1:] - first, False, 0
        begin = at - len(ids) - sum(map(len, waiting))
        whole = np.concatenate([*waiting, ids]) if waiting else ids
        ends = ends + (len(whole) - len(ids))
        if at == size and len(whole) and (not len(ends) or ends[-1] < len(whole)):
            ends = np.append(ends, len(whole))  # the last document has no end
        offsets = np.append(np.zeros(1, np.int64), ends)
        count = int(np.searchsorted(offsets[:-1] + begin, stop))
        waiting = [whole[offsets[-1] :]] if offsets[-1] < len(whole) else []
        held = sum(map(len, waiting))
        if count:
            chunk = row_chunk(ids_columns(whole, offsets[: count + 1]), job.first + row, 0)
            yield replace(chunk, positions=(offsets[:count] + begin) * dtype.itemsize, unit="byte")
        row += count
        if count < len(offsets) - 1:
            return


def _read(file: BinaryIO, source: SourceFile, start: int, stop: int, dtype: np.dtype[Any]) -> Ids:
    file.seek(start * dtype.itemsize)
    ids = np.fromfile(file, dtype, stop - start)
    if len(ids) < stop - start:
        raise BadFile(f"{source.url} is cut short", GET_AGAIN)
    return ids
