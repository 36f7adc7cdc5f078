"""The output: the dataset that a command writes to, and everything that commands do to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import DatasetError, OutputLocked, UsageError
from lance_prep.layouts import LAYOUTS
from lance_prep.store.content_hash import ShardHash
from lance_prep.store.journal import Journal, unfinished_builds
from lance_prep.store.leftovers import Leftovers, complete, find_leftovers, tidy
from lance_prep.store.lock import OutputLock
from lance_prep.store.receipt import Receipt
from lance_prep.store.seal import manifest_path, seal
from lance_prep.store.sidecar import Files, LocalFiles
from lance_prep.store.stores import files_of, open_dataset, output_lock, store_of
from lance_prep.store.version import DatasetVersion, open_at
from lance_prep.transport import Transport, absolute_uri, is_local

VERSION_HINT = "_versions/latest_version_hint.json"


@dataclass(frozen=True)
class Written:
    """The rows of a shard, written and not yet part of a version.

    Attributes:
        rows: number of rows.
        content_hash: of the rows, see `store.content_hash`.
        fragment: Lance fragment metadata as JSON; None if there were no rows.
    """

    rows: int
    content_hash: str
    fragment: dict[str, Any] | None


@dataclass(frozen=True)
class Output:
    """A dataset to write to, which may not exist yet. Picklable: every process can write to it.

    Attributes:
        uri: absolute path or URI.
        transport: how to reach an object store.
    """

    uri: str
    transport: Transport = field(default_factory=Transport, repr=False)

    def __post_init__(self) -> None:
        """Refuse a place on the Hub: each file that is written there would be a commit of its own.

        Raises:
            UsageError: says how to write to the Hub.
        """
        if self.uri.startswith("hf://"):
            said = f"{self.uri} is on the Hub, where datasets are only read"
            raise UsageError(said, "work on a local copy, from `lance-prep pull`, and then run `lance-prep push`")

    @classmethod
    def at(cls, path: str | Path, storage_options: Mapping[str, str] | None = None) -> Output:
        """Return the output at a path, relative or not, or a URI."""
        return cls(absolute_uri(path), Transport.of(storage_options))

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return is_local(self.uri)

    @property
    def files(self) -> Files:
        """The small files beside the data."""
        return files_of(self.uri, self.transport)

    @contextmanager
    def lock(self) -> Iterator[OutputLock]:
        """Hold the lock while the block runs. If the command before did not end well, complete what it began first.

        On a local disk, also remove what it left. In an object store a build does that, after its commit.

        Raises:
            OutputLocked: another process holds it.
            DatasetError: the dataset has a symbolic link in place of one of its folders, or of the lock.
            OutputError: what the system or Lance raised while the lock was held.
        """
        with output_lock(self.uri, self.transport) as lock:
            if lock.interrupted and self.is_local:
                self.tidy(lock)
            elif lock.interrupted:
                complete(self.uri, self.transport)
            yield lock

    @contextmanager
    def locked(self, version: int | str | None = None) -> Iterator[DatasetVersion]:
        """Open a version, and hold the lock while the block runs. The version is resolved under the lock.

        Raises:
            DatasetError: as `open_version`.
            OutputLocked: a build or another command works on the dataset.
        """
        self.version(version)  # a lock makes its folder, so refuse a path without a dataset first
        with self.lock():
            yield self.version(version)

    def version(self, version: int | str | None = None) -> DatasetVersion:
        """Open a version by number or tag, by default the latest. Raises as `open_version` does."""
        return open_at(self.uri, version, self.transport)

    def open(self) -> Any | None:
        """Return the Lance dataset at its latest version, or None if it is missing. Any program may have built it.

        Raises:
            DamagedDataset: a local dataset cannot be opened.
        """
        return open_dataset(self.uri, None, self.transport)

    def journal(self, key: str) -> Journal:
        """Return the journal of a build."""
        return Journal(self.files, key)

    def unfinished(self) -> dict[str, dict[str, Any]]:
        """Return the recipes of builds that were begun and not committed, by key. See `unfinished_builds`."""
        return unfinished_builds(self.files)

    def write(self, rows: Iterator[pa.RecordBatch], schema: pa.Schema, *, layout: str) -> Written:
        """Write rows as one fragment that belongs to no version yet.

        Args:
            rows: batches in the schema; their errors are raised as they are.
            schema: without metadata.
            layout: decides the Lance file format.

        Raises:
            DatasetError: Lance split the rows into several fragments.
        """
        content, count = ShardHash(), 0
        # Lance hides what the iterator raises behind an error of its own: keep it.
        failed: list[BaseException] = []

        def hashed() -> Iterator[pa.RecordBatch]:
            nonlocal count
            try:
                for batch in itertools.chain([first], rows):
                    content.update(batch)
                    count += len(batch)
                    yield batch
            except BaseException as error:  # raised again below
                failed.append(error)
                raise

        first = next(rows, None)
        if first is None:
            return Written(0, content.hexdigest(), None)
        try:
            fragment = self._write_fragment(pa.RecordBatchReader.from_batches(schema, hashed()), layout)
        except BaseException as error:
            raise (failed[0] if failed else error) from None
        return Written(count, content.hexdigest(), fragment)

    def _write_fragment(self, rows: pa.RecordBatchReader, layout: str) -> dict[str, Any]:
        fragments = store_of(self.uri).write(self.uri, rows, file_version(layout, rows.schema), self.transport)
        if len(fragments) != 1:
            raise DatasetError(
                f"Lance wrote {len(fragments)} fragments for one shard", "report this with the versions in use"
            )
        return dict(fragments[0].to_json())

    def commit(
        self,
        schema: pa.Schema,
        fragments: Iterable[dict[str, Any]],
        *,
        on: int,
        why: Mapping[str, str],
        hashes: Mapping[str, str] | None = None,
    ) -> int:
        """Make fragments the next version, whole and durable, and seal it.

        An `Overwrite` also for an append (which then names the old fragments too): it replaces the schema's metadata in
        the same step, and Lance refuses it if the version that it was made on is no longer the latest.

        Args:
            schema: with the version's metadata.
            on: the version that it was made on; 0 for the first.
            why: properties of the transaction.
            hashes: of data files that no receipt knows, by path in `data/`.

        Returns:
            The number of the new version.

        Raises:
            OutputLocked: another process has committed since `on`.
        """
        from lance import FragmentMetadata, LanceOperation

        operation = LanceOperation.Overwrite(schema, [FragmentMetadata.from_json(json.dumps(f)) for f in fragments])
        return self._commit(operation, on, why, hashes)

    def restore(self, version: int, *, on: int, why: Mapping[str, str]) -> int:
        """Make an old version the next one, deletions and fragment numbers included. Otherwise as `commit`."""
        from lance import LanceOperation

        return self._commit(LanceOperation.Restore(version), on, why)

    def _commit(self, operation: Any, on: int, why: Mapping[str, str], hashes: Mapping[str, str] | None = None) -> int:
        from lance import Transaction
        from lance.commit import CommitConflictError

        transaction = Transaction(on, operation, transaction_properties=dict(why))
        # Lance retries a transaction on no version upon whatever was committed meanwhile, instead of refusing it.
        retries = 20 if on else 0
        try:
            dataset = store_of(self.uri).commit(self.uri, transaction, self.transport, retries=retries)
        except (CommitConflictError, OSError, RuntimeError) as error:
            if not isinstance(error, CommitConflictError) and (on or not self.open()):
                raise
            raise OutputLocked(
                f"another process has written to {self.uri} since version {on}", "run the same command again"
            ) from error
        version = int(dataset.version)
        files = self.files
        if isinstance(files, LocalFiles):
            _sync(files, version, transaction.uuid)
        seal(files, version, hashes)
        return version

    def leftovers(
        self, journal: Journal, receipts: Iterable[Receipt], *, overwritten: bool, others: Iterable[Journal] = ()
    ) -> Leftovers:
        """Find files that no version needs, nor the build of this journal and receipts. See `store.leftovers`."""
        return find_leftovers(
            self.uri, self.transport, overwritten=overwritten, journal=journal, receipts=receipts, others=others
        )

    def tidy(self, lock: OutputLock) -> None:
        """Complete what a killed command began, and remove what it left. See `store.leftovers`."""
        tidy(self.uri, self.transport, lock)


def file_version(layout: str, schema: pa.Schema) -> str:
    """Return the Lance file format for a layout.

    Format 2.0 stores lists flat, as values and offsets, so they can be memory-mapped; 2.1 packs their bits. Ragged
    tokens are written at 200 to 450 Mtok/s in 2.0 and 80 in 2.1, and scanned at 500 and 200. Blocks are written equally
    fast in both; their document boundaries are scanned 5 times faster in 2.0 and take up to 12 % more disk. 2.0 loses
    the nulls of structs, so a kept column with a struct needs 2.1.
    """
    if LAYOUTS[layout].tokens and not any(_has_struct(field.type) for field in schema):
        return "2.0"
    return "2.1"


def _has_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return True
    return any(_has_struct(kind.field(i).type) for i in range(kind.num_fields))


def _sync(files: LocalFiles, version: int, transaction: str) -> None:
    """Make a commit durable: Lance leaves it to the system when its files go to the disk."""
    written = [path for path in files.list("_transactions") if transaction in path]
    manifest = manifest_path(files, version)
    # Lance ignores a failure to write its hint, and lists the versions if it is missing.
    hint = files.read(VERSION_HINT)
    if hint is not None and hint != json.dumps({"version": version}, separators=(",", ":")).encode():
        files.delete(VERSION_HINT)
    for path in [*written, *([manifest] if manifest else [])]:
        files.sync(path)
