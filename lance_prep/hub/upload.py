"""Upload the content of files to the Hub, in parallel. It is part of nothing until a commit names it."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from lance_prep.errors import OutputError
from lance_prep.hub.repo import HubRepo, writing
from lance_prep.hub_path import hub_api
from lance_prep.hub_session import uploading

#: Files and bytes that are handed to huggingface_hub at a time. It hashes all of them before it sends the first.
_CHUNK_FILES = 256
CHUNK_BYTES = 1 << 30
#: Files that are sent at a time.
WORKERS = 8


@dataclass(frozen=True)
class HubFile:
    """A file to upload.

    Attributes:
        path: in the repository.
        content: the bytes, or the path of a local file.
    """

    path: str
    content: str | bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else Path(self.content).stat().st_size

    def sha256(self) -> str:
        return self._digest("sha256", b"")

    def git_hash(self) -> str:
        """Return the id that git gives the content."""
        return self._digest("sha1", b"blob %d\0" % self.size)

    def _digest(self, name: str, prefix: bytes) -> str:
        digest = hashlib.new(name, prefix)
        if isinstance(self.content, bytes):
            digest.update(self.content)
        else:
            with Path(self.content).open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True)
class UploadedFile:
    """A file whose content is on the Hub, and which no commit names yet. Small and picklable.

    Attributes:
        path: in the repository.
        size: in bytes.
        sha256: of the content.
        content: of a small text file, which travels in the commit itself; else None.
    """

    path: str
    size: int
    sha256: str
    content: bytes | None = field(default=None, repr=False)


class UploadProgress(Protocol):
    """Listens to an upload. `advanced` is called from several threads, one at a time."""

    def planned(self, files: int, bytes: int) -> None:
        """Report the files and bytes that differ from the Hub's."""

    def advanced(self, bytes: int) -> None:
        """Report bytes that were sent, or that the Hub already has."""


def upload_files(
    repo: HubRepo,
    files: Sequence[HubFile | UploadedFile],
    *,
    progress: UploadProgress | None = None,
    create_pr: bool = False,
) -> list[UploadedFile]:
    """Upload the content of files, in parallel, without a commit. Those that are uploaded already stay as they are.

    Raises as `commit_files` does.
    """
    meter = _Meter(progress)
    todo = [file for file in files if isinstance(file, HubFile)]
    meter.plan(todo)
    done = {file.path: file for file in files if isinstance(file, UploadedFile)}
    digests = _digests_of_equal_sizes(todo)
    firsts: dict[tuple[str, str], str] = {}  # content and ending -> the file that is sent for all with this content
    for file in todo:
        firsts.setdefault(_content(file, digests), file.path)
    with writing(repo):
        for chunk in _chunks([file for file in todo if firsts[_content(file, digests)] == file.path]):
            for uploaded in _upload(repo, chunk, digests, meter, create_pr):
                done[uploaded.path] = uploaded
    for file in todo:
        done[file.path] = replace(done[firsts[_content(file, digests)]], path=file.path)
        meter.reached(file.path, file.size)
    return [done[file.path] for file in files]


def _digests_of_equal_sizes(files: Sequence[HubFile]) -> dict[str, str]:
    """Return path -> sha256 of the files that may have the same content: huggingface_hub would send each of them."""
    sizes = Counter(file.size for file in files)
    some = [file for file in files if sizes[file.size] > 1]
    with ThreadPoolExecutor(os.cpu_count(), "lance-prep-hash") as pool:
        return dict(zip([file.path for file in some], pool.map(HubFile.sha256, some), strict=True))


def _content(file: HubFile, digests: dict[str, str]) -> tuple[str, str]:
    # The ending of a name decides how the Hub stores a file.
    return digests.get(file.path, file.path), PurePosixPath(file.path).suffix


def _upload(
    repo: HubRepo, files: Sequence[HubFile], digests: dict[str, str], meter: _Meter, create_pr: bool
) -> Iterator[UploadedFile]:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(file.path, file.content) for file in files]
    for operation in operations:
        path = operation.path_in_repo
        operation.as_file = partial(_counted, operation.as_file, meter, path)  # type: ignore[method-assign]
        if path in digests:
            operation.upload_info.sha256 = bytes.fromhex(digests[path])
    with uploading():
        hub_api().preupload_lfs_files(
            repo.name,
            additions=operations,
            repo_type="dataset",
            revision=repo.branch,
            create_pr=create_pr,
            num_threads=WORKERS,
            free_memory=False,
        )
    for file, operation in zip(files, operations, strict=True):
        if operation._should_ignore:
            raise OutputError(
                f"pushing to {repo}: the repository's .gitignore excludes {file.path}",
                "remove the pattern from .gitignore on the Hub",
            )
        info = operation.upload_info
        meter.reached(file.path, info.size)
        content = None if operation._upload_mode == "lfs" else _read(file)
        yield UploadedFile(file.path, info.size, info.sha256.hex(), content)


def _read(file: HubFile) -> bytes:
    return file.content if isinstance(file.content, bytes) else Path(file.content).read_bytes()


@contextmanager
def _counted(as_file: Any, meter: _Meter, path: str, with_tqdm: bool = False) -> Iterator[Any]:
    """Open an operation's file as huggingface_hub does, and count what it reads to send it."""
    with as_file() as file:
        if with_tqdm:  # that is, to be sent and not to be hashed
            read = file.read

            def counting(size: int = -1) -> bytes:
                data: bytes = read(size)
                meter.reached(path, file.tell())
                return data

            # The file itself is kept: huggingface_hub rewinds files before it tries again, and nothing else.
            if isinstance(file, io.BufferedReader):  # the `read` of bytes cannot be replaced
                file.read = counting  # type: ignore[assignment,method-assign]
        yield file


class _Meter:
    """Adds up how far each file is. A file that is sent again after an error does not count twice."""

    def __init__(self, progress: UploadProgress | None) -> None:
        self._progress = progress
        self._at: dict[str, int] = {}
        self._lock = threading.Lock()

    def plan(self, files: Sequence[HubFile]) -> None:
        if self._progress is not None:
            self._progress.planned(len(files), sum(file.size for file in files))

    def reached(self, path: str, position: int) -> None:
        with self._lock:
            more = position - self._at.get(path, 0)
            if more > 0:
                self._at[path] = position
                if self._progress is not None:
                    self._progress.advanced(more)


def _chunks(files: Sequence[HubFile]) -> Iterator[list[HubFile]]:
    chunk: list[HubFile] = []
    size = 0
    for file in files:
        if chunk and (len(chunk) == _CHUNK_FILES or size + file.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(file)
        size += file.size
    if chunk:
        yield chunk


def operation_of(file: UploadedFile) -> Any:
    """Return a file as huggingface_hub takes it, with its content uploaded."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    operation = CommitOperationAdd(file.path, file.content or b"")
    operation.upload_info = UploadInfo(file.size, (file.content or b"")[:512], bytes.fromhex(file.sha256))
    operation._upload_mode = "lfs" if file.content is None else "regular"
    operation._is_uploaded, operation._should_ignore = True, False
    return operation
