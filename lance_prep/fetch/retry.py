"""What is tried again, how often, and after how long.

429 and 5xx in long streams are what users of streaming readers report most. A rate limit of the Hub resets within
five minutes, so a `Retry-After` is waited for in full up to that; everything else backs off exponentially.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lance_prep.errors import HubUnreachable, StoreUnreachable, translate

T = TypeVar("T")

ATTEMPTS = 7
# The first contact is soon given up: who has no network wants to know it now, not after 16 seconds.
FIRST_ATTEMPTS = 3
BASE_SECONDS = 0.25
CAP_SECONDS = 20.0
CAP_RETRY_AFTER = 300.0

_STATUS = (408, 429, 500, 502, 503, 504)
# By name: huggingface_hub ships httpx under two names (`httpx`, `httpx2`), depending on its version.
# After the first line: errors of aiohttp and of botocore, which s3fs uses.
_TRANSPORT = (
    *("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"),
    *(
        "ClientConnectionError",
        "ClientPayloadError",
        "HTTPClientError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
    ),
)
# s3fs raises OSErrors for the answers of a store: EBUSY for "slow down", EREMOTEIO for an internal error.
_STORE_ERRNO = (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))


def is_transient(error: BaseException) -> bool:
    """Return whether an error may go away by itself: 429, 5xx, "slow down", cut connections, timeouts."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:
        return False
    if _status(error) is not None:
        return _status(error) in _STATUS
    if names.intersection(_TRANSPORT) or isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and (error.errno in _STORE_ERRNO or "SlowDown" in str(error)):
        return True
    cause = error.__cause__  # huggingface_hub wraps a failed download in LocalEntryNotFoundError
    return "LocalEntryNotFoundError" in names and cause is not None and is_transient(cause)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException) -> float | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}  # of httpx; botocore has a dict
    try:
        return min(CAP_RETRY_AFTER, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


class Retries:
    """Counts retries, waits between them, and can be told to stop waiting. Shared by the threads of one reader.

    Args:
        stop: when somebody sets this, it stops too.
        attempts: how often something is tried; by default `ATTEMPTS`.
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
        """Whether nothing is tried again after so many failures in a row."""
        return failed >= self._attempts

    def wait(self, error: BaseException, failed: int, *, doing: str) -> None:
        """Wait before trying again, or raise.

        Args:
            error: why it failed.
            failed: how many times it has failed in a row, this one included.
            doing: for the message.

        Raises:
            HubUnreachable: it failed as often as it may.
            Exception: `error` itself, where it is not one that goes away.
        """
        if self.stopped or not is_transient(error):
            raise error
        if self.is_last(failed):
            ours = translate(error, doing)
            if not isinstance(ours, HubUnreachable | StoreUnreachable):
                raise error
            raise type(ours)(f"{ours}, tried {self._attempts} times", ours.advice) from error
        with self._lock:
            self.count += 1
        after = _retry_after(error)
        self._wait(min(CAP_SECONDS, BASE_SECONDS * 2 ** (failed - 1)) if after is None else after)
        if self.stopped:
            raise error

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopped and (left := end - time.monotonic()) > 0:
            self._outer.wait(min(left, 0.1))

    def call(self, function: Callable[[], T], *, doing: str) -> T:
        """The function's answer, tried again while it fails for a reason that goes away."""
        failed = 0
        while True:
            try:
                return function()
            except Exception as error:
                failed += 1
                self.wait(error, failed, doing=doing)
