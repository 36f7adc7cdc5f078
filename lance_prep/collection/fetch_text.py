"""One source of a collection: planned, read as a build reads it, and written as JSON lines, continued after a kill."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import drop_blank, without_nulls
from lance_prep.collection.folder import REJECTED, SourceStats
from lance_prep.collection.json_lines import LineWriter
from lance_prep.collection.unfinished import Parts, State, Unfinished
from lance_prep.collection.wanted import Wanted
from lance_prep.errors import Interrupted, SourceError
from lance_prep.layout import document_affixes
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Ledger, Tally
from lance_prep.model import Plan, Shard
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch, read_shard
from lance_prep.store import Quarantine
from lance_prep.tokenizer import Encoder, ReferenceEncoder, TokenizerSpec, load_tokenizer, make_encoder

# Shards of a source that are read while one is written.
SHARDS_AHEAD = 2
# A state is saved after this number of shards, or seconds if the source is slow. Each waits for the disk.
SAVE_SHARDS = 4
SAVE_SECONDS = 5.0

# Lines and tokens are counted by a build.
_LEDGER = ("rows_in", "rows_used", "empty", "filtered", "rejected", "over_limit", "reasons")


class DownloadProgress(Protocol):
    """Listens to a download. Called from several threads. `name` is `<category>/<source>`."""

    def begun(self, name: str, plan: Plan, shards_done: int) -> None:
        """A source is planned; earlier runs wrote some of its shards."""
        return

    def advanced(self, name: str, rows: int, text_bytes: int) -> None:
        """Rows were written."""
        return

    def shard_read(self, name: str, shard: Shard) -> None:
        """A shard was read to its end."""
        return

    def ended(self, name: str, status: str) -> None:
        """Nothing more is done for a source: `downloaded`, `resumed`, `unchanged` or `failed`."""
        return

    def warned(self, message: str) -> None:
        """Something that the user should know."""
        return


class Silent(DownloadProgress):
    """Tells nothing."""


@dataclass(frozen=True)
class Run:
    """What the sources of one download share.

    Attributes:
        progress: told what happens.
        stop: if set, sources in work end with `Interrupted`.
        at_once: number of sources downloaded at once.
    """

    progress: DownloadProgress
    stop: threading.Event
    at_once: int


def fetch_text(wanted: Wanted, unfinished: Unfinished, plan: Plan, state: State, run: Run) -> SourceStats:
    """Write the text of a source, from where `state` says on, and finish its file.

    Raises:
        Interrupted: `run.stop` is set.
        SourceError: the source cannot be read, or no record of it can be used.
        OSError: the file cannot be written.
    """
    run.progress.begun(wanted.path, plan, state.shards)
    with closing(unfinished.open(state)) as parts:
        made = _Text(wanted, unfinished, parts, plan, state, run)
        done = made.write()
    _check_used(done)
    stats = _stats(wanted, plan, done, made.sha256)
    unfinished.finish(done, stats)
    return stats


class _Text:
    """The file of one source while it is written."""

    def __init__(
        self, wanted: Wanted, unfinished: Unfinished, parts: Parts, plan: Plan, state: State, run: Run
    ) -> None:
        self._wanted = wanted
        self._unfinished = unfinished
        self._parts = parts
        self._plan = plan
        self._state = state
        self._run = run
        self._limit = _Limit(wanted, state, run.at_once)
        self._lines = LineWriter(wanted.name, wanted.category, _origin(plan))
        self._hash = parts.hashed()
        self._saved = (time.monotonic(), state.shards)
        self._rows, self._characters = state.rows, state.characters

    @property
    def sha256(self) -> str:
        return str(self._hash.hexdigest())

    def write(self) -> State:
        """Write the shards that are missing. Return the state of the whole file, which is durable."""
        # Under a limit, what is read ahead would often be for nothing.
        ahead = 0 if self._limit.limits else SHARDS_AHEAD
        try:
            with closing(_readings(self._plan, self._state.shards, self._run.stop, ahead)) as readings:
                while not self._limit.reached and (reading := next(readings, None)) is not None:
                    self._write_shard(reading)
        except Exception:  # whatever it is, what was written so far is kept
            with suppress(OSError):  # a full disk
                self._save()
            raise
        self._save()
        return self._state

    def _write_shard(self, reading: _Reading) -> None:
        ledger = Ledger(**self._state.ledger)
        first = ledger.rows_in
        for batch in reading.batches():
            if self._run.stop.is_set():
                raise Interrupted("stopped", "run the same command again: it continues")
            self._write_batch(batch, first, reading.tally)
            if self._limit.reached:
                break
        self._parts.reject(reading.quarantine.lines)
        ledger.add(reading.tally.ledger)
        self._state = replace(
            self._state,
            shards=self._state.shards + 1,
            bytes=self._parts.bytes,
            rejected_bytes=self._parts.rejected_bytes,
            rows=self._rows,
            characters=self._characters,
            tokens=self._limit.tokens,
            ledger={name: value for name, value in ledger.as_json().items() if name in _LEDGER},
        )
        self._run.progress.shard_read(self._wanted.path, reading.shard)
        when, shards = self._saved
        if self._state.shards - shards >= SAVE_SHARDS or time.monotonic() - when >= SAVE_SECONDS:
            self._save()

    def _write_batch(self, batch: SourceBatch, first: int, tally: Tally) -> None:
        texts, kept = drop_blank(without_nulls(batch.columns.column(0)))
        used = self._limit.take(texts)
        texts = texts.slice(0, used)
        rows: npt.NDArray[np.uint64] = batch.rows[kept[:used]] + np.uint64(first)
        tally.ledger.rows_used += used
        tally.ledger.empty += len(batch.rows) - len(kept)
        tally.ledger.over_limit += len(kept) - used
        size = 0
        for piece in self._lines.lines(texts, rows):
            self._parts.write(memoryview(piece))
            self._hash.update(piece)
            size += piece.size
        self._rows += used
        self._characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
        self._run.progress.advanced(self._wanted.path, used, size)

    def _save(self) -> None:
        self._parts.sync()
        now = time.monotonic()
        self._state = replace(self._state, seconds=round(self._state.seconds + now - self._saved[0], 3))
        self._unfinished.save(self._state)
        self._saved = (now, self._state.shards)


class _Reading:
    """A shard that is being read. Its first batch is fetched by `pool`, from now on."""

    def __init__(self, plan: Plan, shard: Shard, stop: threading.Event, pool: ThreadPoolExecutor) -> None:
        self.shard = shard
        self.quarantine = Quarantine(strict=plan.recipe.strict)
        self.tally = Tally(on_reject=self.quarantine.add)
        self._batches: Any = read_shard(plan, shard, self.tally, stop=stop)
        self._first: Future[SourceBatch | None] = pool.submit(next, self._batches, None)

    def batches(self) -> Iterator[SourceBatch]:
        if (first := self._first.result()) is not None:
            yield first
            yield from self._batches

    def close(self) -> None:
        """Stop reading."""
        wait([self._first])
        self._batches.close()


def _readings(plan: Plan, first: int, stop: threading.Event, ahead: int) -> Generator[_Reading, None, None]:
    """Yield the shards from the one numbered `first` on. The next `ahead` ones are read meanwhile.

    A shard begins with requests that wait for each other. With 100 ms for each, a source was downloaded at 30 MB/s,
    with one shard ahead at 48, and with two at 58.
    """
    waiting: deque[_Reading] = deque()
    with ThreadPoolExecutor(ahead + 1, thread_name_prefix="shard") as pool:
        try:
            for shard in plan.shards[first:]:
                waiting.append(_Reading(plan, shard, stop, pool))
                if len(waiting) > ahead:
                    yield waiting[0]
                    waiting.popleft().close()
            while waiting:
                yield waiting[0]
                waiting.popleft().close()
        finally:
            for reading in waiting:
                reading.close()


class _Limit:
    """Where a source's text ends: after `max_rows` rows, or with the row that reaches `max_tokens`."""

    def __init__(self, wanted: Wanted, state: State, at_once: int) -> None:
        self._rows_left = wanted.source.max_rows - state.rows if wanted.source.max_rows is not None else None
        self._max_tokens = wanted.source.max_tokens
        self.tokens = state.tokens
        self._encoder: Encoder | None = None
        self._added = 0
        if self._max_tokens is not None:
            spec = load_tokenizer(wanted.built)
            self._added = _added_tokens(spec, wanted.built)
            reference = ReferenceEncoder(spec, wanted.built)
            self._encoder = make_encoder(spec, wanted.built, reference, encoders=at_once)

    @property
    def limits(self) -> bool:
        """Whether there is a limit."""
        return self._max_tokens is not None or self._rows_left is not None

    @property
    def reached(self) -> bool:
        full = self._max_tokens is not None and self.tokens >= self._max_tokens
        return full or self._rows_left == 0

    def take(self, texts: pa.LargeStringArray) -> int:
        """Return how many of the texts still belong to the source, and count them."""
        used = len(texts) if self._rows_left is None else min(self._rows_left, len(texts))
        if self._encoder is not None and self._max_tokens is not None:
            ends = np.cumsum(self._encoder.encode(texts.slice(0, used)).lengths + self._added)
            used = min(used, int(np.searchsorted(ends, self._max_tokens - self.tokens)) + 1)
            self.tokens += int(ends[used - 1]) if used else 0
        if self._rows_left is not None:
            self._rows_left -= used
        return used


