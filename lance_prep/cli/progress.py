"""The progress of long commands: bars on a terminal, a line every ten seconds elsewhere.

A command counts what it has done, and a `Screen` shows it. Screens may be used from several threads.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import click

from lance_prep.cli.common import count, printable, span
from lance_prep.cli.terminal import plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two lines.
LINE_EVERY = 10.0


class Screen(Protocol):
    """Shows one or more tasks at work."""

    def say(self, text: str) -> None:
        """Print a line that stays."""
        ...

    def begin(self, task: str, text: str = "") -> None:
        """Show a task that begins. If there are no bars, print the text."""
        ...

    def show(self, task: str, line: Callable[[], str], done: int, total: int | None) -> None:
        """Show how far a task is: `line` as text, and `done` of `total` as a bar."""
        ...

    def end(self, task: str) -> None:
        """Stop showing a task."""
        ...


class _Notices(logging.Handler):
    """Prints the warnings of the library above the bars, such as a wait for a rate limit."""

    screen: Screen | None = None

    def emit(self, record: logging.LogRecord) -> None:
        (self.screen or _Lines()).say(record.getMessage())


_notices = _Notices()


def show_notices() -> None:
    """Print the warnings of the library from now on."""
    logging.getLogger("lance_prep").addHandler(_notices)  # adding it again has no effect


@contextmanager
def screen() -> Iterator[Screen]:
    """Return bars if stderr is a terminal that can draw them, otherwise lines, which a screen reader can read."""
    with _drawn() as shown:
        _notices.screen = shown
        try:
            yield shown
        finally:
            _notices.screen = None


@contextmanager
def _drawn() -> Iterator[Screen]:
    if not sys.stderr.isatty() or plain():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield _Lines()
        return
    text = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), BarColumn(), text, console=console, transient=True) as bars:
        yield _Bars(bars)


def left(seconds: float, done: float, total: float) -> str:
    """Return `, 3 min 20 s left` from the speed until now, or nothing if it cannot be known yet."""
    return f", {span(seconds * (total / done - 1))} left" if 0 < done < total else ""


def rows_shown(screen: Screen, done: str, total: int | None = None) -> Callable[[int], None]:
    """Return a listener that counts rows and shows `1,234 rows <done>`, with the time left if the total is known."""
    rows, started = 0, time.monotonic()

    def line() -> str:
        if total is None:
            return f"{rows:,} rows {done}"
        return f"{rows:,} of {total:,} rows {done}{left(time.monotonic() - started, rows, total)}"

    def add(more: int) -> None:
        nonlocal rows
        rows += more
        screen.show("rows", line, rows, total)

    screen.begin("rows")
    return add


def rows_of(done: str) -> Callable[[int, int], str]:
    """Return a line for `part_shown`: `1.2M of 35M rows <done>`, which leaves room for the time at 40 columns."""
    return lambda rows, total: f"{count(rows)} of {count(total)} rows {done}"


def part_shown(screen: Screen, task: str, line: Callable[[int, int], str]) -> Callable[[int, int], None]:
    """Return a listener that is told what is done and the total, and shows `line` with the time left.

    The clock starts now, or when 0 is done: a later part of a command says so when it begins.
    """
    started = time.monotonic()
    screen.begin(task)

    def show(done: int, total: int) -> None:
        nonlocal started
        if not done:
            started = time.monotonic()
        said = lambda: line(done, total) + left(time.monotonic() - started, done, total)  # noqa: E731
        screen.show(task, said, done, total)

    return show


class _Lines:
    """Prints a line for each task every ten seconds, for logs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._tasks: dict[str, Callable[[], str]] = {}

    def say(self, text: str) -> None:
        with suppress(OSError):  # a full disk or a closed pipe behind stderr does not stop the work
            click.echo(printable(text), err=True)  # in one piece: other threads print too

    def begin(self, task: str, text: str = "") -> None:
        if text:
            self.say(text)

    def show(self, task: str, line: Callable[[], str], done: int, total: int | None) -> None:
        with self._lock:
            self._tasks[task] = line
            if time.monotonic() - self._last < LINE_EVERY:
                return
            self._last = time.monotonic()
            lines = list(self._tasks.values())
        for each in lines:
            self.say(each())

    def end(self, task: str) -> None:
        with self._lock:
            self._tasks.pop(task, None)


class _Bars:
    """Draws a bar for each task."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, task: str, text: str = "") -> None:
        self._tasks[task] = self._bars.add_task(printable(task), total=None)

    def show(self, task: str, line: Callable[[], str], done: int, total: int | None) -> None:
        if (known := self._tasks.get(task)) is not None:
            self._bars.update(known, completed=done, total=total, description=printable(line()))

    def end(self, task: str) -> None:
        if (known := self._tasks.pop(task, None)) is not None:
            self._bars.remove_task(known)
