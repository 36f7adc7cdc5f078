"""Maintains a dataset: `compact` merges small fragments, `prune` removes old versions.

Compacting. A dataset of many small shards has many small files, and each costs an open and a seek. Neighbours are
merged until a file would exceed the target. Rows and their order stay, and with them the content hash: receipts hold
the hash of each shard's rows, whatever file they are in. Our own writer is used and not Lance's `compact_files`, so
that the pages stay flat as a build leaves them (see `store.output.file_version`). The result is one commit, which is
refused if another version was committed meanwhile.

Pruning keeps the latest version and tagged ones. The manifests are removed first, and then what nothing names any more:
a killed run leaves fewer versions, each of them whole, and files that the next command removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.dataset.versions import tags_by_version, version_entries
from lance_prep.errors import DamagedDataset, reading_dataset
from lance_prep.store import (
    DatasetVersion,
    Files,
    Journal,
    Output,
    OutputLock,
    data_hashes,
    hash_files,
    manifest_path,
    manifest_versions,
)

TARGET_BYTES = 1 << 30
SCAN_ROWS = 8192


@dataclass(frozen=True)
class Compaction:
    """The result of a compaction.

    Attributes:
        version: the new version, or the latest if there was nothing to merge.
        fragments_before, fragments_after: number of fragments.
        rows_rewritten: number of rows that were copied.
    """

    version: int
    fragments_before: int
    fragments_after: int
    rows_rewritten: int


def compact(
    uri: str | Path,
    *,
    target_bytes: int = TARGET_BYTES,
    storage_options: Mapping[str, str] | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Compaction:
    """Merge neighbouring fragments of the latest version into a new version with the same rows in the same order.

    Args:
        target_bytes: maximum size of a merged file; larger files stay as they are.
        on_rows: called with the number of rows copied so far, and the total.

    Raises:
        DatasetError: not a dataset that lance-prep made, or a file to merge is damaged (`DamagedDataset`).
        OutputLocked: a build or another command works on the dataset.
        DiskFull: the disk has no space for the copies.
    """
    output = Output.at(uri, storage_options)
    with output.locked() as opened:
        before = opened.fragments()
        groups = _groups(before, target_bytes)
        if all(len(group) == 1 for group in groups):
            return Compaction(opened.number, len(before), len(before), 0)
        _check_files(opened, [fragment for group in groups if len(group) > 1 for fragment in group])
        total = sum(int(fragment["physical_rows"]) for group in groups if len(group) > 1 for fragment in group)
        done = 0

        def copied(rows: int) -> None:
            nonlocal done
            done += rows
            on_rows(done, total)

        merged = [_merge(output, opened, group, copied) if len(group) > 1 else group[0] for group in groups]
        new = [fragment for fragment, group in zip(merged, groups, strict=True) if len(group) > 1]
        for fragment in new:
            for file in fragment["files"]:
                opened.files.sync(f"data/{file['path']}")
        hashes = hash_files(opened.files, new)
        why = {"lance_prep.compact": f"{len(before)} fragments into {len(merged)}"}
        version = output.commit(opened.dataset.schema, merged, on=opened.number, why=why, hashes=hashes)
    return Compaction(version, len(before), len(merged), sum(int(f["physical_rows"]) for f in new))


def _check_files(opened: DatasetVersion, fragments: list[dict[str, Any]]) -> None:
    """Refuse to copy files that are not what was written: the copy would hide the damage. 5 GB/s; local files only.

    Raises:
        DamagedDataset: names the file.
    """
    with reading_dataset(opened.uri):
        actual = hash_files(opened.files, fragments)
    stated = data_hashes(opened.files)
    for build in opened.builds:
        for receipt in Journal(opened.files, build.key).receipts():
            stated.update(receipt.file_hashes)
    for name, digest in actual.items():
        if stated.get(name, digest) != digest:
            raise DamagedDataset(
                f"{opened.uri}/data/{name} has changed since it was written: its xxh3 is {digest}, not {stated[name]}",
                "restore the file from a backup, or build the dataset again",
            )


def _groups(fragments: list[dict[str, Any]], target: int) -> list[list[dict[str, Any]]]:
    """Group neighbours with at most `target` bytes together. A fragment with deleted rows stays alone."""
    groups: list[list[dict[str, Any]]] = []
    held = target + 1
    for fragment in fragments:
        size = sum(int(file["file_size_bytes"] or 0) for file in fragment["files"])
        size = target + 1 if fragment["deletion_file"] else size
        if held + size > target:
            groups.append([])
            held = 0
        groups[-1].append(fragment)
        held += size
    return groups


def _merge(
    output: Output, opened: DatasetVersion, group: list[dict[str, Any]], on_rows: Callable[[int], None]
) -> dict[str, Any]:
    fragments = [opened.dataset.get_fragment(fragment["id"]) for fragment in group]
    scanner = opened.dataset.scanner(fragments=fragments, batch_size=SCAN_ROWS, scan_in_order=True)

    def batches() -> Iterator[pa.RecordBatch]:
        reader = iter(scanner.to_reader())
        while True:
            with reading_dataset(opened.uri):
                batch = next(reader, None)
            if batch is None:
                return
            on_rows(len(batch))
            yield batch

    schema = opened.dataset.schema.remove_metadata()
    made = output.write(batches(), schema, layout=opened.metadata.layout).fragment
    assert made is not None
    return made


@dataclass(frozen=True)
class Pruning:
    """The result of pruning.

    Attributes:
        removed: versions that were removed, or would be.
        kept: versions that stay.
        kept_for_tag: versions that are old enough, but tagged.
        files, bytes: number and size of the files removed with them.
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
        DatasetError: not a dataset that lance-prep made.
        OutputLocked: a build or another command works on the dataset.
    """
    output = Output.at(uri, storage_options)
    output.version()  # taking the lock makes its folder, so refuse a path without a dataset first
    with output.lock() as lock:
        opened = output.version()
        latest = opened.dataset
        tags = tags_by_version(latest)
        entries = version_entries(latest)
        old = [int(v["version"]) for v in entries if datetime.now() - v["timestamp"] >= older_than]
        removed = [number for number in old if number != latest.version and number not in tags]
        kept = [int(v["version"]) for v in entries if int(v["version"]) not in removed]
        count, size = _freed(latest, set(removed))
        if not dry_run:
            _remove_versions(opened.files, removed, lock)
            output.tidy(lock)
        for_tag = tuple(number for number in old if number in tags and number != latest.version)
        return Pruning(tuple(removed), tuple(kept), for_tag, count, size, dry_run)


def _remove_versions(files: Files, versions: list[int], lock: OutputLock) -> None:
    """Remove the manifests of versions. Call this first: no version may lack its files."""
    for number in versions:
        if path := manifest_path(files, number):
            lock.check()
            files.delete(path)
    if versions:
        files.sync(str(manifest_path(files, manifest_versions(files)[-1])))  # with its folder


def _freed(latest: Any, removed: set[int]) -> tuple[int, int]:
    """Return the number of files that only the removed versions have, and their size."""
    with reading_dataset(latest.uri):
        tracked = latest.tracked_files().read_all().to_pylist()
    needed = {entry["path"] for entry in tracked if entry["version"] not in removed}
    only = {entry["path"] for entry in tracked if entry["version"] in removed} - needed
    sizes = {entry["path"]: entry["size_bytes"] for entry in latest.all_files().read_all().to_pylist()}
    return len(only), sum(int(sizes.get(path, 0)) for path in only)
