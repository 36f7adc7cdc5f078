"""What a pull fetches: the files of a Lance dataset, or of a collection, at one commit of a repository on the Hub.

Names, sizes and hashes come from the Hub, and so from a stranger. A name that leads out of its folder is refused, and
the files that this machine writes beside a dataset (lock, cache, record of a pull) are never taken from a repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lance_prep.errors import BadFile, DamagedDataset, HubUnreachable, SourceNotFound
from lance_prep.fetch import HubRanges
from lance_prep.hub_path import HubPath, hub_info, list_tree
from lance_prep.model import SourceFile
from lance_prep.store import MANIFEST, Manifest, parse_manifest
from lance_prep.transport import Transport

#: The record of a pull, in the folder that it filled.
RECORD = ".lance_prep/pulled.json"
#: Where `push` puts a dataset, and the validation set beside it.
PAIR = ("data/train.lance", "data/validation.lance")
_OURS = re.compile(r"\.lance_prep/(pulled\.json|lock|cache/.*|downloads/.*)|.*\.part")
_NOT_THIS = "do not use this repository"
_LONGEST_MANIFEST = 64 << 20
_CHUNK = 1 << 20
_VERSIONS = "/_versions/"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: relative to the folder that is pulled.
        size: in bytes.
        digest: its sha256 if it is stored by LFS, else its git blob id (a sha1). 64 or 40 hex digits.
    """

    path: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """Return a hash object that gives `digest` when it is fed the content."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def is_at(self, path: Path) -> bool:
        """Return whether a local file has this content. A link or a special file has not."""
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                found, digest = os.fstat(file.fileno()), self.hasher()
                if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
                    return False
                while data := file.read(_CHUNK):
                    digest.update(data)
        except OSError:
            return False
        return bool(digest.hexdigest() == self.digest)

    @property
    def is_manifest(self) -> bool:
        """Whether it makes others visible: the manifest of a version, or of a collection."""
        return self.path == MANIFEST or _VERSIONS in f"/{self.path}"


@dataclass(frozen=True)
class Snapshot:
    """A dataset or a collection at a commit.

    Attributes:
        at: its folder in the repository, pinned to the commit; the path is empty for the root.
        revision: as it was asked for.
        files: sorted by path.
        datasets: folders of its Lance datasets, relative to `at`; "" for `at` itself.
        manifest: of a collection.
        validation: the dataset that `push` sent beside this one, as `data/validation.lance`, if it was asked for.
    """

    at: HubPath
    revision: str
    files: tuple[RemoteFile, ...]
    datasets: tuple[str, ...]
    manifest: Manifest | None
    validation: Snapshot | None = None

    def __post_init__(self) -> None:
        _check_names(self.files)

    @property
    def commit(self) -> str:
        return self.at.revision

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def source(self, file: RemoteFile) -> SourceFile:
        """Return a file as `fetch` reads it."""
        path = f"{self.at.path}/{file.path}".lstrip("/")
        return SourceFile(HubPath(self.at.repo, self.commit, path).url, "file", file.size, file.digest)

    def in_order(self) -> Iterator[RemoteFile]:
        """Yield the files so that none is visible before those that it names."""
        yield from sorted(self.files, key=lambda file: (file.path == MANIFEST, file.is_manifest, file.path))


def find_snapshot(at: HubPath, transport: Transport, *, pairs: bool = False) -> Snapshot:
    """Return the dataset or collection in a folder of a repository; the only one below it if it is neither itself.

    Args:
        at: the repository, revision (`main` by default) and folder (the root by default).
        transport: its option `hf_token` is the token; by default that of the environment.
        pairs: take `data/train.lance`, with `data/validation.lance` as its validation set, for one dataset.

    Raises:
        SourceNotFound: no such repository or revision, no dataset there, or several without a manifest.
        BadFile: a name or a hash is invalid.
        AccessDenied, HubUnreachable: the Hub refuses, or does not answer.
    """
    revision = at.revision or "main"
    info = hub_info(at.repo, revision, transport.retries, transport.storage_options.get("hf_token"))
    if info is None:
        raise HubUnreachable(f"{at.url}: HF_HUB_OFFLINE is set, so the Hub is not asked", "unset it")
    at = HubPath(at.repo, str(info.sha), at.path.strip("/"))
    files = _list(at, transport)
    if (folder := _folder_of_collection(files)) is not None:
        at, files = _below(at, files, folder)
    roots = _roots(files)
    manifest = _manifest(at, revision, files, roots, transport)
    if manifest is not None:
        splits = {*manifest.splits.values(), *manifest.validation.values()}
        kept = tuple(sorted(split.path.strip("/") for split in splits))
        if missing := sorted(set(kept) - set(roots)):
            said = f"{at.url}: {MANIFEST} names {missing[0]}, and there is no Lance dataset"
            raise SourceNotFound(said, "push the collection again, or pull its datasets one by one with `path_in_repo`")
        files = [file for file in files if file.path == MANIFEST or _is_below(file.path, {*kept})]
        return Snapshot(at, revision, tuple(files), kept, manifest)
    validation = None
    if pairs and not at.path and roots == [*PAIR]:
        there, inside = _below(at, files, PAIR[1])
        validation = Snapshot(there, revision, tuple(inside), ("",), None)
        roots = [PAIR[0]]
    if "" not in roots:
        at, files = _below(at, files, _only(at, roots))
    return Snapshot(at, revision, tuple(files), ("",), None, validation)


def _list(at: HubPath, transport: Transport) -> list[RemoteFile]:
    """Return the files below a folder, sorted by path, without those that this machine writes itself."""
    token, prefix = transport.storage_options.get("hf_token"), f"{at.path}/" if at.path else ""
    entries = list_tree(at.repo, at.revision, at.path, transport.retries, token=token)
    if entries is None:
        said = f"dataset {at.repo} has no {at.path} at commit {at.revision[:12]}"
        raise SourceNotFound(said, "check `path_in_repo`")
    if foreign := [entry.path for entry in entries if not entry.path.startswith(prefix)]:
        raise BadFile(f"the Hub lists {foreign[0][:80]!r} as a file of {at.path}", "use another Hub")
    found = [RemoteFile(entry.path.removeprefix(prefix), entry.size, entry.digest) for entry in entries]
    return [file for file in found if not any(_OURS.fullmatch(part) for part in _tails(file.path))]


def _check_names(files: Sequence[RemoteFile]) -> None:
    """Check that the files can be written below one folder, and that none is in the place of another one.

    Raises:
        BadFile: a name is invalid, or two are the same where case makes no difference.
    """
    places: dict[str, tuple[str, bool]] = {}  # name where case makes no difference -> name, and whether it is a file
    twice = [path for path, count in Counter(file.path for file in files).items() if count > 1]
    if twice:
        raise BadFile(f"the Hub lists {twice[0][:80]!r} twice", "use another Hub")
    for file in files:
        if not all(map(_is_name, file.path.split("/"))):
            raise BadFile(f"the repository has a file with an invalid name, {file.path[:80]!r}", _NOT_THIS)
        for path in (file.path, *_parents(file.path)):
            here = (path, path == file.path)
            known = places.setdefault(unicodedata.normalize("NFC", path).casefold(), here)
            if known != here:
                said = f"the repository has two files in one place: {known[0][:80]!r} and {file.path[:80]!r}"
                raise BadFile(said, _NOT_THIS)


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _is_name(part: str) -> bool:
    """Return whether a part of a path is a name that may be written here.

    Characters that are not printable, such as those that change the direction of text, hide what a name is. Git runs
    commands that the files of a `.git` name.
    """
    named = part not in ("", ".", "..") and part.lower() != ".git"
    return named and part.isprintable() and "\\" not in part and len(part.encode()) <= 255


def _tails(path: str) -> Iterator[str]:
    """Yield a path, and what remains of it after each folder."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _roots(files: list[RemoteFile]) -> list[str]:
    """Return the folders of Lance datasets: those that have versions."""
    paths = {f"/{file.path}" for file in files if _VERSIONS in f"/{file.path}"}
    return sorted({path.partition(_VERSIONS)[0].lstrip("/") for path in paths})


