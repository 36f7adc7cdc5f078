"""Text files: a row is a file, a paragraph or a line, as `Recipe.text_unit` says. And lines, for the line formats."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.fetch import open_stream
from lance_prep.formats.base import DATA_BYTES, Chunk, CutJob, Format, PartJob, Piece, even_ranges, require_utf8
from lance_prep.layouts import LAYOUTS
from lance_prep.model import Part, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

#: Bytes read at a time: large enough that the work per block does not matter, small enough that the first rows come
#: soon.
BLOCK_BYTES = 4 << 20
BOM = b"\xef\xbb\xbf"
# A larger text file is more likely a dump of many documents than one, so the user has to say what its rows are.
_FILE_ROW_BYTES = 64 << 20
_TEXT_COMPRESSES = 4
# Bytes read at a time past the end of a range, for the rest of its last paragraph.
_BEYOND = 1 << 20
_VISIBLE = np.ones(256, bool)
_VISIBLE[list(b" \t\n\r\f\v")] = False

Offsets = npt.NDArray[np.int64]


class Text(Format):
    """Text files, in UTF-8. The only column is `text`."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        """Return what a row is. Raise UsageError if that is not said, and a file is too large to be a row."""
        if recipe.text_unit is not None:
            return {"text_unit": recipe.text_unit}
        if LAYOUTS[recipe.layout].by_line:
            return {"text_unit": "line"}
        for file in files:
            most = _FILE_ROW_BYTES // (_TEXT_COMPRESSES if file.compression else 1)
            if file.size > most:
                size, limit = file.size >> 20, most >> 20
                said = f"{file.url} has {size:,} MiB, which is more than a row is by default ({limit} MiB)"
                raise UsageError(said, "choose text_unit: file (one row), paragraph (split at blank lines) or line")
        return {"text_unit": "file"}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema of one text column."""
        return pa.schema([("text", pa.string())])

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield ranges of bytes, or the file if it is one row."""
        if job.recipe.text_unit == "file":
            yield Piece(job.file.size, job.file.size, rows=1)
        else:
            yield from line_pieces(job)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a range of bytes."""
        return None if job.recipe.text_unit == "file" else sample_lines(job, part, place)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield lines, paragraphs, or the file."""
        unit = job.recipe.text_unit
        return _file(job) if unit == "file" else _paragraphs(job) if unit == "paragraph" else _lines(job)


def line_pieces(job: CutJob) -> Iterator[Piece]:
    """Yield ranges of bytes, each of at least `job.least`. A compressed file has only one."""
    size = job.file.size
    if job.file.compression is not None or size <= job.least:
        yield Piece(size, size)
        return
    for start, stop in even_ranges(size, -(-size // job.least)):
        yield Piece(stop - start, stop - start, start, stop)


def sample_lines(job: CutJob, part: Part, place: float) -> Piece | None:
    """Return a range of `job.least` bytes within a part; None for a compressed file."""
    if job.file.compression is not None:
        return None
    stop = part.stop or job.file.size
    start = part.start + int(place * max(0, stop - part.start - job.least))
    stop = min(stop, start + job.least)
    return Piece(stop - start, stop - start, start, stop)


def line_blocks(job: PartJob) -> Generator[tuple[int, bytes, int], None, None]:
    """Yield the part's lines, some MiB at a time.

    A line belongs to the part that contains its first byte. A line longer than a block is in a block of its own. Of a
    line longer than `job.longest_line`, only the beginning is held.

    Yields:
        Offset of the first byte in the decompressed file, the bytes, and their number: the whole length of a line of
        which only the beginning is yielded, in a block of its own.
    """
    file, part, most = job.file, job.part, job.longest_line
    start, stop = part.start, part.stop or None
    # From the byte before: if it ends a line, the part begins with a line of its own.
    opened = open_stream(file, job.transport, start=max(0, start - 1), stop=stop)
    with opened as stream:
        at, skip = max(0, start - 1), start > 0
        waiting: list[bytes] = []  # the beginning of a line
        held = 0  # its length
        while data := stream.read(BLOCK_BYTES):
            if skip:
                first = data.find(b"\n") + 1
                at += first or len(data)
                if not first:
                    continue
                data, skip = data[first:], False
            elif at == 0 and not waiting:
                require_utf8(data, file)
                if data.startswith(BOM):
                    data, at = data[len(BOM) :], len(BOM)
            if stop is not None and at >= stop:
                return
            first = data.find(b"\n") + 1
            if held + (first or len(data)) > most:
                waiting = [b"".join([*waiting[:2], data[:DATA_BYTES]])[:DATA_BYTES]]
                held += first or len(data)
                if not first:
                    continue
                yield at, waiting[0], held
                at, data, waiting, held = at + held, data[first:], [], 0
                if stop is not None and at >= stop:
                    return
            last = data.rfind(b"\n") + 1
            if not last:
                waiting.append(data)
                held += len(data)
                continue
            block = b"".join([*waiting, data[:last]])
            if stop is not None and at + len(block) > stop:
                block = block[: block.find(b"\n", stop - 1 - at) + 1]
                yield at, block, len(block)
                return
            yield at, block, len(block)
            at += len(block)
            waiting = [data[last:]]
            held = len(waiting[0])
        if held and not (stop is not None and at >= stop):
            yield at, b"".join(waiting), held


def split_lines(block: bytes) -> tuple[pa.Array, Offsets]:
    """Return lines as `large_string`, not checked to be UTF-8, and int64 `[lines]`: where each begins in the block."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    keep = np.ones(len(data), bool)
    keep[ends] = False
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    returns = (ends > starts) & (data[ends - 1] == ord("\r"))
    keep[ends[returns] - 1] = False
    offsets = np.concatenate([[0], np.cumsum(ends - starts - returns)]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[keep])]
    return pa.Array.from_buffers(pa.large_string(), len(starts), buffers, 0), starts


