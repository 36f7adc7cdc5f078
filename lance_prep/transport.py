"""How a store is reached: its URLs, their passwords, its options, and which failed requests are retried.

429 and 5xx in long streams are what users of streaming readers report most. A rate limit of the Hub resets within
five minutes, so a `Retry-After` of up to that is waited for in full, and a longer one is an error at once. Everything
else backs off exponentially.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from lance_prep.errors import HubUnreachable, StoreUnreachable, counted, translate, translating, without_credentials

T = TypeVar("T")

ATTEMPTS = 7
# The first request is tried less often, so that a missing network is reported at once, not after 16 seconds.
FIRST_ATTEMPTS = 3
BASE_SECONDS = 0.25
CAP_SECONDS = 20.0
#: Longest wait that a server may ask for, and the longest in a row if it asks again and again.
LONGEST_WAIT = 300.0
LONGEST_WAITS = 600.0
#: A wait of at least this many seconds is reported.
NOTICED_WAIT = 5.0
#: Bytes per second of an answer below which a server counts as stalled.
SLOWEST = 1000

#: HTTP statuses that may go away by themselves.
RETRIED = (408, 429, 500, 502, 503, 504)
# By name: huggingface_hub ships httpx under two names (`httpx`, `httpx2`), depending on its version.
_TRANSPORT = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}
_TRANSPORT |= {"ClientConnectionError", "ClientPayloadError"}  # of aiohttp, which s3fs uses
_TRANSPORT |= {"HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError"}  # of botocore, which s3fs uses
# s3fs raises OSErrors for the answers of a store: EBUSY for "slow down", EREMOTEIO for an internal error.
_STORE_ERRNO = (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))


def is_local(url: str) -> bool:
    """Return whether this is a path of this machine, not a URL."""
    return "://" not in url


def is_http(url: str) -> bool:
    """Return whether this is a file on a web server."""
    return url.startswith(("http://", "https://"))


def absolute_uri(path: str | Path) -> str:
    """Return an absolute path, or a URI without a slash at the end. Symbolic links stay, and `~` is the home folder."""
    text = str(path).removeprefix("file://")
    return str(in_home(text).absolute()) if is_local(text) else text.rstrip("/")


def in_home(path: str | Path) -> Path:
    """Return a path with `~` at its start replaced by the home folder. `~name` is kept if no such user exists."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # `Path.expanduser` fails for such a name


_urls: dict[str, str] = {}  # without credentials -> as given


def hold_credentials(url: str) -> str:
    """Return a URL without user, password and query, so that it can be stored and shown.

    This process alone remembers them, for `with_credentials`. Another process must be given the URL again.
    """
    clean = without_credentials(url)
    if clean != url:
        _urls[clean] = url
    return clean


def with_credentials(url: str) -> str:
    """Return a URL with the credentials that it, or a folder or pattern on the same host, was given with."""
    if url in _urls:
        return _urls[url]
    start = _origin(url)
    for clean, given in _urls.items():
        if start and _origin(clean) == start and "@" in _origin(given):
            return _origin(given) + url.removeprefix(start)
    return url


def held_credentials() -> list[str]:
    """Return the URLs that were given with credentials, for `hold_credentials` in another process."""
    return list(_urls.values())


def _origin(url: str) -> str:
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if found else ""


