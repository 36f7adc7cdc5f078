"""Progress of what goes through rows: a line on stderr every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

LINE_EVERY = 10.0


def count_rows(done: str) -> Callable[[int], None]:
    """A listener to numbers of rows, which says how many there were so far: `12,345,678 rows <done>`."""
    rows, last = 0, time.monotonic()

    def add(more: int) -> None:
        nonlocal rows, last
        rows += more
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            click.echo(f"{rows:,} rows {done}", err=True)

    return add
