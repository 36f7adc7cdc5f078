"""Pull a Lance dataset, or a collection of them, from the Hub to a local folder.

    NAME.lance/...                           appears in one step, whole; an update adds its manifests last
    NAME.lance/.lance_prep/pulled.json       where it is from: repository, commit, size and hash of each file
    .NAME.lance.pull/...                     a pull at work: whole files, and PATH.part

Only the session of `huggingface_hub` is used. Its downloads (2.4) start a file again after a kill and compare only its
size, and its cache keeps files as links, which a dataset of lance-prep must not hold. Here a file continues where it
was cut off, its hash is compared before it gets its name, and a file that an earlier pull has (same hash) is linked,
not fetched. 373 MB from a Hub on the same machine: 63 to 73 MB/s, and 57 to 67 MB/s with `snapshot_download`.

An update keeps the versions that are in the folder: it adds the files of the new commit. If the commit holds another
history, as after a dataset was built anew, nothing is changed unless `overwrite` is set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import BadFile, DiskFull, OutputExists, UsageError, size, translate_output, translating
from lance_prep.fetch import HubRanges
from lance_prep.hub.pulled import Record, check_ours, staging_of, sync_folder
from lance_prep.hub.snapshot import RECORD, RemoteFile, Snapshot, find_snapshot
from lance_prep.hub_path import HubPath, parse_hub_url
from lance_prep.model import SourceFile
from lance_prep.store import LocalFiles, make_durable, open_any, output_lock, refuse_links
from lance_prep.transport import Transport, absolute_uri

#: Files fetched at once.
WORKERS = 8
_OTHER = "pull into another folder, or remove this one first"


class PullProgress(Protocol):
    """Receives the progress of a pull. Called from several threads."""

    def waiting(self, folder: str) -> None:
        """Report that another process pulls into the folder, and this one waits for it."""

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None:
        """Report how many files and bytes of the snapshot are missing."""

    def advanced(self, bytes: int) -> None:
        """Report more bytes."""


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
        validation: of the validation set that belongs to the dataset, `X.val.lance` beside `X.lance`.
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
    validation: PullReport | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return {**asdict(self), "datasets": list(self.datasets)}


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

    If `push` sent a validation set with the dataset, as `data/validation.lance`, it is pulled into `X.val.lance`.

    Run again after it was killed, it fetches only what is missing. Run again later, it does nothing if the revision
    still names the same commit, and otherwise adds what is new; versions in the folder stay until `prune`.

    Args:
        repo: `owner/name`, or an `hf://datasets/owner/name@revision/path` URL.
        output: local folder; by default the repository's name in the current folder, with `.lance` for a dataset.
        revision: branch, tag or commit; by default `main`.
        path_in_repo: folder of the dataset or collection; by default the only one in the repository.
        overwrite: replace what an earlier pull of the same dataset left, also if the commit holds another history.
        workers: files fetched at once.
        progress: receives the progress.

    Raises:
        SourceNotFound: no such repository, revision or dataset; or several, without a manifest.
        BadFile: a file's content has another hash than the Hub said, or a name is invalid.
        OutputExists: the folder holds something else, or another history of the dataset.
        HubUnreachable, AccessDenied, DiskFull, OutputError: see there.
    """
    if output is not None and ("://" in str(output) or not Path(output).name):
        raise UsageError(f"{output} is not the path of a local folder", "pull into a local folder")
    at = _place(repo, revision, path_in_repo)
    snapshot = find_snapshot(at, Transport(), pairs=True)
    name = at.repo.partition("/")[2]
    target = Path(
        output if output is not None else name if snapshot.manifest else f"{name.removesuffix('.lance')}.lance"
    )
    folder, validation = absolute_uri(target), None
    if snapshot.validation is not None:  # first, so that the dataset appears when its validation set is there
        beside = Path(f"{folder.removesuffix('.lance')}.val.lance")
        validation = pull_snapshot(snapshot.validation, beside, overwrite=overwrite, workers=workers, progress=progress)
    report = pull_snapshot(snapshot, Path(folder), overwrite=overwrite, workers=workers, progress=progress)
    return replace(report, validation=validation)