def _folder_of_collection(files: list[RemoteFile]) -> str | None:
    """Return the folder of the only `manifest.json` outside of datasets, such as `data`, where push puts it."""
    roots = set(_roots(files))
    found = [file.path for file in files if f"/{file.path}".endswith(f"/{MANIFEST}")]
    outside = [path for path in found if "" not in roots and not _is_below(path, roots)]
    folder = outside[0].rpartition("/")[0] if len(outside) == 1 else ""
    return folder or None


def _is_below(path: str, roots: Set[str]) -> bool:
    return any(parent in roots for parent in _parents(path))


def _manifest(
    at: HubPath, revision: str, files: list[RemoteFile], roots: list[str], transport: Transport
) -> Manifest | None:
    """Return the manifest of a collection; None if the folder is a dataset, or holds one with another `manifest.json`.

    Raises:
        DamagedDataset: the folder has several datasets, and its manifest is invalid.
    """
    found = next((file for file in files if file.path == MANIFEST), None)
    if found is None or "" in roots:
        return None
    if found.size > _LONGEST_MANIFEST:
        raise BadFile(f"{at.url}/{MANIFEST} has {found.size:,} bytes, and {_LONGEST_MANIFEST:,} is the limit", "")
    data = HubRanges(Snapshot(at, revision, (), (), None).source(found), transport).fetch(0, found.size)
    try:
        return parse_manifest(data.decode(), f"{at.url}/{MANIFEST}")
    except (DamagedDataset, UnicodeDecodeError, json.JSONDecodeError):
        if len(roots) == 1:
            return None
        raise


def _below(at: HubPath, files: list[RemoteFile], folder: str) -> tuple[HubPath, list[RemoteFile]]:
    """Return a folder below another one, and its files."""
    prefix = f"{folder}/"
    inside = [replace(file, path=file.path.removeprefix(prefix)) for file in files if file.path.startswith(prefix)]
    return HubPath(at.repo, at.revision, f"{at.path}/{folder}".lstrip("/")), inside


def _only(at: HubPath, roots: list[str]) -> str:
    """Return the only dataset below a folder.

    Raises:
        SourceNotFound: there is no dataset, or more than one.
    """
    where = f"dataset {at.repo}" + (f", folder {at.path}" if at.path else "") + f", at commit {at.revision[:12]}"
    if not roots:
        raise SourceNotFound(
            f"{where}: no Lance dataset",
            f"to build one from its files, run lance-prep build hf://datasets/{at.repo}",
        )
    if len(roots) > 1:
        listed = ", ".join(roots[:8]) + (f" and {len(roots) - 8} more" if len(roots) > 8 else "")
        raise SourceNotFound(
            f"{where}: {len(roots)} Lance datasets, and no {MANIFEST} that makes them a collection",
            f"choose one with `path_in_repo`: {listed}",
        )
    return roots[0]


def version_of(path: str) -> int:
    """Return the version that the name of a manifest means; 0 for another file."""
    stem = path.rpartition("/")[2].removesuffix(".manifest")
    if not stem.isdigit():
        return 0
    return (1 << 64) - 1 - int(stem) if len(stem) == 20 else int(stem)
