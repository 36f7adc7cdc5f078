"""This process: packages loaded on first use, an iterator run ahead on a thread, and memory."""

from __future__ import annotations

import ast
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class _LazyPackage(ModuleType):
    """A package whose exports load on first use."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing a module sets its name on the package. An export of the same name, as `verify`, takes precedence.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("__all__", ())):
            super().__setattr__(name, value)


Exports = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def install_advice(extra: str) -> str:
    """Return how to install an extra of lance-prep, or lance-prep itself if it is empty."""
    if not extra:
        return "install it with: pip install lance-prep"
    return f"install it with: pip install 'lance-prep[{extra}]' (from a checkout: pip install '.[{extra}]')"


def lazy_exports(package: str, *, extra: str = "") -> Exports:
    """Return `__getattr__`, `__dir__` and `__all__` for a package that imports its exports on first use.

    The exports are read from the `if TYPE_CHECKING:` block of the package's `__init__.py`, as `lazy_loader` reads them
    from a stub. So type checkers and this function have one list.

    Args:
        package: `__name__` of the package.
        extra: the extra of lance-prep that installs what the package needs, for the message if something is missing.

    Raises (on use):
        ModuleNotFoundError: a library is not installed; says how to install it.
    """
    module = sys.modules[package]
    module.__class__ = _LazyPackage
    homes = _type_checking_imports(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, there = homes[name]
        try:
            value = getattr(import_module(home), there)
        except ModuleNotFoundError as error:
            if not extra or (error.name or "").startswith("lance_prep"):
                raise
            said = f"{name} needs {error.name}, which is not installed; {install_advice(extra)}"
            raise ModuleNotFoundError(said, name=error.name) from error
        module.__dict__[name] = value
        return value

    return get, lambda: sorted({*vars(module), *homes}), sorted(homes)


def _type_checking_imports(package: str) -> dict[str, tuple[str, str]]:
    """Return name -> (module, name there) of what a package imports under `if TYPE_CHECKING:`."""
    spec = sys.modules[package].__spec__
    source = spec.loader.get_source(package) if spec else ""  # type: ignore[union-attr]
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for block in ast.parse(source or "").body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


class _Queue(Iterator[T]):
    def __init__(self, budget: int, cost: Callable[[T], int]) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._held = 0
        self._budget = budget
        self._cost = cost
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self.stopped = False

    def put(self, item: T) -> None:
        cost = self._cost(item)
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or not self._items or self._held + cost <= self._budget)
            self._items.append((item, cost))
            self._held += cost
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next item. After the last one, raise the producer's error, or `StopIteration`."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if not self._items:
                raise self._error or StopIteration
            item, cost = self._items.popleft()
            self._held -= cost
            self._changed.notify_all()
            return item

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


def read_ahead(
    items: Iterator[T],
    budget: int,
    *,
    cost: Callable[[T], int] = lambda _: 1,
    on_stop: Callable[[], None] = lambda: None,
) -> Generator[T, None, None]:
    """Yield the same items, made on a background thread while the caller works on earlier ones.

    An error of `items` is raised here, after the items before it. Closing the generator stops the thread, closes
    `items` on it and waits for that. The thread starts with the first `next`.

    Args:
        items: runs in the thread.
        budget: largest total cost of items that wait for the caller. One item always may.
        cost: of an item; by default, `budget` is a number of items.
        on_stop: called when the generator ends, to interrupt what `items` waits for.
    """
    queue: _Queue[T] = _Queue(budget, cost)

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                queue.put(item)
                if queue.stopped:
                    break
        except BaseException as caught:  # raised again by `__next__`
            error = caught
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            queue.end(error)

    thread = threading.Thread(target=work, name="lance-prep-read-ahead", daemon=True)
    thread.start()
    try:
        yield from queue
    finally:
        queue.stop()
        on_stop()
        thread.join()


def rss() -> int:
    """Return the bytes of this process that are in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Return free memory to the system. Does nothing unless the C library is glibc.

    Each shard ends threads whose arenas glibc keeps: building 1 GB peaked at 1,120 MB without this, at 990 MB with it.
    """
    if sys.platform != "linux":
        return
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library, which has no such call
        return
