"""Pairs of Megatron's `IndexedDataset`: an index, `.idx`, that says where each document is in the `.bin` beside it.

The index is the source. Documents become rows: their sequences, joined. Nothing in an index is trusted: it must agree
with itself and with its `.bin`, every byte of which must belong to exactly one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from lance_prep.errors import BadFile, UsageError
from lance_prep.formats.base import Chunk, CutJob, Format, PartJob, Piece, row_chunk
from lance_prep.formats.ids import GET_AGAIN, WINDOW, Ids, ids_columns, ids_schema, local_path
from lance_prep.keyed import Indices
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport, is_local

_MAGIC = b"MMIDIDX\0\0"
#: Megatron's codes of integer types that ids can have.
_CODES = {1: "uint8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}


@dataclass(frozen=True)
class Index:
    """The head of a `.idx`.

    Attributes:
        path: of the file.
        dtype: of an id.
        sequences, documents: numbers of them.
    """

    path: Path
    dtype: np.dtype[Any]
    sequences: int
    documents: int

    @property
    def data(self) -> Path:
        """The `.bin` beside it."""
        return self.path.with_suffix(".bin")

    def lengths(self, start: int, stop: int) -> Indices:
        """Return the ids of each sequence."""
        return self._numbers("<i4", 34, start, stop)

    def pointers(self, start: int, stop: int) -> Indices:
        """Return where each sequence begins in `data`, in bytes."""
        return self._numbers("<i8", 34 + 4 * self.sequences, start, stop)

    def bounds(self, start: int, stop: int) -> Indices:
        """Return the first sequence of each document, and the one after the last."""
        return self._numbers("<i8", 34 + 12 * self.sequences, start, stop + 1)

    def _numbers(self, kind: str, begin: int, start: int, stop: int) -> Indices:
        dtype = np.dtype(kind)
        return np.fromfile(self.path, dtype, stop - start, offset=begin + start * dtype.itemsize).astype(np.int64)


def read_index(path: str | Path) -> Index:
    """Read the head of an index.

    Raises:
        BadFile: it is not an index, is cut short, or its ids are of a type that is not supported.
    """
    place = Path(path)
    with place.open("rb") as file:
        head = file.read(34)
    if head[:9] != _MAGIC or len(head) < 34 or int.from_bytes(head[9:17], "little") != 1:
        raise BadFile(f"{path} is not an index of Megatron's IndexedDataset, version 1", GET_AGAIN)
    if head[17] not in _CODES:
        raise BadFile(f"{path}: values of type {head[17]} are not token ids", "name a pair with token ids")
    sequences, bounds = (int.from_bytes(head[at : at + 8], "little") for at in (18, 26))
    size, least = place.stat().st_size, 34 + 12 * sequences + 8 * bounds
    if bounds < 1:
        raise BadFile(f"{path} has no list of documents", GET_AGAIN)
    if size < least:
        raise BadFile(f"{path} has {size:,} bytes of at least {least:,}: it is cut short", GET_AGAIN)
    return Index(place, np.dtype(_CODES[head[17]]).newbyteorder("<"), sequences, bounds - 1)


def index_beside(file: SourceFile) -> str | None:
    """Return the path of the `.idx` beside a `.bin`, or None."""
    path = Path(file.url).with_suffix(".idx")
    return str(path) if is_local(file.url) and path.is_file() else None


class MegatronPair(Format):
    """A `.idx` with the `.bin` beside it. A piece is a range of documents."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return the type of an id. Raise UsageError if the recipe says another."""
        found = read_index(local_path(files[0])).dtype.name
        if recipe.ids_dtype not in (None, found):
            raise UsageError(f"ids_dtype {recipe.ids_dtype!r} is given, and {files[0].url} says {found}", "remove it")
        return {"ids_dtype": found if found in ("uint16", "uint32", "int32") else "uint32"}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of one column."""
        return ids_schema(read_index(local_path(files[0])).dtype)

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Check the whole index, and yield ranges of documents of at least `job.least` bytes.

        Raises:
            BadFile: the index contradicts itself or the `.bin`.
        """
        index = read_index(local_path(job.file))
        ends = _checked(index)
        start = 0
        while start < index.documents:
            before = int(ends[start])
            stop = min(max(int(np.searchsorted(ends, before + job.least)), start + 1), index.documents)
            size = int(ends[stop]) - before
            yield Piece(size, size, start, stop, stop - start)
            start = stop

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return some documents."""
        index = read_index(local_path(job.file))
        mean = max(index.data.stat().st_size // max(index.documents, 1), 1)
        count = min(-(-job.least // mean), part.stop - part.start)
        start = part.start + int(place * (part.stop - part.start - count))
        return Piece(count * mean, count * mean, start, start + count, count)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield documents: their sequences, joined."""
        index, part = read_index(local_path(job.file)), job.part
        bounds = index.bounds(part.start, part.stop)
        first = int(bounds[0])
        lengths, pointers = (get(first, int(bounds[-1])) for get in (index.lengths, index.pointers))
        offsets = np.append(np.zeros(1, np.int64), np.cumsum(lengths))
        documents = offsets[bounds - first]  # in ids, from the part's first
        with index.data.open("rb") as file:
            row = 0
            while row < len(documents) - 1:
                stop = max(int(np.searchsorted(documents, documents[row] + WINDOW, side="right")) - 1, row + 1)
                some = slice(int(bounds[row]) - first, int(bounds[stop]) - first)
                ids = _sequences(file, index, lengths[some], pointers[some])
                columns = ids_columns(ids, documents[row : stop + 1] - documents[row])
                yield row_chunk(columns, job.first + row, part.start + row)
                row = stop


