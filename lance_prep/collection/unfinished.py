"""A download that is not finished: its plan, and how much of its files is durable.

    DIR/.lance_prep/downloads/<source>.plan.json      the pinned plan, written once
    DIR/.lance_prep/downloads/<source>.json           `State`, replaced after the files were fsynced

A state is always about whole shards, because a shard is read again from its start. Bytes beyond those that the state
names are cut off, so a download that was killed at any instant continues with the bytes that it would have written.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from lance_prep.collection.folder import LINES, PART, REJECTED, STATS, SourceStats
from lance_prep.errors import DamagedDataset
from lance_prep.model import Plan
from lance_prep.store import FOLDER, LocalFiles, decode, make_durable

FORMAT = 1
_FOLDER = f"{FOLDER}/downloads"


@dataclass(frozen=True)
class State:
    """How far a download is.

    Attributes:
        entry: as in `SourceStats`.
        shards: number of shards whose text is in the file.
        bytes, rejected_bytes: durable length of the two files.
        rows, characters, tokens: of the text, as in `SourceStats`.
        ledger: of those shards.
        seconds: time it took so far.
        stats: of the finished file, once it only has to be renamed.
    """

    entry: dict[str, Any]
    shards: int = 0
    bytes: int = 0
    rejected_bytes: int = 0
    rows: int = 0
    characters: int = 0
    tokens: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    stats: SourceStats | None = None
    format: int = FORMAT


class Unfinished:
    """The files of one source while it is downloaded. Not thread-safe.

    Args:
        files: of the download's folder.
        category, name: of the source.
    """

    def __init__(self, files: LocalFiles, category: str, name: str) -> None:
        self._files = files
        self._text = f"{category}/{name}{LINES}"
        self._rejected = f"{category}/{name}{REJECTED}"
        self._stats = f"{category}/{name}{STATS}"
        self._plan = f"{_FOLDER}/{name}.plan.json"
        self._state = f"{_FOLDER}/{name}.json"

    def state(self) -> State | None:
        """Return how far the download is; None if it has not begun, or its state cannot be used."""
        data = self._files.read(self._state)
        if data is None:
            return None
        try:
            state = decode(State, json.loads(data))
        except (ValueError, RecursionError):
            return None
        return state if state.format == FORMAT else None

    def plan(self) -> Plan:
        """Return the plan that was pinned when the download began.

        Raises:
            DamagedDataset: it is missing or invalid.
        """
        data = self._files.read(self._plan)
        try:
            return Plan.from_json(json.loads(data or b""))
        except (ValueError, KeyError, TypeError, ValidationError, pa.ArrowException, RecursionError) as error:
            raise DamagedDataset(f"{self._plan} is invalid: {error}", "download the source with force=True") from error

    def intact_plan(self, state: State) -> Plan | None:
        """Return the pinned plan; None if the download cannot be continued, because a file of it is damaged."""
        try:
            plan = self.plan()
            self.open(state).close()
        except DamagedDataset:
            return None
        return plan

    def begin(self, plan: Plan, entry: dict[str, Any]) -> State:
        """Discard what is there, and pin the plan."""
        self.discard()
        self._files.write(self._plan, json.dumps(plan.as_json()).encode())
        state = State(entry)
        self.save(state)
        return state

    def save(self, state: State) -> None:
        """Replace the state. The files must be durable up to its lengths."""
        self._files.write(self._state, json.dumps(asdict(state)).encode())

    def open(self, state: State) -> Parts:
        """Open the unfinished files to continue them, cut to the lengths of the state.

        Raises:
            DamagedDataset: one of them is shorter.
        """
        return Parts(self._part(self._text), self._part(self._rejected), state)

    def finish(self, state: State, stats: SourceStats) -> None:
        """Give a complete file its name, and record its stats. After a kill, the next run does the rest."""
        self.save(replace(state, stats=stats))
        self.settle(stats)

    def settle(self, stats: SourceStats) -> None:
        """Do what is left of `finish`."""
        # Without stats a file counts as unknown, so nobody reads the new file with the old stats.
        if self._part(self._text).exists():
            self._files.delete(self._stats)
            self._rename(self._text)
        if self._part(self._rejected).exists():
            self._rename(self._rejected)
        elif stats.rejected is None:
            self._files.delete(self._rejected)
        self._files.write(self._stats, stats.text().encode())
        # Last, because a state leads here again.
        for path in (self._plan, self._state):
            self._files.delete(path)

    def discard(self) -> None:
        """Remove the unfinished files. A finished file stays."""
        for path in (self._state, self._plan):
            self._files.delete(path)
        for path in (self._text, self._rejected):
            self._part(path).unlink(missing_ok=True)

    def _part(self, path: str) -> Path:
        return self._files.path(path + PART, replace=True)

    def _rename(self, path: str) -> None:
        self._part(path).replace(self._files.path(path, replace=True))
        self._files.sync(path)


class Parts:
    """The unfinished text and rejected rows of one source, open for writing at their ends."""

    def __init__(self, text: Path, rejected: Path, state: State) -> None:
        text.parent.mkdir(exist_ok=True)
        self._text = _open(text, state.bytes)
        self._rejected_path = rejected
        try:
            self._rejected = _open(rejected, state.rejected_bytes) if state.rejected_bytes else None
        except BaseException:
            os.close(self._text)
            raise
        if self._rejected is None:
            rejected.unlink(missing_ok=True)
        self.bytes = state.bytes
        self.rejected_bytes = state.rejected_bytes

    def hashed(self) -> Any:
        """Return a SHA-256 of the text that is there already."""
        digest, at = hashlib.sha256(), 0
        while at < self.bytes:
            data = os.pread(self._text, min(1 << 20, self.bytes - at), at)
            digest.update(data)
            at += len(data)
        return digest

    def write(self, data: memoryview) -> None:
        """Add text."""
        _write(self._text, data)
        self.bytes += len(data)

    def reject(self, lines: bytes) -> None:
        """Add rejected rows."""
        if not lines:
            return
        if self._rejected is None:
            self._rejected = _open(self._rejected_path, 0)
        _write(self._rejected, memoryview(lines))
        self.rejected_bytes += len(lines)

    def sync(self) -> None:
        """Make what was written durable."""
        for file in filter(None, (self._text, self._rejected)):
            make_durable(file)

    def close(self) -> None:
        for file in filter(None, (self._text, self._rejected)):
            os.close(file)


def _open(path: Path, size: int) -> int:
    """Open a file for writing at `size`, cut off there."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    there = os.fstat(file).st_size
    if there < size:
        os.close(file)
        raise DamagedDataset(
            f"{path} has {there:,} bytes, and {size:,} were written", "download the source with force=True"
        )
    os.ftruncate(file, size)
    os.lseek(file, size, os.SEEK_SET)
    return file


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
