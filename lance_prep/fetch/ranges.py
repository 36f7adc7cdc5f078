"""Byte ranges of a file, wherever it is: on this machine, on the Hub, on a web server or in an object store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import BadFile
from lance_prep.fetch.hub import HubRanges
from lance_prep.fetch.web import HttpRanges, http_state
from lance_prep.model import SourceFile
from lance_prep.transport import Meter, Transport, is_http, is_local


class Ranges(Protocol):
    """Byte ranges of one file. Threads may share it."""

    size: int

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`, all of them, or raise."""


class _LocalRanges:
    def __init__(self, file: SourceFile) -> None:
        self.size = file.size
        self._path = file.url

    def fetch(self, start: int, stop: int) -> bytes:
        with Path(self._path).open("rb") as file:
            file.seek(start)
            return _whole(file.read(stop - start), start, stop, self._path)


class _FsspecRanges:
    def __init__(self, file: SourceFile, transport: Transport) -> None:
        self.size = file.size
        self._url = file.url
        self._retries = transport.retries
        self._fs, self._path = transport.file_system(file.url)

    def fetch(self, start: int, stop: int) -> bytes:
        doing = f"reading {self._url}"
        data = self._retries.call(lambda: self._fs.cat_file(self._path, start=start, end=stop), doing=doing)
        return _whole(bytes(data), start, stop, self._url)


class _Metered:
    """Ranges that are counted."""

    def __init__(self, ranges: Ranges, meter: Meter) -> None:
        self.size = ranges.size
        self._ranges, self._meter = ranges, meter

    def fetch(self, start: int, stop: int) -> bytes:
        data = self._ranges.fetch(start, stop)
        self._meter.add(len(data))
        return data


def _whole(data: bytes, start: int, stop: int, name: str) -> bytes:
    if len(data) < stop - start:
        raise BadFile(f"{name}: ends at byte {start + len(data)}, before byte {stop}", "get the file again")
    return data


def identity_of(info: Mapping[str, Any]) -> str:
    """Return what changes when an object does, from its fsspec info: the ETag, else its time."""
    names = ("ETag", "etag", "LastModified", "mtime", "modify", "created")
    return str(next((info[name] for name in names if info.get(name)), "")).strip('"')


def state_of(file: SourceFile, transport: Transport) -> tuple[int, str | None]:
    """Return the size and identity of a file as it is now. Not for `hf://`.

    The identity is None for an object without an ETag: file systems give its times in more than one form.

    Raises:
        FileNotFoundError: it is gone.
    """
    if is_local(file.url):
        stat = Path(file.url).stat()
        return stat.st_size, str(stat.st_mtime_ns)
    if is_http(file.url):
        size, identity = http_state(file.url, transport)
        return size, identity or None
    fs, path = transport.file_system(file.url)
    fs.invalidate_cache(fs._parent(path))
    info = transport.retries.call(lambda: fs.info(path), doing=f"looking up {file.url}")
    return int(info["size"]), identity_of(info) if info.get("ETag") or info.get("etag") else None


def open_ranges(file: SourceFile, transport: Transport) -> Ranges:
    """Open a file at a local path, an `hf://` URL, or any URL that fsspec knows."""
    if is_local(file.url):
        return _LocalRanges(file)
    if file.url.startswith("hf://"):
        ranges: Ranges = HubRanges(file, transport)
    elif is_http(file.url):
        ranges = HttpRanges(file, transport)
    else:
        ranges = _FsspecRanges(file, transport)
    return _Metered(ranges, transport.meter) if transport.meter is not None else ranges
