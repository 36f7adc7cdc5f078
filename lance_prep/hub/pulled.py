"""The folder of a pull: the record of what filled it, and the locked folder beside it for files not in place yet."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lance_prep.errors import OutputExists
from lance_prep.hub.snapshot import RECORD, Snapshot
from lance_prep.store import TEMPORARY, LocalFiles, make_durable


@dataclass
class Record:
    """What a folder was filled with.

    Attributes:
        repo, path, commit: where it is from.
        files: path -> size and hash.
        times: path -> time of its last change here, in nanoseconds. A file with another one is hashed again.
    """

    repo: str
    path: str
    commit: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot, folder: Path | None = None) -> Record:
        """Return the record of a snapshot, with the times of the files in a folder."""
        files = {file.path: (file.size, file.digest) for file in snapshot.files}
        times = {path: time for path in files if folder is not None and (time := _time(folder / path)) is not None}
        return cls(snapshot.at.repo, snapshot.at.path, snapshot.commit, files, times)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return the record in a folder, or None if the folder was not filled by a pull."""
        try:
            data = json.loads(LocalFiles(folder).read(RECORD) or b"")
            files = {str(path): (int(size), str(digest)) for path, (size, digest) in data["files"].items()}
            times = {str(path): int(time) for path, time in data.get("times", {}).items()}
            return cls(str(data["repo"]), str(data["path"]), str(data["commit"]), files, times)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def has(self, path: str, folder: Path, *, any_time: bool = False) -> bool:
        """Return whether a file of the record is in the folder, with its size and, unless `any_time`, its time."""
        try:
            found = (folder / path).lstat()
        except OSError:
            return False
        recorded = self.files.get(path)
        is_whole = recorded is not None and found.st_size == recorded[0]
        return is_whole and (any_time or self.times.get(path) == found.st_mtime_ns)

    def write(self, folder: Path) -> None:
        LocalFiles(folder).write(RECORD, json.dumps(asdict(self)).encode())


def _time(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None


def has_commit(folder: Path, commit: str, *, any_time: bool = False) -> bool:
    """Return whether a pull filled the folder with this commit, and its files did not change since.

    Args:
        any_time: compare only their sizes.
    """
    record = Record.read(folder) if folder.is_dir() else None
    if record is None or record.commit != commit:
        return False
    return all(record.has(path, folder, any_time=any_time) for path in record.files)


@contextmanager
def staging_of(target: Path, waiting: Callable[[str], None]) -> Iterator[Path]:
    """Return the folder for files that are not in place yet, locked: other processes wait for this one.

    The lock is the kernel's, on the folder itself, so it ends with its process and leaves no file behind.
    """
    staging = target.with_name(f".{target.name}.pull")
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        held = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(str(target))
                fcntl.flock(held, fcntl.LOCK_EX)
            # The process before this one may have renamed or removed the folder.
            if staging.exists() and os.path.samestat(staging.stat(), os.fstat(held)):
                yield staging
                return
        finally:
            os.close(held)


def check_ours(staging: Path) -> None:
    """Check that a folder for files that are not in place yet is empty, or of a pull.

    Raises:
        OutputExists: it holds something else.
    """
    # A pull that was killed before its record had its name left no other file.
    half = (staging / RECORD).with_name(f".{Path(RECORD).name}{TEMPORARY}")
    other = sorted(path for path in staging.rglob("*") if path != half and (path.is_symlink() or not path.is_dir()))
    if other and Record.read(staging) is None:
        raise OutputExists(
            f"{staging} exists and was not made by pull: it holds {other[0].relative_to(staging).as_posix()}",
            "move it away, or remove it",
        )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        make_durable(descriptor)
    finally:
        os.close(descriptor)
