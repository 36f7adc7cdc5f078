"""Local and object-store sources: a path or URL in, pinned files out."""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lance_prep.errors import AccessDenied, SourceNotFound, UsageError, translating
from lance_prep.fetch import http_state, identity_of
from lance_prep.formats import check_one_family, format_of, is_data, pin_lance, require_format
from lance_prep.model import PinnedSource, Skipped, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import FIRST_ATTEMPTS, Transport, in_home

_ADVICE = "name a local file, folder or glob, a Hub id owner/name, an hf:// or s3:// URL, a recipe, or `sample`"
_FOLDERS_LOOKED_AT = 1000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """The files that a source's name means.

    Attributes:
        source, files: as in `Plan`.
        skipped: as in `Plan`.
    """

    source: PinnedSource
    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()


def looks_like_hub_id(source: str) -> bool:
    """Return True for `owner/name`, unless it has the extension of a data file."""
    return _HUB_ID.fullmatch(source) is not None and format_of(source) is None


def is_glob(path: str) -> bool:
    return _GLOB.search(path) is not None


def find_local(source: str) -> Found | None:
    """Return the local files of a path or glob, or None if there is no such path.

    Linked folders are followed, each real folder once. What is left out of a folder is in `Found.skipped`.

    Raises:
        SourceNotFound: a folder without data files, a glob that matches none, or a broken link.
        AccessDenied: a folder cannot be listed.
        SourceError, UsageError: unknown extension, or several kinds of files in one folder.
    """
    path = in_home(source)
    walk = _Walk(path)
    if path.is_dir() and not is_lance(path):
        walk.read_folder(path)
        if not walk.files:
            raise SourceNotFound(f"{source}: no data files in this folder", "its files must have known extensions")
    elif os.path.lexists(path):
        walk.files = [path]
    elif is_glob(source):
        walk.read_pattern(path)
        if not walk.files:
            raise _no_match(source)
    else:
        return None
    if len(walk.files) > 1:
        try:
            check_one_family([file.name for file in walk.files], source)
        except UsageError as error:
            if path.is_dir() and any(file.suffix == ".jsonl" for file in walk.files):
                raise UsageError(str(error), f"{error.advice}; or {_recursive(path)}") from None
            raise
    skipped = tuple(sorted(walk.skipped, key=lambda each: each.path))
    return Found(PinnedSource(asked=source), tuple(_local_file(file) for file in walk.files), skipped=skipped)


def _no_match(pattern: str) -> SourceNotFound:
    """Return the error for a glob that matches nothing. The files that were meant may be in deeper folders."""
    said = f"{pattern}: no data file matches this pattern"
    base = Path(*itertools.takewhile(lambda part: not is_glob(part), Path(pattern).parts))
    walked = itertools.islice(os.walk(base), _FOLDERS_LOOKED_AT) if pattern.endswith(".jsonl") else ()
    deeper = [folder for folder, _, files in walked if any(name.endswith(".jsonl") for name in files)]
    if not deeper:
        return SourceNotFound(said, _ADVICE)
    return SourceNotFound(
        f"{said}, and there are .jsonl files in {deeper[0]}{' and other folders' if len(deeper) > 1 else ''}",
        f"{_recursive(base)}; or name '{base}/**/*.jsonl', which makes one dataset of them",
    )


def _recursive(folder: Path) -> str:
    return f"run `lance-prep build {folder} --recursive`, which makes a dataset of each .jsonl file below it"


