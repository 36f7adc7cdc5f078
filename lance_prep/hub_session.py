"""The session in which huggingface_hub asks the Hub, with limits for a Hub that need not be trusted.

`guard_session` keeps the token from other hosts, refuses names that huggingface_hub would use as paths in its cache
although they are not paths, and bounds each answer that is not the content of a file: its bytes, decompressed, and the
time that it takes. `limited` bounds all requests of a call, such as the pages of a listing. Contents of files are
bounded by their readers: `fetch.web` asks for ranges, and gives up a server that sends less than a minimum per second.

Not bounded is a server that sends the headers of an answer byte by byte: httpx has no hook there.
"""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lance_prep.errors import BadFile, HubUnreachable, counted, size
from lance_prep.transport import LONGEST_WAIT, RETRIED, SLOWEST, asked_wait, notice, too_long

LIBRARY = "lance-prep"
#: Largest answer that is not a file. 200,000 entries of a listing in one page are 50 MB; the Hub sends 1,000 per page.
ANSWER_BYTES = 64 << 20
#: Largest file that huggingface_hub may fetch whole, such as a tokenizer.
WHOLE_FILE_BYTES = 2 << 30
#: Seconds that the body of an answer may take.
ANSWER_SECONDS = 120.0
#: Seconds, requests and bytes of one call. A listing of a million files is 1,000 requests and 250 MB.
CALL_SECONDS = 900.0
CALL_REQUESTS = 10_000
CALL_BYTES = 256 << 20
#: Seconds without a byte before a request without a timeout of its own is given up; a commit of many files takes long.
IDLE_SECONDS = {"GET": 60.0, "HEAD": 60.0}
IDLE_SECONDS_WRITING = 300.0
#: Seconds between two notices about a call that takes long.
NOTICE_SECONDS = 15.0

_CACHE_NAME = re.compile(r"[0-9A-Za-z._:+=-]{1,200}")
_AGAIN = "check the network, then run the same command again"
_HOSTILE = "check HF_ENDPOINT; if it is right, this Hub is broken, so use another one"
_calls = threading.local()
_uploads = 0
_uploads_lock = threading.Lock()


class _Call:
    """What a call has cost until now."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.requests = self.bytes = 0
        self._began = self._noticed = time.monotonic()

    def check(self) -> None:
        """Count time, and say so every 15 seconds.

        Raises:
            HubUnreachable: a limit is exceeded.
        """
        now = time.monotonic()
        so_far = f"{counted(self.requests, 'request')} and {size(self.bytes)} in {now - self._began:.0f} s"
        if now - self._began > CALL_SECONDS or self.requests > CALL_REQUESTS or self.bytes > CALL_BYTES:
            raise HubUnreachable(f"{self.doing}: the answer of the Hub does not end: {so_far}", _HOSTILE)
        if now - self._noticed > NOTICE_SECONDS:
            self._noticed = now
            notice(f"{self.doing}: asking the Hub, {so_far}")


@contextmanager
def limited(doing: str) -> Iterator[None]:
    """Bound all requests that this thread makes in the block. A block in another one shares its limits.

    Inside, a request that the Hub refuses for a while (429 or 5xx) fails at once, so that `Retries` waits, and not
    huggingface_hub, which waits up to 23 s in each of our attempts, or any time that the Hub asks for.

    Args:
        doing: see `translate`.

    Raises:
        HubUnreachable: a limit is exceeded.
    """
    if getattr(_calls, "now", None) is not None:
        yield
        return
    _calls.now = _Call(doing)
    try:
        yield
    finally:
        _calls.now = None


@contextmanager
def uploading() -> Iterator[None]:
    """Apply the limits to all requests of the process while huggingface_hub uploads.

    It sends contents from threads of its own, to hosts and with headers by which they cannot be recognized.
    """
    global _uploads
    with _uploads_lock:
        _uploads += 1
    try:
        yield
    finally:
        with _uploads_lock:
            _uploads -= 1


def guard_session() -> None:
    """Check what huggingface_hub asks and is answered, from now on.

    Call it before each use of the Hub: huggingface_hub replaces its session after some errors.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = get_session().event_hooks
    if _before not in hooks["request"]:
        get_session().event_hooks = {
            "request": [*hooks["request"], _before],
            "response": [*hooks["response"], _after],
        }


def _is_marked(request: Any) -> bool:
    # The session is shared with the rest of the process, whose requests to other Hubs are not ours to change.
    return any(name in request.headers.get("user-agent", "") for name in (f"{LIBRARY}/", "datasets/"))


def _is_ours(request: Any) -> bool:
    return bool(_uploads) or _is_marked(request)


