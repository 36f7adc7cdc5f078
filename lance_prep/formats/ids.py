"""Rows of token ids: the types in which they are delivered, without padding, and the documents that they hold.

A row's ids are delivered as `large_list<uint16|uint32>`, in the column that a recipe's `ids_column` names. Tables may
have columns beside it that say which ids are padding, and where documents end. `flat` and `megatron` read the formats
that hold nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import BadFile, SourceError
from lance_prep.formats.base import Chunk, PartJob
from lance_prep.keyed import Indices
from lance_prep.model import SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import is_local

#: The column of the formats `flat` and `megatron`.
IDS = "input_ids"
#: Columns that say which of a row's ids are padding, and where its documents end, if rows become blocks as they are.
LENGTH_COLUMNS = ("num_tokens", "attention_mask", "seq_lengths")
#: Ids that are read together: 2 to 4 MB, which stay in the processor's cache until they are laid out.
WINDOW = 1 << 20
GET_AGAIN = "get the file again"
_CORRECT = "correct the column, or leave it out of the file"

Ids = npt.NDArray[Any]


def local_path(file: SourceFile) -> str:
    """Return the path of a file.

    Raises:
        SourceError: it is not on a local disk.
    """
    if not is_local(file.url):
        raise SourceError(f"{file.url}: files of token ids are read from a local disk only", "download it first")
    return file.url


def dtype_of(recipe: Recipe) -> np.dtype[Any]:
    """Return the type of an id in the file."""
    return np.dtype(recipe.ids_dtype or "uint32").newbyteorder("<")


def ids_schema(dtype: np.dtype[Any]) -> pa.Schema:
    """Return the schema of one column, `IDS`."""
    return pa.schema([(IDS, pa.large_list(pa.from_numpy_dtype(dtype)))])


def ids_columns(ids: Ids, offsets: Indices) -> pa.RecordBatch:
    """Return rows of one column, `IDS`, given their ids end to end and `[rows + 1]` where each begins."""
    return pa.record_batch({IDS: pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))})


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
    lengths = _lengths(array)
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
        real = _counts(columns.column("num_tokens"), "num_tokens", job)
    elif "attention_mask" in names:
        real = _ones(columns.column("attention_mask"), lengths, chunk, job)
    if "seq_lengths" in names:
        documents = _lists(columns.column("seq_lengths"), "seq_lengths", job)
        sizes = _counts(documents.flatten(), "seq_lengths", job)
        bounds = documents.offsets.to_numpy()
        documents = pa.LargeListArray.from_arrays(pa.array(bounds - bounds[0]), pa.array(sizes.astype(np.uint32)))
        ends = np.append(np.zeros(1, np.int64), np.cumsum(sizes))
        offsets = documents.offsets.to_numpy()
        sums = np.diff(ends[offsets])
        padded = (sums == lengths) & (real < lengths)
        if padded.any():  # a row's last document is its padding, as in an export for TRL
            values, last = documents.flatten().to_numpy(), offsets[1:][padded] - 1
            _agree(~padded | (_last(values, offsets) == lengths - real), "seq_lengths contradict padding", chunk, job)
            offsets = offsets - np.append(np.zeros(1, np.int64), np.cumsum(padded))
            documents = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.delete(values, last)))
            sums = np.where(padded, real, sums)
        if not {"num_tokens", "attention_mask"} & set(names):
            _agree(sums <= lengths, "seq_lengths add up to more than its ids", chunk, job)
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
    mask = _lists(mask, "attention_mask", job)
    _agree(_lengths(mask) == lengths, "attention_mask has another length", chunk, job)
    flags = mask.flatten()
    if pa.types.is_boolean(flags.type):
        flags = flags.cast(pa.uint8())
    values, ends = _counts(flags, "attention_mask", job) != 0, np.cumsum(lengths)
    if values.all():  # most rows have no padding, and counting it took two thirds of the time of reading them
        return lengths
    zeros = np.flatnonzero(~values)
    rows = np.searchsorted(ends, zeros, side="right")
    real: Indices = lengths - np.bincount(rows, minlength=len(lengths))
    bad = np.zeros(len(lengths), np.bool_)
    bad[rows[zeros < (ends - lengths + real)[rows]]] = True
    _agree(~bad, "padding is not at its end", chunk, job)
    return real


def _lengths(lists: pa.Array) -> Indices:
    """Return the number of values in each list."""
    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size)
    found: Indices = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _lists(column: pa.Array, name: str, job: PartJob) -> pa.Array:
    """Return a column of lists, large unless they have one length.

    Raises:
        BadFile: it has other values, or a null.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise BadFile(f"{job.file.url}: column {name!r} is {kind}, not lists of integers", _CORRECT)
    if column.null_count:
        raise BadFile(f"{job.file.url}: column {name!r} has nulls", _CORRECT)
    if name == "attention_mask":
        return column
    return column.cast(pa.large_list(kind.value_type))


def _counts(column: pa.Array, name: str, job: PartJob) -> Indices:
    """Return integers of at least 0.

    Raises:
        BadFile: a value is something else.
    """
    if not pa.types.is_integer(column.type):
        raise BadFile(f"{job.file.url}: column {name!r} has values of type {column.type}, not integers", _CORRECT)
    if column.null_count:
        raise BadFile(f"{job.file.url}: column {name!r} has nulls", _CORRECT)
    found: Indices = column.to_numpy()
    if found.min(initial=0) < 0 or found.max(initial=0) > np.iinfo(np.uint32).max:
        bad = int(found.min() if found.min() < 0 else found.max())
        raise BadFile(f"{job.file.url}: column {name!r} has the value {bad}", _CORRECT)
    return found if name == "attention_mask" else found.astype(np.int64)


def _agree(good: npt.NDArray[np.bool_], said: str, chunk: Chunk, job: PartJob) -> None:
    if not good.all():
        row = int(chunk.positions[int(np.flatnonzero(~good)[0])])
        raise BadFile(f"{job.file.url}: row {row:,}: {said}", _CORRECT)
