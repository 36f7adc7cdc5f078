"""Merges small fragments: a dataset of many small shards has many small files, each of which costs an open and a seek.

Neighbours are merged until a file would exceed the target. Rows and their order stay, and with them the content hash:
receipts hold the hash of each shard's rows, whatever file they are in. Our own writer is used and not Lance's
`compact_files`, so that the pages stay flat as a build leaves them (see `store.output.file_version`), in one commit
that is refused if another version came in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import DamagedDataset, reading_dataset
from lance_prep.store.journal import Journal
from lance_prep.store.leftovers import open_locked
from lance_prep.store.output import commit, file_version, write_fragment
from lance_prep.store.seal import data_hashes, hash_files, seal
from lance_prep.store.version import DatasetVersion

TARGET_BYTES = 1 << 30
SCAN_ROWS = 8192


@dataclass(frozen=True)
class Compaction:
    """What a compaction did.

    Attributes:
        version: the new one, or the latest where there was nothing to merge.
        fragments_before, fragments_after: how many.
        rows_rewritten: rows that were copied.
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
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Compaction:
    """Merge neighbouring fragments of the latest version into a new version with the same rows in the same order.

    Args:
        target_bytes: maximum size of a merged file; larger files stay as they are.
        on_rows: called with the number of rows copied since the last call.

    Raises:
        DatasetError: not a dataset that lance-prep made, or a file to merge is damaged (`DamagedDataset`).
        OutputLocked: a build or another command works on the dataset.
        DiskFull: there is no room for the copies.
    """
    with open_locked(uri, None, storage_options) as opened:
        before = opened.fragments()
        groups = _groups(before, target_bytes)
        if all(len(group) == 1 for group in groups):
            return Compaction(opened.number, len(before), len(before), 0)
        _check_files(opened, [fragment for group in groups if len(group) > 1 for fragment in group])
        merged = [_merge(opened, group, storage_options, on_rows) if len(group) > 1 else group[0] for group in groups]
        new = [fragment for fragment, group in zip(merged, groups, strict=True) if len(group) > 1]
        for fragment in new:
            for file in fragment["files"]:
                opened.files.sync(f"data/{file['path']}")
        hashes = hash_files(opened.files, new)
        version = commit(
            opened.uri,
            opened.dataset.schema,
            merged,
            read_version=opened.number,
            properties={"lance_prep.compact": f"{len(before)} fragments into {len(merged)}"},
            storage_options=storage_options,
        )
        seal(opened.files, version, hashes)
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
        for receipt in Journal(opened.files, build.key).receipts().values():
            stated.update(receipt.file_hashes)
    for name, digest in actual.items():
        if stated.get(name, digest) != digest:
            raise DamagedDataset(
                f"{opened.uri}/data/{name} is not what was written: its xxh3 is {digest}, not {stated[name]}",
                "restore the file from a backup, or build the dataset again",
            )


def _groups(fragments: list[dict[str, Any]], target: int) -> list[list[dict[str, Any]]]:
    """Runs of neighbours that together have at most `target` bytes. One with deleted rows stays alone."""
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
    opened: DatasetVersion,
    group: list[dict[str, Any]],
    storage_options: Mapping[str, str] | None,
    on_rows: Callable[[int], None],
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
    version = file_version(opened.metadata.layout, schema)
    made = write_fragment(opened.uri, schema, batches(), version=version, storage_options=storage_options)
    assert made is not None
    return made
