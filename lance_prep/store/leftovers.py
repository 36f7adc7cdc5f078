"""Data files that belong to nothing: what shards that never finished, or were built twice, have left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lance_prep.store.files import Files, is_local
from lance_prep.store.lance_io import open_dataset
from lance_prep.store.receipt import Journal, Receipt

DATA = "data"


def with_data(files: Files, receipts: Iterable[Receipt]) -> dict[int, Receipt]:
    """Those receipts, by shard, whose data files are there: somebody may have removed them."""
    there = set(files.list(DATA))
    return {
        receipt.shard: receipt
        for receipt in receipts
        if all(f"{DATA}/{name}" in there for name in receipt.data_files())
    }


def remove_leftovers(uri: str, *, keep: Iterable[dict[str, Any]], overwritten: bool, journal: Journal) -> list[str]:
    """Remove data files that neither a version nor a fragment to keep names; returns their names.

    Only on a local disk, where the output's lock says that nobody else is writing: in an object store another build may
    be, and its files look the same. There Lance's own cleanup removes them, when `lance-prep prune` removes a version,
    once they are seven days old.

    Args:
        keep: fragments that are about to be committed.
        overwritten: there is a version already.
        journal: of this build; receipts of shards that were not needed after all are forgotten with their files.
    """
    if not is_local(uri):
        return []
    wanted = {file["path"] for fragment in keep for file in fragment["files"]}
    journal.forget_others(wanted)
    dataset = open_dataset(uri) if overwritten else None
    if dataset is not None:
        paths = dataset.tracked_files().read_all()["path"].to_pylist()
        wanted |= {path.removeprefix(f"{DATA}/") for path in paths}
    folder = Path(uri) / DATA
    removed = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in wanted:
            path.unlink()
            removed.append(name)
    return removed