def _read(file: SourceFile, transport: Transport, start: int) -> Iterator[bytes]:
    """Yield the rest of a file; what fails is the Hub's error, not that of writing the copy."""
    pieces = HubRanges(file, transport).stream(start, file.size)
    while True:
        with translating(f"reading {file.url}"):
            data = next(pieces, None)
        if data is None:
            return
        yield data


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
    transport: Transport | None = None,
) -> PullReport:
    """Fill a local folder with a snapshot. Otherwise as `pull`.

    Args:
        reuse: folders that may hold files with the same content under the same paths.
        transport: its option `hf_token` is the token; by default that of the environment.
    """
    told = progress or _Quiet()
    with translating(str(target), translate_output), staging_of(target, told.waiting) as staging:
        check_ours(staging)
        return _Pull(snapshot, target, staging, overwrite, workers, told, reuse, transport or Transport()).run()


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
    transport: Transport
    fetched_files: int = 0
    fetched_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> PullReport:
        before = self._look()
        now = Record.of(self.snapshot)
        if before is not None and before.files == now.files and all(self._has(f, before) for f in self.snapshot.files):
            if before.commit != now.commit:  # which changed other files of the repository
                now.write(self.target)
            self._remove(self.staging)
            return self._report("unchanged", before)
        other = self._other_history() if before is not None else None
        if other is not None and not self.overwrite:
            self._remove_if_empty()
            raise self._refused(other)
        aside = self.target.with_name(f".{self.target.name}.old")
        if other is not None and os.path.lexists(aside) and not self._was_ours(aside):
            self._remove_if_empty()
            raise OutputExists(f"{aside} exists, and was not set aside by pull", "move it away, or remove it")
        # In an update, only the files that are new are staged.
        self._fill(before if other is None else None)
        status = "pulled"
        if before is None:
            self._appear()
            if self._was_ours(aside):  # of a run that was killed while it replaced the folder
                self._remove(aside)
        elif other is not None:
            status = "replaced"
            self._check_opens()
            with self._locked():
                self._remove(aside)
                self.target.rename(aside)
                self._appear()
            self._remove(aside)
        else:
            status = "updated"
            with self._locked():
                self._check_unchanged(before)
                self._move_in()
            self._remove(self.staging)
        return self._report(status, before)

    def _was_ours(self, folder: Path) -> bool:
        """Return whether a pull of the same dataset filled a folder."""
        record = Record.read(folder) if folder.is_dir() and not folder.is_symlink() else None
        return record is not None and (record.repo, record.path) == (self.snapshot.at.repo, self.snapshot.at.path)

    def _refused(self, other: str) -> OutputExists:
        return OutputExists(
            f"{self.target} holds another history of {self.snapshot.at.repo}: {other}",
            "use overwrite=True, which replaces it, or pull into another folder",
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep builds out of the target's datasets: one could remove files whose manifest is not in place yet."""
        with contextlib.ExitStack() as locks:
            for root in self.snapshot.datasets:
                if (self.target / root).is_dir():
                    locks.enter_context(output_lock(str(self.target / root), doing="updated"))
            yield

    def _check_unchanged(self, before: Record) -> None:
        """Check, under the lock, that the target is as it was before the files were fetched.

        Raises:
            OutputExists: a build has added a version, or removed files, meanwhile.
        """
        if (other := self._other_history()) is not None:
            raise self._refused(other)
        if not all((self.staging / file.path).exists() or self._has(file, before) for file in self.snapshot.files):
            raise OutputExists(f"{self.target} was changed while it was pulled", "run the same command again")

    def _look(self) -> Record | None:
        """Return the record of an earlier pull into the target; None if the target is new.

        Raises:
            OutputExists: it holds something else.
        """
        target, snapshot = self.target, self.snapshot
        if not target.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir()))):
            return None
        record = Record.read(target) if target.is_dir() else None
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

    def _has(self, file: RemoteFile, record: Record) -> bool:
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

    def _fill(self, before: Record | None) -> None:
        """Bring the files into the staging folder: all, or only those that the target does not have by its record.

        Raises:
            BadFile: a file's hash differs from what the Hub said.
            DiskFull: there is not enough space.
        """
        Record.of(self.snapshot).write(self.staging)  # which tells the next run that the folder is of a pull
        missing = [file for file in self.snapshot.files if before is None or not self._has(file, before)]
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
                f"{self.target}: {size(bytes)} to fetch, and {size(free)} of space is left",
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
            source = self.snapshot.source(file)
            for data in _read(source, transport, done):
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
        for folder in {(self.staging / file.path).parent for file in self.snapshot.files}:
            sync_folder(folder)
        with contextlib.suppress(OSError):
            self.target.rmdir()  # empty, or missing
        self.staging.rename(self.target)
        sync_folder(self.target.parent)

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
                sync_folder(place.parent)
        Record.of(self.snapshot).write(self.target)

    def _report(self, status: str, before: Record | None) -> PullReport:
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
