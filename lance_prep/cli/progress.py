"""Progress of a build on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lance_prep.cli.common import count, printable, size, span
from lance_prep.engine.report import Progress
from lance_prep.model import Plan
from lance_prep.store.journal import Receipt

LINE_EVERY = 10.0


class _Counts:
    """What was done so far, and how fast. Guards itself: workers call from their own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._plan: Plan | None = None
        self._finished: set[int] = set()
        self._total = self._done = 0
        self.rows = self.tokens = self.text_bytes = 0

    def plan(self, plan: Plan, done: Sequence[int]) -> None:
        with self._lock:
            self._plan = plan
            self._finished = set(done)
            # Of this run alone: the time that is left is reckoned from what it has done.
            self._total = sum(shard.bytes for shard in plan.shards if shard.index not in self._finished)

    def advance(self, rows: int, tokens: int, source_bytes: int) -> None:
        with self._lock:
            self.rows += rows
            self.tokens += tokens
            self.text_bytes += source_bytes

    def finish(self, receipt: Receipt) -> None:
        with self._lock:
            if self._plan and receipt.shard not in self._finished:  # under a row limit one may be built twice
                self._finished.add(receipt.shard)
                self._done += self._plan.shard(receipt.shard).bytes

    def line(self) -> str:
        """rows, tokens, MB/s, shards done of all, time left."""
        with self._lock:
            seconds = max(time.monotonic() - self._started, 1e-3)
            parts = [
                f"{count(self.rows)} rows",
                f"{count(self.tokens)} tokens",
                f"{size(self.text_bytes / seconds)}/s",
                f"shard {len(self._finished)}/{len(self._plan.shards) if self._plan else 0}",
            ]
            if 0 < self._done < self._total:
                parts.append(f"{span(seconds * (self._total / self._done - 1))} left")
            return ", ".join(parts)


class LineProgress:
    """A line every ten seconds, for logs."""

    def __init__(self) -> None:
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._last = time.monotonic()

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        self._counts.plan(plan, done)
        resumed = f", {len(done)} of them done by an earlier run" if done else ""
        self._print(f"{len(plan.files)} files in {len(plan.shards)} shards{resumed}")

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        self._counts.advance(rows, tokens, source_bytes)
        with self._lock:
            due = time.monotonic() - self._last >= LINE_EVERY
            if due:
                self._last = time.monotonic()
        if due:
            self._print(self._counts.line())

    def finished(self, receipt: Receipt) -> None:
        self._counts.finish(receipt)

    def warned(self, message: str) -> None:
        self._print(f"warning: {printable(message)}")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class BarProgress:
    """A bar that fills with the shards done, over the counts."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._counts = _Counts()
        self._bar = Progress(
            SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
        )
        self._task = self._bar.add_task("planning", total=None)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        self._counts.plan(plan, done)
        self._bar.update(self._task, total=len(plan.shards), completed=len(done), description=self._counts.line())

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        self._counts.advance(rows, tokens, source_bytes)
        self._bar.update(self._task, description=self._counts.line())

    def finished(self, receipt: Receipt) -> None:
        self._counts.finish(receipt)
        self._bar.update(self._task, advance=1, description=self._counts.line())

    def warned(self, message: str) -> None:
        self._bar.console.print(f"warning: {printable(message)}", markup=False, highlight=False)


@contextmanager
def make_progress() -> Iterator[Progress]:
    """A bar where stderr is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    bar = BarProgress()
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()
