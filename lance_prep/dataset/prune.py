"""Removing old versions, and the data files that no other version has.

Never the latest version, never a tagged one. Files of a build that is not finished belong to no version, and Lance's
cleanup takes such files for rubbish once they are seven days old: their time of change is set to now before it runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lance_prep.dataset.versions import tags_by_version, version_entries
from lance_prep.errors import OutputError
from lance_prep.store.files import Files, files_of, is_local
from lance_prep.store.lock import output_lock
from lance_prep.store.metadata import BUILDS_FOLDER, FOLDER, KEY, LISTS_FOLDER, TOKENIZERS_FOLDER
from lance_prep.store.receipt import Journal, unfinished_builds
from lance_prep.store.seal import SEALS, read_seal
from lance_prep.store.version import list_path, open_any, open_version, opened, tokenizer_path


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
    where = open_version(uri, None, storage_options).uri
    with output_lock(where):
        latest = open_any(where, storage_options=storage_options)
        files = files_of(where, storage_options)
        tags = tags_by_version(latest)
        entries = version_entries(latest)
        old = [int(v["version"]) for v in entries if datetime.now() - v["timestamp"] >= older_than]
        removed = [number for number in old if number != latest.version and number not in tags]
        kept = [int(v["version"]) for v in entries if int(v["version"]) not in removed]
        count, size = _freed(latest, set(removed))
        if removed and not dry_run:
            needed = _needed(where, latest, kept, storage_options)
            _protect_unfinished(where, files)
            latest.cleanup_old_versions(versions=removed, error_if_tagged_old_versions=True)
            _forget(files, needed, kept)
            _forget_seals(files, removed)
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
            for name in receipt.data_files():
                path = Path(where) / "data" / name
                if path.exists():
                    os.utime(path)


def _needed(where: str, latest: Any, kept: list[int], storage_options: Mapping[str, str] | None) -> set[str]:
    """Return the folders and files of the sidecar that a version that stays, or an unfinished build, needs.

    Raises:
        DatasetError: a version that stays cannot be read, so what it needs is unknown.
    """
    needed = {f"{BUILDS_FOLDER}/{key}" for key in unfinished_builds(files_of(where, storage_options))}
    for number in kept:
        dataset = latest.checkout_version(number)
        if KEY not in (dataset.schema.metadata or {}):
            continue
        version = opened(where, dataset, storage_options)
        if version.metadata.tokenizer is not None:
            needed.add(tokenizer_path(version.metadata.tokenizer.sha256))
        needed.add(list_path(version.metadata.builds))
        for build in version.builds:
            needed |= {f"{BUILDS_FOLDER}/{build.key}", list_path(build.sources)}
    return needed


def _forget(files: Files, needed: set[str], kept: list[int]) -> None:
    """Delete what no version needs any more: journals, tokenizers, lists, and cached indexes of training."""
    for folder in (BUILDS_FOLDER, TOKENIZERS_FOLDER, LISTS_FOLDER):
        for path in files.list(folder):
            if "/".join(path.split("/")[:3]) not in needed:
                files.delete(path)
    cache = f"{FOLDER}/cache/"
    for path in files.list(f"{FOLDER}/cache"):
        match = re.match(r"v(\d+)-", path.removeprefix(cache))
        if match and int(match[1]) not in kept:
            files.delete(path)


def _forget_seals(files: Files, removed: list[int]) -> None:
    """Delete the seals of removed versions."""
    for number in removed:
        try:
            sealed = read_seal(files, number) or {}
        except ValueError:
            sealed = {}
        # The seal of a compaction holds hashes of data files, which later versions may have too.
        if not any(path.startswith("data/") for path in sealed):
            files.delete(f"{SEALS}/{number}.json")
