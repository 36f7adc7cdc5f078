"""Check a dataset's integrity: read all of it again, and compare it with what the build recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lance_prep.dataset.check_builds import Verification, check_dropped, check_ledgers, check_lists, read_journals
from lance_prep.dataset.check_rows import check_rows, shards_of
from lance_prep.dataset.check_source import SourceCheck, check_against_source
from lance_prep.dataset.check_stored import check_data_files, check_manifest, check_sealed, check_small_files
from lance_prep.errors import DamagedDataset, DatasetError, reading_dataset
from lance_prep.hub_path import pinned_uri
from lance_prep.store import DatasetVersion, files_of, manifest_versions, open_version
from lance_prep.transport import Transport, absolute_uri


@dataclass(frozen=True)
class Listener:
    """Receives the progress of a verification.

    Attributes:
        on_rows: called with the number of rows read so far, and the total.
        on_note: called with a sentence.
        on_compared: called with the number of rows compared with the source so far, and the total.
    """

    on_rows: Callable[[int, int], None] = lambda done, total: None
    on_note: Callable[[str], None] = lambda note: None
    on_compared: Callable[[int, int], None] = lambda done, total: None


def verify(
    uri: str | Path,
    version: int | str | None = None,
    storage_options: Mapping[str, str] | None = None,
    *,
    against: SourceCheck | None = None,
    deep: bool = False,
    listener: Listener | None = None,
) -> Verification:
    """Check a dataset's integrity. A dataset that is too damaged to open is a problem too, not an error.

    Manifest, transaction, plans and receipts must agree with each other. Every data file must exist with its size and,
    on a local disk or with `deep`, its hash. The ledgers must balance against each other and against the plan's source
    row counts. Tokenizer files must have their sha256. Then all rows are read: content hash of each shard, ids below
    the vocabulary's size, lengths, document ids and boundaries, padding.

    Args:
        uri: path or URI of the dataset.
        version: number or tag; the latest by default.
        against: what to compare with the source; None for nothing.
        deep: fetch all data files of an object store, or of the Hub, to hash them. Those on a local disk always are.
        listener: told about progress.

    Raises:
        DatasetError: no dataset of lance-prep exists there, or not at that version.
        AccessDenied: an object store refuses access.
    """
    found = Verification()
    transport = Transport.of(storage_options)
    uri = pinned_uri(absolute_uri(uri), transport)
    files = files_of(uri, transport)
    named = version if version is None or str(version).isdigit() else None
    with reading_dataset(uri):
        number = int(named) if named is not None else max(manifest_versions(files), default=None)
    # Lance panics on some damaged manifests: look at the bytes first.
    if (version is None or named) and number is not None and not check_sealed(files, number, found):
        return found
    opened = None
    try:
        opened = open_version(uri, version, storage_options)
    except DamagedDataset as error:
        found.wrong(str(error))
    except DatasetError:
        if found.ok:
            raise
    if opened is not None:
        found = _verify(opened, against, listener or Listener(), deep=deep)
    return found


def _verify(opened: DatasetVersion, against: SourceCheck | None, told: Listener, *, deep: bool) -> Verification:
    found = Verification()
    check_sealed(opened.files, opened.number, found)
    check_manifest(opened, found)
    check_small_files(opened, found)
    check_lists(opened, found)
    with found.reading("the dataset"):
        journals = read_journals(opened, found)
        check_ledgers(opened, journals, found)
        check_dropped(opened, journals, found)
        stored = check_data_files(opened, journals, found, deep=deep)
        shards = shards_of(journals, sum(one.rows for one in stored))
        check_rows(opened, stored, shards, found, told.on_rows)
        if against is not None:
            check_against_source(opened, journals, shards, against, found, told.on_note, told.on_compared)
    return found
