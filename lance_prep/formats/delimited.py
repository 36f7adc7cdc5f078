"""CSV: Arrow's streaming reader. Rows with too many or too few fields are rejected.

A quote that is never closed makes one row of the rest of the file. To notice that, a row of our own follows the file's
last one: if the reader does not see it, the file ends inside quotes.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from lance_prep.errors import BadFile, UsageError, translating
from lance_prep.fetch import open_stream
from lance_prep.formats.base import LONGEST_LINE, Chunk, Format, PartJob, empty_chunk, require_utf8
from lance_prep.ledger import Rejected
from lance_prep.model import SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_BYTES = 1 << 20
_HEADER_BYTES = 64 << 10
_THREADS = 16
# A row must fit into a block. The larger sizes are for files where one does not.
_BLOCKS = (8 << 20, 128 << 20)
_LARGEST_BLOCK = 1 << 30
# A file with more is refused: describing 100,000 columns took 980 MiB.
_MOST_COLUMNS = 50_000
# Fields of the row that marks the end of a file.
_END_FIELDS = 99_991


class Delimited(Format):
    """CSV files, in UTF-8. The first line names the columns."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return the delimiter that is given, or else the one that the files' headers have."""
        if recipe.delimiter is not None:
            return {"delimiter": recipe.delimiter}
        filled = [file for file in files if file.size]
        with ThreadPoolExecutor(min(len(filled), _THREADS) or 1) as pool:
            found = list(pool.map(lambda file: _find_delimiter(file, transport), filled))
        # A header of one column has none, so it fits any delimiter.
        known: dict[str, str] = {}
        for file, (delimiter, count) in zip(filled, found, strict=True):
            if count:
                known.setdefault(delimiter, file.url)
        if len(known) > 1:
            said = " and ".join(f"{delimiter!r} in {url}" for delimiter, url in known.items())
            raise UsageError(f"CSV files with different delimiters: {said}", "build each kind by itself")
        return {"delimiter": next(iter(known), found[0][0] if found else None)}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the columns of the first file, with types by its first MiB.

        The text column is text whatever its first rows look like.
        """
        import pyarrow.csv as pc

        with open_stream(files[0], transport, ahead=False) as stream:
            sample = stream.read(_SAMPLE_BYTES)
            if len(sample) == _SAMPLE_BYTES:  # end at a line, so that the sample's last row is whole
                sample = sample[: sample.rfind(b"\n") + 1] or sample + stream.readline(LONGEST_LINE)
        if not sample.strip():
            return pa.schema([])
        count = _fields(_header(sample), recipe.delimiter or ",")
        if count > _MOST_COLUMNS:
            said = f"{files[0].url} has {count:,} columns, and at most {_MOST_COLUMNS:,} are read"
            raise BadFile(said, "remove columns, or check the delimiter")
        parse = pc.ParseOptions(
            delimiter=recipe.delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        )
        read = pc.ReadOptions(use_threads=False, block_size=len(sample) + 1)
        found = pc.read_csv(pa.BufferReader(sample), read, parse, pc.ConvertOptions(check_utf8=False)).schema
        text = pa.field(recipe.text_column or "text", pa.string())
        return pa.schema([text if field.name == text.name else field for field in found])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows of a file."""
        done = 0
        largest = min(job.longest_line, _LARGEST_BLOCK)
        for block in (*_BLOCKS, largest):
            try:
                for chunk in _read(job, block, done):
                    done = chunk.end - job.first
                    yield chunk
                return
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error):
                    raise
                if block == largest:
                    raise _not_closed(job, done + 1, f"within {block >> 20:,} MiB") from error


def _find_delimiter(file: SourceFile, transport: Transport) -> tuple[str, int]:
    """Return the delimiter of a CSV file, and how often its header has it.

    Of comma, semicolon, tab and bar, it is the one that the header has most often. Quoted names do not count. Equal
    counts, such as none, give a comma, or a tab for `.tsv`.

    Raises:
        BadFile: the file is UTF-16.
    """
    with translating(f"reading {file.url}"), open_stream(file, transport, ahead=False) as stream:
        head = stream.read(_HEADER_BYTES)
    require_utf8(head, file)
    head = head.lstrip(b"\r\n")
    usual = "\t" if ".tsv" in file.url.lower().rsplit("/", 1)[-1] else ","
    header = _header(head)
    best = max((usual, *_DELIMITERS), key=lambda delimiter: _fields(header, delimiter))
    return best, _fields(header, best) - 1


