"""Text files: a row is a file, a paragraph or a line, as `Recipe.text_unit` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.fetch import open_stream
from lance_prep.formats.base import Chunk, PartJob
from lance_prep.formats.lines import line_blocks, split_lines

_BOM = b"\xef\xbb\xbf"
# Read at a time behind the end of a range, for the rest of its last paragraph.
_BEYOND = 1 << 20
_VISIBLE = np.ones(256, bool)
_VISIBLE[list(b" \t\n\r\f\v")] = False

Offsets = npt.NDArray[np.int64]


def read_text(job: PartJob) -> Iterator[Chunk]:
    """Read a text file into the column `text`. See `Chunk`."""
    unit = job.plan.recipe.text_unit
    return _file(job) if unit == "file" else _paragraphs(job) if unit == "paragraph" else _lines(job)


def _lines(job: PartJob) -> Iterator[Chunk]:
    r"""Read lines, without their ends (`\n` or `\r\n`)."""
    first = job.first
    for offset, block in line_blocks(job):
        lines, starts = split_lines(block)
        yield _chunk(lines, starts + offset, first)
        first += len(lines)


def _file(job: PartJob) -> Iterator[Chunk]:
    """Read the whole file as one row, as it is."""
    file = job.file
    opened = open_stream(file, job.transport)
    with opened as stream:
        text = stream.read().removeprefix(_BOM)
    yield _chunk(_strings([len(text)], text), np.zeros(1, np.int64), job.first)


def _paragraphs(job: PartJob) -> Iterator[Chunk]:
    """Read paragraphs: runs of lines between blank ones, with their inner line ends.

    A paragraph belongs to the part in which the blank line right before it begins, the first one to the part at byte 0.
    So each part finds its own paragraphs without a look at the bytes before it.
    """
    first = job.first
    open_lines: list[bytes] = []  # of a paragraph that may go on
    open_at = 0
    ours = job.part.start == 0  # False until the first blank line
    for offset, block in line_blocks(job):
        starts, blank = _blank_lines(block)
        begins, ends = _runs(starts, blank, len(block))
        if not blank[0] and (open_lines or not ours):  # it goes on with the paragraph before
            if ours:
                open_lines.append(block[: ends[0]])
            begins, ends = begins[1:], ends[1:]
        ours = ours or bool(blank.any())
        if open_lines and blank.any():
            yield _joined(open_lines, open_at, first)
            open_lines, first = [], first + 1
        if len(begins) and not blank[-1]:  # the last one may go on in the next block
            open_lines, open_at = [block[begins[-1] :]], offset + int(begins[-1])
            begins, ends = begins[:-1], ends[:-1]
        if len(begins):
            yield _chunk(_cut_out(block, begins, ends), begins + offset, first)
            first += len(begins)
    if ours and job.part.stop:
        for offset, block in _rest(job):
            open_at = open_at if open_lines else offset
            open_lines.append(block)
    if open_lines:
        yield _joined(open_lines, open_at, first)


def _rest(job: PartJob) -> Iterator[tuple[int, bytes]]:
    """Read the lines behind the part, up to the first blank one."""
    for at in range(job.part.stop, job.file.size, _BEYOND):
        part = replace(job.part, start=at, stop=min(at + _BEYOND, job.file.size))
        for offset, block in line_blocks(replace(job, part=part)):
            starts, blank = _blank_lines(block)
            if blank.any():
                if end := int(starts[np.argmax(blank)]):
                    yield offset, block[:end]
                return
            yield offset, block


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


def _joined(lines: list[bytes], at: int, first: int) -> Chunk:
    text = b"".join(lines).removesuffix(b"\n").removesuffix(b"\r")
    return _chunk(_strings([len(text)], text), np.array([at]), first)


def _strings(lengths: npt.ArrayLike, data: bytes | pa.Buffer) -> pa.Array:
    """Return texts, not checked to be UTF-8, that lie one after the other in `data`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _chunk(texts: pa.Array, positions: Offsets, first: int) -> Chunk:
    rows = np.arange(first, first + len(texts), dtype=np.uint64)
    return Chunk(pa.RecordBatch.from_arrays([texts], ["text"]), rows, positions, "byte", first + len(texts))
