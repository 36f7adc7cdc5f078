"""Byte ranges of a file on a web server, pinned by its size and ETag."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from lance_prep.errors import AccessDenied, BadFile, SourceChanged, SourceError, SourceNotFound
from lance_prep.model import SourceFile
from lance_prep.transport import SLOWEST, Transport, with_credentials

#: Seconds of waiting after which an answer must have brought `SLOWEST` bytes for each of them.
SLOW_SECONDS = 20.0
# A server without byte ranges sends the whole file for each request, which is bearable for a small file only.
WHOLE_BYTES = 8 << 20


class HttpRanges:
    """Byte ranges of one file on a web server. Threads may share it.

    A range that is cut in the middle is continued from there.

    Args:
        address: where to ask for it; by default, its URL.
    """

    def __init__(self, file: SourceFile, transport: Transport, address: str = "") -> None:
        self.size = file.size
        self._address = address or file.url
        self._name = file.url
        self._identity = file.identity
        self._retries = transport.retries

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`. Raises as `stream` does."""
        return b"".join(self.stream(start, stop))

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes `start` to `stop` in pieces, as they arrive.

        Raises:
            HubUnreachable, StoreUnreachable: no whole answer after several tries.
            BadFile: the file ends before `stop`.
            SourceChanged: the file has changed since it was planned.
        """
        at, failed, enough = start, 0, SLOWEST * SLOW_SECONDS
        while at < stop:
            before = at
            try:
                for piece in self._read(at, stop):
                    at += len(piece)
                    yield piece
            except Exception as error:  # `wait` raises it, unless it is transient
                # A server that sends a few bytes each time would be asked without end.
                failed = failed + 1 if at - before < enough else 1
                self._retries.wait(error, failed, doing=f"reading {self._name}")
            else:
                if at == before:
                    failed += 1
                    if self._retries.is_last(failed):
                        raise self._too_short(stop)
                    self._retries.wait(ConnectionError("an empty answer"), failed, doing=f"reading {self._name}")

    def _read(self, start: int, stop: int) -> Iterator[bytes]:
        with _get(self._address, {**self._headers(), "Range": f"bytes={start}-{stop - 1}"}) as response:
            if response.status_code == 416:
                raise self._too_short(stop)
            self._check(response)
            # A server without byte ranges answers 200 with the whole file.
            skip = 0 if response.status_code == 206 else start
            want = stop - start
            for chunk in _not_too_slow(response.iter_raw()):
                if self._retries.stopped:
                    raise InterruptedError("reader closed")
                drop = min(skip, len(chunk))
                skip -= drop
                taken = chunk[drop : drop + want]
                want -= len(taken)
                yield taken
                if not want:
                    return

    def _headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"}

    def _check(self, response: Any) -> None:
        """Refuse an answer that is an error, or of another file than the planned one."""
        _raise_for_status(response, self._name)
        now = _identity(response)
        if self._identity and now and now != self._identity:
            raise SourceChanged(
                f"{self._name}: state {now!r} now, {self._identity!r} when it was planned", "run the same command again"
            )

    def _too_short(self, stop: int) -> BadFile:
        return BadFile(f"{self._name}: ends before byte {stop}", "run the same command again: the file has changed")


def _not_too_slow(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks of an answer. Only the time in which they are waited for counts, not that of their reader.

    Raises:
        TimeoutError: they come too slowly. The timeouts of httpx allow one byte every ten seconds.
    """
    waited, got = 0.0, 0
    while True:
        before = time.monotonic()
        chunk = next(chunks, None)
        if chunk is None:
            return
        waited, got = waited + time.monotonic() - before, got + len(chunk)
        if waited > SLOW_SECONDS:
            if got < waited * SLOWEST:
                raise TimeoutError(f"{got:,} bytes in {waited:.0f} s")
            waited, got = 0.0, 0
        yield chunk


def http_state(url: str, transport: Transport) -> tuple[int, str]:
    """Return the size and the identity (ETag, or else the time) of a file on a web server.

    Raises:
        SourceNotFound, AccessDenied: the server's answer.
        SourceError: the server does not say how large the file is, or gives no byte ranges of a large file.
        StoreUnreachable: no answer after several tries.
    """

    def ask() -> tuple[int, str]:
        with _get(url, {"Accept-Encoding": "identity", "Range": "bytes=0-0"}) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code == 416 and total == "0":
                return 0, _identity(response)
            _raise_for_status(response, url)
            if response.status_code == 206 and total.isdigit():
                return int(total), _identity(response)
            length = response.headers.get("Content-Length", "")
            if response.status_code == 200 and length.isdigit() and int(length) <= WHOLE_BYTES:
                return int(length), _identity(response)
        said = f"{url}: the server gives no byte ranges of this file"
        raise SourceError(said, "download it, and build from the copy")

    return transport.retries.call(ask, doing=f"reading {url}")


def _get(url: str, headers: dict[str, str]) -> Any:
    """Begin a GET request in the session of `huggingface_hub`: its proxies, certificates and connections."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    return get_session().stream("GET", with_credentials(url), headers=headers, timeout=timeout, follow_redirects=True)


def _identity(response: Any) -> str:
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return str(tag).removeprefix("W/").strip('"')


def _raise_for_status(response: Any, name: str) -> None:
    status = response.status_code
    if status in (404, 410):
        raise SourceNotFound(f"{name}: the server has no such file (HTTP {status})", "check the URL")
    if status in (401, 403):
        raise AccessDenied(f"{name}: the server refuses access (HTTP {status})", "download it, and build from the copy")
    response.raise_for_status()
