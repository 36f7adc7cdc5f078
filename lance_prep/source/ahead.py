"""An iterator run ahead of its consumer, in a thread of its own, within a budget of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class _Queue(Generic[T]):
    def __init__(self, budget: int) -> None:
        self._items: deque[T] = deque()
        self._held = 0
        self._budget = budget
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self.stopped = False

    def put(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or not self._items or self._held + item.nbytes <= self._budget)
            self._items.append(item)
            self._held += item.nbytes
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def get(self) -> T | None:
        """The next item; None at the end. Raises what the producer raised, after the items before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if self._items:
                item = self._items.popleft()
                self._held -= item.nbytes
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


def read_ahead(items: Generator[T, None, None], budget: int, on_stop: Callable[[], None]) -> Iterator[T]:
    """The items, made in a thread while the caller works on the ones before.

    Args:
        items: runs, and is closed, in the thread.
        budget: bytes of items that may wait (one item always may).
        on_stop: called when the caller stops early, to break off what `items` waits for.

    The thread has ended when the iterator is closed, exhausted or has raised.
    """
    queue: _Queue[T] = _Queue(budget)

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                queue.put(item)
                if queue.stopped:
                    break
        except BaseException as caught:
            error = caught
        finally:
            items.close()
            queue.end(error)

    thread = threading.Thread(target=work, name="lance-prep-read", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            yield item
    finally:
        queue.stop()
        on_stop()
        thread.join()
