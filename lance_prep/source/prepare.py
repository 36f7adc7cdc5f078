"""Rows as read to rows as delivered: types, filter, UTF-8, template, projection and split, in this order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from lance_prep.arrow_text import bad_rows, byte_ends, raw_bytes, to_large_string, without_nulls
from lance_prep.errors import BadFile
from lance_prep.formats import DATA_BYTES, Chunk, PartJob, with_ids
from lance_prep.ledger import Rejected
from lance_prep.plan import NoText
from lance_prep.recipe import Recipe, validation_bound

# Types by the beginning of their names. Values keep their meaning only within a kind; any other type is its own kind.
_KINDS = {
    r"u?int\d|float|double|halffloat|decimal": "number",
    r"(dictionary<values=)?(large_)?(string|binary)|fixed_size_binary": "text",
    r"timestamp.* tz=": "point in time",
    r"timestamp|date": "local time",
}
_ROW = "\0row"
# A word takes 26 times its length in the tokenizer: 40 MB took 1.2 GB. What a word is depends on the tokenizer, but few
# cross white space.
_LONGEST_WORD = 32 << 20
_WORD_STEP = 4 << 20
_BLANK = np.zeros(256, bool)
_BLANK[list(b" \t\n\r\f\v")] = True

Render = Callable[[Mapping[str, Any]], str]


def prepare(chunk: Chunk, job: PartJob, render: Render | None) -> Chunk:
    """Return the chunk with `PartJob.schema`, without rows that the filter removes or that are not valid UTF-8.

    Rows removed by the filter are not validated, so skipping their row group gives the same result.
    """
    chunk = replace(chunk, columns=_conform(chunk.columns, job))
    if job.where is not None:
        chunk = _filter(chunk, job)
    chunk = _drop_missing(chunk, job)
    if job.recipe.ids_column is not None:
        return with_ids(_drop_invalid(chunk, job, chunk.columns.schema.names), job)
    if render is None:
        done = _deliver(_drop_invalid(chunk, job, job.schema.names), job.schema)
    else:
        # Check every column that is read, including those that only the filter needs.
        done = _rendered(_drop_invalid(chunk, job, chunk.columns.schema.names), job, render)
    done = _drop_long(done, job)
    return _one_side(done, job.recipe) if job.recipe.side is not None else done


def _one_side(chunk: Chunk, recipe: Recipe) -> Chunk:
    """Return the chunk without the rows of the other side of a split."""
    assert recipe.val_fraction is not None
    validation = text_hashes(chunk.columns.column(0)) < validation_bound(recipe.val_fraction)
    keep = validation if recipe.side == "validation" else ~validation
    columns = chunk.columns.filter(pa.array(keep))
    rows, positions = chunk.rows[keep], chunk.positions[keep]
    return replace(chunk, columns=columns, rows=rows, positions=positions, held_out=chunk.rows[~keep])


def text_hashes(texts: pa.LargeStringArray) -> npt.NDArray[np.uint64]:
    """Return the xxh3-64 of each text, as UTF-8; a null is hashed as an empty text.

    1.3 GB/s in paragraphs of 240 bytes. A build of them takes 8 % more CPU time for it.
    """
    texts = without_nulls(texts)
    if not len(texts):
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], np.int64, texts.offset + len(texts) + 1)[texts.offset :].tolist()
    data, digest = memoryview(texts.buffers()[2] or b""), xxhash.xxh3_64_intdigest
    return np.fromiter((digest(data[i:j]) for i, j in pairwise(offsets)), np.uint64, len(texts))


def _conform(columns: pa.RecordBatch, job: PartJob) -> pa.RecordBatch:
    """Return the columns that are read in their planned types, and the text column in the type that it has."""
    text = job.text_column
    arrays, fields = [], []
    for want in job.read_schema:
        array = columns.column(want.name)
        if array.type != want.type and (want.name != text or set(_kinds(array.type)) != set(_kinds(want.type))):
            array = _cast(array, want, job)
        arrays.append(array)
        fields.append(pa.field(want.name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _cast(array: pa.Array, want: pa.Field, job: PartJob) -> pa.Array:
    """Return the array in its planned type. Arrow's `cast` rounds floats and drops struct fields without an error."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kinds = set(_kinds(array.type))
    try:
        cast = array.cast(want.type)
        back = cast.cast(array.type, safe=False) if kinds else array
        # NaN equals NaN only as text.
        same = back.equals(array) or repr(back.to_pylist()) == repr(array.to_pylist())
        if same and kinds <= set(_kinds(want.type)):
            return cast
        raise pa.ArrowInvalid("a value or its meaning would change")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        said = f"{job.file.url}: column {want.name!r} is {array.type}, and was planned as {want.type} ({error})"
        raise BadFile(said, "give the column one type in all files, or build the files separately") from error


