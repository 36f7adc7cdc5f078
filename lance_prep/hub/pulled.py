"""The folder of a pull: the record of what filled it, the locked folder beside it for files not in place yet, and the
check of what was fetched.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lance_prep.errors import DamagedDataset, OutputExists, reading_dataset
from lance_prep.hub.snapshot import RECORD, Snapshot
from lance_prep.store import TEMPORARY, LocalFiles, make_durable, open_any
from lance_prep.transport import Transport, notice


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


def check_opens(snapshot: Snapshot, staging: Path) -> None:
    """Check that Lance can open the latest version of each dataset, and that its files are on the Hub.

    In an update, a dataset without a new version is not checked again.

    Raises:
        DatasetError: the repository holds damaged datasets.
    """
    sizes = {file.path: file.size for file in snapshot.files}
    for root in snapshot.datasets:
        folder, prefix = staging / root, f"{root}/" if root else ""
        if not any((folder / "_versions").glob("*.manifest")):
            continue
        with reading_dataset(str(folder)):
            dataset = open_any(str(folder), None, Transport())
            for fragment in dataset.get_fragments():
                for file in fragment.metadata.files:
                    if said := _fault(f"{prefix}data/{file.path}", file, sizes):
                        raise _damaged(snapshot, said)
            tracked = dataset.tracked_files().read_all().to_pylist()
        _check_tracked(snapshot, prefix, tracked, dataset.version, sizes)


def _fault(path: str, file: Any, sizes: Mapping[str, int]) -> str | None:
    """Return the fault of a data file; None if the Hub has it with the size that its manifest states."""
    if file.base_id is not None:
        return f"{path} is outside of the dataset"
    if path not in sizes:
        return f"{path} is missing"
    if file.file_size_bytes is not None and sizes[path] != file.file_size_bytes:
        return f"{path} has {sizes[path]:,} bytes, and {file.file_size_bytes:,} were written"
    return None


def _check_tracked(
    snapshot: Snapshot, prefix: str, tracked: list[dict[str, Any]], latest: int, sizes: Mapping[str, int]
) -> None:
    """Check that the Hub has the data and deletion files of every version, and that none is empty.

    Without a deletion file, Lance opens a dataset and fails when rows are read. An incomplete older version is only
    reported, because the latest one can be used without it.
    """
    reported: set[int] = set()
    for file in tracked:
        path, version = prefix + file["path"], file["version"]
        if file["type"] not in ("data file", "deletion file") or sizes.get(path) or version in reported:
            continue
        said = f"{path} is {'empty' if path in sizes else 'missing'}"
        if version == latest:
            raise _damaged(snapshot, said)
        reported.add(version)
        notice(f"{snapshot.at.url}: version {version} cannot be read, because {said}")


def _damaged(snapshot: Snapshot, said: str) -> DamagedDataset:
    return DamagedDataset(
        f"{snapshot.at.url} is damaged: {said}",
        "push the dataset again, or pull an earlier commit with `revision`",
    )