class _Walk:
    """The data files below a folder, or those that match a pattern, in order; and what is left out.

    What builds put beside their source is left out: datasets, begun ones too, and quarantine files. Otherwise a build
    into the folder that it reads would find its own output there the next time. Named by themselves they are sources
    like any other.
    """

    def __init__(self, root: Path) -> None:
        self.files: list[Path] = []
        self.skipped: list[Skipped] = []
        self._root = root

    def read_folder(self, root: Path) -> None:
        """Find the data files of a folder: those of real subfolders first, then those of linked ones."""
        above = {_identity(parent) for parent in Path(os.path.realpath(root)).parents}
        seen: set[tuple[int, int]] = set()
        real, linked = [root], list[Path]()
        while real or linked:
            folder = real.pop() if real else linked.pop(0)
            identity = _identity(folder)
            if identity in above or identity in seen:
                why = "a folder around the source" if identity in above else "a folder that is read already"
                self._skip(folder, why)
                continue
            seen.add(identity)
            if folder != root and is_lance(folder):
                self.files.append(folder)
                continue
            for entry in _entries(folder):
                path = folder / entry.name
                if entry.name.startswith((".", "__")):
                    self._skip(path, "hidden")
                elif self._take(path, data=is_data(entry.name)) == "folder":
                    (linked if entry.is_symlink() else real).append(path)
            linked.sort()
        self._finish()

    def read_pattern(self, pattern: Path) -> None:
        """Find the data files that match a glob, each once however many links lead to its folder."""
        parts = pattern.parts
        start = Path(parts[0]) if pattern.is_absolute() else Path()
        best: dict[tuple[str, str], Path] = {}
        real: dict[Path, str] = {}
        for path in self._matching(start, parts[1:] if pattern.is_absolute() else parts, frozenset()):
            folder = path.parent
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            key = (real[folder], path.name)
            best[key] = min(best.get(key, path), path, key=lambda each: (len(each.parts), str(each)))
        for path in best.values():
            if self._take(path, data=format_of(path.name) is not None) != "folder":
                continue
            if is_lance(path):
                self.files.append(path)
            elif "**" not in parts:
                self._skip(path, "a folder")
        self._finish()

    def _matching(self, base: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Iterator[Path]:
        """Find what matches the rest of a pattern below `base`. `above` holds the folders that `**` went through."""
        if not parts:
            yield base
            return
        part, rest = parts[0], parts[1:]
        if not is_glob(part):
            if os.path.lexists(base / part):
                yield from self._matching(base / part, rest, above)
            return
        if part == "**":
            yield from self._matching(base, rest, above)
        if not base.is_dir() or is_lance(base) or _is_ours(base):
            return
        above |= {_identity(base)}
        for entry in _entries(base):
            path = base / entry.name
            if part != "**":
                hidden = entry.name.startswith(".") and not part.startswith(".")
                if not hidden and fnmatch.fnmatchcase(entry.name, part):
                    yield from self._matching(path, rest, above)
            elif path.is_dir() and not entry.name.startswith("."):
                if _identity(path) in above:
                    self._skip(path, "a folder around it")
                else:
                    yield from self._matching(path, parts, above)

    def _take(self, path: Path, *, data: bool) -> str:
        """Take a data file, or leave it out; return its kind. A "folder" is for the caller to look into.

        Raises:
            SourceNotFound: a broken link with the name of a data file.
        """
        kind = _kind(path)
        if kind == "folder":
            if not _is_ours(path):
                return kind
            kind = "a dataset that lance-prep built"
        if kind.startswith("a link") and data:
            raise SourceNotFound(f"{path} is {kind}", "remove the link, or make it point to a file")
        if kind == "file" and data and path.suffix != ".lance":
            self.files.append(path)
        else:
            self._skip(path, "not a data file" if kind == "file" else kind)
        return kind

    def _skip(self, path: Path, reason: str) -> None:
        name = path.relative_to(self._root) if path.is_relative_to(self._root) else path
        self.skipped.append(Skipped(name.as_posix(), reason))

    def _finish(self) -> None:
        """Leave out quarantine files, unless there is nothing else, and sort the files."""
        others = [path for path in self.files if not path.name.endswith(".rejected.jsonl")]
        if others:
            for path in set(self.files) - set(others):
                self._skip(path, "rejected rows of a build")
            self.files = others
        self.files.sort(key=lambda path: path.as_posix())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, by name.

    Raises:
        AccessDenied: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        said = f"{folder}: no permission to list this folder"
        raise AccessDenied(said, "change its permissions, move it away, or name the files to read") from error


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _kind(path: Path) -> str:
    """Return "file", "folder", or what else a path is, for messages."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link to itself"
        if error.errno == errno.ENOENT and path.is_symlink():
            return f"a link to {path.readlink()}, which does not exist"
        raise
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _is_ours(folder: Path) -> bool:
    """Return True for a dataset that lance-prep built or began."""
    return os.path.isdir(folder / ".lance_prep" / "builds")  # noqa: PTH112  (False, not an error, without permission)


def is_lance(path: Path) -> bool:
    """Return True for the folder of a Lance dataset."""
    return os.path.isdir(path / "_versions")  # noqa: PTH112


def _local_file(path: Path) -> SourceFile:
    url = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow symlinks and lose the file's name)
    if is_lance(path):
        return pin_lance(url, Transport())
    known, compression = require_format(path.name)
    if (kind := _kind(path)) != "file":
        said = f"{path} is {kind if kind.startswith('a ') else f'a {kind}'}, not a file"
        raise SourceNotFound(said, "name a file; write the output of a program to one first")
    status = path.stat()
    return SourceFile(url, known, status.st_size, str(status.st_mtime_ns), compression)


def find_http(source: str, transport: Transport) -> Found:
    """Return one file on a web server, pinned by its size and ETag.

    Raises:
        UsageError: a glob or a Lance dataset.
        SourceError: unknown extension, or the server cannot be read.
    """
    at = urlsplit(source)
    if is_glob(at.path) or source.rstrip("/").endswith(".lance"):
        said = f"{source} names several files, and a web server does not list them"
        raise UsageError(said, "name files one by one, or download them")
    known, compression = require_format(PurePosixPath(at.path).name)
    size, identity = http_state(source, transport.retrying(attempts=FIRST_ATTEMPTS))
    return Found(PinnedSource(asked=source), (SourceFile(source, known, size, identity, compression),))


_SERVERS = ("ftp", "sftp", "ssh", "smb")


def find_remote(source: str, transport: Transport) -> Found:
    """Return the files under an object-store URL: a file, a folder, a glob or a Lance dataset.

    Raises:
        SourceNotFound, AccessDenied, SourceError: it cannot be listed, or holds no data.
    """
    if source.rstrip("/").endswith(".lance"):
        return Found(PinnedSource(asked=source), (pin_lance(source.rstrip("/"), transport),))
    with translating(f"listing {source}"):
        try:
            retries = transport.retrying(attempts=FIRST_ATTEMPTS).retries
            infos, skipped = retries.call(lambda: _list(source, transport), doing=f"listing {source}")
        except (ValueError, ImportError) as error:
            raise UsageError(f"{source}: {error}", _ADVICE) from error
    if not infos:
        raise SourceNotFound(f"{source}: no data file there", _ADVICE)
    check_one_family([name for name, _ in infos], source)
    # fsspec names the files of a server by their path alone, and those of an object store by bucket and path.
    at = urlsplit(source)
    base = f"{at.scheme}://{at.netloc if at.scheme in _SERVERS else ''}"
    files = tuple(_remote_file(base, name, info) for name, info in infos)
    return Found(PinnedSource(asked=source), files, skipped=skipped)


def _list(source: str, transport: Transport) -> tuple[list[tuple[str, Any]], tuple[Skipped, ...]]:
    """Return the names of the data files under a URL with what fsspec says of them, and what is left out."""
    fs, path = transport.file_system(source)
    if is_glob(path):
        found, base = fs.glob(path, detail=True), ""
    else:
        info = fs.info(path)
        if info["type"] == "file":
            require_format(path)
            return [(path, info)], ()
        found, base = fs.find(path, detail=True), path
    names = {name: name.removeprefix(base).lstrip("/") for name in sorted(found) if found[name]["type"] == "file"}
    data = [name for name, inside in names.items() if (is_data(inside) if base else format_of(name) is not None)]
    return [(name, found[name]) for name in data], left_out(names.values(), {names[name] for name in data})


def left_out(names: Iterable[str], kept: set[str]) -> tuple[Skipped, ...]:
    """Return the names that are not kept, each with the reason."""
    hidden = re.compile(r"(^|/)(\.|__)")
    return tuple(
        Skipped(name, "hidden" if hidden.search(name) else "not a data file") for name in names if name not in kept
    )


def _remote_file(base: str, name: str, info: Any) -> SourceFile:
    kind, compression = require_format(name)
    return SourceFile(
        base + (name if base[-1] != "/" else name.lstrip("/")), kind, int(info["size"]), identity_of(info), compression
    )


def check_no_hub_options(recipe: Recipe) -> None:
    """Refuse options that only a Hub dataset has, since they would be ignored.

    Raises:
        UsageError: names the options.
    """
    given = [f"`{name}`" for name in ("config", "split", "revision") if getattr(recipe, name) is not None]
    if given:
        said = f"{recipe.asked} is not a Hub dataset, and only Hub datasets take {' and '.join(given)}"
        raise UsageError(said, "remove them")


def not_found(source: str) -> SourceNotFound:
    """Return the error for a source that is not a path, a URL or a Hub id."""
    return SourceNotFound(f"{source}: no such file, folder or recipe", _ADVICE)