def _kinds(kind: pa.DataType, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the kind of every type inside a type. Nulls have none, and names of list items vary."""
    for field in map(kind.field, range(kind.num_fields)):
        yield from _kinds(field.type, f"{path}.{field.name if pa.types.is_struct(kind) else ''}")
    if not kind.num_fields and not pa.types.is_null(kind):
        yield path, next((name for begins, name in _KINDS.items() if re.match(begins, str(kind))), str(kind))


def _filter(chunk: Chunk, job: PartJob) -> Chunk:
    assert job.where is not None
    index = pa.array(np.arange(len(chunk.rows), dtype=np.int64))
    kept = chunk.columns.append_column(_ROW, index).filter(job.where.expression)
    at = kept.column(_ROW).to_numpy()
    columns = kept.select([name for name in kept.schema.names if name != _ROW])
    return replace(chunk, columns=columns, rows=chunk.rows[at], positions=chunk.positions[at])


def _drop_missing(chunk: Chunk, job: PartJob) -> Chunk:
    """Reject records without a text column. A null counts as an empty text, as in Parquet."""
    if chunk.missing is None or not len(chunk.missing):
        return chunk
    reason = f"no column {job.schema.names[0]}"
    bad: dict[int, Rejected] = {}
    for row in np.flatnonzero(np.isin(chunk.rows, chunk.missing)).tolist():
        data = chunk.record(int(chunk.rows[row])) if chunk.record is not None else b""
        bad[row] = job.rejected(int(chunk.positions[row]), chunk.unit, reason, data)
    return _without(chunk, bad) if bad else chunk


def _drop_invalid(chunk: Chunk, job: PartJob, names: list[str]) -> Chunk:
    """Reject rows with invalid UTF-8 in one of the columns."""
    bad: dict[int, Rejected] = {}
    for name in names:
        array = chunk.columns.column(name)
        if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
            array = to_large_string(array) if name == job.schema.names[0] else array
        for row in bad_rows(array):
            data = raw_bytes(array, row)
            bad.setdefault(row, job.rejected(int(chunk.positions[row]), chunk.unit, "invalid UTF-8", data))
    return _without(chunk, bad) if bad else chunk


def _drop_long(chunk: Chunk, job: PartJob) -> Chunk:
    """Reject texts that are too long, or hold a word that is."""
    if job.text_column is None or not len(chunk.rows):
        return chunk
    texts, most = chunk.columns.column(0), job.recipe.max_text_bytes
    lengths = np.diff(byte_ends(chunk.columns.select([0])))
    bad: dict[int, Rejected] = {}
    for row in np.flatnonzero(lengths > min(most, _LONGEST_WORD)).tolist():
        data = memoryview(texts[row].as_buffer())
        long = len(data) > most
        if long or _longest_word(data) > _LONGEST_WORD:
            reason = f"text over {most:,} bytes" if long else f"word over {_LONGEST_WORD:,} bytes"
            head = bytes(data[:DATA_BYTES])
            bad[row] = job.rejected(int(chunk.positions[row]), chunk.unit, reason, head, len(data))
    return _without(chunk, bad) if bad else chunk


def _longest_word(text: memoryview) -> int:
    """Return the length of the longest run of bytes that are all white space, or all not, if it exceeds a step.

    A shorter run may be missed.
    """
    longest = run = 0
    last: bool | None = None
    for at in range(0, len(text), _WORD_STEP):
        blank = _BLANK[np.frombuffer(text[at : at + _WORD_STEP], np.uint8)]
        run = run if blank[0] == last else 0
        changes = blank != blank[0]
        if changes.any():
            longest = max(longest, run + int(np.argmax(changes)))
            run = int(np.argmax(blank[::-1] != blank[-1]))
        else:
            run += len(blank)
        longest, last = max(longest, run), bool(blank[-1])
    return longest


def _without(chunk: Chunk, bad: dict[int, Rejected]) -> Chunk:
    keep = np.ones(len(chunk.rows), bool)
    keep[list(bad)] = False
    rejects = [*chunk.rejects, *((int(chunk.rows[row]), rejected) for row, rejected in bad.items())]
    columns = chunk.columns.filter(pa.array(keep))
    return replace(chunk, columns=columns, rows=chunk.rows[keep], positions=chunk.positions[keep], rejects=rejects)


def _deliver(chunk: Chunk, schema: pa.Schema) -> Chunk:
    arrays = []
    for want in schema:
        array = chunk.columns.column(want.name)
        arrays.append(array if array.type == want.type else to_large_string(array))
    return replace(chunk, columns=pa.RecordBatch.from_arrays(arrays, schema=schema))


def _rendered(chunk: Chunk, job: PartJob, render: Render) -> Chunk:
    texts: list[str | None] = []
    bad: dict[int, Rejected] = {}
    for row, record in enumerate(chunk.columns.to_pylist()):
        try:
            text = render(record)
            text.encode()
            texts.append(text)
        except MemoryError:
            raise
        except Exception as error:  # a template is the user's code: whatever it raises is about this row
            reason = str(error) if isinstance(error, NoText) else f"the template fails: {type(error).__name__}"
            data = chunk.record(int(chunk.rows[row])) if chunk.record else str(record).encode(errors="replace")
            bad[row] = job.rejected(int(chunk.positions[row]), chunk.unit, reason, data)
            texts.append(None)
    schema = job.schema
    arrays = [pa.array(texts, pa.large_string()), *(chunk.columns.column(name) for name in schema.names[1:])]
    done = replace(chunk, columns=pa.RecordBatch.from_arrays(arrays, schema=schema))
    return _without(done, bad) if bad else done
