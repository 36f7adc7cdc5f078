"""What a push sends of a dataset: the files that one version needs, and nothing else.

    _versions/<version>.manifest, and what it names      data files, the transaction, deletions, indexes
    .lance_prep/tokenizers/, .lance_prep/lists/          the tokenizer, the builds and their source files
    .lance_prep/builds/<key>/, .lance_prep/seals/        plan and receipts of those builds, with their rejected rows and
                                                         the keys of their texts: `verify` and appends read them

Other versions, tags, caches, locks, unfinished builds and files that nobody knows stay here. A dataset may come from a
stranger, so files outside its folder are refused, and no link is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lance_prep.errors import DamagedDataset, DatasetError, UsageError, reading_dataset
from lance_prep.hub.upload import HubFile
from lance_prep.hub_path import lance_place
from lance_prep.store import (
    BUILDS_FOLDER,
    COMMITTED,
    LOADER,
    LOADER_FILE,
    MANIFEST,
    DatasetVersion,
    Files,
    LocalFiles,
    Manifest,
    Split,
    list_path,
    open_version,
    read_manifest,
    receipt_paths,
    seal_path,
    tokenizer_path,
)
from lance_prep.transport import Transport, absolute_uri, is_local

SUFFIX, VALIDATION = ".lance", ".val.lance"
#: Where a dataset goes if nothing else is asked for. `datasets` shows its rows as the split of this name.
DEFAULT_PATH = "data/train.lance"
_JOURNAL_FILE = re.compile(r"(?:rejected|scan|hits|dropped)-(\d+)(?:-[0-9a-f]+)?\.\w+")


@dataclass(frozen=True)
class PushedDataset:
    """A dataset of a push.

    Attributes:
        path: its folder in the repository.
        config, split: how `datasets.load_dataset` names it.
        opened: the version that is pushed.
        license: note on the license of its source, if the collection's recipe has one.
    """

    path: str
    config: str
    split: str
    opened: DatasetVersion = field(repr=False)
    license: str | None = None

    @property
    def name(self) -> str:
        """What the card calls it."""
        return self.split if self.config == "default" else self.config


@dataclass(frozen=True)
class Contents:
    """All that is pushed.

    Attributes:
        datasets: training sets first.
        folders: of the repository, which have these datasets and nothing else afterwards; the last one may be that of
            a validation set of an earlier push, which is removed.
        manifest: of a collection, with paths in the repository's folder.
        notes: what is left out, and why.
    """

    datasets: tuple[PushedDataset, ...]
    folders: tuple[str, ...]
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()


def find_contents(source: str | Path, version: int | str | None, path: str | None, transport: Transport) -> Contents:
    """Open what is to be pushed: a dataset with its validation set, or a collection.

    Args:
        source: a dataset, or a folder with `manifest.json`.
        version: number or tag of a dataset.
        path: folder in the repository: of the dataset, or of the collection's datasets.

    Raises:
        UsageError: an option contradicts the source.
        DatasetError: a dataset or the manifest cannot be read.
    """
    uri = absolute_uri(source)
    if is_local(uri) and (Path(uri) / MANIFEST).is_file():
        if version is not None:
            raise UsageError(f"version has no effect: {source} names a version of each dataset", "leave `version` out")
        return _of_collection(Path(uri), _checked_path(path or "data", folder=True))
    return _of_dataset(uri, version, _checked_path(path) if path else None, transport)


def _checked_path(path: str, *, folder: bool = False) -> str:
    parts = path.strip("/").split("/")
    if not all(re.fullmatch(r"[\w-][\w.-]*", part, re.ASCII) for part in parts):
        raise UsageError(f"path_in_repo={path!r} is not a path in a repository", f"use a path such as {DEFAULT_PATH}")
    if not folder and not parts[-1].endswith(SUFFIX):
        raise UsageError(f"path_in_repo={path!r} does not end in {SUFFIX}", f"use a path such as {DEFAULT_PATH}")
    return "/".join(parts)


def _of_dataset(uri: str, version: int | str | None, path: str | None, transport: Transport) -> Contents:
    opened = open_version(uri, version, transport.storage_options)
    if uri.endswith(VALIDATION):
        path = path or "data/validation.lance"
        return Contents((PushedDataset(path, _config_of(path), "validation", opened),), (path,))
    path = path or DEFAULT_PATH
    beside = "data/validation.lance" if path == DEFAULT_PATH else path.removesuffix(SUFFIX) + VALIDATION
    pushed = [PushedDataset(path, _config_of(path), "train", opened)]
    notes: list[str] = []
    validation = uri.removesuffix(SUFFIX) + VALIDATION
    if is_local(uri) and uri.endswith(SUFFIX) and Path(validation).is_dir():
        try:
            pushed.append(PushedDataset(beside, _config_of(path), "validation", open_version(validation, version)))
        except DamagedDataset:
            raise
        except DatasetError as error:
            if version is None:
                raise
            notes.append(f"without the validation set: {error}")
    return Contents(tuple(pushed), (path, beside), notes=tuple(notes))


def _config_of(path: str) -> str:
    if path in (DEFAULT_PATH, "data/validation.lance"):
        return "default"
    return path.rpartition("/")[2].removesuffix(SUFFIX).removesuffix(".val")


def _of_collection(root: Path, folder: str) -> Contents:
    manifest = read_manifest(root)
    if manifest.data_format != "lance":
        raise UsageError(f"{root} lists {manifest.data_format} files, not Lance datasets", "push the Lance datasets")
    pushed = []
    for split, found in (("train", manifest.splits), ("validation", manifest.validation)):
        for name, entry in sorted(found.items()):
            opened = _entry(root, manifest, name, entry)
            pushed.append(PushedDataset(f"{folder}/{_checked_path(entry.path)}", name, split, opened))
    if not pushed:
        raise UsageError(f"{root / MANIFEST} names no dataset", "build the collection")
    return Contents(tuple(pushed), tuple(one.path for one in pushed), manifest)


def _entry(root: Path, manifest: Manifest, name: str, entry: Split) -> DatasetVersion:
    where, command = f"{root / MANIFEST}: {name!r}", manifest.command(root)
    opened = open_version(entry.folder(root, where, command), entry.version)
    entry.check_content(opened.metadata.content_hash, where, command)
    return opened


def needed_files(opened: DatasetVersion) -> list[str]:
    """Return the paths of the files that a version needs, in the dataset.

    Raises:
        DatasetError: it needs files of another folder.
        DamagedDataset: one of its lists is missing or damaged.
    """
    return sorted({*_of_lance(opened), *_of_sidecar(opened)})


def _of_lance(opened: DatasetVersion) -> list[str]:
    import pyarrow.compute as pc

    with reading_dataset(opened.uri):
        tracked = opened.dataset.tracked_files().read_all()
        mine = tracked.filter(pc.equal(tracked["version"], opened.number))
        bases = set(pc.unique(mine["base_uri"]).to_pylist())
        other = any(file.get("base_id") is not None for part in opened.fragments() for file in part["files"])
    if len(bases) != 1 or other:
        raise DatasetError(
            f"{opened.uri} needs files of other folders, as a shallow clone does",
            "copy its rows into a dataset of their own, and push that",
        )
    paths: list[str] = mine["path"].to_pylist()
    return paths


def _of_sidecar(opened: DatasetVersion) -> Iterator[str]:
    metadata, files = opened.metadata, opened.files
    if metadata.tokenizer is not None:
        yield from map(tokenizer_path, metadata.tokenizer.hashes)
    yield list_path(metadata.builds)
    if seal_path(opened.number) in files.list(seal_path(opened.number).rpartition("/")[0]):
        yield seal_path(opened.number)
    if files.read(LOADER_FILE) == LOADER:
        yield LOADER_FILE
    for build in opened.builds:
        yield from map(list_path, build.lists.values())
        receipts = receipt_paths(files, build)
        mine = set(receipts.values())
        for path in _listed(files, f"{BUILDS_FOLDER}/{build.key}"):
            name = path.rpartition("/")[2]
            found = _JOURNAL_FILE.fullmatch(name)
            if path in mine or name in ("plan.json", COMMITTED) or (found and int(found[1]) in receipts):
                yield path


def _listed(files: Files, folder: str) -> list[str]:
    """Return the paths in a folder, links too: `Files.list` leaves them out, and a push refuses them by name."""
    if not isinstance(files, LocalFiles):
        return files.list(folder)
    place = files.path(folder)
    return sorted(f"{folder}/{path.name}" for path in place.iterdir()) if place.is_dir() else []


def is_here(pushed: PushedDataset) -> bool:
    """Return whether a dataset is on this machine, and not in an object store."""
    return is_local(pushed.opened.uri)


def fetched_files(pushed: PushedDataset, folder: Path, most: int) -> Iterator[list[HubFile]]:
    """Download the files of a dataset in an object store, a part at a time, into a folder.

    Args:
        folder: is emptied after each part.
        most: bytes in a part; a larger file is one by itself.

    Yields:
        The files of a part, with their paths in the repository.
    """
    from lance.file import LanceFileSession

    opened = pushed.opened
    place, options = lance_place(opened.uri, opened.transport)
    part: list[HubFile] = []
    size = 0
    for number, name in enumerate(needed_files(opened)):
        local = folder / str(number)
        with reading_dataset(opened.uri):
            LanceFileSession(place, storage_options=options or {}).download_file(name, str(local))
        part.append(HubFile(f"{pushed.path}/{name}", str(local)))
        size += local.stat().st_size
        if size >= most:
            yield part
            for file in part:
                Path(str(file.content)).unlink()
            part, size = [], 0
    if part:
        yield part


def hub_files(pushed: PushedDataset) -> list[HubFile]:
    """Return the files of a local dataset, with their paths in the repository.

    Raises:
        DatasetError: one is a link, or no regular file.
        DamagedDataset: one is missing.
    """
    opened = pushed.opened
    files = LocalFiles(Path(opened.uri))
    found = []
    for name in needed_files(opened):
        local = files.path(name)
        if not local.is_file():
            raise DamagedDataset(
                f"{local} is missing, or is not a file", "`lance-prep verify` says what else is; build it again"
            )
        found.append(HubFile(f"{pushed.path}/{name}", str(local)))
    return found
