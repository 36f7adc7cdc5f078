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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.errors import (
    OutputExists,
    UsageError,
    counted,
    size,
    translate_output,
    translating,
)
from lance_prep.hub.fetching import Fetcher, PullProgress, Quiet
from lance_prep.hub.pulled import Record, check_opens, check_ours, staging_of, sync_folder
from lance_prep.hub.repo import check_ref
from lance_prep.hub.snapshot import RemoteFile, Snapshot, find_snapshot, version_of
from lance_prep.hub_path import HubPath, parse_hub_url
from lance_prep.store import LocalFiles, output_lock, refuse_links
from lance_prep.transport import Transport, absolute_uri, notice

#: Files fetched at once.
WORKERS = 8
#: Files that are hashed again are reported if they are larger.
_NOTICED_BYTES = 1 << 30
_OTHER = "pull into another folder, or remove this one first"


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


def _place(repo: str, revision: str | None, path: str | None) -> HubPath:
    if not repo.startswith("hf://") and repo.count("/") != 1:
        raise UsageError(f"{repo} is not owner/name", "name a folder in the repository with `path_in_repo`")
    if path is not None and not path.strip(" /"):
        raise UsageError("`path_in_repo` is empty", "leave it out for the default")
    if revision is not None:
        check_ref("revision", revision)
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
    told = progress or Quiet()
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
    hashed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        others = (*self.reuse, self.target)
        self.fetcher = Fetcher(self.snapshot, self.staging, others, self.workers, self.told, self.transport)

    def run(self) -> PullReport:
        before = self._look()
        now = Record.of(self.snapshot, self.target)
        if before is not None:
            self._compare(before)
        if before is not None and before.files == now.files and all(self._has(f, before) for f in self.snapshot.files):
            if before != now:  # another commit changed other files, or the files have other times
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
        kept = before if other is None else None
        self.fetcher.fill([file for file in self.snapshot.files if kept is None or not self._has(file, kept)])
        check_opens(self.snapshot, self.staging)
        status = "pulled"
        if before is None:
            self._appear()
            if self._was_ours(aside):  # of a run that was killed while it replaced the folder
                self._remove(aside)
        elif other is not None:
            status = "replaced"
            with self._locked():
                if self._other_history() != other:
                    raise self._changed()
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
            raise self._changed()

    def _changed(self) -> OutputExists:
        return OutputExists(f"{self.target} was changed while it was pulled", "run the same command again")

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
        is_recorded = record.files.get(file.path) == (file.size, file.digest)
        return is_recorded and record.has(file.path, self.target, any_time=file.path in self.hashed)

    def _compare(self, record: Record) -> None:
        """Hash the files that have their recorded size and another time: they were copied, or changed."""
        some = [
            file
            for file in self.snapshot.files
            if not self._has(file, record) and record.has(file.path, self.target, any_time=True)
        ]
        if sum(file.size for file in some) > _NOTICED_BYTES:
            total = size(sum(file.size for file in some))
            notice(f"{self.target}: hashing {counted(len(some), 'file')} ({total}) that changed since they were pulled")
        self.hashed = {file.path for file in some if file.is_at(self.target / file.path)}

    def _other_history(self) -> str | None:
        """Return how the target's history differs from that of the snapshot; None if the snapshot continues it."""
        wanted = {file.path: file for file in self.snapshot.files}
        for root in self.snapshot.datasets:
            prefix = f"{root}/" if root else ""
            newest = max(version_of(path) for path in wanted if path.startswith(f"{prefix}_versions/"))
            folder = self.target / root / "_versions"
            for path in sorted(folder.glob("*.manifest")) if folder.is_dir() else ():
                name = f"{prefix}_versions/{path.name}"
                number, there = version_of(name), wanted.get(name)
                if number > newest:
                    return f"it has version {number}, and the latest on the Hub is {newest}"
                if there is not None and not there.is_at(path):
                    return f"its version {number} differs from that on the Hub"
        return None

    def _appear(self) -> None:
        """Give the staging folder its name."""
        Record.of(self.snapshot, self.staging).write(self.staging)
        for folder in {(self.staging / file.path).parent for file in self.snapshot.files}:
            sync_folder(folder)
        with contextlib.suppress(OSError):
            self.target.rmdir()  # empty, or missing
        self.staging.rename(self.target)
        sync_folder(self.target.parent)

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
        Record.of(self.snapshot, self.target).write(self.target)

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
            fetched_files=self.fetcher.files,
            fetched_bytes=self.fetcher.bytes,
        )

    def _remove(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.staging.rmdir()
