"""Removes what killed commands have left in a dataset, and completes what they began.

The output's lock says that nobody else is writing. A file is removed only if it has a name that Lance or lance-prep
gives, and nothing names it: no version, and no receipt of an unfinished build.

The lock of an object store is a lease. A suspended process may believe that it holds the lease after another process
has taken it over. Two rules keep the files of a version safe:

- A build lists leftovers before its commit and removes them after it. They belong to processes that began on an earlier
  version, and the store refuses the commits of those from then on. A process that takes a lease over removes nothing
  before its own commit, because the commit of the suspended process, or one still on its way, may need the files.
- Each deletion checks the lease first. A builder that was suspended after its commit deletes nothing when it wakes up,
  because the next builder may have resumed the build that its list names. Receipts are deleted before data files, so a
  process that is suspended between the check and the deletion of a data file deletes one that no build can resume.

A process that is suspended between the check and the deletion of a plan or receipt can still delete that one file of a
build that was resumed meanwhile. No row is lost. `verify` reports the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.errors import DatasetError, OutputError, reading_dataset
from lance_prep.store.journal import Journal, unfinished_builds
from lance_prep.store.lock import OutputLock
from lance_prep.store.metadata import BUILDS_FOLDER, FOLDER, KEY, LISTS_FOLDER, TOKENIZERS_FOLDER
from lance_prep.store.receipt import Receipt
from lance_prep.store.seal import SEALS, hash_files, is_sealed, known_hashes, manifest_versions, seal
from lance_prep.store.sidecar import TEMPORARY, Files, LocalFiles
from lance_prep.store.stores import files_of, open_dataset
from lance_prep.store.version import (
    LOADER_FILE,
    DatasetVersion,
    list_path,
    open_any,
    opened,
    tokenizer_path,
)
from lance_prep.transport import Transport

DATA = "data"
#: Shards that a message names.
MOST_NAMED = 5

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TEMPORARY = r"\.tmp[A-Za-z0-9]{6}"
#: Names that Lance gives to files that a version may name.
_NAMED = {
    DATA: rf"([01]{{24}}[0-9a-f]{{26}}|{_UUID})\.lance",
    "_transactions": rf"\d+-{_UUID}\.txn",
    "_deletions": r"\d+-\d+-\d+\.(arrow|bin)",
}
#: Names of Lance's temporary files, which no version ever names.
_UNNAMED = {
    **{folder: rf"{name}#\d+|{_TEMPORARY}" for folder, name in _NAMED.items()},
    "_versions": rf"\d+\.manifest#\d+|{_TEMPORARY}",
    "_refs/tags": rf".+\.json(\.tmp\.[0-9a-f]{{32}})?#\d+|.+\.json\.tmp\.[0-9a-f]{{32}}|{_TEMPORARY}",
}
_CACHE = re.compile(rf"{re.escape(FOLDER)}/cache/v(\d+)-")


def with_data(files: Files, receipts: Iterable[Receipt]) -> dict[int, Receipt]:
    """Return receipts whose data files exist with the size that they state, by shard: the last one of each."""
    there = files.sizes(DATA)
    return {
        receipt.shard: receipt
        for receipt in receipts
        if all(
            size is None or there.get(f"{DATA}/{name}", -1) in (size, None) for name, size in receipt.sizes().items()
        )
    }


def check_data(files: Files, uri: str, receipts: Sequence[Receipt]) -> None:
    """Check that the data files of a build are there before it is committed.

    Raises:
        OutputError: names the shards whose files are missing or cut.
    """
    there = with_data(files, receipts)
    if lost := [str(receipt.shard) for receipt in receipts if receipt.shard not in there]:
        named = ", ".join(lost[:MOST_NAMED]) + (
            f" and {len(lost) - MOST_NAMED:,} more" if len(lost) > MOST_NAMED else ""
        )
        raise OutputError(
            f"data files of {uri} were removed or cut while it was being built: those of shard {named}",
            "run the same command again: it builds these shards again",
        )


@dataclass(frozen=True)
class Leftovers:
    """Files that nothing will name once a build is committed.

    Attributes:
        files: of the dataset.
        paths: of files, in the order in which they must be deleted.
        uploads: of data files, begun and not finished; only in an object store.
    """

    files: Files
    paths: tuple[str, ...]
    uploads: tuple[tuple[str, str], ...] = ()

    def remove(self, lock: OutputLock) -> None:
        """Remove them.

        Raises:
            OutputLocked: another process has taken the lock over. The rest is left to it.
        """
        _delete(self.files, self.paths, lock)
        for upload in self.uploads:
            lock.check()
            self.files.abort(upload)


def _delete(files: Files, paths: Iterable[str], lock: OutputLock) -> None:
    """Delete files, in order, for as long as the lock is held. Raises as `Leftovers.remove` does."""
    for path in paths:
        lock.check()
        files.delete(path)


def find_leftovers(
    uri: str,
    transport: Transport,
    *,
    overwritten: bool,
    journal: Journal,
    receipts: Iterable[Receipt],
    others: Iterable[Journal] = (),
) -> Leftovers:
    """Find data files that no version needs, nor the build that is about to be committed, and receipts.

    Args:
        overwritten: the output has a version already.
        journal: of the build.
        receipts: of its shards. Other receipts in its journal are leftovers.
        others: journals of unfinished builds that the build replaces.
    """
    files, receipts = files_of(uri, transport), list(receipts)
    names = {name for receipt in receipts for name in receipt.data_files()}
    dataset = open_dataset(uri, None, transport) if overwritten else None
    wanted = {f"{DATA}/{name}" for name in names} | (_tracked(dataset) if dataset is not None else set())
    paths = [*_named(files, DATA, _NAMED[DATA], wanted), *_named(files, DATA, _UNNAMED[DATA], set())]
    small = [*journal.others(receipts), *(path for other in others for path in other.paths())]
    return Leftovers(files, (*small, *paths), tuple(files.uploads(DATA)))


def tidy(uri: str, transport: Transport, lock: OutputLock) -> None:
    """Complete what a killed command began, and remove what it left.

    Afterwards the latest version is sealed and its build noted as committed. What only vanished versions needed is
    gone, and so is each file that nothing names. If a version cannot be read, nothing that it might need is removed.

    Args:
        lock: the output's, held.

    Raises:
        OutputLocked: another process has taken the lock over.
    """
    files = files_of(uri, transport)
    if isinstance(files, LocalFiles):
        for folder, pattern in _UNNAMED.items():
            _delete(files, _named(files, folder, pattern, set()), lock)
        for path in [*files.list(FOLDER), f".{LOADER_FILE}{TEMPORARY}"]:
            name = path.rpartition("/")[2]
            if name.startswith(".") and name.endswith(TEMPORARY):
                _delete(files, [path], lock)
    latest = open_dataset(uri, None, transport)
    try:
        if latest is not None and KEY in (latest.schema.metadata or {}):
            _complete(opened(uri, latest, transport))
        wanted = _tracked(latest) if latest is not None else set()
        _forget(uri, transport, lock)
        wanted |= _unfinished(files)
    except DatasetError:
        return
    for folder, pattern in _NAMED.items():
        _delete(files, _named(files, folder, pattern, wanted), lock)


def complete(uri: str, transport: Transport) -> None:
    """Note and seal the latest version, if the process died between its commit and that. Remove nothing."""
    latest = open_dataset(uri, None, transport)
    if latest is not None and KEY in (latest.schema.metadata or {}):
        with suppress(DatasetError):
            _complete(opened(uri, latest, transport))


def _unfinished(files: Files) -> set[str]:
    """Data files of builds that were begun and not committed, by path in the dataset."""
    return {
        f"{DATA}/{name}"
        for key in unfinished_builds(files)
        for receipt in Journal(files, key).receipts()
        for name in receipt.data_files()
    }


def _named(files: Files, folder: str, pattern: str, wanted: set[str]) -> Iterator[str]:
    """Yield the files of a folder whose names match and that are not wanted."""
    for path in files.list(folder):
        if re.fullmatch(pattern, path.removeprefix(f"{folder}/")) and path not in wanted:
            yield path


def _tracked(dataset: Any) -> set[str]:
    """Files that any version names, by path in the dataset.

    Raises:
        DatasetError: a version cannot be read.
    """
    with reading_dataset(dataset.uri):
        return set(dataset.tracked_files().read_all()["path"].to_pylist())


def _complete(latest: DatasetVersion) -> None:
    """Note and seal the latest version, if the process died between its commit and that."""
    files, number = latest.files, latest.number
    for build in latest.builds:
        Journal(files, build.key).close(build.version)
    with reading_dataset(latest.uri):
        transaction = latest.dataset.read_transaction(number)
    properties = (transaction.transaction_properties if transaction is not None else None) or {}
    if is_sealed(files, number) or not any(name.startswith("lance_prep.") for name in properties):
        return
    hashes = None
    if "lance_prep.compact" in properties:  # its files are in no receipt
        before = open_any(latest.uri, number - 1, latest.transport)
        known = {file.path for fragment in before.get_fragments() for file in fragment.data_files()}
        new = [one for one in latest.fragments() if not known.issuperset(file["path"] for file in one["files"])]
        hashes = hash_files(files, new)
    seal(files, number, hashes)


def _forget(uri: str, transport: Transport, lock: OutputLock) -> None:
    """Delete what only vanished versions needed: journals, tokenizers, lists, seals and cached indexes.

    Raises:
        DatasetError: a version cannot be read, so what it needs is unknown. Nothing was deleted.
    """
    files = files_of(uri, transport)
    versions = set(manifest_versions(files))
    needed = {f"{BUILDS_FOLDER}/{key}" for key in unfinished_builds(files)}
    for number in versions:
        dataset = open_any(uri, number, transport)
        needed |= {f"{DATA}/{file.path}" for fragment in dataset.get_fragments() for file in fragment.data_files()}
        if KEY in (dataset.schema.metadata or {}):
            needed |= _needed_by(opened(uri, dataset, transport))
    for folder in (BUILDS_FOLDER, TOKENIZERS_FOLDER, LISTS_FOLDER):
        unneeded = [path for path in files.list(folder) if "/".join(path.split("/")[:3]) not in needed]
        _delete(files, sorted(unneeded, key=Journal.order_of_deletion), lock)
    for path in files.list(SEALS):
        name = Path(path).stem
        # The seal of a compaction also holds hashes of data files, which later versions may have too.
        if name.isdigit() and int(name) not in versions and needed.isdisjoint(known_hashes(files, int(name))):
            _delete(files, [path], lock)
    for path in files.list(f"{FOLDER}/cache"):
        match = _CACHE.match(path)
        if match and int(match[1]) not in versions:
            _delete(files, [path], lock)


def _needed_by(version: DatasetVersion) -> set[str]:
    """Files and folders of the sidecar that a version needs."""
    needed = {list_path(version.metadata.builds)}
    if version.metadata.tokenizer is not None:
        needed |= set(map(tokenizer_path, version.metadata.tokenizer.hashes))
    for build in version.builds:
        needed |= {f"{BUILDS_FOLDER}/{build.key}", *map(list_path, build.lists.values())}
    return needed
