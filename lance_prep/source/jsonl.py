"""JSON Lines: whole blocks through Arrow's parser; where it fails, ever smaller ones, down to the line that is bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.ledger import Rejected
from lance_prep.source.chunk import Chunk, PartJob, empty_chunk
from lance_prep.source.lines import line_blocks
from lance_prep.source.records import Planned, parse_record, surrogate
from lance_prep.source.text import is_utf8

# The parser's blocks and Arrow's strings count their bytes in 32 bits.
_LONGEST = 1 << 30

Line = tuple[int, bytes]


def read_jsonl(job: PartJob) -> Iterator[Chunk]:
    """The objects of the lines; blank lines are no rows, bad ones are rejected. See `Chunk`."""
    parser = _Parser(job)
    first = job.first
    for offset, block in line_blocks(job):
        chunk = parser.read(offset, block, first)
        first = chunk.end
        yield chunk


class _Parser:
    def __init__(self, job: PartJob) -> None:
        self._job = job
        self._schema = job.plan.read_schema
        self._planned = Planned(job.plan)
        # What Arrow's parser does with keys that the schema lacks, so that none is lost where a whole record, or a
        # whole struct, is kept. (With "infer" they become further columns and fields.)
        self._unknown = "error" if self._planned.all_keys else "infer" if self._planned.structs else "ignore"

    def read(self, offset: int, block: bytes, first: int) -> Chunk:
        batch = self._parse(block, self._schema, unknown=self._unknown)
        if batch is not None and len(batch) == block.count(b"\n") + (not block.endswith(b"\n")):
            # Positions are of use for rejected rows alone, and what is rejected later is no line of this block.
            rows = np.arange(first, first + len(batch), dtype=np.uint64)
            positions = np.full(len(batch), offset, np.int64)
            return Chunk(batch, rows, positions, "byte", first + len(batch))
        return self._sorted_out(_lines_of(offset, block), first)

    def _sorted_out(self, lines: list[Line], first: int) -> Chunk:
        """The same for lines of which some are bad: those that are no JSON object go, then ever smaller pieces."""
        rejects: list[tuple[int, Rejected]] = []
        # Each with its row, and as it is parsed, which may be other than it is written.
        good: list[tuple[int, Line, bytes]] = []
        for row, (offset, line) in enumerate(lines, first):
            reason, parsed = self._checked(line)
            if reason is None:
                good.append((row, (offset, line), parsed))
            else:
                rejects.append((row, self._job.rejected(offset, "byte", reason, line)))
        batches: list[pa.RecordBatch] = []
        kept: list[tuple[int, Line, bytes]] = []
        waiting = [good]
        while waiting:
            some = waiting.pop()
            if not some:
                continue
            batch = self._parse(b"\n".join(parsed for _, _, parsed in some), self._schema, objects=True)
            if batch is not None and len(batch) == len(some):
                batches.append(batch)
                kept += some
            elif len(some) == 1:
                row, (offset, line), parsed = some[0]
                rejects.append((row, self._job.rejected(offset, "byte", self._reason(parsed), line)))
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
        end = first + len(lines)
        if not batches:
            return empty_chunk(self._schema, end, rejects)
        rows = np.array([row for row, _, _ in kept], np.uint64)
        positions = np.array([offset for _, (offset, _), _ in kept], np.int64)
        return Chunk(pa.concat_batches(batches), rows, positions, "byte", end, rejects)

    def _checked(self, line: bytes) -> tuple[str | None, bytes]:
        """Why a line is no row, if that shows before Arrow parses it, and what Arrow is to parse."""
        reason, record = _object(line)
        if reason is not None or (reason := self._planned.lost(record)) is not None:
            return reason, line
        try:
            texts = self._planned.with_texts(record)
            if texts is None:
                return None, line
            if self._planned.repeated(line.decode()):
                return "duplicate key", line
            return None, json.dumps(texts).encode()
        except RecursionError:
            return "nested too deep", line

    def _parse(
        self, data: bytes, schema: pa.Schema, *, objects: bool = False, unknown: str = "ignore"
    ) -> pa.RecordBatch | None:
        """The objects in some lines, or None where one of them is bad, or holds more than it may.

        Args:
            objects: each line is known to hold an object.
            unknown: what to do with keys that the schema lacks: "ignore" them, or give None: by "error" for any, by
                "infer" for those inside its columns.
        """
        import pyarrow.json as pj

        if len(data) > _LONGEST or not (objects or (is_utf8(data) and not _has_bare_null(data))):
            return None
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unknown)
        read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
        try:
            table = pj.read_json(pa.BufferReader(data), read, parse)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        table = table.select(schema.names)
        if unknown == "infer" and table.schema.types != schema.types:
            return None
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else None

    def _reason(self, line: bytes) -> str:
        """Why a line that holds an object is no row."""
        if len(line) > _LONGEST:
            return "line over 1 GiB"
        try:
            record = json.loads(line)
            reason = surrogate(record)
        except RecursionError:
            return "nested too deep"
        if reason is not None:
            return reason
        # Of a key that is there twice, Python takes the last; where Arrow then takes the line, it was that.
        once = json.dumps(record).encode()
        if self._parse(once, self._schema, objects=True) is not None:
            return "duplicate key"
        for field in self._schema:
            if self._parse(once, pa.schema([field]), objects=True) is None:
                return f"column {field.name} is not {field.type}"
        return "invalid JSON"


def _object(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """Why a line holds no JSON object, or else the object, by Python's parser, which is slow and safe."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "invalid UTF-8", {}
    try:
        record = parse_record(text)
    except (ValueError, RecursionError):
        return "invalid JSON", {}
    return (None, record) if isinstance(record, dict) else ("not a JSON object", {})


def _lines_of(offset: int, block: bytes) -> list[Line]:
    lines = []
    for line in block.split(b"\n"):
        if line.strip():
            lines.append((offset, line))
        offset += len(line) + 1
    return lines


def _has_bare_null(data: bytes) -> bool:
    """True where a `null` may stand between objects: pyarrow.json (26.0.1) dies of a segmentation fault there.

    One like this inside a string only costs a second look, by `json.loads`. (A pattern with `\\s*` before `null` would
    be tried at each byte: 17 s a GB; this goes from one `null` to the next.)
    """
    at = data.find(b"null")
    while at >= 0:
        before = at - 1
        while before >= 0 and data[before] in b" \t\r\n":
            before -= 1
        if before < 0 or data[before] == ord("}"):
            return True
        at = data.find(b"null", at + 4)
    return False