def _fields(header: bytes, delimiter: str) -> int:
    """Return the number of fields in a header. Delimiters in quoted names do not count."""
    return re.sub(rb'"[^"]*"', b"", header).count(delimiter.encode()) + 1


def _header(head: bytes) -> bytes:
    """Return the header, which continues past a line end inside a quoted name."""
    at = -1
    while (at := head.find(b"\n", at + 1)) >= 0:
        if head.count(b'"', 0, at) % 2 == 0:
            return head[:at]
    return head


def _read(job: PartJob, block: int, done: int) -> Iterator[Chunk]:
    """Yield the rows from number `done`, a block at a time."""
    import pyarrow.csv as pc

    file, schema = job.file, job.read_schema
    bad: list[Any] = []

    def on_bad(row: Any) -> str:
        bad.append(row)
        return "skip"

    delimiter = job.recipe.delimiter
    assert delimiter is not None, "the plan of a CSV source names the delimiter"
    parse = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_bad)
    types = {field.name: field.type for field in schema}
    convert = pc.ConvertOptions(check_utf8=False, include_columns=schema.names, column_types=types)
    read = pc.ReadOptions(use_threads=False, block_size=block)
    end = delimiter * (_END_FIELDS - 1)
    with open_stream(file, job.transport) as stream, closing(_WithEnd(stream, end.encode())) as ended:
        if file.size == 0:
            return
        marked = io.BufferedReader(ended, 1 << 20)
        reader = pc.open_csv(pa.PythonFile(marked, mode="r"), read, parse, convert)
        at = 0
        for batch in reader:
            chunk = _chunk(job, batch, bad, at)
            at = chunk.end - job.first
            if at > done:
                yield _from(chunk, job.first + done)
        # What comes after a row that is cut by the end of the file is not seen either.
        rows = at + len(bad)
        if not bad or bad.pop().text != end:
            raise _not_closed(job, rows, "before the end of the file")
        if bad:
            yield _from(_chunk(job, None, bad, at), job.first + done)


class _WithEnd(io.RawIOBase):
    """A stream with a line of its own after its last line.

    Arrow reads ahead in a thread of its own, and goes on when its reader is left because of an error. If it reads while
    the interpreter ends, the process is aborted. So `close` waits for the read that it is in, and ends the stream.
    """

    def __init__(self, stream: BinaryIO, line: bytes) -> None:
        self._stream = stream
        self._line = line
        self._last = b"\n"
        self._reading = threading.Lock()
        self._over = False

    def close(self) -> None:
        self._over = True
        with self._reading:
            super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        with self._reading:
            return 0 if self._over else self._read(memoryview(buffer).cast("B"))  # type: ignore[arg-type]

    def _read(self, view: memoryview) -> int:
        if count := self._stream.readinto(view):  # type: ignore[attr-defined]
            self._last = bytes(view[count - 1 : count])
            return int(count)
        left = self._line if self._last in b"\r\n" else b"\n" + self._line
        count = min(len(view), len(left))
        view[:count], self._line, self._last = left[:count], left[count:], b"\n"
        return count


def _not_closed(job: PartJob, rows: int, where: str) -> BadFile:
    said = f"{job.file.url}: a quote in data row {rows:,} is not closed {where}, so the rest would be one row"
    return BadFile(said, "close the quote, or double it if it is part of the text")


def _chunk(job: PartJob, batch: pa.RecordBatch | None, bad: list[Any], at: int) -> Chunk:
    """Return the file's rows from number `at`: those of `batch`, and the bad ones among them, which leave `bad`."""
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
        return empty_chunk(job.read_schema, end, rejects)
    return Chunk(batch, (rows + job.first).astype(np.uint64), rows, "row", end, rejects)


def _from(chunk: Chunk, first: int) -> Chunk:
    """Return the chunk without rows before `first`, which were delivered before the file was opened again."""
    keep = chunk.rows >= first
    if keep.all() and all(row >= first for row, _ in chunk.rejects):
        return chunk
    columns = chunk.columns.filter(pa.array(keep))
    rejects = [(row, rejected) for row, rejected in chunk.rejects if row >= first]
    return Chunk(columns, chunk.rows[keep], chunk.positions[keep], chunk.unit, chunk.end, rejects)
