"""Files derived from a dataset that are expensive to make: kept beside it, sealed, and never believed without the seal.

Beside each file `NAME` is `NAME.seal`: the file's xxh3-128, and an HMAC of it under a key of this user, who made the
file. So a damaged file, and a cache that came with a dataset from somebody else, count as missing. The key is in the
user's cache directory. Without a key (no home that can be written) every process makes its own files.

A worker process need not hash the files that its parent has checked: `Cache.checked` names them by size, time and
inode, and goes to the worker with the dataset.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lance_prep.errors import DatasetError
from lance_prep.store.seal import checked, with_checksum
from lance_prep.store.sidecar import LocalFiles, hash_file

SEAL = ".seal"

#: Size, time of the last change in ns, inode.
Stat = tuple[int, int, int]


def user_folder() -> Path:
    """Return the folder of this user's cached files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lance-prep"


class Cache:
    """A folder of sealed files, each written whole or not at all.

    Args:
        folder: may be missing. If it cannot be written, nothing is kept.
        checked: files that the parent process has checked.
    """

    def __init__(self, folder: Path, checked: Mapping[str, Stat] | None = None) -> None:
        self.folder = folder
        #: The files that were checked or written by this process or its parent.
        self.checked: dict[str, Stat] = dict(checked or {})

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if it is missing, damaged or was not made by this user."""
        path = self.folder / name
        try:
            stat = _stat(path)
            if self.checked.get(name) == stat:
                return path
            seal = checked(LocalFiles(self.folder).read(name + SEAL) or b"")
            digest = hash_file(path, follow=False)
            key = _key(create=False)
            if (
                key is None
                or seal["xxh3"] != digest
                or not hmac.compare_digest(seal["mac"], self._mac(key, name, digest))
            ):
                return None
            if _stat(path) != stat:
                return None
        except (OSError, ValueError, KeyError, TypeError, DatasetError):
            return None
        self.checked[name] = stat
        return path

    def write(self, name: str, fill: Callable[[BinaryIO], Any]) -> Path | None:
        """Store a file and its seal; return its path, or None if the folder cannot be written."""
        try:
            key = _key(create=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / name
            with suppress(FileNotFoundError):
                path.with_name(name + SEAL).unlink()
            digest = self._replace(path, fill)
            stat = _stat(path)
            if key is not None:
                seal = with_checksum({"xxh3": digest, "mac": self._mac(key, name, digest)})
                self._replace(path.with_name(name + SEAL), lambda file: file.write(seal))
        except OSError:
            return None
        self.checked[name] = stat
        return path

    def remove(self, name: str) -> None:
        """Remove a file and its seal."""
        self.checked.pop(name, None)
        for path in (self.folder / (name + SEAL), self.folder / name):
            path.unlink(missing_ok=True)

    def _replace(self, path: Path, fill: Callable[[BinaryIO], Any]) -> str:
        """Write a file under a temporary name, hash it and rename it. It gets the permissions that the umask allows."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
                fill(file)
            digest = hash_file(temporary, follow=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def _mac(self, key: bytes, name: str, digest: str) -> str:
        # With the folder's name, which is made of the version and its files: a file cannot be moved to another version.
        return hmac.new(key, f"{self.folder.name}/{name}/{digest}".encode(), hashlib.sha256).hexdigest()


def damaged_files(folder: Path) -> list[Path]:
    """Return the files below a folder that do not match their seal's hash, for any user's key.

    A file without a seal counts as missing and is left out: its process may have been killed.
    """
    wrong = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != SEAL):
        try:
            if checked(path.with_name(path.name + SEAL).read_bytes())["xxh3"] != hash_file(path, follow=False):
                wrong.append(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError):
            wrong.append(path)
    return wrong


def _stat(path: Path) -> Stat:
    found = path.lstat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _key(*, create: bool) -> bytes | None:
    """This user's key, or None if it is missing and cannot be made."""
    path = user_folder() / "key"
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home directory
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".key.{secrets.token_hex(8)}")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(temporary, path)  # unlike a rename, it keeps the key of another process that was faster
            temporary.unlink()
        key = path.read_bytes()
        return key if len(key) == 32 else None
    return None