def _lines(job: PartJob) -> Iterator[Chunk]:
    r"""Read lines, without their ends (`\n` or `\r\n`)."""
    first = job.first
    for offset, block, size in line_blocks(job):
        if size > len(block):
            yield job.too_long("line", offset, first, block, size)
            first += 1
            continue
        lines, starts = split_lines(block)
        yield _chunk(lines, starts + offset, first)
        first += len(lines)


def _file(job: PartJob) -> Iterator[Chunk]:
    """Read the whole file as one row, as it is."""
    most = job.recipe.max_text_bytes
    with open_stream(job.file, job.transport) as stream:
        text = stream.read(most + len(BOM) + 1)
    require_utf8(text, job.file)
    text = text.removeprefix(BOM)
    if len(text) > most:
        yield job.too_long("text", 0, job.first, text, max(len(text), job.file.size))
        return
    yield _chunk(_strings([len(text)], text), np.zeros(1, np.int64), job.first)


def _paragraphs(job: PartJob) -> Iterator[Chunk]:
    """Read paragraphs: runs of lines between blank ones, with their inner line ends.

    A paragraph belongs to the part in which the blank line right before it begins, the first one to the part at byte 0.
    So each part finds its own paragraphs without a look at the bytes before it.
    """
    first = job.first
    paragraph: _Paragraph | None = None  # it may go on
    ours = job.part.start == 0  # False until the first blank line
    for offset, block, size in line_blocks(job):
        starts, blank = _blank_lines(block)
        beyond = size - len(block)
        if beyond:  # the beginning of a line that is too long
            starts, blank = starts[:1], np.zeros(1, bool)
        begins, ends = _runs(starts, blank, len(block))
        if not blank[0] and (paragraph or not ours):  # it goes on with the paragraph before
            if paragraph:
                paragraph.add(block[: ends[0]], beyond)
            begins, ends = begins[1:], ends[1:]
        ours = ours or bool(blank.any())
        if paragraph and blank.any():
            yield paragraph.chunk(first)
            paragraph, first = None, first + 1
        if len(begins) and not blank[-1]:  # the last one may go on in the next block
            paragraph = _Paragraph(job, offset + int(begins[-1]))
            paragraph.add(block[begins[-1] :], beyond)
            begins, ends = begins[:-1], ends[:-1]
        if len(begins):
            yield _chunk(_cut_out(block, begins, ends), begins + offset, first)
            first += len(begins)
    if ours and job.part.stop:
        for offset, block, beyond in _rest(job):
            paragraph = paragraph or _Paragraph(job, offset)
            paragraph.add(block, beyond)
    if paragraph:
        yield paragraph.chunk(first)