def is_transient(error: BaseException) -> bool:
    """Return whether an error may go away by itself: 429, 5xx, "slow down", cut connections, timeouts."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:
        return False
    if http_status(error) is not None:
        return http_status(error) in RETRIED
    if names & _TRANSPORT or isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and (error.errno in _STORE_ERRNO or "SlowDown" in str(error)):
        return True
    cause = error.__cause__  # huggingface_hub wraps a failed download in LocalEntryNotFoundError
    return "LocalEntryNotFoundError" in names and cause is not None and is_transient(cause)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a client library names, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def asked_wait(headers: Any) -> float | None:
    """Return the seconds that a server asks to wait, from `Retry-After` or the Hub's `RateLimit`; None if it does not.

    Args:
        headers: of the answer, by names of which case does not matter; botocore has a dict in lower case.
    """
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit") or "")
    if limit is not None:
        return float(limit[1]) + 1
    said = (headers.get("retry-after") or headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", said):
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time()) if said else None
    except (ValueError, OverflowError):
        return None


def too_long(doing: str, seconds: float) -> tuple[str, str]:
    """Return the message and the advice for a server that asks to wait for longer than `LONGEST_WAIT`."""
    said = f"{seconds:,.0f} s" if seconds < 1e9 else "years"
    return (
        f"{doing}: the server asks to wait {said} before the next request",
        "run the same command again after that time; if the server is the Hub, log in for a higher limit",
    )


_notices = threading.Lock()
_last_notice = 0.0


def notice(text: str) -> None:
    """Report that something takes long, as a warning of the logger `lance_prep`; at most once per second.

    The threads of a reader meet the same rate limit at the same time.
    """
    global _last_notice
    with _notices:
        now = time.monotonic()
        if now - _last_notice < 1 and _last_notice:
            return
        _last_notice = now
    logging.getLogger("lance_prep").warning("%s", text)


def _why(error: BaseException) -> str:
    status = http_status(error)
    said = "the server refuses requests for now" if status == 429 else "the server does not answer as it should"
    return said + (f" (HTTP {status})" if status is not None else f" ({type(error).__name__})")


class Retries:
    """Counts retries, waits between them, and can be told to stop waiting. Shared by the threads of one reader.

    Args:
        stop: if it is set, retrying stops too.
        attempts: number of attempts; by default `ATTEMPTS`.
    """

    def __init__(self, stop: threading.Event | None = None, *, attempts: int | None = None) -> None:
        self.count = 0
        self._attempts = attempts or ATTEMPTS
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._outer = stop or self._stop

    @property
    def stopped(self) -> bool:
        return self._stop.is_set() or self._outer.is_set()

    def stop(self) -> None:
        """Give up: nothing waits or retries from now on."""
        self._stop.set()

    def is_last(self, failed: int) -> bool:
        """Return whether nothing is tried again after this number of failures in a row."""
        return failed >= self._attempts

    def wait(self, error: BaseException, failed: int, *, doing: str) -> None:
        """Wait before trying again, or raise.

        Args:
            error: why it failed.
            failed: how many times it has failed in a row, this one included.
            doing: for the message.

        Raises:
            HubUnreachable, StoreUnreachable: the last attempt failed, or the server asks to wait for too long.
            Exception: `error` itself, if it is not transient.
        """
        if self.stopped or not is_transient(error):
            raise error
        after = asked_wait(getattr(getattr(error, "response", None), "headers", None) or {})
        refused = after is not None and (after > LONGEST_WAIT or after * failed > LONGEST_WAITS)
        if refused or self.is_last(failed):
            ours = translate(error, doing)
            if not isinstance(ours, HubUnreachable | StoreUnreachable):
                raise error
            if after is not None and refused:
                raise type(ours)(*too_long(doing, after)) from error
            raise type(ours)(f"{ours}, tried {counted(failed, 'time')}", ours.advice) from error
        with self._lock:
            self.count += 1
        seconds = min(CAP_SECONDS, BASE_SECONDS * 2 ** (failed - 1)) if after is None else after
        if seconds >= NOTICED_WAIT:
            notice(f"{without_credentials(doing)}: {_why(error)}; waiting {seconds:.0f} s")
        self._wait(seconds)
        if self.stopped:
            raise error

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopped and (left := end - time.monotonic()) > 0:
            self._outer.wait(min(left, 0.1))

    def call(self, function: Callable[[], T], *, doing: str) -> T:
        """Return the function's answer, calling it again after transient errors."""
        failed = 0
        while True:
            try:
                return function()
            except Exception as error:  # `wait` raises it, unless it is transient
                failed += 1
                self.wait(error, failed, doing=doing)


class Meter:
    """Counts the requests for byte ranges of remote files, and their bytes. Shared by threads."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count a request that was answered with this many bytes."""
        with self._lock:
            self.requests += 1
            self.bytes += size


