"""Fetch the files of a snapshot into a folder beside the target, each until its hash is right."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lance_prep.errors import BadFile, DiskFull, size, translating
from lance_prep.fetch import HubRanges
from lance_prep.hub.pulled import Record
from lance_prep.hub.snapshot import RECORD, RemoteFile, Snapshot
from lance_prep.model import SourceFile
from lance_prep.store import make_durable
from lance_prep.transport import Transport


class PullProgress(Protocol):
    """Receives the progress of a pull. Called from several threads."""

    def waiting(self, folder: str) -> None:
        """Report that another process pulls into the folder, and this one waits for it."""

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None:
        """Report how many files and bytes of the snapshot are missing."""

    def advanced(self, bytes: int) -> None:
        """Report more bytes."""


class Quiet:
    def waiting(self, folder: str) -> None: ...

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None: ...

    def advanced(self, bytes: int) -> None: ...


@dataclass
class Fetcher:
    """Brings files into the staging folder of a pull.

    Attributes:
        snapshot: what is fetched.
        staging: the folder, which this process has locked.
        others: folders that may hold files with the same content under the same paths.
        workers: files fetched at once.
        told: receives the progress.
        transport: its option `hf_token` is the token.
        files, bytes: that were fetched until now.
    """

    snapshot: Snapshot
    staging: Path
    others: Sequence[Path]
    workers: int
    told: PullProgress
    transport: Transport
    files: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, missing: Sequence[RemoteFile]) -> None:
        """Bring these files into the staging folder, and remove all others from it.

        Raises:
            BadFile: a file's hash differs from what the Hub said.
            DiskFull: there is not enough space.
        """
        Record.of(self.snapshot).write(self.staging)  # which tells the next run that the folder is of a pull
        wanted = {RECORD, *(file.path for file in missing)}
        for path in sorted(self.staging.rglob("*")):  # of an earlier pull of another commit
            name = path.relative_to(self.staging).as_posix()
            if path.is_symlink() or (not path.is_dir() and name.removesuffix(".part") not in wanted):
                path.unlink()
        missing = [file for file in missing if not self._there(file)]
        bytes = sum(file.size for file in missing)
        free = shutil.disk_usage(self.staging).free
        if bytes > free:
            raise DiskFull(
                f"{self.staging.parent}: {size(bytes)} to fetch, and {size(free)} of space is left",
                "free some space, or pull into a folder on another disk",
            )
        self.told.begun(self.snapshot, len(missing), bytes)
        transport = self.transport.retrying()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="pull") as pool:
            try:
                for future in [pool.submit(self._fetch, file, transport) for file in missing]:
                    future.result()
            except BaseException:
                transport.retries.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _there(self, file: RemoteFile) -> bool:
        """Return whether a file is staged, or link it from a folder that has it."""
        path = self.staging / file.path
        if file.is_at(path):
            return True
        for folder in self.others:
            if file.is_at(folder / file.path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                try:
                    os.link(folder / file.path, path)
                except OSError:  # a file system without links
                    shutil.copyfile(folder / file.path, path)
                return True
        return False

    def _fetch(self, file: RemoteFile, transport: Transport) -> None:
        """Fetch a file, continuing a part that an earlier run left."""
        path = self.staging / file.path
        part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.exists() else 0
        if done > file.size or not self._continue(file, part, done, transport):
            part.unlink(missing_ok=True)
            if not self._continue(file, part, 0, transport):
                part.unlink(missing_ok=True)
                raise BadFile(
                    f"{self.snapshot.source(file).url}: its content has another hash than {file.digest}",
                    "run the same command again; if it fails again, the repository or the connection is damaged",
                )
        part.replace(path)
        with self._lock:
            self.files += 1

    def _continue(self, file: RemoteFile, part: Path, done: int, transport: Transport) -> bool:
        """Fetch the rest of a file after `done` bytes. Return whether the whole has the right hash."""
        digest = file.hasher()
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as out:
            while data := out.read(1 << 20):
                digest.update(data)
            self.told.advanced(done)
            source = self.snapshot.source(file)
            for data in _read(source, transport, done):
                out.write(data)
                digest.update(data)
                self.told.advanced(len(data))
                with self._lock:
                    self.bytes += len(data)
            out.flush()
            make_durable(out.fileno())
        return bool(digest.hexdigest() == file.digest)


def _read(file: SourceFile, transport: Transport, start: int) -> Iterator[bytes]:
    """Yield the rest of a file; what fails is the Hub's error, not that of writing the copy."""
    pieces = HubRanges(file, transport).stream(start, file.size)
    while True:
        with translating(f"reading {file.url}"):
            data = next(pieces, None)
        if data is None:
            return
        yield data
