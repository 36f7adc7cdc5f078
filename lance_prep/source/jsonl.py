"""JSON Lines: whole blocks through Arrow's parser; where it fails, ever smaller ones, down to the line that is bad."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lance_prep.ledger import Rejected
from lance_prep.source.chunk import Chunk, PartJob, empty_chunk
from lance_prep.source.lines import line_blocks
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

    def read(self, offset: int, block: bytes, first: int) -> Chunk:
        batch = self._parse(block, self._schema)
        if batch is not None and len(batch) == block.count(b"\n") + (not block.endswith(b"\n")):
            # Positions are of use for rejected rows alone, and what is rejected later is no line of this block.
            rows = np.arange(first, first + len(batch), dtype=np.uint64)
            positions = np.full(len(batch), offset, np.int64)
            return Chunk(batch, rows, positions, "byte", first + len(batch))
        return self._sorted_out(_lines_of(offset, block), first)

    def _sorted_out(self, lines: list[Line], first: int) -> Chunk:
        """The same for lines of which some are bad: those that are no JSON object go, then ever smaller pieces."""
        rejects: list[tuple[int, Rejected]] = []
        good: list[tuple[int, Line]] = []
        for row, (offset, line) in enumerate(lines, first):
            reason = _not_an_object(line)
            if reason is None:
                good.append((row, (offset, line)))
            else:
                rejects.append((row, self._job.rejected(offset, "byte", reason, line)))
        batches: list[pa.RecordBatch] = []
        kept: list[tuple[int, Line]] = []
        waiting = [good]
        while waiting:
            some = waiting.pop()
            if not some:
                continue
            batch = self._parse(b"\n".join(line for _, (_, line) in some), self._schema, objects=True)
            if batch is not None and len(batch) == len(some):
                batches.append(batch)
                kept += some
            elif len(some) == 1:
                row, (offset, line) = some[0]
                rejects.append((row, self._job.rejected(offset, "byte", self._reason(line), line)))
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
        end = first + len(lines)
        if not batches:
            return empty_chunk(self._schema, end, rejects)
        rows = np.array([row for row, _ in kept], np.uint64)
        positions = np.array([offset for _, (offset, _) in kept], np.int64)
        return Chunk(pa.concat_batches(batches), rows, positions, "byte", end, rejects)

    def _parse(self, data: bytes, schema: pa.Schema, *, objects: bool = False) -> pa.RecordBatch | None:
        """The objects in some lines, or None where one of them is bad. `objects`: each line is known to be one."""
        import pyarrow.json as pj

        if len(data) > _LONGEST or not (objects or (is_utf8(data) and not _has_bare_null(data))):
            return None
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
        try:
            table = pj.read_json(pa.BufferReader(data), read, parse)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        batches = table.select(schema.names).combine_chunks().to_batches()
        return batches[0] if batches else None

    def _reason(self, line: bytes) -> str:
        """Why a line that holds an object is no row."""
        if len(line) > _LONGEST:
            return "line over 1 GiB"
        for field in self._schema:
            if self._parse(line, pa.schema([field]), objects=True) is None:
                return f"column {field.name} is not {field.type}"
        return "invalid JSON"


def _not_an_object(line: bytes) -> str | None:
    """Why a line holds no JSON object, by Python's parser, which is slow and safe; None where it does."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "invalid UTF-8"
    try:
        return None if isinstance(json.loads(text), dict) else "not a JSON object"
    except (ValueError, RecursionError):
        return "invalid JSON"


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
