"""Files read from front to back: a byte range, decompressed on the way."""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from lance_prep.errors import BadFile
from lance_prep.fetch.prefetch import Prefetch, RangeFile, split_range
from lance_prep.fetch.ranges import open_ranges
from lance_prep.model import SourceFile
from lance_prep.transport import Transport, is_local

# Compressed pieces are small, so that the first rows come soon; 4 MiB keeps a request's overhead below 5% at 50 MB/s.
PIECE_BYTES = 4 << 20


@contextmanager
def open_stream(
    file: SourceFile, transport: Transport, *, start: int = 0, stop: int | None = None, ahead: bool = True
) -> Iterator[BinaryIO]:
    """Open a file as a binary stream of its decompressed bytes.

    Args:
        start, stop: byte range of the stored file, for uncompressed files; `read` goes no further than `stop`.
        ahead: fetch what comes next while the caller works; False for a look at the beginning.
    """
    if is_local(file.url):
        with Path(file.url).open("rb") as raw:
            raw.seek(start)
            yield _decompress(raw, file)
        return
    end = file.size if stop is None else min(file.size, stop)
    pieces = split_range(start, end, PIECE_BYTES) if ahead and transport.meter is None else []
    with Prefetch(open_ranges(file, transport), pieces) as prefetch:
        ranges = RangeFile(prefetch, start, file.size)
        yield _decompress(cast(BinaryIO, io.BufferedReader(ranges, 256 << 10)), file)


def read_head(file: SourceFile, transport: Transport, size: int) -> tuple[bytes, int]:
    """Return the first decompressed bytes of a file, at most `size`, and the number of stored bytes that hold them."""
    with open_stream(replace(file, compression=None), transport, ahead=False) as raw:
        if file.compression is None:
            data = raw.read(size)
            return data, len(data)
        stream = _Decompressed(raw, file.compression, file.url)
        data = io.BufferedReader(stream, 1 << 16).read(size)
        return data, round(stream.stored * len(data) / max(stream.decoded, 1))


def _decompress(stream: BinaryIO, file: SourceFile) -> BinaryIO:
    if file.compression is None:
        return stream
    return cast(BinaryIO, io.BufferedReader(_Decompressed(stream, file.compression, file.url), 1 << 20))


def _decoder(compression: str) -> Any:
    """Return a decoder of one stream, with `decompress`, `eof` and `unused_data`.

    `decompress` takes the most bytes to return. The package zstandard has no decoder that does: of 192 KB of input it
    returned 2.3 GB at once.
    """
    if compression == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    if compression == "bz2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    # The program `zstd` refuses windows above 128 MiB by default. Archives made with `--long=28` to 31 have them.
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 31})


class _Decompressed(io.RawIOBase):
    """A file of compressed streams, one after the other, read to its end.

    Parallel compressors and `cat` write such files. `BZ2File` and `LZMAFile` ignore data after the first stream if
    they cannot read it, and zstandard's reader accepts a file that is cut short. Here both are errors. Zero bytes
    between and after streams are padding, which the formats or their tools allow.
    """

    _READ = 256 << 10

    def __init__(self, file: BinaryIO, compression: str, url: str) -> None:
        self._file = file
        self._compression = compression
        self._url = url
        self._decoder: Any = None
        self._waiting = b""  # read from the file, and not yet handed to a decoder
        self._out = memoryview(b"")
        self._streams = 0
        self._bytes = 0

    @property
    def stored(self) -> int:
        """Number of stored bytes that were decoded."""
        return self._file.tell() - len(self._waiting)

    @property
    def decoded(self) -> int:
        """Number of decompressed bytes that they gave."""
        return self._bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._out:
            if self._decoder is None and not self._next_stream():
                return 0
            self._out = memoryview(self._decode(len(view)))
            self._bytes += len(self._out)
        size = min(len(view), len(self._out))
        view[:size] = self._out[:size]
        self._out = self._out[size:]
        return size

    def _next_stream(self) -> bool:
        """Begin the next stream, if there is one."""
        while True:
            self._waiting = self._waiting or self._file.read(self._READ)
            if not self._waiting:
                return False
            if self._streams:
                self._waiting = self._waiting.lstrip(b"\0")
            if self._waiting:
                self._decoder = _decoder(self._compression)
                return True

    def _decode(self, most: int) -> bytes:
        """Return more of the current stream, which may be nothing at its end.

        Raises:
            BadFile: the data is damaged or cut short.
        """
        decoder = self._decoder
        # All but zlib keep input that they have no room to decode. zlib hands it back as `unconsumed_tail`.
        asked = not self._waiting and getattr(decoder, "needs_input", True)
        data = self._waiting or (self._file.read(self._READ) if asked else b"")
        try:
            out: bytes = decoder.decompress(data, most)
        except MemoryError:
            raise
        except Exception as error:  # each library has errors of its own
            raise self._damaged(error) from error
        if decoder.eof:
            self._waiting, self._decoder = decoder.unused_data, None
            self._streams += 1
            return out
        self._waiting = getattr(decoder, "unconsumed_tail", b"")
        if asked and not data and not out:
            said = f"{self._url}: cut short: its {self._compression} data ends in the middle of a stream"
            raise BadFile(f"{said}, after {self._bytes:,} decompressed bytes", "get the file again")
        return out

    def _damaged(self, error: Exception) -> BadFile:
        where = f"after {self._bytes:,} decompressed bytes"
        if self._streams:
            where += f", in stream {self._streams + 1:,}"
        said = f"{self._url}: damaged {self._compression} data {where} ({error})"
        return BadFile(said, "get the file again; if something else was appended to it, remove that")
