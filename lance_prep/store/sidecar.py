"""Small files beside the data (journal, tokenizer, metadata): durable on a disk, atomic in an object store."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import xxhash

from lance_prep.errors import DatasetError, OutputError, one_line, translating
from lance_prep.hub_path import lance_place
from lance_prep.process import install_advice
from lance_prep.transport import Transport, http_status, is_local

#: Ending of the temporary file that `LocalFiles.write` renames; the name begins with a dot.
TEMPORARY = ".part"
_READERS = 16
_READ_AT_ONCE = 1024
LINK_ADVICE = "replace the link by the folder or file it points to, or copy the dataset with `cp -rL`"
NOT_TRUSTED = "the dataset was tampered with: do not use it"
_FOLDERS = (
    ".lance_prep",
    ".lance_prep/builds",
    ".lance_prep/cache",
    ".lance_prep/downloads",
    ".lance_prep/seals",
    "_deletions",
    "_indices",
    "_refs",
    "_refs/tags",
    "_transactions",
    "_versions",
    "data",
)


#: What a store must be able to do that keeps a dataset.
UNCONDITIONAL = "this object store does not refuse to replace an object (If-None-Match), so a commit could be lost"
UNCONDITIONAL_ADVICE = "build into a local folder and copy it there, or use a store with conditional writes"
_S3 = ("s3://", "s3a://")
_CHUNK = 8 << 20
_HASHED = 256 << 10  # stays in the second-level cache: twice as fast as 8 MiB with a new buffer each
_AT_ONCE = 4
_INSTALL = f"install it; for S3, {install_advice('s3')}"


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts `part-2` before `part-10`."""
    # Only ASCII digits: `str.isdigit` is true of `²`, which `int` refuses.
    return [int(part) if at % 2 else part for at, part in enumerate(re.split("([0-9]+)", name))], name


class Files(Protocol):
    """Files under one root. Paths are relative, with `/`.

    Attributes:
        shared: a process that has lost the output's lock may go on writing, as nothing stops it in an object store.
    """

    shared: bool = True

    def read(self, path: str) -> bytes | None:
        """Return the contents, or None if there is no such file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace the contents atomically: a reader sees the old or the new ones, also after a crash."""
        ...

    def list(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder, sorted; empty if there is no such folder."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; no error if it is gone already."""
        ...

    def sync(self, path: str) -> None:
        """Make a file that another library wrote durable."""
        ...

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Yield the contents of many files, in order."""
        return map(self.read, paths)

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Return the size of each file below a folder, by path; None if the store does not say."""
        return dict.fromkeys(self.list(folder))

    def hash(self, path: str) -> str | None:
        """Return the xxh3-128 of a file as 32 hex digits; None if it cannot be read again."""
        return None

    def uploads(self, folder: str) -> Sequence[tuple[str, str]]:
        """Return key and id of each upload below a folder that was begun and not finished."""
        return ()

    def abort(self, upload: tuple[str, str]) -> None:
        """Give up an unfinished upload; no error if it is gone already, or may not be given up."""
        return


class LocalFiles(Files):
    """Files in a folder, written to a temporary file, fsynced and renamed.

    A dataset folder may come from a stranger, so no symbolic link below the root is followed, and no path leaves it.
    The temporary file has a fixed name, so the next run replaces one left by a killed process. The output's lock keeps
    other processes away.
    """

    shared = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, path: str, *, replace: bool = False) -> Path:
        """Return the local path of a file, which need not exist.

        Args:
            replace: the file itself is only replaced or deleted, so it may be a link.

        Raises:
            DatasetError: the path leaves the root, or passes through a symbolic link.
        """
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise DatasetError(f"{self._root}: the file name {path!r} points outside the dataset", NOT_TRUSTED)
        at = self._root
        for part in parts[:-1] if replace else parts:
            at = at / part
            if at.is_symlink():
                raise DatasetError(f"{at} is a symbolic link; datasets with links inside are refused", LINK_ADVICE)
        return self._root / path

    def read(self, path: str) -> bytes | None:
        try:
            descriptor = os.open(self.path(path), os.O_RDONLY | os.O_NONBLOCK)  # otherwise a FIFO blocks
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        target = self.path(path, replace=True)
        parent = target.parent
        _make_folder(parent)
        temporary = parent / f".{target.name}{TEMPORARY}"
        temporary.unlink(missing_ok=True)
        try:
            # O_EXCL follows no link, whatever appeared under this name meanwhile.
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                make_durable(file.fileno())
            temporary.replace(target)  # replaces a link instead of following it
        except BaseException:
            temporary.unlink(missing_ok=True)  # free the space on a full disk
            raise
        _sync_folder(parent)

    def list(self, folder: str) -> list[str]:
        return sorted(_walk(self.path(folder), folder.rstrip("/")))

    def sizes(self, folder: str) -> dict[str, int | None]:
        return {path: (self._root / path).lstat().st_size for path in self.list(folder)}

    def hash(self, path: str) -> str | None:
        return hash_file(self.path(path))

    def delete(self, path: str) -> None:
        target = self.path(path, replace=True)
        target.unlink(missing_ok=True)
        folder = path.rpartition("/")[0]
        if folder and folder not in _FOLDERS:
            with suppress(OSError):  # not empty
                target.parent.rmdir()

    def sync(self, path: str) -> None:
        target = self.path(path)
        with target.open("rb") as file:
            make_durable(file.fileno())
        _sync_folder(target.parent)
        _sync_folder(self._root)  # the folder itself may be as new as the file


