"""Small files beside the data (journal, tokenizer, metadata): durable on a disk, atomic in an object store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Files under one root. Paths are relative, with `/`."""

    def read(self, path: str) -> bytes | None:
        """The contents, or None where there is no such file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace the contents at once: a reader sees the old or the new, also after a crash."""
        ...

    def list(self, folder: str) -> list[str]:
        """Paths of all files below a folder, sorted; empty where there is none."""
        ...

    def delete(self, path: str) -> None:
        """Delete; no error where it is gone already."""
        ...

    def sync(self, path: str) -> None:
        """Make a file that another library wrote durable."""
        ...


class LocalFiles:
    """Files in a folder: written aside, fsynced, renamed; then the folder is fsynced.

    Aside has a fixed name, so that what a killed process left there is written over by the next one. The output's lock
    keeps others away meanwhile.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        target = self._root / path
        _make_folder(target.parent)
        aside = target.with_name(f".{target.name}.part")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        except BaseException:
            aside.unlink(missing_ok=True)  # on a full disk it would be in the way
            raise
        _sync_folder(target.parent)

    def list(self, folder: str) -> list[str]:
        found = (self._root / folder).rglob("*")
        return sorted(p.relative_to(self._root).as_posix() for p in found if p.is_file())

    def delete(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def sync(self, path: str) -> None:
        target = self._root / path
        with target.open("rb") as file:
            os.fsync(file.fileno())
        _sync_folder(target.parent)
        _sync_folder(self._root)  # the folder itself may be as new as the file


def _make_folder(folder: Path) -> None:
    """With its parents, each durable in the one above it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ObjectFiles:
    """Objects under a prefix, through the same object store that Lance itself uses. A put is atomic and durable."""

    def __init__(self, root: str, storage_options: Mapping[str, str] | None) -> None:
        from lance.file import LanceFileSession

        self._session = LanceFileSession(root, storage_options=dict(storage_options or {}))

    def read(self, path: str) -> bytes | None:
        if not self._session.contains(path):
            return None
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "object"
            self._session.download_file(path, local)
            return local.read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "object"
            local.write_bytes(data)
            self._session.upload_file(local, path)

    def list(self, folder: str) -> list[str]:
        prefix = folder.rstrip("/") + "/"
        return sorted(p if p.startswith(prefix) else prefix + p for p in self._session.list(folder))

    def delete(self, path: str) -> None:
        if self._session.contains(path):
            self._session.delete_file(path)

    def sync(self, path: str) -> None:
        """Nothing to do: an object is durable once it is there."""


def is_local(uri: str) -> bool:
    """Whether a dataset's URI is a path on this machine."""
    return "://" not in uri


def files_of(uri: str, storage_options: Mapping[str, str] | None = None) -> Files:
    """The files of the dataset at `uri`."""
    return LocalFiles(Path(uri)) if is_local(uri) else ObjectFiles(uri, storage_options)
