"""Files read from front to back: a byte range, decompressed on the way."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lance_prep.fetch.prefetch import Prefetch, RangeFile, cut
from lance_prep.fetch.ranges import is_local, open_ranges
from lance_prep.fetch.retry import Retries

# Compressed pieces are small, so that the first rows come soon; 4 MiB keeps a request's overhead below 5% at 50 MB/s.
PIECE_BYTES = 4 << 20


@contextmanager
def open_stream(
    url: str,
    size: int,
    *,
    compression: str | None = None,
    start: int = 0,
    stop: int | None = None,
    options: Mapping[str, str] | None = None,
    retries: Retries | None = None,
    identity: str = "",
    ahead: bool = True,
) -> Iterator[BinaryIO]:
    """A file as a binary stream.

    Args:
        url, size, identity: as in `SourceFile`.
        start, stop: byte range of the stored file, for uncompressed files; `read` goes no further than `stop`.
        ahead: fetch what comes next while the caller works; False for a look at the beginning.
    """
    if is_local(url):
        with Path(url).open("rb") as file:
            file.seek(start)
            yield _decompress(file, compression)
        return
    end = size if stop is None else min(size, stop)
    ranges = open_ranges(url, size, options, retries or Retries(), identity=identity)
    with Prefetch(ranges, cut(start, end, PIECE_BYTES) if ahead else []) as prefetch:
        raw = RangeFile(prefetch, start, size)
        yield _decompress(cast(BinaryIO, io.BufferedReader(raw, 256 << 10)), compression)


def _decompress(file: BinaryIO, compression: str | None) -> BinaryIO:
    if compression is None:
        return file
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if compression == "bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if compression == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    return cast(BinaryIO, io.BufferedReader(_ZstdFile(file), 1 << 20))


class _ZstdFile(io.RawIOBase):
    """Zstandard frames, one after the other. `zstandard`'s own reader takes a file cut short for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._out:
            data = self._file.read(256 << 10)
            if not data:
                if self._frame is not None:
                    raise EOFError("the zstd data ends in the middle of a frame")
                return 0
            out = []
            while data:
                self._frame = self._frame or self._new()
                out.append(self._frame.decompress(data))
                data = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
            self._out = memoryview(b"".join(out))
        size = min(len(view), len(self._out))
        view[:size] = self._out[:size]
        self._out = self._out[size:]
        return size
