"""`.json` files: lines of objects, an array of them, or objects that span lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.fetch import open_stream
from lance_prep.fetch.values import iter_values
from lance_prep.ledger import Rejected
from lance_prep.source.chunk import Chunk, PartJob
from lance_prep.source.jsonl import read_jsonl
from lance_prep.source.records import Planned, surrogate

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
    planned = Planned(job.plan)
    waiting: list[Any] = []
    first = 0
    with opened as stream:
        for number, value in iter_values(stream, file.url):
            waiting.append(value)
            if len(waiting) == _ROWS:
                yield _chunk(job, planned, waiting, first)
                waiting, first = [], number + 1
    if waiting:
        yield _chunk(job, planned, waiting, first)


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


def _chunk(job: PartJob, planned: Planned, values: list[Any], first: int) -> Chunk:
    schema = job.plan.read_schema
    good: list[int] = []
    records: list[dict[str, Any]] = []
    rejects: list[tuple[int, Rejected]] = []
    for at, value in enumerate(values):
        record = (planned.with_texts(value) or value) if isinstance(value, dict) else {}
        reason = "not a JSON object" if not isinstance(value, dict) else planned.lost(value) or _reason(record, schema)
        if reason is None:
            good.append(at)
            records.append(record)
        else:
            rejects.append((job.first + first + at, job.rejected(first + at, "row", reason, _bytes(value))))
    columns = pa.RecordBatch.from_pylist(records, schema)
    at_rows = np.array(good, np.int64) + first
    end = job.first + first + len(values)
    return Chunk(columns, (at_rows + job.first).astype(np.uint64), at_rows, "row", end, rejects)


def _bytes(value: Any) -> bytes:
    """A value for the quarantine: as it was in the file, if it was no UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _reason(record: dict[str, Any], schema: pa.Schema) -> str | None:
    """Why a record cannot be a row; None where it can."""
    for field in schema:
        value = record.get(field.name)
        try:
            pa.array([value], field.type)
        except UnicodeEncodeError:
            return surrogate(value) or "invalid UTF-8"
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return f"column {field.name} is not {field.type}"
    return None
