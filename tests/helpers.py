"""Helpers that the tests of several areas share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance

from lance_prep import verify
from lance_prep.store.version import LOADER_FILE, open_version


def leftovers(uri: str | Path) -> list[str]:
    """Return the files of a local dataset that belong to no version: data, transactions, sidecar, temporary files."""
    root = Path(uri)
    dataset = lance.dataset(str(uri))
    named = set(dataset.tracked_files().read_all()["path"].to_pylist())
    needed = set()
    for entry in dataset.versions():
        version = open_version(uri, entry["version"])
        needed |= {build.key for build in version.builds} | {
            f"{digest}.zst" for build in version.builds for digest in build.lists.values()
        }
        needed.add(f"{version.metadata.builds}.zst")
        if version.metadata.tokenizer is not None:
            needed |= {f"{digest}.json" for digest in version.metadata.tokenizer.hashes}
    found = set()
    for path in root.rglob("*"):
        name, parts = path.relative_to(root).as_posix(), path.relative_to(root).parts
        if path.is_dir() or name == LOADER_FILE:
            continue
        temporary = ".tmp" in path.name or path.name.endswith(".part") or "#" in path.name
        unnamed = parts[0] in ("data", "_transactions") and name not in named
        sidecar = parts[0] == ".lance_prep" and parts[1] in ("builds", "lists", "tokenizers")
        if temporary or unnamed or (sidecar and parts[2] not in needed):
            found.add(name)
    return sorted(found)


def check_whole(uri: object, version: Any = None) -> None:
    """Check that `verify` finds nothing wrong with a version of a local dataset, and that nothing is left over."""
    problems = verify(str(uri), version).problems
    assert problems == [], problems
    assert leftovers(str(uri)) == [], leftovers(str(uri))


def rows_of(uri: object, version: Any = None) -> list[dict[str, Any]]:
    """Return the rows of a version as Lance reads them."""
    rows: list[dict[str, Any]] = lance.dataset(str(uri), version=version).to_table().to_pylist()
    return rows


def ids_of(uri: object) -> list[list[int]]:
    """Return the token ids of each row."""
    return [row["input_ids"] for row in rows_of(uri)]
