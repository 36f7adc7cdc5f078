"""Parquet footers, by exact ranges."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from lance_prep.errors import BadFile, translating
from lance_prep.fetch.ranges import Ranges, open_ranges
from lance_prep.model import SourceFile
from lance_prep.transport import Transport, is_local

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_ADVICE = "get the file again, or leave it out; its extension must say what it is"
# Footers of files with a few dozen columns and row groups take 10 to 60 KB: one request each.
TAIL_BYTES = 64 << 10

# Footers by pinned content: the plan reads them all, and each shard of a file needs its footer again. Bounded, and
# only a memory: nothing depends on what is in it. What came before the footer in its request is kept with it, so that
# no byte is fetched a second time; of small files, that is all there is to fetch.
_KEPT = 64
_cache: OrderedDict[tuple[str, str], tuple[pq.FileMetaData, bytes, int]] = OrderedDict()
_lock = threading.Lock()


class _WithTail:
    """Ranges of a file of whose end a part is at hand: `tail`, from byte `at` on."""

    def __init__(self, ranges: Ranges, tail: bytes, at: int) -> None:
        self.size = ranges.size
        self._ranges, self._tail, self._at = ranges, tail, at

    def fetch(self, start: int, stop: int) -> bytes:
        end = self._at + len(self._tail)
        if stop > end or stop <= self._at:
            return self._ranges.fetch(start, stop)
        known = self._tail[max(0, start - self._at) : stop - self._at]
        return known if start >= self._at else self._ranges.fetch(start, self._at) + known


def with_tail(ranges: Ranges, file: SourceFile) -> Ranges:
    """The same ranges, without a request for what was fetched along with the footer."""
    with _lock:
        kept = _cache.get((file.url, file.identity))
    return _WithTail(ranges, kept[1], kept[2]) if kept and kept[1] else ranges


def read_footer(file: SourceFile, transport: Transport) -> pq.FileMetaData:
    """Return the metadata of a Parquet file.

    Raises:
        BadFile: it is cut short or no Parquet file.
        HubUnreachable, AccessDenied, SourceNotFound: it cannot be read.
    """
    key = (file.url, file.identity)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key][0]
    with translating(f"reading {file.url}"):
        kept = _read(file, transport)
    with _lock:
        _cache[key] = kept
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return kept[0]


def _read(file: SourceFile, transport: Transport) -> tuple[pq.FileMetaData, bytes, int]:
    """The footer, the bytes before it that came along, and where they begin."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    url, size = file.url, file.size
    if size < 12:
        raise BadFile(f"{url}: {size} bytes, which is too short for a Parquet file", _ADVICE)
    if is_local(url):
        return pq.read_metadata(url), b"", size
    ranges = open_ranges(file, transport)
    tail = ranges.fetch(max(0, size - TAIL_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise BadFile(f"{url}: no Parquet footer at its end: cut short, or no Parquet file", _ADVICE)
    if length > len(tail):
        tail = ranges.fetch(size - length, size - len(tail)) + tail
    # A file of nothing but the footer: metadata is read from the end alone.
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-length:]))
    return metadata, tail[:-length], size - len(tail)
