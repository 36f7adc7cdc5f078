"""JSON Lines: whole blocks through Arrow's parser; where it fails, ever smaller ones, down to the line that is bad."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lance_prep.ledger import Rejected
from lance_prep.source.chunk import Chunk, PartJob, empty_chunk
from lance_prep.source.lines import line_blocks
from lance_prep.source.text import is_utf8

# pyarrow.json (26.0.1) dies of a segmentation fault when a value between the objects is `null`. Text like this inside
# a string only costs a second look.
_DEADLY = re.compile(rb"(?:\A|\})\s*null")
# The parser's blocks and Arrow's strings count their bytes in 32 bits.
_LONGEST = 1 << 30

Line = tuple[int, bytes]


def read_jsonl(job: PartJob) -> Iterator[Chunk]:
    """The objects of the lines; blank lines are no rows, bad ones are rejected. See `Chunk`."""
    parser = _Parser(job)
    first = job.first
    for offset, block in line_blocks(job):
        for chunk in parser.read(offset, block, first):
            first = chunk.end
            yield chunk


class _Parser:
    def __init__(self, job: PartJob) -> None:
        self._job = job
        self._schema = job.plan.read_schema

    def read(self, offset: int, block: bytes, first: int) -> Iterator[Chunk]:
        batch = self._parse(block, self._schema)
        if batch is not None and len(batch) == block.count(b"\n") + (not block.endswith(b"\n")):
            # Positions are of use for rejected rows alone, and what is rejected later is no line of this block.
            rows = np.arange(first, first + len(batch), dtype=np.uint64)
            positions = np.full(len(batch), offset, np.int64)
            yield Chunk(batch, rows, positions, "byte", first + len(batch))
            return
        yield from self._lines(_lines_of(offset, block), first)

    def _lines(self, lines: list[Line], first: int) -> Iterator[Chunk]:
        """The same for lines that cannot go through as a block, in their order."""
        waiting = [lines]
        while waiting:
            some = waiting.pop()
            if not some:
                continue
            batch = self._parse(b"\n".join(line for _, line in some), self._schema)
            end = first + len(some)
            if batch is not None and len(batch) == len(some):
                rows = np.arange(first, end, dtype=np.uint64)
                yield Chunk(batch, rows, np.array([at for at, _ in some], np.int64), "byte", end)
                first = end
            elif len(some) == 1:
                yield empty_chunk(self._schema, end, [(first, self._rejected(*some[0]))])
                first = end
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]

    def _parse(self, data: bytes, schema: pa.Schema) -> pa.RecordBatch | None:
        """The objects in some lines, or None where one of them is bad."""
        import pyarrow.json as pj

        if len(data) > _LONGEST or (_DEADLY.search(data) and not _all_objects(data)) or not is_utf8(data):
            return None
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
        try:
            table = pj.read_json(pa.BufferReader(data), read, parse)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        batches = table.select(schema.names).combine_chunks().to_batches()
        return batches[0] if batches else None

    def _rejected(self, offset: int, line: bytes) -> Rejected:
        return self._job.rejected(offset, "byte", self._reason(line), line)

    def _reason(self, line: bytes) -> str:
        if len(line) > _LONGEST:
            return "line over 1 GiB"
        if not is_utf8(line):
            return "invalid UTF-8"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return "invalid JSON"
        if not isinstance(record, dict):
            return "not a JSON object"
        for field in self._schema:
            if self._parse(line, pa.schema([field])) is None:
                return f"column {field.name} is not {field.type}"
        return "invalid JSON"


def _lines_of(offset: int, block: bytes) -> list[Line]:
    lines = []
    for line in block.split(b"\n"):
        if line.strip():
            lines.append((offset, line))
        offset += len(line) + 1
    return lines


def _all_objects(data: bytes) -> bool:
    """True where each line is one JSON object, by Python's parser, which is slow and safe."""
    try:
        return all(isinstance(json.loads(line), dict) for line in data.split(b"\n") if line.strip())
    except (ValueError, RecursionError):
        return False
