"""`.json` files: lines of records, arrays of them, or records that span lines."""

from __future__ import annotations

from collections.abc import Iterator

from lance_prep.fetch import open_stream
from lance_prep.formats.base import Chunk, PartJob
from lance_prep.formats.jsonl import RecordReader, Records, read_jsonl
from lance_prep.formats.values import holds_lines, iter_values

_CHUNK_BYTES = 1 << 20


def read_json(job: PartJob) -> Iterator[Chunk]:
    """Yield the records of a `.json` file. See `Chunk`."""
    file = job.file
    with open_stream(file, job.transport, ahead=False) as stream:
        lines = holds_lines(stream)
    if lines:
        yield from read_jsonl(job)
        return
    opened = open_stream(file, job.transport)
    reader = RecordReader(job, "row")
    waiting: list[bytes] = []
    held = first = 0
    with opened as stream:
        for number, value in iter_values(stream, file.url):
            waiting.append(value)
            held += len(value)
            if held >= _CHUNK_BYTES:
                yield reader.read(Records.of(waiting, first), job.first + first)
                waiting, held, first = [], 0, number + 1
    if waiting:
        yield reader.read(Records.of(waiting, first), job.first + first)
