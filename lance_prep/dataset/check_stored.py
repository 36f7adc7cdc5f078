"""Check the files that Lance wrote: presence, size and content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.dataset.check_builds import BuildJournal, Verification
from lance_prep.layout import row_columns
from lance_prep.loss_mask import MASK_COLUMN, MASK_TYPE
from lance_prep.store import (
    FOLDER,
    KEY,
    QUARANTINE_NOTE,
    VERSION_HINT,
    DatasetVersion,
    Files,
    LocalFiles,
    damaged_files,
    data_hashes,
    hash_bytes,
    manifest_path,
    manifest_versions,
    read_quarantine_note,
    read_seal,
    transactions_in,
)
from lance_prep.transport import is_local


@dataclass(frozen=True)
class StoredFragment:
    """A fragment of the version.

    Attributes:
        fragment: Lance's.
        first, rows: the rows of the dataset that it holds.
        whole: no damage of its data files is known.
    """

    fragment: Any
    first: int
    rows: int
    whole: bool

    def __str__(self) -> str:
        paths = ", ".join(f"data/{file.path}" for file in self.fragment.metadata.files)
        return f"fragment {self.fragment.fragment_id} ({paths}; rows {self.first:,} to {self.first + self.rows - 1:,})"


def check_sealed(files: Files, version: int, found: Verification) -> bool:
    """Compare manifest and transaction with the version's seal. Return False if the manifest has changed."""
    with found.reading(f"version {version}"):
        manifest = manifest_path(files, version)
        for path, digest in (read_seal(files, version) or {}).items():
            if path.startswith("data/"):
                continue
            data = files.read(path)
            if data is None:
                found.wrong(f"{path} is missing")
            elif hash_bytes(data) != digest:
                found.wrong(
                    f"{path} has changed since it was written: its xxh3 is not the {digest} of version {version}'s seal"
                )
                if path == manifest:
                    return False
    return True


def check_manifest(opened: DatasetVersion, found: Verification) -> None:
    """Check that the manifest's copies of the transaction and of the metadata agree with the files beside it."""
    version = opened.number
    with found.reading(f"the transaction of version {version}"):
        manifest = opened.files.read(manifest_path(opened.files, version) or "") or b""
        for path in transactions_in(opened.files, manifest):
            if (opened.files.read(path) or b"") not in manifest:
                found.wrong(f"{path} is not the transaction that the manifest of version {version} holds")
    with found.reading(f"the metadata of version {version}"):
        text = opened.dataset.schema.metadata[KEY]
        if json.dumps(json.loads(text), sort_keys=True).encode() != text:
            found.wrong(f"the metadata of version {version} is not as it was written")
        _check_schema(opened, found)


def _check_schema(opened: DatasetVersion, found: Verification) -> None:
    data, schema = opened.metadata, opened.dataset.schema
    if data.dtype is None:
        return
    made = dict(row_columns(data.layout, pa.from_numpy_dtype(data.dtype), data.block_size))
    if data.tokenizer is not None and data.tokenizer.chat is not None:
        made[MASK_COLUMN] = MASK_TYPE
    for name, kind in made.items():
        actual = str(schema.field(name).type) if name in schema.names else "missing"
        if actual != str(kind):
            found.wrong(f"column {name} is {actual}, but {kind} was built")
    if data.recipe.get("layout") != data.layout:
        found.wrong(f"the metadata says layout {data.layout}, its recipe {data.recipe.get('layout')}")


def check_small_files(opened: DatasetVersion, found: Verification) -> None:
    """Check what Lance and lance-prep keep beside a version: version hint, tags, quarantine note, cached indexes."""
    files, versions = opened.files, manifest_versions(opened.files)
    if files.read(VERSION_HINT) is not None:
        with found.reading(VERSION_HINT):
            hint = _object(files, VERSION_HINT, {"version"})
            if hint["version"] not in versions:
                raise ValueError(f"it names version {hint['version']!r}, which does not exist")
    for path in files.list("_refs/tags"):
        if path.endswith(".json"):
            with found.reading(path):
                _check_tag(files, _object(files, path, _TAG))
    if files.read(QUARANTINE_NOTE) is not None and read_quarantine_note(files) is None:
        found.wrong(f"{QUARANTINE_NOTE} is damaged")
    if isinstance(files, LocalFiles):
        with found.reading("the cached indexes"):
            for damaged in damaged_files(files.path(f"{FOLDER}/cache")):
                found.wrong(f"{damaged} is damaged; it is only a cache, so remove it")