@dataclass(frozen=True)
class Transport:
    """How to reach a store. A build has one for the source and one for the output. Pickles start with no retries.

    Attributes:
        storage_options: of the object store, under the names that Lance and object_store take. An option that is not
            given is taken from the environment.
        retries: counts retries, and interrupts them.
        meter: counts what is fetched. With a meter, nothing is fetched before it is read.
    """

    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    retries: Retries = field(default_factory=Retries, repr=False, compare=False)
    meter: Meter | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, storage_options: Mapping[str, str] | None) -> Transport:
        """Return the transport for the `storage_options` of a public function, which may be None."""
        return cls(dict(storage_options or {}))

    @property
    def for_lance(self) -> dict[str, str] | None:
        """The storage options as Lance takes them."""
        return dict(self.storage_options) or None

    def file_system(self, url: str) -> tuple[Any, str]:
        """Return the fsspec file system of a URL, and the path in it.

        The storage options are translated for s3fs, and passed on unchanged to other file systems.
        """
        import fsspec

        if not url.startswith(("s3://", "s3a://")):
            fs, path = fsspec.core.url_to_fs(with_credentials(url), **self.storage_options)
            return fs, path
        fs, path = fsspec.core.url_to_fs(url, **_for_s3fs(self.storage_options))
        fs.retries = 1
        return fs, path

    def retrying(self, stop: threading.Event | None = None, *, attempts: int | None = None) -> Transport:
        """Return the same transport with a count of its own. Arguments: see `Retries`."""
        return replace(self, retries=Retries(stop, attempts=attempts))

    def __reduce__(self) -> tuple[type[Transport], tuple[dict[str, str]]]:
        return Transport, (dict(self.storage_options),)


def check_answers(uri: str, transport: Transport) -> None:
    """Check that an S3 store answers, before Lance uses it.

    Lance tries a request for 200 s without a word, and reports a store that hangs in terms of its own.

    Raises:
        StoreUnreachable: the store does not answer, or only with errors such as 503.
        AccessDenied: it refuses access.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return
    doing, (fs, path) = f"reaching {uri}", transport.file_system(uri)
    fs.invalidate_cache()
    # botocore fails with a TypeError if an answer names several error codes. Lance, which asks next, can read it.
    with translating(doing), noticing(f"waiting for {uri}"), suppress(FileNotFoundError, TypeError):
        transport.retrying(attempts=FIRST_ATTEMPTS).retries.call(lambda: fs.ls(path), doing=doing)


@contextmanager
def noticing(doing: str) -> Iterator[None]:
    """Report every few seconds that the block still waits."""
    ended, started = threading.Event(), time.monotonic()

    def work() -> None:
        while not ended.wait(NOTICED_WAIT):
            notice(f"{without_credentials(doing)}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=work, name="notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


#: Options of Lance, without the prefix `aws_`, and the argument of `S3FileSystem` that each becomes.
_S3_NAMES = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "token": "token",
    "endpoint": "endpoint_url",
    "endpoint_url": "endpoint_url",
}
_S3_SWITCHES = {"skip_signature": "anon", "request_payer": "requester_pays"}


def _for_s3fs(options: Mapping[str, str]) -> dict[str, Any]:
    """Translate options as Lance names them for s3fs. Endpoint and region come from Lance's variables too."""
    given = {key.lower().removeprefix("aws_"): value for key, value in options.items()}
    given.setdefault("endpoint", os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or "")
    kwargs: dict[str, Any] = {theirs: given[ours] for ours, theirs in _S3_NAMES.items() if given.get(ours)}
    kwargs.update({theirs: True for ours, theirs in _S3_SWITCHES.items() if _is_true(given.get(ours))})
    client: dict[str, Any] = {}
    # Unlike Lance, botocore does not read AWS_REGION.
    if region := given.get("region") or given.get("default_region") or os.environ.get("AWS_REGION"):
        client["region_name"] = region
    if _is_true(given.get("allow_invalid_certificates")):
        client["verify"] = False
    if client:
        kwargs["client_kwargs"] = client
    # `Retries` alone repeats requests. With the retries of botocore and s3fs inside each of its own, it would take
    # minutes to give a store up, and the report would not count them all.
    config: dict[str, Any] = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
    if limit := _seconds(given.get("timeout")):
        config["read_timeout"] = limit
    if limit := _seconds(given.get("connect_timeout")):
        config["connect_timeout"] = limit
    if (virtual := given.get("virtual_hosted_style_request")) is not None:
        config["s3"] = {"addressing_style": "virtual" if _is_true(virtual) else "path"}
    if proxy := given.get("proxy_url"):
        config["proxies"] = {"http": proxy, "https": proxy}
    return {**kwargs, "config_kwargs": config}


def _seconds(duration: str | None) -> float | None:
    """Return a duration as Lance's options give it (`500ms`, `30s`, `2 minutes`) in seconds; None if it is invalid."""
    found = re.fullmatch(r"(\d+) ?(ms|s|seconds?|m|minutes?)", duration or "")
    return int(found[1]) * {"ms": 0.001, "m": 60}.get(found[2][:2].rstrip("i"), 1) if found else None


def _is_true(value: str | None) -> bool:
    return (value or "").lower() in ("true", "1", "yes", "on")
