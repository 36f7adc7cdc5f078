"""What keeps datasets: Lance on a disk or in an object store, or another store that is registered for a URL scheme.

Everything that a build does to its output goes through a `Store`: the small files beside the data, and four operations
of Lance. So one class can stand for a whole storage system. The tests put one there that loses replies, delays writes
and kills processes (`tests/simulated_store.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lance_prep.errors import reading_dataset, translate_output, translating
from lance_prep.hub_path import lance_place
from lance_prep.store.lease import lease
from lance_prep.store.lock import OutputLock, file_lock
from lance_prep.store.sidecar import Files, LocalFiles, ObjectFiles
from lance_prep.transport import Transport, check_answers, is_local


class Store(Protocol):
    """A storage system. Has no state of a build: any process may use it."""

    def files(self, uri: str, transport: Transport) -> Files:
        """Return the small files of the dataset at `uri`."""
        ...

    def lock(self, uri: str, transport: Transport, doing: str) -> AbstractContextManager[OutputLock]:
        """Hold the output's lock. Arguments and errors: see `output_lock`."""
        ...

    def open(self, uri: str, version: int | str | None, transport: Transport) -> Any | None:
        """Return the Lance dataset at `uri`, or None if it is missing, as in a folder with only a journal.

        Raises:
            DamagedDataset: a local dataset cannot be opened.
        """
        ...

    def write(self, uri: str, rows: pa.RecordBatchReader, file_version: str, transport: Transport) -> list[Any]:
        """Write rows as fragments that belong to no version yet; return their `FragmentMetadata`.

        Args:
            file_version: of the Lance file format.
        """
        ...

    def commit(self, uri: str, transaction: Any, transport: Transport, *, retries: int) -> Any:
        """Make a Lance `Transaction` the next version; return the dataset at that version.

        Args:
            retries: how often it is tried on top of what others have committed meanwhile, where it does not conflict.

        Raises:
            CommitConflictError: of Lance; the transaction conflicts with what others have committed.
        """
        ...


class LanceStore:
    """Lance itself, for paths and for every scheme that has no store of its own."""

    def files(self, uri: str, transport: Transport) -> Files:
        return LocalFiles(Path(uri)) if is_local(uri) else ObjectFiles(uri, transport)

    def lock(self, uri: str, transport: Transport, doing: str) -> AbstractContextManager[OutputLock]:
        if is_local(uri):
            return file_lock(uri, doing)
        check_answers(uri, transport)
        return lease(ObjectFiles(uri, transport), uri, doing)

    def open(self, uri: str, version: int | str | None, transport: Transport) -> Any | None:
        if is_local(uri) and not (Path(uri) / "_versions").exists():
            return None  # without the 0.4 s that importing lance takes: the first shard is read meanwhile
        import lance

        with reading_dataset(uri) if is_local(uri) else nullcontext():
            try:
                place, options = lance_place(uri, transport)
                return lance.dataset(place, version=version, storage_options=options)
            except ValueError as error:
                if "not found" in str(error).lower():
                    return None
                raise

    def write(self, uri: str, rows: pa.RecordBatchReader, file_version: str, transport: Transport) -> list[Any]:
        from lance.fragment import write_fragments

        fragments: list[Any] = write_fragments(
            rows,
            uri,
            schema=rows.schema,
            mode="overwrite",  # numbers the fields from 0, whatever the dataset held: a commit replaces its schema
            data_storage_version=file_version,
            storage_options=transport.for_lance,
            # One shard is one fragment: no limit of rows or bytes may split it. Lance counts a file's rows in 32 bits.
            max_rows_per_file=(1 << 32) - 1,
            max_bytes_per_file=1 << 60,
        )
        return fragments

    def commit(self, uri: str, transaction: Any, transport: Transport, *, retries: int) -> Any:
        from lance import LanceDataset

        return LanceDataset.commit(uri, transaction, storage_options=transport.for_lance, max_retries=retries)


_LANCE = LanceStore()
_STORES: dict[str, Store] = {}


def register_store(scheme: str, store: Store) -> None:
    """Use a store for all URIs of a scheme, such as `memory` for `memory://x.lance`."""
    _STORES[scheme] = store


def store_of(uri: str) -> Store:
    """Return the store of a path or URI."""
    return _STORES.get(uri.partition("://")[0], _LANCE) if "://" in uri else _LANCE


@contextmanager
def output_lock(uri: str, transport: Transport | None = None, *, doing: str = "built") -> Iterator[OutputLock]:
    """Hold the output's lock while the block runs: the kernel's on a local disk, a lease in an object store.

    Args:
        doing: what is done to the output, for the message of another process: "... is being built by".

    Raises:
        OutputLocked: another process holds it: says which and since when.
        DatasetError: the dataset has a symbolic link in place of one of its folders, or of the lock.
        OutputError: what the system or Lance raised while the lock was held.
    """
    with translating(uri, translate_output), store_of(uri).lock(uri, transport or Transport(), doing) as lock:
        yield lock


def files_of(uri: str, transport: Transport) -> Files:
    """Return the small files of the dataset at `uri`."""
    return store_of(uri).files(uri, transport)


def open_dataset(uri: str, version: int | str | None, transport: Transport) -> Any | None:
    """Return the Lance dataset at `uri`, or None if it is missing. Raises as `Store.open` does."""
    return store_of(uri).open(uri, version, transport)
