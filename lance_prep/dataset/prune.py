"""Removes old versions, and the files that no other version needs. Keeps the latest version and tagged ones.

On a local disk the manifests go first, and then what nothing names any more: a killed run leaves fewer versions, each
of them whole, and files that the next command removes. In an object store Lance's own cleanup does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lance_prep.dataset.versions import tags_by_version, version_entries
from lance_prep.errors import OutputError, reading_dataset
from lance_prep.store.journal import unfinished_builds
from lance_prep.store.leftovers import forget, open_locked, tidy
from lance_prep.store.seal import manifest_path, manifest_versions
from lance_prep.store.sidecar import Files, is_local


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
    with open_locked(uri, None, storage_options) as opened:
        latest, where = opened.dataset, opened.uri
        tags = tags_by_version(latest)
        entries = version_entries(latest)
        old = [int(v["version"]) for v in entries if datetime.now() - v["timestamp"] >= older_than]
        removed = [number for number in old if number != latest.version and number not in tags]
        kept = [int(v["version"]) for v in entries if int(v["version"]) not in removed]
        count, size = _freed(latest, set(removed))
        if not dry_run and is_local(where):
            _remove_versions(opened.files, removed)
            tidy(where)
        elif removed and not dry_run:
            _refuse_unfinished(where, opened.files)
            latest.cleanup_old_versions(versions=removed, error_if_tagged_old_versions=True)
            forget(opened.files, where, storage_options)
        for_tag = tuple(number for number in old if number in tags and number != latest.version)
        return Pruning(tuple(removed), tuple(kept), for_tag, count, size, dry_run)


def _remove_versions(files: Files, versions: list[int]) -> None:
    """Remove the manifests of versions. The first step: a version whose files are going must not be listed any more."""
    for number in versions:
        if path := manifest_path(files, number):
            files.delete(path)
    if versions:
        files.sync(str(manifest_path(files, manifest_versions(files)[-1])))  # with its folder


def _freed(latest: Any, removed: set[int]) -> tuple[int, int]:
    """Files that only the removed versions have, and their bytes."""
    with reading_dataset(latest.uri):
        tracked = latest.tracked_files().read_all().to_pylist()
    needed = {entry["path"] for entry in tracked if entry["version"] not in removed}
    only = {entry["path"] for entry in tracked if entry["version"] in removed} - needed
    sizes = {entry["path"]: entry["size_bytes"] for entry in latest.all_files().read_all().to_pylist()}
    return len(only), sum(int(sizes.get(path, 0)) for path in only)


def _refuse_unfinished(where: str, files: Files) -> None:
    """Refuse to prune while a build is unfinished: Lance's cleanup takes its files for leftovers after seven days."""
    for key in unfinished_builds(files):
        raise OutputError(
            f"build {key} in {where} is not finished, and pruning may remove its files",
            "finish it first: run its command again",
        )
