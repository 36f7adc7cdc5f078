"""Seals: hashes of the files that Lance itself writes for a version, so that a flipped bit in them is found.

    NAME.lance/.lance_prep/seals/<version>.json     {"files": {path: xxh3-128}, "checksum": xxh3-64}

Lance keeps no checksum of a manifest or a data file. The rows of a data file are covered by the content hash, and its
bytes by `file_hashes` of the shard's receipt. A manifest exists only once its version does, so its hash is in a file of
its own, written right after the commit. If that file is missing (the process was killed in between, or another program
made the version), only the manifest's content is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from lance_prep.store.metadata import FOLDER
from lance_prep.store.sidecar import Files

SEALS = f"{FOLDER}/seals"
_LAST = (1 << 64) - 1  # Lance names a manifest after this less its version, so that the latest comes first


def hash_files(files: Files, fragments: list[dict[str, Any]]) -> dict[str, str]:
    """Return the hashes of fragments' data files, by path in `data/`.

    Raises:
        SourceError: the store does not answer, or the object is gone.
    """
    names = [file["path"] for fragment in fragments for file in fragment["files"]]
    hashes = {name: files.hash(f"data/{name}") for name in names}
    return {name: digest for name, digest in hashes.items() if digest is not None}


def with_checksum(fields: dict[str, Any]) -> bytes:
    """Return an object as JSON, with a checksum of all that it says."""
    return json.dumps({**fields, "checksum": _checksum(fields)}).encode()


def checked(data: bytes) -> dict[str, Any]:
    """Return the object that `with_checksum` wrote.

    Raises:
        ValueError: it is damaged.
    """
    try:
        fields = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    stated = fields.pop("checksum", None)
    if stated != _checksum(fields):
        raise ValueError(f"its checksum is {_checksum(fields)}, not {stated!r}")
    return fields


def _checksum(fields: dict[str, Any]) -> str:
    return str(xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode()))


def manifest_path(files: Files, version: int) -> str | None:
    """Return the path of a version's manifest, or None if it is missing."""
    names = (f"_versions/{_LAST - version:020}.manifest", f"_versions/{version}.manifest")
    there = set(files.list("_versions"))
    return next((name for name in names if name in there), None)


def manifest_versions(files: Files) -> list[int]:
    """Return the versions that have a manifest, ascending, judging by file names."""
    stems = [Path(path).name.removesuffix(".manifest") for path in files.list("_versions") if ".manifest" in path]
    return sorted(_LAST - int(stem) if len(stem) == 20 else int(stem) for stem in stems if stem.isdigit())


def seal_path(version: int) -> str:
    """Return the path of a version's seal."""
    return f"{SEALS}/{version}.json"


def seal(files: Files, version: int, data: Mapping[str, str] | None = None) -> None:
    """Write the seal of a version that was just committed.

    Args:
        data: hashes of data files that no receipt knows, by path in `data/`.
    """
    path = manifest_path(files, version)
    manifest = files.read(path) if path else None
    if path is None or manifest is None:
        return  # a store that names its manifests in a way of its own
    hashes = {path: hash_bytes(manifest), **{f"data/{name}": digest for name, digest in (data or {}).items()}}
    for name in transactions_in(files, manifest):
        hashes[name] = hash_bytes(files.read(name) or b"")
    files.write(seal_path(version), with_checksum({"files": hashes}))


def transactions_in(files: Files, manifest: bytes) -> list[str]:
    """Return the transaction files that a manifest names."""
    return [path for path in files.list("_transactions") if Path(path).name.encode() in manifest]


def hash_bytes(data: bytes) -> str:
    """Return the xxh3-128 of some bytes as 32 hex digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def read_seal(files: Files, version: int) -> dict[str, str] | None:
    """Return the hashes in a version's seal, by path in the dataset; None if it is missing.

    Raises:
        ValueError: it is damaged.
    """
    data = files.read(seal_path(version))
    if data is None:
        return None
    try:
        hashes = checked(data)["files"]
        return {str(path): str(digest) for path, digest in hashes.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{seal_path(version)} is damaged ({error})") from error


def is_sealed(files: Files, version: int) -> bool:
    """Return whether a version's seal has a hash of its manifest. A damaged seal counts: `verify` reports it."""
    try:
        return manifest_path(files, version) in (read_seal(files, version) or {})
    except ValueError:
        return True


def known_hashes(files: Files, version: int) -> dict[str, str]:
    """Return what `read_seal` returns; empty if there is no seal, or it is damaged."""
    try:
        return read_seal(files, version) or {}
    except ValueError:
        return {}


def data_hashes(files: Files) -> dict[str, str]:
    """Return the hashes of data files in all seals, by path in `data/`."""
    numbers = [int(Path(path).stem) for path in files.list(SEALS) if Path(path).stem.isdigit()]
    known = {name: digest for number in numbers for name, digest in known_hashes(files, number).items()}
    return {name.removeprefix("data/"): digest for name, digest in known.items() if name.startswith("data/")}
