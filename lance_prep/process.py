"""This process: an iterator run ahead on a thread, the memory in use, and the passwords that it was given."""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import psutil

from lance_prep.errors import without_credentials

T = TypeVar("T")


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterator[T], *, max_items: int) -> Generator[T, None, None]:
    """The same items, made up to `max_items` ahead on a background thread.

    An error of `items` is raised here, in its turn. Closing the generator stops the thread, closes `items` on it and
    waits for that. The thread starts with the first `next`.
    """
    ready: queue.Queue[T | _End] = queue.Queue(max_items)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as caught:  # whatever it is, it belongs to the consumer
            error = caught
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
        put(_End(error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()


def rss() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Give free memory back to the system, where the C library is glibc; elsewhere nothing.

    Each shard ends threads whose arenas glibc keeps: building 1 GB peaked at 1,120 MB without this, at 990 MB with it.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library, which has no such call
        return


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


def _origin(url: str) -> str:
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if found else ""
