"""Removing old versions, and the data files that no other version has.

Never the latest version, never a tagged one. Files of a build that is not finished belong to no version, and Lance's
cleanup takes such files for rubbish once they are seven days old: their time of change is set to now before it runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lance_prep.dataset.opened import open_ours
from lance_prep.dataset.versions import open_latest, tags_by_version, version_entries
from lance_prep.errors import OutputError
from lance_prep.store.files import Files, files_of, is_local
from lance_prep.store.lance_io import open_dataset
from lance_prep.store.lock import output_lock
from lance_prep.store.metadata import BUILDS_FOLDER, KEY, read_metadata
from lance_prep.store.receipt import Journal, unfinished_builds
from lance_prep.store.seal import SEALS, read_seal


@dataclass(frozen=True)
class Pruning:
    """What was removed, or would be.

    Attributes:
        removed: versions.
        kept: versions that stay.
        kept_for_tag: old enough, but tagged.
        files, bytes: removed with them.
        dry_run: nothing was removed.
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    kept_for_tag: tuple[int, ...]
    files: int
    bytes: int
    dry_run: bool


def prune(
    uri: str | Path,
    older_than: timedelta,
    *,
    dry_run: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Pruning:
    """Remove versions that were made longer ago than `older_than`.

    Raises:
        DatasetError: there is no dataset of ours.
        OutputLocked: a build or another command works on the dataset.
        OutputError: an object store holds an unfinished build.
    """
    where = open_ours(uri, None, storage_options).uri
    with output_lock(where):
        latest = open_latest(where, storage_options)
        files = files_of(where, storage_options)
        tags = tags_by_version(latest)
        entries = version_entries(latest)
        old = [int(v["version"]) for v in entries if datetime.now() - v["timestamp"] >= older_than]
        removed = [number for number in old if number != latest.version and number not in tags]
        kept = [int(v["version"]) for v in entries if int(v["version"]) not in removed]
        count, size = _freed(latest, set(removed))
        if removed and not dry_run:
            journals = _journals_needed(where, files, kept, storage_options)
            _protect_unfinished(where, files)
            latest.cleanup_old_versions(versions=removed, error_if_tagged_old_versions=True)
            _forget(files, journals, removed)
        for_tag = tuple(number for number in old if number in tags and number != latest.version)
        return Pruning(tuple(removed), tuple(kept), for_tag, count, size, dry_run)


def _freed(latest: Any, removed: set[int]) -> tuple[int, int]:
    """Files that only the removed versions have, and their bytes."""
    tracked = latest.tracked_files().read_all().to_pylist()
    needed = {entry["path"] for entry in tracked if entry["version"] not in removed}
    only = {entry["path"] for entry in tracked if entry["version"] in removed} - needed
    sizes = {entry["path"]: entry["size_bytes"] for entry in latest.all_files().read_all().to_pylist()}
    return len(only), sum(int(sizes.get(path, 0)) for path in only)


def _protect_unfinished(where: str, files: Files) -> None:
    unfinished = unfinished_builds(files)
    if unfinished and not is_local(where):
        raise OutputError(
            f"build {next(iter(unfinished))} in {where} is not finished, and pruning may remove its files",
            "finish it first: run its command again",
        )
    for key in unfinished:
        for receipt in Journal(files, key).receipts().values():
            for file in receipt.fragment["files"] if receipt.fragment else []:
                path = Path(where) / "data" / file["path"]
                if path.exists():
                    os.utime(path)


def _journals_needed(where: str, files: Files, kept: list[int], storage_options: Mapping[str, str] | None) -> set[str]:
    """Keys of builds that are in a version that stays, or not finished."""
    keys = set(unfinished_builds(files))
    for number in kept:
        dataset = open_dataset(where, number, storage_options)
        if dataset is not None and KEY in (dataset.schema.metadata or {}):
            keys |= {build["key"] for build in read_metadata(dataset.schema)["builds"]}
    return keys


def _forget(files: Files, needed: set[str], removed: list[int]) -> None:
    """Delete journals of builds that are in no version any more, and seals of removed versions."""
    for key in {path.removeprefix(f"{BUILDS_FOLDER}/").partition("/")[0] for path in files.list(BUILDS_FOLDER)}:
        if key not in needed:
            Journal(files, key).discard()
    for number in removed:
        try:
            sealed = read_seal(files, number) or {}
        except ValueError:
            sealed = {}
        # The seal of a compaction holds hashes of data files, which later versions may have too.
        if not any(path.startswith("data/") for path in sealed):
            files.delete(f"{SEALS}/{number}.json")
