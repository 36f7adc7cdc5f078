"""Pull a Lance dataset, or a collection of them, from the Hub to a local folder.

    NAME.lance/...                           appears in one step, whole; an update adds its manifests last
    NAME.lance/.lance_prep/pulled.json       where it is from: repository, commit, size and hash of each file
    .NAME.lance.pull/...                     a pull at work: whole files, and PATH.part

Nothing is taken over from `huggingface_hub` but its session. In 2.4 it begins a file that was cut off by a kill from
its first byte, and compares only the size of what arrived; and its cache keeps files as links, which a dataset of
lance-prep may not hold. Here a file continues where it was cut off, its hash is compared before it gets its name, and a
file that an earlier pull has (same hash) is linked, not fetched.

An update keeps the versions that are in the folder: it adds the files of the new commit. If the commit holds another
history, as after a dataset was built anew, nothing is changed unless `overwrite` is set.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import (
    BadFile,
    DiskFull,
    OutputExists,
    UsageError,
    size,
    translate_output,
    translating,
)
from lance_prep.fetch import HubRanges
from lance_prep.hub.snapshot import RECORD, RemoteFile, Snapshot, find_snapshot
from lance_prep.hub_path import HubPath, parse_hub_url
from lance_prep.store import LocalFiles, make_durable, open_any, refuse_links
from lance_prep.transport import Transport

#: Files fetched at once.
WORKERS = 8
_OTHER = "pull into another folder, or remove this one first"


class PullProgress(Protocol):
    """Is told how a pull goes on. Called from several threads."""

    def waiting(self, folder: str) -> None:
        """Another process pulls into the folder; this one waits for it."""

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None:
        """So many files and bytes of the snapshot are not there yet."""

    def advanced(self, bytes: int) -> None:
        """So many more bytes are there."""


class _Quiet:
    def waiting(self, folder: str) -> None: ...

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None: ...

    def advanced(self, bytes: int) -> None: ...


@dataclass(frozen=True)
class PullReport:
    """What a pull did.

    Attributes:
        folder: absolute path of the dataset, or of the folder with the collection's manifest.
        repo, path: where it is from; the path is empty for the root of the repository.
        revision, commit: as asked for, and what that means now.
        status: "pulled", "updated", "replaced" or "unchanged".
        before: the commit that was there before, if any.
        datasets: folders of the datasets, relative to `folder`; "" for `folder` itself.
        files, bytes: of the commit.
        fetched_files, fetched_bytes: those that were fetched by this run.
    """

    folder: str
    repo: str
    path: str
    revision: str
    commit: str
    status: str
    before: str | None
    datasets: tuple[str, ...]
    files: int
    bytes: int
    fetched_files: int = 0
    fetched_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return {**asdict(self), "datasets": list(self.datasets)}


@dataclass
class _Record:
    """What a folder was filled with."""

    repo: str
    path: str
    commit: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Record:
        files = {file.path: (file.size, file.digest) for file in snapshot.files}
        return cls(snapshot.at.repo, snapshot.at.path, snapshot.commit, files)

    @classmethod
    def read(cls, folder: Path) -> _Record | None:
        """Return the record in a folder, or None if the folder was not filled by a pull."""
        try:
            data = json.loads(LocalFiles(folder).read(RECORD) or b"")
            files = {str(path): (int(size), str(digest)) for path, (size, digest) in data["files"].items()}
            return cls(str(data["repo"]), str(data["path"]), str(data["commit"]), files)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def has(self, path: str, folder: Path) -> bool:
        """Return whether a file of the record is in the folder, with its size."""
        try:
            return (folder / path).lstat().st_size == self.files[path][0]
        except OSError:
            return False

    def write(self, folder: Path) -> None:
        LocalFiles(folder).write(RECORD, json.dumps(asdict(self)).encode())


def pull(
    repo: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    path_in_repo: str | None = None,
    overwrite: bool = False,
    workers: int = WORKERS,
    progress: PullProgress | None = None,
) -> PullReport:
    """Copy a Lance dataset, or a collection with its manifest, from the Hub to a local folder.

    Run again after it was killed, it fetches only what is missing. Run again later, it does nothing if the revision
    still names the same commit, and otherwise adds what is new; versions in the folder stay until `prune`.

    Args:
        repo: `owner/name`, or an `hf://datasets/owner/name@revision/path` URL.
        output: local folder; by default the repository's name in the current folder, with `.lance` for a dataset.
        revision: branch, tag or commit; by default `main`.
        path_in_repo: folder of the dataset or collection; by default the only one in the repository.
        overwrite: replace what an earlier pull of the same dataset left, also if the commit holds another history.
        workers: files fetched at once.
        progress: is told how it goes on.

    Raises:
        SourceNotFound: no such repository, revision or dataset; or several, without a manifest.
        BadFile: a file's content has another hash than the Hub said, or a name is invalid.
        OutputExists: the folder holds something else, or another history of the dataset.
        HubUnreachable, AccessDenied, DiskFull, OutputError: see there.
    """
    at = _place(repo, revision, path_in_repo)
    snapshot = find_snapshot(at, Transport())
    name = at.repo.partition("/")[2]
    target = Path(
        output if output is not None else name if snapshot.manifest else f"{name.removesuffix('.lance')}.lance"
    )
    return pull_snapshot(snapshot, target.absolute(), overwrite=overwrite, workers=workers, progress=progress)


def _place(repo: str, revision: str | None, path: str | None) -> HubPath:
    if not repo.startswith("hf://") and repo.count("/") != 1:
        raise UsageError(f"{repo} is not owner/name", "name a folder in the repository with `path_in_repo`")
    at = parse_hub_url(repo if repo.startswith("hf://") else f"hf://datasets/{repo}")
    for said, given, found in (("revision", revision, at.revision), ("path_in_repo", path, at.path)):
        if given and found and given != found:
            raise UsageError(f"{repo} and {said}={given!r} name two places", "give one of them")
    return HubPath(at.repo, revision or at.revision, path or at.path)


def pull_snapshot(
    snapshot: Snapshot,
    target: Path,
    *,
    overwrite: bool = False,
    workers: int = WORKERS,
    progress: PullProgress | None = None,
    reuse: tuple[Path, ...] = (),
) -> PullReport:
    """Fill a local folder with a snapshot. Otherwise as `pull`.

    Args:
        reuse: folders that may hold files with the same content under the same paths.
    """
    told = progress or _Quiet()
    with translating(str(target), translate_output), _staging(target, told) as staging:
        return _Pull(snapshot, target, staging, overwrite, workers, told, reuse).run()


def has_commit(folder: Path, commit: str) -> bool:
    """Return whether a pull filled the folder with this commit, and its files are still there."""
    record = _Record.read(folder) if folder.is_dir() else None
    return record is not None and record.commit == commit and all(record.has(path, folder) for path in record.files)


@contextmanager
def _staging(target: Path, told: PullProgress) -> Iterator[Path]:
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
                told.waiting(str(target))
                fcntl.flock(held, fcntl.LOCK_EX)
            # The process before this one may have renamed or removed the folder.
            if staging.exists() and os.path.samestat(staging.stat(), os.fstat(held)):
                yield staging
                return
        finally:
            os.close(held)


@dataclass
class _Pull:
    """The steps of `pull_snapshot`, which describes the fields."""

    snapshot: Snapshot
    target: Path
    staging: Path
    overwrite: bool
    workers: int
    told: PullProgress
    reuse: tuple[Path, ...]
    fetched_files: int = 0
    fetched_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> PullReport:
        before = self._look()
        now = _Record.of(self.snapshot)
        if before is not None and before.files == now.files and all(self._has(f, before) for f in self.snapshot.files):
            if before.commit != now.commit:  # which changed other files of the repository
                now.write(self.target)
            self._remove(self.staging)
            return self._report("unchanged", before)
        other = self._other_history() if before is not None else None
        if other is not None and not self.overwrite:
            self._remove_if_empty()
            raise OutputExists(
                f"{self.target} holds another history of {self.snapshot.at.repo}: {other}",
                "use overwrite=True, which replaces it, or pull into another folder",
            )
        # In an update, only the files that are new are staged.
        self._fill(before if other is None else None)
        status = "pulled"
        aside = self.target.with_name(f".{self.target.name}.old")
        if before is None:
            self._appear()
            if _Record.read(aside) is not None:  # of a run that was killed while it replaced the folder
                self._remove(aside)
        elif other is not None:
            status = "replaced"
            self._check_opens()
            self._remove(aside)
            self.target.rename(aside)
            self._appear()
            self._remove(aside)
        else:
            status = "updated"
            self._move_in()
        return self._report(status, before)

    def _look(self) -> _Record | None:
        """Return the record of an earlier pull into the target; None if the target is new.

        Raises:
            OutputExists: it holds something else.
        """
        target, snapshot = self.target, self.snapshot
        if not target.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir()))):
            return None
        record = _Record.read(target) if target.is_dir() else None
        if record is None:
            self._remove_if_empty()
            raise OutputExists(f"{target} exists, and was not made by pull", _OTHER)
        if (record.repo, record.path) != (snapshot.at.repo, snapshot.at.path):
            self._remove_if_empty()
            there = f"{record.repo}/{record.path}".rstrip("/")
            asked = f"{snapshot.at.repo}/{snapshot.at.path}".rstrip("/")
            raise OutputExists(f"{target} holds {there}, not {asked}", _OTHER)
        for root in snapshot.datasets:
            refuse_links(str(target / root))
        return record

    def _has(self, file: RemoteFile, record: _Record) -> bool:
        """Return whether an earlier pull brought a file into the target, where it still is."""
        return record.files.get(file.path) == (file.size, file.digest) and record.has(file.path, self.target)

    def _other_history(self) -> str | None:
        """Return how the target's history differs from that of the snapshot; None if the snapshot continues it."""
        wanted = {file.path: file for file in self.snapshot.files}
        for root in self.snapshot.datasets:
            prefix = f"{root}/" if root else ""
            newest = max(_version(path) for path in wanted if path.startswith(f"{prefix}_versions/"))
            folder = self.target / root / "_versions"
            for path in sorted(folder.glob("*.manifest")) if folder.is_dir() else ():
                name = f"{prefix}_versions/{path.name}"
                number, there = _version(name), wanted.get(name)
                if number > newest:
                    return f"it has version {number}, and the latest on the Hub is {newest}"
                if there is not None and not there.is_at(path):
                    return f"its version {number} differs from that on the Hub"
        return None

    def _fill(self, before: _Record | None) -> None:
        """Bring the files into the staging folder: all, or only those that the target does not have by its record.

        Raises:
            BadFile: a file's hash differs from what the Hub said.
            DiskFull: there is not enough space.
        """
        missing = [file for file in self.snapshot.files if before is None or not self._has(file, before)]
        wanted = {file.path for file in missing}
        for path in sorted(self.staging.rglob("*")):  # of an earlier pull of another commit
            name = path.relative_to(self.staging).as_posix()
            if path.is_symlink() or (not path.is_dir() and name.removesuffix(".part") not in wanted):
                path.unlink()
        missing = [file for file in missing if not self._there(file)]
        bytes = sum(file.size for file in missing)
        free = shutil.disk_usage(self.staging).free
        if bytes > free:
            raise DiskFull(
                f"{self.target}: {size(bytes)} to fetch, and {size(free)} of space is left",
                "free some space, or pull into a folder on another disk",
            )
        self.told.begun(self.snapshot, len(missing), bytes)
        transport = Transport().retrying()
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
        for folder in (*self.reuse, self.target):
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
        with self.lock:
            self.fetched_files += 1

    def _continue(self, file: RemoteFile, part: Path, done: int, transport: Transport) -> bool:
        """Fetch the rest of a file after `done` bytes. Return whether the whole has the right hash."""
        digest = file.hasher()
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as out:
            while data := out.read(1 << 20):
                digest.update(data)
            self.told.advanced(done)
            for data in HubRanges(self.snapshot.source(file), transport).stream(done, file.size):
                out.write(data)
                digest.update(data)
                self.told.advanced(len(data))
                with self.lock:
                    self.fetched_bytes += len(data)
            out.flush()
            make_durable(out.fileno())
        return bool(digest.hexdigest() == file.digest)

    def _appear(self) -> None:
        """Give the staging folder its name, once Lance has opened each dataset in it."""
        self._check_opens()
        _Record.of(self.snapshot).write(self.staging)
        for folder in {(self.staging / file.path).parent for file in self.snapshot.files}:
            _sync(folder)
        with contextlib.suppress(OSError):
            self.target.rmdir()  # empty, or missing
        self.staging.rename(self.target)
        _sync(self.target.parent)

    def _check_opens(self) -> None:
        """Check that Lance can open each dataset in the staging folder.

        Raises:
            DatasetError: the repository holds damaged datasets.
        """
        for root in self.snapshot.datasets:
            open_any(str(self.staging / root), None, Transport())

    def _move_in(self) -> None:
        """Move the staged files into the target, those that make others visible last."""
        files = LocalFiles(self.target)
        for file in self.snapshot.in_order():
            staged = self.staging / file.path
            if staged.exists():
                place = files.path(file.path, replace=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(place)
                _sync(place.parent)
        _Record.of(self.snapshot).write(self.target)
        self._remove(self.staging)

    def _report(self, status: str, before: _Record | None) -> PullReport:
        found = self.snapshot
        return PullReport(
            folder=str(self.target),
            repo=found.at.repo,
            path=found.at.path,
            revision=found.revision,
            commit=found.commit,
            status=status,
            before=before.commit if before is not None else None,
            datasets=found.datasets,
            files=len(found.files),
            bytes=found.size,
            fetched_files=self.fetched_files,
            fetched_bytes=self.fetched_bytes,
        )

    def _remove(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.staging.rmdir()


def _version(path: str) -> int:
    """Return the version that the name of a manifest means; 0 for another file."""
    stem = path.rpartition("/")[2].removesuffix(".manifest")
    if not stem.isdigit():
        return 0
    return (1 << 64) - 1 - int(stem) if len(stem) == 20 else int(stem)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        make_durable(descriptor)
    finally:
        os.close(descriptor)
