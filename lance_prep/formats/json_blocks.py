"""JSON records to rows: whole blocks with Arrow's parser, and only the records that it refuses with Python.

Speeds on one core, lines of 280 bytes: Arrow 445 MB/s, `from_json` 360, `json.loads` 90. An error of Arrow's parser
costs a call (90 microseconds) and a second look at what came before it, which pays off down to about one odd record
in 64 KiB. Denser ones are found with `from_json`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic_core import from_json

from lance_prep.arrow_text import is_utf8
from lance_prep.formats.base import Chunk, PartJob
from lance_prep.formats.json_records import (
    LONGEST,
    Planned,
    Row,
    fractions,
    nested_names,
    nested_value,
    null_key,
    scalars,
)
from lance_prep.keyed import Indices
from lance_prep.ledger import Rejected

_SPARSE_BYTES = 64 << 10
_CHECKED_BYTES = 256 << 10
# Shares of the records with a value of another type: up to the first, they go through Python one by one. Up to the
# second, they are worth being told from the others by their text alone.
_FEW = 0.02
_HALF = 0.6
# pyarrow 26.0.1 crashes on a null between two objects.
_BARE_NULL = re.compile(rb"\}[ \t\r\n]*null")
_TWO = re.compile(rb"\}[ \t\r]*\{[ \t\r]*\"")
_ERROR = re.compile(r"(?:Column\(/(.+?)\) changed from \w+ to (\w+) )?in row (\d+)$", re.DOTALL)
# How values begin, by the names that Arrow's parser gives their kinds.
_BEGINNINGS = {"array": rb"\[", "object": rb"\{", "string": rb'"', "number": b"[-0-9]", "boolean": b"[tf]"}


@dataclass(frozen=True)
class Records:
    """Records as text, one after the other with white space between them.

    Attributes:
        starts, ends: int64, where each is in `data`.
        positions: int64, where each is in the file.
        whole: each begins with `{` and ends with `}`. Neighbours of this kind hold at least one object each, since no
            object goes on from a `}` to a `{`. (A record is a line, or one JSON value.)
    """

    data: bytes
    starts: Indices
    ends: Indices
    positions: Indices
    whole: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, index: int) -> bytes:
        return self.data[self.starts[index] : self.ends[index]]

    def joined(self, indices: Indices) -> bytes:
        """Return the text of these records, in ascending order."""
        if len(indices) == indices[-1] - indices[0] + 1:
            return self.data[self.starts[indices[0]] : self.ends[indices[-1]]]
        return b"\n".join(self.lines(indices))

    def lines(self, indices: Indices) -> list[bytes]:
        starts, ends, data = self.starts[indices].tolist(), self.ends[indices].tolist(), self.data
        return [data[start:end] for start, end in zip(starts, ends, strict=True)]

    def quoted(self, key: str) -> Records:
        """Return the same records with quotes around the numbers and booleans under a key."""
        spans = (place for match in scalars(key).finditer(self.data) for place in match.span(1))
        places = np.fromiter(spans, np.int64)
        data = np.insert(np.frombuffer(self.data, np.uint8), places, ord('"')).tobytes()
        starts = self.starts + np.searchsorted(places, self.starts)
        return replace(self, data=data, starts=starts, ends=self.ends + np.searchsorted(places, self.ends))

    def found(self, pattern: re.Pattern[bytes], indices: Indices) -> npt.NDArray[np.bool_]:
        """Return which of some records contain a pattern."""
        places = np.fromiter((match.start() for match in pattern.finditer(self.data)), np.int64)
        return np.isin(indices, np.searchsorted(self.starts, places, "right") - 1)

    def at(self, byte: int) -> int:
        """Return the record that a byte of `data` belongs to."""
        return int(np.searchsorted(self.starts, byte, "right")) - 1

    @staticmethod
    def of(values: Sequence[bytes], first_position: int) -> Records:
        """Return the texts of JSON values as records, numbered from `first_position`."""
        ends = np.cumsum([len(value) + 1 for value in values], dtype=np.int64) - 1
        starts = ends - np.array([len(value) for value in values], np.int64)
        whole = np.array([value[:1] == b"{" and value[-1:] == b"}" for value in values], bool)
        return Records(b"\n".join(values), starts, ends, np.arange(len(values)) + first_position, whole)

    @staticmethod
    def of_lines(offset: int, block: bytes) -> Records:
        """Return the lines of a block that are not blank. The block begins at byte `offset` of the file."""
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        if not block.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        last = np.maximum(ends - 1, 0)
        last = np.where(data[last] == ord("\r"), np.maximum(last - 1, 0), last)
        whole = (ends > starts) & (data[np.minimum(starts, len(data) - 1)] == ord("{")) & (data[last] == ord("}"))
        keep = np.ones(len(starts), bool)
        for index in np.flatnonzero(~whole).tolist():
            line = block[starts[index] : ends[index]].strip()
            keep[index] = bool(line)
            whole[index] = line[:1] == b"{" and line[-1:] == b"}"
        if not keep.all():
            starts, ends, whole = starts[keep], ends[keep], whole[keep]
        return Records(block, starts, ends, starts + offset, whole)


@dataclass(frozen=True)
class _Failed:
    """Why Arrow's parser failed.

    Attributes:
        record: where it failed; None if unknown.
        column, kind: the column that holds a value of the wrong kind; None for other reasons.
        suspects: the records that caused it, judging by their text; None if unknown.
    """

    record: int | None = None
    column: str | None = None
    kind: str | None = None
    suspects: npt.NDArray[np.bool_] | None = None


class RecordReader:
    """Records to rows of the read schema.

    Args:
        unit: of the records' positions: "byte" or "row".
    """

    def __init__(self, job: PartJob, unit: str) -> None:
        self._job = job
        self._unit = unit
        self._planned = Planned(job.recipe, job.schema, job.read_schema)
        self._schema = job.read_schema
        # With "infer", keys that the schema lacks become columns and fields, so that none is lost if a whole record,
        # or a whole struct, is kept.
        self._unknown = "infer" if self._planned.all_keys or self._planned.structs else "ignore"
        whole = [f.name for f in self._schema if pa.types.is_integer(f.type)]
        self._fractions = fractions(whole) if whole else None
        nested = nested_names(list(self._schema.types))
        self._quotable = frozenset(self._planned.texts - nested)
        self._null_text = None if self._planned.text is None else null_key(self._planned.text)
        # Arrow's parser does not give a list as JSON text, so conversations do not reach it: trying took 20 us each.
        chat = [name for name in job.recipe.messages or () if name in self._planned.texts]
        self._conversations = nested_value(chat) if len(chat) == 1 else None

    def read(self, records: Records, first: int) -> Chunk:
        """Return the records as a chunk. The first one is row `first` of the shard."""
        batches, odd = self._parsed(records)
        indices = [at for at, _ in batches]
        missing = [at[self._missing(records, at, batch)] for at, batch in batches]
        rows: list[Row] = []
        taken: list[int] = []
        rejects: list[tuple[int, Rejected]] = []
        others = np.array(sorted(odd), np.int64)
        places = records.positions[others].tolist()
        for index, position, line in zip(others.tolist(), places, records.lines(others), strict=True):
            row = self._planned.row(line)
            if isinstance(row, Row):
                rows.append(row)
                taken.append(index)
            else:
                rejects.append((first + index, self._job.rejected(position, self._unit, row, line)))
        if rows or not batches:
            batches.append((np.array(taken, np.int64), self._planned.batch(rows)))
            indices.append(np.array(taken, np.int64))
            missing.append(np.array([i for i, row in zip(taken, rows, strict=True) if row.missing], np.int64))
        columns = batches[0][1] if len(batches) == 1 else pa.concat_batches([batch for _, batch in batches])
        at = np.concatenate(indices)
        if (at[1:] < at[:-1]).any():
            order = np.argsort(at)
            at, columns = at[order], columns.take(pa.array(order))
        end = first + len(records)
        without = (np.sort(np.concatenate(missing)) + first).astype(np.uint64)
        offset = records.positions
        return Chunk(
            columns,
            (at + first).astype(np.uint64),
            offset[at],
            self._unit,
            end,
            rejects,
            missing=without,
            record=lambda row: records.line(row - first),
        )

    def _parsed(self, records: Records) -> tuple[list[tuple[Indices, pa.RecordBatch]], list[int]]:
        """Return the records that Arrow's parser accepts, and the numbers of the others."""
        odd = self._unparsable(records)
        if self._conversations is not None:
            odd |= records.found(self._conversations, np.arange(len(records)))
        left = np.flatnonzero(odd).tolist()
        batches: list[tuple[Indices, pa.RecordBatch]] = []
        tried: set[tuple[str | None, str | None]] = {(None, None)}
        waiting = [np.flatnonzero(~odd)]
        while waiting:
            rest = waiting.pop()
            if not len(rest):
                continue
            made = self._parse(records, rest, self._unknown)
            if isinstance(made, pa.RecordBatch):
                batches.append((rest, made))
                continue
            if isinstance(made, np.ndarray):  # these hold more than the planned columns
                left += rest[made].tolist()
                batches += self._halved(records, rest[~made], left, "ignore")
                continue
            if made.suspects is not None and made.suspects.any():
                left += rest[made.suspects].tolist()
                waiting.append(rest[~made.suspects])
                continue
            starts, at = records.starts[rest], made.record
            sparse = at is not None and at < len(rest) and starts[at] - starts[0] >= _SPARSE_BYTES
            alike = self._alike(records, rest, made) if (made.column, made.kind) not in tried else None
            tried.add((made.column, made.kind))
            scalar = made.kind in ("number", "boolean") and made.column in self._quotable
            if alike is not None and scalar and (not sparse or alike.mean() > _FEW):
                records, alike = records.quoted(str(made.column)), alike & False
            if alike is not None and alike.mean() <= _HALF:
                left += rest[alike].tolist()
                waiting.append(rest[~alike])
            elif at is not None and sparse:
                batches += self._halved(records, rest[:at], left, self._unknown)
                left.append(int(rest[at]))
                waiting.append(rest[at + 1 :])
            elif starts[-1] - starts[0] > _CHECKED_BYTES:
                pieces = np.searchsorted(starts, np.arange(starts[0], starts[-1], _CHECKED_BYTES)[1:])
                waiting += np.split(rest, pieces)[::-1]
            else:
                fit = np.array([self._fits(line) for line in records.lines(rest)], bool)
                left += rest[~fit].tolist()
                batches += self._halved(records, rest[fit], left, "ignore")
        return batches, left

    def _alike(self, records: Records, indices: Indices, failed: _Failed) -> npt.NDArray[np.bool_]:
        """Return which records seem to hold a value of the kind that the parser stopped at, in the same column."""
        key = re.escape(json.dumps(failed.column, ensure_ascii=False).encode())
        pattern = re.compile(key + rb"[ \t\r\n]*:[ \t\r\n]*" + _BEGINNINGS.get(str(failed.kind), rb"\Z\A"))
        return records.found(pattern, indices)

    def _unparsable(self, records: Records) -> npt.NDArray[np.bool_]:
        """Return which records must not reach Arrow's parser, since it would crash or take several for one."""
        odd = ~records.whole
        for match in _BARE_NULL.finditer(records.data):
            odd[max(records.at(match.start()), 0)] = True
        if is_utf8(records.data):
            return odd
        at = 0
        view = memoryview(records.data)
        while at < len(view):
            try:
                codecs.utf_8_decode(view[at:], "strict", True)
                break
            except UnicodeDecodeError as error:
                index = max(records.at(at + error.start), 0)
                odd[index] = True
                at = max(int(records.ends[index]), at + error.start) + 1
        return odd

    def _fits(self, line: bytes) -> bool:
        try:
            return self._planned.fits(from_json(line, allow_inf_nan=False, cache_strings="keys"))
        except ValueError as error:
            # Arrow's parser has no such limit; a record that is deeper than it allows is left to that parser.
            return self._unknown == "ignore" and "recursion limit" in str(error)

    def _halved(
        self, records: Records, indices: Indices, left: list[int], unknown: str
    ) -> list[tuple[Indices, pa.RecordBatch]]:
        """Halve records, nearly all of them good, until Arrow's parser accepts them. Add the others to `left`."""
        batches: list[tuple[Indices, pa.RecordBatch]] = []
        waiting = [indices]
        while waiting:
            some = waiting.pop()
            if not len(some):
                continue
            made = self._parse(records, some, unknown)
            if isinstance(made, np.ndarray):
                left += some[made].tolist()
                some = some[~made]
                made = self._parse(records, some, "ignore") if len(some) else made
            if isinstance(made, pa.RecordBatch):
                batches.append((some, made))
            elif len(some) == 1:
                left += some.tolist()
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
        return batches

    def _parse(
        self, records: Records, indices: Indices, unknown: str
    ) -> pa.RecordBatch | npt.NDArray[np.bool_] | _Failed:
        """Return the records as a batch, or which of them hold keys that the schema lacks, or why the parser failed."""
        import pyarrow.json as pj

        data = records.joined(indices)
        if len(data) > LONGEST:
            return _Failed()
        parse = pj.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior=unknown)
        read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
        try:
            table = pj.read_json(pa.BufferReader(data), read, parse)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            if self._fractions is not None and "couldn't parse" in str(error):
                return _Failed(suspects=records.found(self._fractions, indices))
            found = _ERROR.search(str(error))
            return _Failed(int(found[3]), found[1], found[2]) if found else _Failed()
        if len(table) != len(indices):
            return _Failed(suspects=records.found(_TWO, indices))
        if unknown == "infer":
            try:
                extra = self._extra(table)
            except pa.ArrowException:  # pyarrow 26.0.1 infers lists of empty structs with fewer structs than it says
                return _Failed()
            if extra is not None:
                return extra
        return table.select(self._schema.names).combine_chunks().to_batches()[0]

    def _extra(self, table: pa.Table) -> npt.NDArray[np.bool_] | None:
        """Return which rows hold a value that the planned columns lack; None if all types are as planned."""
        kept = {field.name for field in self._planned.structs}
        odd: npt.NDArray[np.bool_] | None = None
        for field in table.schema:
            planned = self._schema.field(field.name).type if field.name in self._schema.names else None
            if field.type == planned or (planned is None and not self._planned.all_keys):
                continue
            column = table.column(field.name).chunk(0)
            found = np.zeros(len(column), bool)
            if planned is None:
                found = _valid(column)
            elif field.name in kept:
                found = _beyond(column, planned)
            odd = found if odd is None else odd | found
        return odd

    def _missing(self, records: Records, indices: Indices, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Return which of the parsed records lack the text column's key. A null is not missing."""
        none = np.zeros(len(indices), bool)
        if self._null_text is None or not (column := batch.column(self._planned.text)).null_count:
            return none
        null = np.flatnonzero(~_valid(column))
        # Arrow's parser does not tell the two apart, so the nulls become numbers for it.
        data = records.joined(indices[null])
        if self._null_text.search(data) is None:
            none[null] = True
            return none
        name = str(self._planned.text)
        present = _parse_numbers(self._null_text.sub(_one(name), data), name)
        none[null] = ~present if present is not None else [self._lacks(records.line(i)) for i in indices[null].tolist()]
        return none

    def _lacks(self, line: bytes) -> bool:
        row = self._planned.row(line)
        return isinstance(row, Row) and row.missing


def _one(name: str) -> Any:
    replacement = json.dumps(name).encode() + b":1"
    return lambda match: replacement


def _parse_numbers(data: bytes, name: str) -> npt.NDArray[np.bool_] | None:
    import pyarrow.json as pj

    parse = pj.ParseOptions(explicit_schema=pa.schema([(name, pa.int64())]), unexpected_field_behavior="ignore")
    read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
    try:
        return _valid(pj.read_json(pa.BufferReader(data), read, parse).column(name).combine_chunks())
    except pa.ArrowInvalid:
        return None


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    valid: npt.NDArray[np.bool_] = np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
    return valid


def _beyond(array: pa.Array, kind: pa.DataType) -> npt.NDArray[np.bool_]:
    """Return which rows of a nested column hold a value in a field that a type lacks."""
    odd = np.zeros(len(array), bool)
    if pa.types.is_struct(array.type) and pa.types.is_struct(kind):
        known = {field.name: field.type for field in kind}
        for field in array.type:
            inner = array.field(field.name)
            if field.name not in known:
                odd |= _valid(inner)
            elif field.type != known[field.name]:
                odd |= _beyond(inner, known[field.name])
    elif pa.types.is_list(array.type) and pa.types.is_list(kind):
        inner = _beyond(array.flatten(), kind.value_type)
        odd[array.value_parent_indices().to_numpy()[inner]] = True
    return odd