def _before(request: Any) -> None:
    """Prepare a request: token, timeout, limits of the call."""
    if not _is_ours(request):
        return
    from huggingface_hub import constants

    # The next page of a listing, for example, may be on another host.
    if _is_marked(request) and _origin(str(request.url)) != _origin(constants.ENDPOINT):
        request.headers.pop("authorization", None)
    idle = IDLE_SECONDS.get(request.method, IDLE_SECONDS_WRITING)
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: given.get(name) or (constants.HF_HUB_ETAG_TIMEOUT if name == "connect" else idle)
        for name in ("connect", "read", "write", "pool")
    }
    # Other encodings have no bound on what a few bytes of them become.
    request.headers["accept-encoding"] = "identity" if "/resolve/" in request.url.path else "gzip"
    call: _Call | None = getattr(_calls, "now", None)
    if call is not None:
        call.requests += 1
        call.check()


def _after(response: Any) -> None:
    """Check the beginning of an answer, and bound the rest."""
    if not _is_ours(response.request):
        return
    _check_names(response)
    url = str(response.request.url)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise HubUnreachable(f"{url}: the Hub sends an encoding that was not asked for, {encoding[:40]!r}", _HOSTILE)
    if response.request.method == "GET" and "range" in response.request.headers and encoding == "identity":
        return  # a range of a file, of which no more is read than was asked for
    is_file = response.request.method == "GET" and _is_content(response)
    most = WHOLE_FILE_BYTES if is_file else ANSWER_BYTES
    if encoding == "gzip":  # httpx would decompress any number of bytes at once
        del response.headers["Content-Encoding"]
    response.stream = _bounded(response.stream, url, most, gzip=encoding == "gzip", is_file=is_file)
    _check_wait(response)


def _is_content(response: Any) -> bool:
    return response.status_code < 300 and "/api/" not in response.request.url.path


def _check_wait(response: Any) -> None:
    """Refuse to wait for too long, and hand what may go away by itself to `Retries`."""
    if response.status_code not in RETRIED:
        return
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    seconds = asked_wait(response.headers)
    if seconds is not None and seconds > LONGEST_WAIT:
        raise HubUnreachable(*too_long(str(response.request.url), seconds))
    if getattr(_calls, "now", None) is not None:
        response.read()
        hf_raise_for_status(response)


def _bounded(stream: Any, url: str, most: int, *, gzip: bool, is_file: bool) -> Any:
    """Return the stream of an answer, decompressed and with limits."""
    from importlib import import_module

    # huggingface_hub ships httpx under two names, depending on its version.
    module = next(cls.__module__ for cls in type(stream).__mro__ if cls.__name__ == "SyncByteStream")
    base: Any = import_module(module).SyncByteStream

    class Bounded(base):  # type: ignore[misc]
        elapsed = property(lambda self: stream.elapsed)

        def __iter__(self) -> Iterator[bytes]:
            return _counted(_inflated(stream, url) if gzip else iter(stream), url, most, is_file=is_file)

        def close(self) -> None:
            stream.close()

    return Bounded()


def _counted(pieces: Iterator[bytes], url: str, most: int, *, is_file: bool) -> Iterator[bytes]:
    call: _Call | None = getattr(_calls, "now", None)
    began, got = time.monotonic(), 0
    for data in pieces:
        got += len(data)
        if got > most:
            raise HubUnreachable(f"{url}: the answer has more than {size(most)}", _HOSTILE)
        if time.monotonic() - began > ANSWER_SECONDS + (got / SLOWEST if is_file else 0):
            said = f"{url}: the answer is too slow: {size(got)} in {time.monotonic() - began:.0f} s"
            raise HubUnreachable(said, _AGAIN)
        if call is not None:
            call.bytes += len(data)
            call.check()
        yield data


def _inflated(stream: Any, url: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(31)
    try:
        for data in stream:
            while data:
                yield inflate.decompress(data, 1 << 20)
                data = inflate.unconsumed_tail
        yield inflate.flush(1 << 20)
    except zlib.error as error:
        raise HubUnreachable(f"{url}: the Hub sends a damaged answer ({error})", _HOSTILE) from error


def _origin(url: str) -> tuple[str, str | None, int | None]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _check_names(response: Any) -> None:
    """Refuse an ETag or commit that would lead out of the cache: huggingface_hub names files after them."""
    if "/resolve/" not in response.request.url.path:
        return
    for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
        value = response.headers.get(header, "").removeprefix("W/").strip('"')
        if value and (not _CACHE_NAME.fullmatch(value) or value.strip(".") == ""):
            raise BadFile(
                f"{response.request.url}: the Hub sends an invalid {header}, {value[:80]!r}", "use another Hub"
            )