def _added_tokens(spec: TokenizerSpec, recipe: Recipe) -> int:
    """Return the number of special tokens that a build puts around each document."""
    if LAYOUTS[recipe.layout].packed:
        return sum(map(len, document_affixes(spec, recipe)))
    return len(spec.prefix) + len(spec.suffix) if recipe.add_special_tokens else 0


def _origin(plan: Plan) -> dict[str, str]:
    """Return what the metadata of each line says of where it is from."""
    if plan.source.repo is None:
        return {"source": plan.source.asked}
    return {"repo": plan.source.repo, "commit": plan.source.commit or ""}


def _check_used(done: State) -> None:
    """Refuse a source of which every record was rejected: the recipe does not fit it."""
    rejected, reasons = done.ledger.get("rejected", 0), done.ledger.get("reasons", {})
    if rejected and not done.rows:
        said = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        raise SourceError(
            f"none of {rejected:,} records can be used ({said})", "fix the source's template or columns in the recipe"
        )


def _stats(wanted: Wanted, plan: Plan, done: State, sha256: str) -> SourceStats:
    return SourceStats(
        source=wanted.name,
        category=wanted.category,
        rows=done.rows,
        characters=done.characters,
        bytes=done.bytes,
        sha256=sha256,
        asked=plan.recipe.asked,
        repo=plan.source.repo,
        config=plan.source.config,
        split=plan.source.split,
        revision=plan.source.revision,
        commit=plan.source.commit,
        license=wanted.source.license,
        tokens=done.tokens if wanted.source.max_tokens is not None else None,
        ledger=done.ledger,
        rejected=f"{wanted.name}{REJECTED}" if done.rejected_bytes else None,
        entry=wanted.entry,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=done.seconds,
    )
