"""`.json` files: lines of objects, an array of them, or objects that span lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.files import open_stream
from lance_prep.files.values import iter_values
from lance_prep.ledger import Rejected
from lance_prep.source.chunk import Chunk, PartJob
from lance_prep.source.jsonl import read_jsonl

_ROWS = 1024


def read_json(job: PartJob) -> Iterator[Chunk]:
    """The records of a `.json` file. See `Chunk`."""
    if _is_lines(job):
        yield from read_jsonl(job)
        return
    file = job.file
    opened = open_stream(
        file.url,
        file.size,
        compression=file.compression,
        options=job.options,
        retries=job.retries,
        identity=file.identity,
    )
    waiting: list[Any] = []
    first = 0
    with opened as stream:
        for number, value in iter_values(stream, file.url):
            waiting.append(value)
            if len(waiting) == _ROWS:
                yield _chunk(job, waiting, first)
                waiting, first = [], number + 1
    if waiting:
        yield _chunk(job, waiting, first)


def _is_lines(job: PartJob) -> bool:
    """True where the first line is an object by itself."""
    file = job.file
    with open_stream(file.url, file.size, compression=file.compression, options=job.options, ahead=False) as stream:
        line = stream.readline().removeprefix(b"\xef\xbb\xbf")
        while line and not line.strip():
            line = stream.readline()
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _chunk(job: PartJob, values: list[Any], first: int) -> Chunk:
    schema = job.plan.read_schema
    good: list[int] = []
    rejects: list[tuple[int, Rejected]] = []
    for at, value in enumerate(values):
        reason = _reason(value, schema)
        if reason is None:
            good.append(at)
        else:
            data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
            rejects.append((job.first + first + at, job.rejected(first + at, "row", reason, data)))
    columns = pa.RecordBatch.from_pylist([values[at] for at in good], schema)
    at_rows = np.array(good, np.int64) + first
    end = job.first + first + len(values)
    return Chunk(columns, (at_rows + job.first).astype(np.uint64), at_rows, "row", end, rejects)


def _reason(value: Any, schema: pa.Schema) -> str | None:
    """Why a value cannot be a row; None where it can."""
    if not isinstance(value, dict):
        return "not a JSON object"
    for field in schema:
        try:
            pa.array([value.get(field.name)], field.type)
        except UnicodeEncodeError:
            return "invalid UTF-8"
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return f"column {field.name} is not {field.type}"
    return None