def _sequences(file: BinaryIO, index: Index, lengths: Indices, pointers: Indices) -> Ids:
    """Return the ids of some sequences, end to end. Those that follow each other in the file are read together."""
    ends = pointers + lengths * index.dtype.itemsize
    breaks = np.append(np.flatnonzero(pointers[1:] != ends[:-1]) + 1, len(lengths))
    found, start = [np.empty(0, index.dtype)], 0
    for stop in breaks.tolist():
        if stop > start:
            file.seek(int(pointers[start]))
            count = int(lengths[start:stop].sum())
            ids = np.fromfile(file, index.dtype, count)
            if len(ids) < count:
                raise BadFile(f"{index.data} is cut short", GET_AGAIN)
            found.append(ids)
        start = stop
    return np.concatenate(found)


def _checked(index: Index) -> Indices:
    """Check an index against itself and its `.bin`. Return the bytes before each document, and in total."""
    if not index.data.is_file():
        raise BadFile(f"{index.path}: there is no {index.data.name} beside it", "put both files into one folder")
    size, item = index.data.stat().st_size, index.dtype.itemsize
    lengths, pointers = index.lengths(0, index.sequences), index.pointers(0, index.sequences)
    bounds = index.bounds(0, index.documents)
    # Subtract, since the sum of a pointer and a length may overflow.
    outside = np.flatnonzero((lengths < 0) | (pointers < 0) | (pointers > size - lengths * item))
    if len(outside):
        at = int(outside[0])
        where = f"{int(lengths[at]):,} ids from byte {int(pointers[at]):,}"
        said = f"{index.path}: sequence {at:,} is outside of {index.data.name}: {where} of {size:,} bytes"
        raise BadFile(said, f"get both files again: {index.data.name} may be cut short")
    if int(bounds[0]) or int(bounds[-1]) != index.sequences:
        said = f"{index.path}: documents have the sequences {int(bounds[0])} to {int(bounds[-1])} of {index.sequences}"
        raise BadFile(said, GET_AGAIN)
    if len(back := np.flatnonzero(np.diff(bounds) < 0)):
        at = int(back[0])
        said = (
            f"{index.path}: document {at:,} begins at sequence {int(bounds[at]):,} and ends at {int(bounds[at + 1]):,}"
        )
        raise BadFile(said, GET_AGAIN)
    ends = np.append(np.zeros(1, np.int64), np.cumsum(lengths * item))[bounds]
    if int(ends[-1]) != size:
        said = f"{index.path} lists {int(ends[-1]):,} bytes of ids, and {index.data.name} has {size:,}"
        raise BadFile(said, "get both files again: they do not belong together")
    _check_tiled(index, lengths * item, pointers)
    return ends


def _check_tiled(index: Index, sizes: Indices, pointers: Indices) -> None:
    """Refuse sequences that overlap. Their sizes add up to that of the file, so others leave no byte out."""
    order = np.arange(len(sizes)) if (np.diff(pointers) >= 0).all() else np.lexsort((sizes, pointers))
    order = order[sizes[order] > 0]
    starts = pointers[order]
    if len(wrong := np.flatnonzero(starts[1:] != (starts + sizes[order])[:-1])):
        one, other = (int(order[wrong[0] + i]) for i in (0, 1))
        said = f"{index.path}: sequences {one:,} and {other:,} overlap, or leave a gap between them"
        raise BadFile(said, "get both files again, or write them again with Megatron's own builder")