def _walk(folder: Path, name: str) -> Iterator[str]:
    """Yield the regular files below a folder. Links are neither yielded nor followed."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{name}/{entry.name}")
        elif entry.is_file(follow_symlinks=False):
            yield f"{name}/{entry.name}"


def hash_file(path: Path, *, follow: bool = True) -> str:
    """Return the xxh3-128 of a local file as 32 hex digits; 5 GB/s from the page cache.

    Args:
        follow: a symbolic link may be followed; else it is an `OSError`.
    """
    # O_NONBLOCK: a FIFO has no content, instead of blocking until another process writes to it.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    digest, buffer = xxhash.xxh3_128(), bytearray(_HASHED)
    with os.fdopen(os.open(path, flags), "rb", buffering=0) as file:
        while length := file.readinto(buffer):
            digest.update(memoryview(buffer)[:length])
    return str(digest.hexdigest())


def refuse_links(uri: str) -> None:
    """Refuse a local dataset that has a symbolic link in place of a folder that Lance or lance-prep writes into.

    The dataset folder itself may be a link. A FIFO or a device in one of the folders is refused too: opening it would
    block.

    Raises:
        DatasetError: names the link and its target, or the special file.
    """
    if not is_local(uri):
        return
    for name in _FOLDERS:
        path = Path(uri) / name
        if path.is_symlink():
            raise DatasetError(
                f"{path} is a symbolic link to {str(path.readlink())!r}: writing to the dataset would change files "
                "outside it",
                LINK_ADVICE,
            )
        for entry in os.scandir(path) if path.is_dir() else ():
            if not (entry.is_file() or entry.is_dir() or entry.is_symlink()):
                raise DatasetError(
                    f"{path / entry.name} is not a file: it is a FIFO, a socket or a device", NOT_TRUSTED
                )


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in the one above it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        make_durable(fd)
    finally:
        os.close(fd)


def make_durable(fd: int) -> None:
    """Wait until what was written is on the disk. macOS needs F_FULLFSYNC: its fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError:  # not supported by this file system
            pass
    os.fsync(fd)


