"""CSV: Arrow's streaming reader; rows with too many or too few fields are rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.fetch import open_stream
from lance_prep.formats.base import Chunk, PartJob, empty_chunk
from lance_prep.ledger import Rejected

# A row must fit into a block. The larger sizes are for files where one does not.
_BLOCKS = (8 << 20, 128 << 20, 1 << 30)


def read_csv(job: PartJob) -> Iterator[Chunk]:
    """The rows of a file, whose first line names the columns. See `Chunk`."""
    done = 0
    for block in _BLOCKS:
        try:
            for chunk in _read(job, block, done):
                done = chunk.end - job.first
                yield chunk
            return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block == _BLOCKS[-1]:
                raise


def _read(job: PartJob, block: int, done: int) -> Iterator[Chunk]:
    """The rows from `done` on, a block at a time."""
    import pyarrow.csv as pc

    file, schema = job.file, job.plan.read_schema
    bad: list[Any] = []

    def on_bad(row: Any) -> str:
        bad.append(row)
        return "skip"

    delimiter = job.plan.recipe.delimiter
    assert delimiter is not None, "the plan of a CSV source names the delimiter"
    parse = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_bad)
    types = {field.name: field.type for field in schema}
    convert = pc.ConvertOptions(check_utf8=False, include_columns=schema.names, column_types=types)
    read = pc.ReadOptions(use_threads=False, block_size=block)
    opened = open_stream(file, job.transport)
    with opened as stream:
        if file.size == 0:
            return
        reader = pc.open_csv(pa.PythonFile(stream, mode="r"), read, parse, convert)
        at = 0
        for batch in reader:
            chunk = _chunk(job, batch, bad, at)
            at = chunk.end - job.first
            if at > done:
                yield _from(chunk, job.first + done)
        if bad:
            yield _from(_chunk(job, None, bad, at), job.first + done)


def _chunk(job: PartJob, batch: pa.RecordBatch | None, bad: list[Any], at: int) -> Chunk:
    """Rows of the file from number `at` on: good ones from `batch`, and bad ones (taken out of `bad`) among them."""
    good = len(batch) if batch is not None else 0
    taken = 0
    numbers = [row.number - 2 for row in bad]  # the reader counts from 1, the header included
    while taken < len(numbers) and (batch is None or numbers[taken] < at + good + taken):
        taken += 1
    rejects: list[tuple[int, Rejected]] = []
    for number, row in zip(numbers[:taken], bad[:taken], strict=True):
        reason = "too many fields" if row.actual_columns > row.expected_columns else "too few fields"
        rejects.append((job.first + number, job.rejected(number, "row", reason, row.text.encode())))
    rows = np.setdiff1d(np.arange(at, at + good + taken), numbers[:taken])
    del bad[:taken]
    end = job.first + at + good + taken
    if batch is None:
        return empty_chunk(job.plan.read_schema, end, rejects)
    return Chunk(batch, (rows + job.first).astype(np.uint64), rows, "row", end, rejects)


def _from(chunk: Chunk, first: int) -> Chunk:
    """The chunk without rows before `first`, which were delivered before the file was opened again."""
    keep = chunk.rows >= first
    if keep.all() and all(row >= first for row, _ in chunk.rejects):
        return chunk
    columns = chunk.columns.filter(pa.array(keep))
    rejects = [(row, rejected) for row, rejected in chunk.rejects if row >= first]
    return Chunk(columns, chunk.rows[keep], chunk.positions[keep], chunk.unit, chunk.end, rejects)
