"""Line formats: blocks of whole lines, and their lines."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pyarrow as pa

from lance_prep.fetch import open_stream
from lance_prep.formats.base import PartJob

# Large enough that the work for each block is nothing, small enough that the first rows come soon.
BLOCK_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


def line_blocks(job: PartJob) -> Generator[tuple[int, bytes], None, None]:
    """Whole lines of the part, some MiB at a time: offset of the first byte in the (decompressed) file, and the bytes.

    A line belongs to the part that its first byte lies in. A line longer than a block makes a block of its own; its
    pieces are joined once.
    """
    file, part = job.file, job.part
    start, stop = part.start, part.stop or None
    # From the byte before: if it ends a line, the part begins with a line of its own.
    opened = open_stream(file, job.transport, start=max(0, start - 1), stop=stop)
    with opened as stream:
        at, skip = max(0, start - 1), start > 0
        waiting: list[bytes] = []
        while data := stream.read(BLOCK_BYTES):
            if skip:
                first = data.find(b"\n") + 1
                at += first or len(data)
                if not first:
                    continue
                data, skip = data[first:], False
            elif at == 0 and not waiting and data.startswith(_BOM):
                data, at = data[len(_BOM) :], len(_BOM)
            if stop is not None and at >= stop:
                return
            last = data.rfind(b"\n") + 1
            if not last:
                waiting.append(data)
                continue
            block = b"".join([*waiting, data[:last]])
            if stop is not None and at + len(block) > stop:
                yield at, block[: block.find(b"\n", stop - 1 - at) + 1]
                return
            yield at, block
            at += len(block)
            waiting = [data[last:]]
        rest = b"".join(waiting)
        if rest and not (stop is not None and at >= stop):
            yield at, rest


def split_lines(block: bytes) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Lines as `large_string` (not checked to be UTF-8), and int64 `[lines]`: where each begins in the block."""
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