class ObjectFiles(Files):
    """Objects under a prefix, through the same object store that Lance itself uses. A put is atomic and durable."""

    def __init__(self, root: str, transport: Transport) -> None:
        from lance.file import LanceFileSession

        self._root = root
        self._transport = transport
        place, options = lance_place(root, transport)
        self._session = LanceFileSession(place, storage_options=options or {})

    def read(self, path: str) -> bytes | None:
        if not self._session.contains(path):
            return None
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "object"
            try:
                self._session.download_file(path, local)
            except (OSError, RuntimeError):
                if self._session.contains(path):
                    raise
                return None  # deleted meanwhile
            return local.read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "object"
            local.write_bytes(data)
            self._session.upload_file(local, path)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists; return whether it was written.

        Lance has no call for it, so it goes through fsspec: `If-None-Match: *` on S3.

        Raises:
            OutputError: the store cannot do this, or the package for it is missing.
        """
        url = f"{self._root}/{path}"

        def put() -> bool:
            try:
                fs, key = self._transport.file_system(url)
                fs.pipe_file(key, data, mode="create")
            except ImportError as error:
                raise OutputError(f"writing {self._root}: {one_line(error)}", _INSTALL) from error
            except (OSError, NotImplementedError, TypeError) as error:
                status = http_status(error.__cause__ or error)
                if isinstance(error, FileExistsError) or status == 412:
                    return False
                if status == 409:  # S3: another request for this object was under way; it says to try again
                    raise OSError(errno.EBUSY, one_line(error)) from error
                if isinstance(error, NotImplementedError | TypeError) or error.errno == errno.ENOSYS:
                    raise OutputError(f"{self._root}: {UNCONDITIONAL}", UNCONDITIONAL_ADVICE) from error
                raise
            return True

        return self._transport.retries.call(put, doing=f"writing {self._root}")

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the contents of an object of any size in pieces, several of which are fetched at once.

        Raises:
            SourceError: the store does not answer, or the object is gone.
        """
        doing, retries = f"reading {self._root}/{path}", self._transport.retries
        with translating(doing):
            fs, key = self._transport.file_system(f"{self._root}/{path}")
            fs.invalidate_cache(fs._parent(key))
            size = int(retries.call(lambda: fs.info(key)["size"], doing=doing))

            def fetch(start: int) -> bytes:
                stop = min(start + _CHUNK, size)
                return bytes(retries.call(lambda: fs.cat_file(key, start=start, end=stop), doing=doing))

            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
                for start in range(0, size, _CHUNK * _AT_ONCE):
                    yield from pool.map(fetch, range(start, min(start + _CHUNK * _AT_ONCE, size), _CHUNK))

    def uploads(self, folder: str) -> list[tuple[str, str]]:
        """Return key and id of each upload below a folder that was begun and not finished.

        Lance sends a large file in parts. S3 keeps the parts of a process that was killed, and does not list them as
        objects. Other stores forget them by themselves. Empty if the store does not say.
        """
        if not self._root.startswith(_S3):
            return []
        fs, key = self._transport.file_system(f"{self._root}/{folder}")
        bucket, prefix, _ = fs.split_path(key)
        with suppress(OSError):  # it needs a permission of its own
            found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads") or []
            return [(upload["Key"], upload["UploadId"]) for upload in found]
        return []

    def abort(self, upload: tuple[str, str]) -> None:
        """Give up an unfinished upload; no error if it is gone already, or may not be given up."""
        fs, key = self._transport.file_system(self._root)
        with suppress(OSError):
            fs.call_s3("abort_multipart_upload", Bucket=fs.split_path(key)[0], Key=upload[0], UploadId=upload[1])

    def list(self, folder: str) -> list[str]:
        prefix = folder.rstrip("/") + "/"
        return sorted(p if p.startswith(prefix) else prefix + p for p in self._session.list(folder))

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Return the size of each object below a folder, by path. A store is asked once for about 1,000 objects."""
        doing = f"listing {self._root}/{folder}"
        with translating(doing):
            fs, key = self._transport.file_system(f"{self._root}/{folder}")
            fs.invalidate_cache()
            found = self._transport.retries.call(lambda: fs.find(key, detail=True), doing=doing)
        start = len(fs._strip_protocol(key)) + 1
        return {f"{folder}/{name[start:]}": int(info["size"]) for name, info in found.items()}

    def hash(self, path: str) -> str | None:
        digest = xxhash.xxh3_128()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return str(digest.hexdigest())

    def delete(self, path: str) -> None:
        if self._session.contains(path):
            self._session.delete_file(path)

    def sync(self, path: str) -> None:
        """Do nothing: an object is durable once it exists."""

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Yield the contents of many objects, in order. One after the other, 100,000 would take an hour."""
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(paths), _READ_AT_ONCE):
                yield from pool.map(self.read, paths[start : start + _READ_AT_ONCE])
