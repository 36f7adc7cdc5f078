"""Lance itself: a shard's rows into one fragment, fragments into one version."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import DatasetError, OutputLocked, reading_dataset
from lance_prep.layouts import LAYOUTS
from lance_prep.store.seal import manifest_path
from lance_prep.store.sidecar import LocalFiles
from lance_prep.transport import is_local

VERSION_HINT = "_versions/latest_version_hint.json"


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


def write_fragment(
    uri: str,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    *,
    version: str,
    storage_options: Mapping[str, str] | None,
) -> dict[str, Any] | None:
    """Write the rows of a shard as one fragment that belongs to no version yet.

    Returns:
        Its metadata as JSON, or None where there was no row.
    """
    first = next(batches, None)
    if first is None:
        return None
    from lance.fragment import write_fragments

    # Lance hides what the iterator raises behind an error of its own: keep it.
    failed: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from itertools.chain([first], batches)
        except BaseException as error:
            failed.append(error)
            raise

    try:
        fragments = write_fragments(
            pa.RecordBatchReader.from_batches(schema, watched()),
            uri,
            schema=schema,
            mode="overwrite",  # fields are numbered anew, whatever the dataset held: a commit replaces its schema
            data_storage_version=version,
            storage_options=dict(storage_options or {}) or None,
            # One shard is one fragment: no limit of rows or bytes may split it. Lance counts a file's rows in 32 bits.
            max_rows_per_file=(1 << 32) - 1,
            max_bytes_per_file=1 << 60,
        )
    except BaseException as error:
        raise (failed[0] if failed else error) from None
    if len(fragments) != 1:
        raise DatasetError(
            f"Lance wrote {len(fragments)} fragments for one shard", "report this with the versions in use"
        )
    return dict(fragments[0].to_json())


def open_dataset(
    uri: str, version: int | str | None = None, storage_options: Mapping[str, str] | None = None
) -> Any | None:
    """Return the Lance dataset at `uri`, or None if there is none, as in a folder with only a journal.

    Raises:
        DamagedDataset: a local dataset cannot be opened.
    """
    if is_local(uri) and not (Path(uri) / "_versions").exists():
        return None  # without the 0.4 s that importing lance takes: the first shard is read meanwhile
    import lance

    with reading_dataset(uri) if is_local(uri) else nullcontext():
        try:
            return lance.dataset(uri, version=version, storage_options=dict(storage_options or {}) or None)
        except ValueError as error:
            if "not found" in str(error).lower():
                return None
            raise


def commit(
    uri: str,
    schema: pa.Schema,
    fragments: Iterable[dict[str, Any]],
    *,
    read_version: int,
    properties: Mapping[str, str],
    storage_options: Mapping[str, str] | None,
) -> int:
    """Make fragments the next version, whole.

    An `Overwrite` also for an append (which then names the old fragments too): it replaces the schema's metadata in the
    same step, and Lance refuses it if the version that it was made on is no longer the last.

    Returns:
        The number of the new version.

    Raises:
        OutputLocked: somebody else has committed since `read_version`.
    """
    from lance import FragmentMetadata, LanceOperation

    operation = LanceOperation.Overwrite(schema, [FragmentMetadata.from_json(json.dumps(f)) for f in fragments])
    return _commit(uri, operation, read_version, properties, storage_options)


def commit_restore(
    uri: str,
    version: int,
    *,
    read_version: int,
    properties: Mapping[str, str],
    storage_options: Mapping[str, str] | None,
) -> int:
    """Make an old version the next one, deletions and fragment numbers included. Otherwise as `commit`."""
    from lance import LanceOperation

    return _commit(uri, LanceOperation.Restore(version), read_version, properties, storage_options)


def _commit(
    uri: str,
    operation: Any,
    read_version: int,
    properties: Mapping[str, str],
    storage_options: Mapping[str, str] | None,
) -> int:
    from lance import LanceDataset, Transaction
    from lance.commit import CommitConflictError

    transaction = Transaction(read_version, operation, transaction_properties=dict(properties))
    # Made on no version, it would be put on top of whatever came meanwhile: only without retries it is refused.
    retries = 20 if read_version else 0
    options = dict(storage_options or {}) or None
    try:
        dataset = LanceDataset.commit(uri, transaction, storage_options=options, max_retries=retries)
    except (CommitConflictError, OSError, RuntimeError) as error:
        if not isinstance(error, CommitConflictError) and (
            read_version or not open_dataset(uri, None, storage_options)
        ):
            raise
        raise OutputLocked(
            f"another process has written to {uri} since version {read_version}", "run the same command again"
        ) from error
    version = int(dataset.version)
    if is_local(uri):
        _sync(LocalFiles(Path(uri)), version, transaction.uuid)
    return version


def _sync(files: LocalFiles, version: int, transaction: str) -> None:
    """Make a commit durable: Lance leaves it to the system when its files go to the disk."""
    written = [path for path in files.list("_transactions") if transaction in path]
    manifest = manifest_path(files, version)
    # Lance ignores a failure to write its hint, and lists the versions if there is none.
    hint = files.read(VERSION_HINT)
    if hint is not None and hint != json.dumps({"version": version}, separators=(",", ":")).encode():
        files.delete(VERSION_HINT)
    for path in [*written, *([manifest] if manifest else [])]:
        files.sync(path)