#: Fields of a tag's file.
_TAG = {"branch", "version", "createdAt", "updatedAt", "manifestSize", "metadata"}


def _object(files: Files, path: str, names: set[str]) -> dict[str, Any]:
    data = json.loads(files.read(path) or b"")
    if not isinstance(data, dict) or data.keys() != names:
        raise ValueError(f"it does not have the fields {', '.join(sorted(names))}")
    return data


def _check_tag(files: Files, tag: dict[str, Any]) -> None:
    """Check a tag against its version's manifest. Lance stores no hash: a wrong digit in a time is not found.

    Raises:
        ValueError: they contradict each other.
    """
    version, size = tag["version"], tag["manifestSize"]
    manifest = manifest_path(files, version) if type(version) is int and version > 0 else None
    if manifest is None:
        raise ValueError(f"it names version {version!r}, which does not exist")
    if (actual := len(files.read(manifest) or b"")) != size:
        raise ValueError(f"it says that the manifest of version {version} has {size} bytes, but it has {actual}")
    for name in ("createdAt", "updatedAt"):
        datetime.fromisoformat(tag[name])


def check_data_files(
    opened: DatasetVersion, journals: list[BuildJournal], found: Verification, *, deep: bool
) -> list[StoredFragment]:
    """Check presence, size and hash of every data file of the version; the hash in an object store only if `deep`."""
    hashes = None
    if deep or is_local(opened.uri):
        hashes = data_hashes(opened.files)
        for journal in journals:
            for receipt in journal.receipts.values():
                hashes.update(receipt.file_hashes)
    sizes = _sizes(opened, found)
    stored, first = [], 0
    for fragment in opened.dataset.get_fragments():
        rows = int(fragment.metadata.physical_rows or 0)
        whole = [_check_file(opened, file, sizes, hashes, first, rows, found) for file in fragment.metadata.files]
        stored.append(StoredFragment(fragment, first, rows, all(whole)))
        first += rows
        if fragment.metadata.deletion_file is not None:
            found.wrong(f"{stored[-1]}: rows of it were deleted by another program")
    _check_receipts(stored, journals, found)
    if first != opened.metadata.rows:
        found.wrong(f"the dataset has {first:,} rows, but its metadata says {opened.metadata.rows:,}")
    return stored


def _check_file(
    opened: DatasetVersion,
    file: Any,
    sizes: Mapping[str, int],
    hashes: Mapping[str, str] | None,
    first: int,
    rows: int,
    found: Verification,
) -> bool:
    name = f"data/{file.path}"
    what = f"{name} (rows {first:,} to {first + rows - 1:,})"
    found.count("data files")
    if name not in sizes:
        found.wrong(f"{what} is missing")
        return False
    if file.file_size_bytes is not None and sizes[name] != file.file_size_bytes:
        found.wrong(f"{what} has {sizes[name]:,} bytes, but {file.file_size_bytes:,} were written")
        return False
    if hashes is not None and file.path not in hashes:
        found.count("data files without a recorded hash")
    elif hashes is not None:
        actual = opened.files.hash(name)
        found.count("data files by hash")
        if actual != hashes[file.path]:
            found.wrong(f"{what} has changed since it was written: its xxh3 is {actual}, not {hashes[file.path]}")
            return False
    return True


def _sizes(opened: DatasetVersion, found: Verification) -> dict[str, int]:
    if is_local(opened.uri):
        root = Path(opened.uri)
        return {path: (root / path).lstat().st_size for path in opened.files.list("data")}
    with found.reading("the list of data files"):
        listed = opened.dataset.all_files().read_all().to_pylist()
        return {entry["path"]: int(entry["size_bytes"]) for entry in listed}
    return {}


def _check_receipts(stored: list[StoredFragment], journals: list[BuildJournal], found: Verification) -> None:
    """Check each fragment that a build wrote, and that was not merged since, against its receipt."""
    receipts = {
        name: receipt for journal in journals for receipt in journal.receipts.values() for name in receipt.data_files()
    }
    for one in stored:
        for file in one.fragment.metadata.files:
            receipt = receipts.get(file.path)
            if receipt is not None and receipt.rows != one.rows:
                found.wrong(f"{one} has {one.rows:,} rows, the receipt of shard {receipt.shard} {receipt.rows:,}")
