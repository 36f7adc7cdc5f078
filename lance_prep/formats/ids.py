"""Sources that hold token ids: flat files (`.bin`), Megatron's pairs (`.idx` and `.bin`), and lists in tables.

A row's ids are delivered as `large_list<uint16|uint32>`, in the column that a recipe's `ids_column` names. For the two
file formats it is `input_ids`. Both are local only.

- A flat file says nothing of itself: the recipe's `ids_dtype` says the type of an id, and `document_end` the id that
  ends a document, which becomes a row. Without it, a row is `block_size` ids. A document belongs to the part that
  contains its first id.
- Of a pair, the index is the source: it says where each document is. The `.bin` beside it gives no rows by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import BadFile, SourceError, UsageError
from lance_prep.formats.base import Chunk, CutJob, Format, PartJob, Piece, even_ranges, row_chunk
from lance_prep.keyed import Indices
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport, is_local

#: The column of the formats of this module.
IDS = "input_ids"
#: Columns that say which of a row's ids are padding, and where its documents end, if rows become blocks as they are.
LENGTH_COLUMNS = ("num_tokens", "attention_mask", "seq_lengths")
_MAGIC = b"MMIDIDX\0\0"
#: Megatron's codes of integer types that ids can have.
_CODES = {1: "uint8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
#: Ids that are read together: 2 to 4 MB, which stay in the processor's cache until they are laid out.
_WINDOW = 1 << 20
#: Ids in which a document has to end. Otherwise `document_end` is wrong, and each shard would read the file to its end.
_LONGEST = 1 << 27
_GET_AGAIN = "get the file again"

Ids = npt.NDArray[Any]


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
        return {"ids_dtype": recipe.ids_dtype} if flat else {}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of one column."""
        if (index := index_beside(files[0])) is not None:
            return _schema(read_index(index).dtype)
        return _schema(_dtype(recipe))

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield ranges of bytes that begin with an id, or with a block if no id ends a document."""
        file, size = job.file, job.file.size
        if index_beside(file) is not None:
            return
        _local(file)
        item = _dtype(job.recipe).itemsize
        if size % item:
            said = f"{file.url}: {size:,} bytes are not a whole number of {_dtype(job.recipe).name}"
            raise BadFile(said, f"{_GET_AGAIN} if it is cut short; or give another ids_dtype")
        unit = item if job.recipe.document_end is not None else item * job.recipe.block_size
        for start, stop in even_ranges(-(-size // unit), max(1, size // max(job.least, 1))):
            first, last = start * unit, min(stop * unit, size)
            if last > first:
                yield Piece(last - first, last - first, first, last)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a range of about `job.least` bytes."""
        unit = _dtype(job.recipe).itemsize * (1 if job.recipe.document_end is not None else job.recipe.block_size)
        start = part.start + int(place * max(part.stop - part.start - job.least, 0)) // unit * unit
        stop = min(part.stop, start + -(-job.least // unit) * unit)
        return Piece(stop - start, stop - start, start, stop)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield documents, or blocks if no id ends a document."""
        with Path(_local(job.file)).open("rb") as file:
            yield from _documents(job, file) if job.recipe.document_end is not None else _blocks(job, file)


def _blocks(job: PartJob, file: BinaryIO) -> Iterator[Chunk]:
    """Yield rows of `block_size` ids. The file's last row may have fewer."""
    dtype, size = _dtype(job.recipe), job.recipe.block_size
    start, stop = job.part.start // dtype.itemsize, (job.part.stop or job.file.size) // dtype.itemsize
    row = 0
    for at in range(start, stop, window := max(_WINDOW // size, 1) * size):
        ids = _read(file, job.file, at, min(at + window, stop), dtype)
        offsets = np.append(np.arange(0, len(ids), size, dtype=np.int64), len(ids))
        yield row_chunk(_columns(ids, offsets), job.first + row, at // size)
        row += len(offsets) - 1


def _documents(job: PartJob, file: BinaryIO) -> Iterator[Chunk]:
    """Yield the documents that begin in a part, each with the id that ends it."""
    dtype = _dtype(job.recipe)
    start, stop, size = (n // dtype.itemsize for n in (job.part.start, job.part.stop or job.file.size, job.file.size))
    # From the id before: if it ends a document, the part begins with a document of its own.
    at, skip, row = max(start - 1, 0), start > 0, 0
    waiting: list[Ids] = []
    held = 0  # ids that wait for the end of their document, or are skipped until it
    while at < size and at - held < stop:
        ids = _read(file, job.file, at, min(at + _WINDOW, size), dtype)
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
            chunk = row_chunk(_columns(whole, offsets[: count + 1]), job.first + row, 0)
            yield replace(chunk, positions=(offsets[:count] + begin) * dtype.itemsize, unit="byte")
        row += count
        if count < len(offsets) - 1:
            return


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
        raise BadFile(f"{path} is not an index of Megatron's IndexedDataset, version 1", _GET_AGAIN)
    if head[17] not in _CODES:
        raise BadFile(f"{path}: values of type {head[17]} are not token ids", "name a pair with token ids")
    sequences, bounds = (int.from_bytes(head[at : at + 8], "little") for at in (18, 26))
    size, least = place.stat().st_size, 34 + 12 * sequences + 8 * bounds
    if bounds < 1 or size < least:
        raise BadFile(f"{path} has {size:,} bytes of at least {least:,}: it is cut short", _GET_AGAIN)
    return Index(place, np.dtype(_CODES[head[17]]).newbyteorder("<"), sequences, bounds - 1)


def index_beside(file: SourceFile) -> str | None:
    """Return the path of the `.idx` beside a `.bin`, or None."""
    path = Path(file.url).with_suffix(".idx")
    return str(path) if is_local(file.url) and path.is_file() else None


class MegatronPair(Format):
    """A `.idx` with the `.bin` beside it. A piece is a range of documents."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return the type of an id. Raise UsageError if the recipe says another."""
        found = read_index(_local(files[0])).dtype.name
        if recipe.ids_dtype not in (None, found):
            raise UsageError(f"ids_dtype {recipe.ids_dtype!r} is given, and {files[0].url} says {found}", "remove it")
        return {"ids_dtype": found if found in ("uint16", "uint32", "int32") else "uint32"}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of one column."""
        return _schema(read_index(_local(files[0])).dtype)

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Check the whole index, and yield ranges of documents of at least `job.least` bytes.

        Raises:
            BadFile: the index contradicts itself or the `.bin`.
        """
        index = read_index(_local(job.file))
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
        index = read_index(_local(job.file))
        mean = max(index.data.stat().st_size // max(index.documents, 1), 1)
        count = min(-(-job.least // mean), part.stop - part.start)
        start = part.start + int(place * (part.stop - part.start - count))
        return Piece(count * mean, count * mean, start, start + count, count)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield documents: their sequences, joined."""
        index, part = read_index(_local(job.file)), job.part
        bounds = index.bounds(part.start, part.stop)
        first = int(bounds[0])
        lengths, pointers = (get(first, int(bounds[-1])) for get in (index.lengths, index.pointers))
        offsets = np.append(np.zeros(1, np.int64), np.cumsum(lengths))
        documents = offsets[bounds - first]  # in ids, from the part's first
        with index.data.open("rb") as file:
            row = 0
            while row < len(documents) - 1:
                stop = max(int(np.searchsorted(documents, documents[row] + _WINDOW, side="right")) - 1, row + 1)
                some = slice(int(bounds[row]) - first, int(bounds[stop]) - first)
                ids = _sequences(file, index, lengths[some], pointers[some])
                columns = _columns(ids, documents[row : stop + 1] - documents[row])
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
                raise BadFile(f"{index.data} is cut short", _GET_AGAIN)
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
    outside = np.flatnonzero((lengths < 0) | (pointers < 0) | (pointers + lengths * item > size))
    if len(outside):
        at = int(outside[0])
        where = f"{int(lengths[at]):,} ids from byte {int(pointers[at]):,}"
        said = f"{index.path}: sequence {at:,} is outside of {index.data.name}: {where} of {size:,} bytes"
        raise BadFile(said, f"get both files again: {index.data.name} may be cut short")
    if int(bounds[0]) or int(bounds[-1]) != index.sequences or (np.diff(bounds) < 0).any():
        said = f"{index.path}: documents have the sequences {int(bounds[0])} to {int(bounds[-1])} of {index.sequences}"
        raise BadFile(said, _GET_AGAIN)
    ends = np.append(np.zeros(1, np.int64), np.cumsum(lengths * item))[bounds]
    if int(ends[-1]) != size:
        said = f"{index.path} lists {int(ends[-1]):,} bytes of ids, and {index.data.name} has {size:,}"
        raise BadFile(said, "get both files again: they do not belong together")
    return ends


def _local(file: SourceFile) -> str:
    if not is_local(file.url):
        raise SourceError(f"{file.url}: files of token ids are read from a local disk only", "download it first")
    return file.url


def _dtype(recipe: Recipe) -> np.dtype[Any]:
    return np.dtype(recipe.ids_dtype or "uint32").newbyteorder("<")


def _schema(dtype: np.dtype[Any]) -> pa.Schema:
    return pa.schema([(IDS, pa.large_list(pa.from_numpy_dtype(dtype)))])


def _columns(ids: Ids, offsets: Indices) -> pa.RecordBatch:
    return pa.record_batch({IDS: pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))})


def _read(file: BinaryIO, source: SourceFile, start: int, stop: int, dtype: np.dtype[Any]) -> Ids:
    file.seek(start * dtype.itemsize)
    ids = np.fromfile(file, dtype, stop - start)
    if len(ids) < stop - start:
        raise BadFile(f"{source.url} is cut short", _GET_AGAIN)
    return ids


def delivered_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a column of ids is delivered, or None if it is not one: lists of integers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        return None
    return pa.large_list(pa.uint16() if kind.value_type in (pa.uint16(), pa.uint8()) else pa.uint32())


def with_ids(chunk: Chunk, job: PartJob) -> Chunk:
    """Return a chunk with the columns of `job.schema`: ids, their documents if rows become blocks, and kept ones."""
    name, columns = str(job.schema.names[0]), chunk.columns
    ids, lengths = _values(columns.column(name), chunk, job)
    ids, lengths, documents = _trimmed(ids, lengths, chunk, job)
    made = {"seq_lengths": documents}
    offsets = np.append(np.zeros(1, np.int64), np.cumsum(lengths))
    made[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
    arrays = [made[field.name] if field.name in made else columns.column(field.name) for field in job.schema]
    return replace(chunk, columns=pa.RecordBatch.from_arrays(arrays, schema=job.schema))


def _values(array: pa.Array, chunk: Chunk, job: PartJob) -> tuple[Ids, Indices]:
    """Return the ids of rows end to end, unsigned, and the number of each row. A null is a row without ids."""
    if array.null_count:
        array = pa.array([value or [] for value in array.to_pylist()], pa.large_list(array.type.value_type))
    values = array.flatten()
    if values.null_count:
        raise BadFile(f"{job.file.url}: column {job.schema.names[0]!r} has null ids", "remove the rows with them")
    ids, want = values.to_numpy(), job.schema.field(0).type.value_type.to_pandas_dtype()
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size)
    else:
        lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    if len(ids) and ids.dtype != want and (ids.min() < 0 or ids.max() > np.iinfo(want).max):
        at = int(np.flatnonzero((ids < 0) | (ids > np.iinfo(want).max))[0])
        row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        said = f"{job.file.url}: {chunk.unit} {int(chunk.positions[row]):,} has the id {int(ids[at])}"
        raise BadFile(said, "give rows without such ids; if it is padding, keep only the column with real ids")
    if ids.dtype == np.int32:
        return ids.view(np.uint32), lengths
    return ids.astype(want, copy=False), lengths


def _trimmed(ids: Ids, lengths: Indices, chunk: Chunk, job: PartJob) -> tuple[Ids, Indices, pa.Array]:
    """Return ids and lengths without padding, and the lengths of each row's documents."""
    columns, real, documents = chunk.columns, lengths, None
    names = columns.schema.names
    if "num_tokens" in names:
        real = columns.column("num_tokens").to_numpy(zero_copy_only=False).astype(np.int64)
    elif "attention_mask" in names:
        real = _ones(columns.column("attention_mask"), lengths, chunk, job)
    if "seq_lengths" in names:
        documents = columns.column("seq_lengths").cast(pa.large_list(pa.uint32()))
        ends = np.append(np.zeros(1, np.int64), np.cumsum(documents.flatten().to_numpy().astype(np.int64)))
        offsets = documents.offsets.to_numpy() - documents.offsets[0].as_py()
        sums = np.diff(ends[offsets])
        padded = (sums == lengths) & (real < lengths)
        if padded.any():  # a row's last document is its padding, as in an export for TRL
            values, last = documents.flatten().to_numpy(), offsets[1:][padded] - 1
            _agree(~padded | (_last(values, offsets) == lengths - real), "seq_lengths contradict padding", chunk, job)
            offsets = offsets - np.append(np.zeros(1, np.int64), np.cumsum(padded))
            documents = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.delete(values, last)))
            sums = np.where(padded, real, sums)
        if not {"num_tokens", "attention_mask"} & set(names):
            real = sums
        _agree(sums == real, "seq_lengths do not add up to its ids without padding", chunk, job)
    _agree(real <= lengths, "num_tokens is larger than the number of its ids", chunk, job)
    if not np.array_equal(real, lengths):
        offsets = np.append(np.zeros(1, np.int64), np.cumsum(lengths))
        place = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
        ids = ids[place < np.repeat(real, lengths)]
    if documents is None:
        some = real > 0
        offsets = np.append(np.zeros(1, np.int64), np.cumsum(some))
        documents = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(real[some].astype(np.uint32)))
    return ids, real, documents


def _last(values: npt.NDArray[Any], offsets: Indices) -> Indices:
    """Return the last value of each list, 0 for an empty one."""
    found: Indices = np.append(np.zeros(1, np.int64), values)[np.where(np.diff(offsets) > 0, offsets[1:], 0)]
    return found


def _ones(mask: pa.Array, lengths: Indices, chunk: Chunk, job: PartJob) -> Indices:
    """Return how many ones each row of an attention mask begins with. All others must be zeros."""
    values = mask.flatten().to_numpy() != 0
    ends = np.cumsum(lengths)
    _agree(np.full(len(lengths), len(values) == int(lengths.sum())), "attention_mask has another length", chunk, job)
    if values.all():  # most rows have no padding, and counting it took two thirds of the time of reading them
        return lengths
    zeros = np.flatnonzero(~values)
    rows = np.searchsorted(ends, zeros, side="right")
    real: Indices = lengths - np.bincount(rows, minlength=len(lengths))
    bad = np.zeros(len(lengths), np.bool_)
    bad[rows[zeros < (ends - lengths + real)[rows]]] = True
    _agree(~bad, "padding is not at its end", chunk, job)
    return real


def _agree(good: npt.NDArray[np.bool_], said: str, chunk: Chunk, job: PartJob) -> None:
    if not good.all():
        row = int(chunk.positions[int(np.flatnonzero(~good)[0])])
        raise BadFile(f"{job.file.url}: row {row:,}: {said}", "correct the columns, or leave them out of the file")