class _Paragraph:
    """A paragraph that may go on. Of one that is too long, only the beginning is held."""

    def __init__(self, job: PartJob, at: int) -> None:
        self._job, self._at = job, at
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, lines: bytes, beyond: int) -> None:
        """Add lines, of which `beyond` more bytes were not held."""
        self._size += len(lines) + beyond
        if self._size > self._job.recipe.max_text_bytes + len(b"\r\n"):
            head = b"".join(self._lines[:1]) or lines
            self._lines, lines = [head[:DATA_BYTES]], b""
        self._lines.append(lines)

    def chunk(self, first: int) -> Chunk:
        """Return it as row `first` of the shard."""
        text = b"".join(self._lines)
        if len(text) < self._size:
            return self._job.too_long("text", self._at, first, text, self._size)
        text = text.removesuffix(b"\n").removesuffix(b"\r")
        return _chunk(_strings([len(text)], text), np.array([self._at]), first)


def _rest(job: PartJob) -> Iterator[tuple[int, bytes, int]]:
    """Read the lines after the part, up to the first blank one: offset, bytes, and number of bytes not held."""
    for at in range(job.part.stop, job.file.size, _BEYOND):
        part = replace(job.part, start=at, stop=min(at + _BEYOND, job.file.size))
        for offset, block, size in line_blocks(replace(job, part=part)):
            starts, blank = _blank_lines(block)
            if size == len(block) and blank.any():
                if end := int(starts[np.argmax(blank)]):
                    yield offset, block[:end], 0
                return
            yield offset, block, size - len(block)


def _blank_lines(block: bytes) -> tuple[Offsets, npt.NDArray[np.bool_]]:
    """Return where the lines of a block begin, and which of them hold white space only."""
    data = np.frombuffer(block, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
    if starts[-1] == len(data):
        starts = starts[:-1]
    visible = np.add.reduceat(_VISIBLE[data], starts, dtype=np.int64)
    return starts, visible == 0


def _runs(starts: Offsets, blank: npt.NDArray[np.bool_], size: int) -> tuple[Offsets, Offsets]:
    """Return where the runs of lines that are not blank begin and end."""
    stops = np.append(starts[1:], size)
    before, after = np.append(True, blank[:-1]), np.append(blank[1:], True)
    return starts[~blank & before], stops[~blank & after]


def _cut_out(block: bytes, begins: Offsets, ends: Offsets) -> pa.Array:
    """Return pieces of a block, each without the line end at its end."""
    data = np.frombuffer(block, np.uint8)
    ends = ends - (data[ends - 1] == ord("\n"))
    ends = ends - (data[ends - 1] == ord("\r"))
    change = np.zeros(len(data) + 1, np.int8)
    change[begins] += 1
    change[ends] -= 1
    return _strings(ends - begins, pa.py_buffer(data[np.cumsum(change[:-1], dtype=np.int8).astype(bool)]))


def _strings(lengths: npt.ArrayLike, data: bytes | pa.Buffer) -> pa.Array:
    """Return the texts in `data`, one after the other, not checked to be UTF-8."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _chunk(texts: pa.Array, positions: Offsets, first: int) -> Chunk:
    rows = np.arange(first, first + len(texts), dtype=np.uint64)
    return Chunk(pa.RecordBatch.from_arrays([texts], ["text"]), rows, positions, "byte", first + len(texts))
