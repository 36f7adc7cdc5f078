"""Byte ranges fetched ahead of the reader, each once, within a budget of memory."""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lance_prep.fetch.ranges import Ranges

RANGE_BYTES = 8 << 20
BUDGET_BYTES = 64 << 20
THREADS = 4

Range = tuple[int, int]


def split_range(start: int, stop: int, piece_bytes: int = RANGE_BYTES) -> list[Range]:
    """Return a range as pieces of at most `piece_bytes`."""
    return [(at, min(at + piece_bytes, stop)) for at in range(start, stop, piece_bytes)]


class Prefetch:
    """Fetches pieces in the given order ahead of the reader, and frees them once they are read.

    Args:
        ranges: where the bytes come from.
        pieces: disjoint half-open byte ranges, in the order in which they will be needed.
        budget: bytes fetched and not yet read, at most (one piece always fits).

    Bytes outside the pieces, and bytes that are read a second time, are fetched on demand. One thread reads. `close`,
    or the end of the `with` block, ends the threads.
    """

    def __init__(self, ranges: Ranges, pieces: Sequence[Range], *, budget: int = BUDGET_BYTES) -> None:
        self._ranges = ranges
        self._order = [piece for piece in pieces if piece[1] > piece[0]]
        self._sorted = sorted(self._order)
        self._starts = [start for start, _ in self._sorted]
        self._unread = {piece: piece[1] - piece[0] for piece in self._order}
        self._pending: dict[Range, Future[bytes]] = {}
        self._next = 0
        self._held = 0
        self._budget = budget
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lance-prep-fetch")
        self._lock = threading.Lock()
        self._fill()

    @property
    def size(self) -> int:
        return self._ranges.size

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`, once they are fetched."""
        parts = []
        while start < stop:
            piece, end = self._locate(start, stop)
            if piece is None:
                parts.append(self._ranges.fetch(start, end))
            else:
                parts.append(self._take(piece, start, end))
            start = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _locate(self, start: int, stop: int) -> tuple[Range | None, int]:
        """Return the unread piece that holds byte `start`, or None, and the end of the piece or of the gap."""
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and start < self._sorted[at][1]:
            piece = self._sorted[at]
            return (piece if piece in self._unread else None), min(stop, piece[1])
        following = self._starts[at + 1] if at + 1 < len(self._starts) else stop
        return None, min(stop, following)

    def _take(self, piece: Range, start: int, stop: int) -> bytes:
        with self._lock:
            future = self._pending.get(piece) or self._submit(piece)
        data = future.result()
        taken = data if (start, stop) == piece else data[start - piece[0] : stop - piece[0]]
        self._unread[piece] -= stop - start
        if self._unread[piece] <= 0:
            with self._lock:
                del self._unread[piece], self._pending[piece]
                self._held -= piece[1] - piece[0]
        self._fill()
        return taken

    def _submit(self, piece: Range) -> Future[bytes]:
        self._held += piece[1] - piece[0]
        future = self._pending[piece] = self._pool.submit(self._ranges.fetch, *piece)
        return future

    def _fill(self) -> None:
        with self._lock:
            while self._next < len(self._order):
                piece = self._order[self._next]
                if piece in self._unread and piece not in self._pending:
                    if self._held and self._held + piece[1] - piece[0] > self._budget:
                        return
                    self._submit(piece)
                self._next += 1

    def close(self) -> None:
        """End the threads, and abandon the requests in work."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RangeFile(io.RawIOBase):
    """A seekable file over a `Prefetch`, for pyarrow and the decompressors."""

    def __init__(self, prefetch: Prefetch, start: int = 0, stop: int | None = None) -> None:
        self._prefetch = prefetch
        self._at = start
        self._stop = prefetch.size if stop is None else stop

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stop}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._stop if size is None or size < 0 else min(self._stop, self._at + size)
        if stop <= self._at:
            return b""
        data = self._prefetch.read(self._at, stop)
        self._at = stop
        return data

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
