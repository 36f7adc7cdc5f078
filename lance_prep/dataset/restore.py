"""Going back: a new version that is equal to an old one. Nothing is copied, and the versions between stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lance_prep.store.lock import output_lock
from lance_prep.store.seal import seal
from lance_prep.store.version import open_version


@dataclass(frozen=True)
class Restored:
    """A version that was restored.

    Attributes:
        restored: the old version.
        version: the new one; `restored` itself where that is the latest.
        rows, content_hash: of both.
    """

    restored: int
    version: int
    rows: int
    content_hash: str


def restore(uri: str | Path, version: int | str, *, storage_options: Mapping[str, str] | None = None) -> Restored:
    """Make a new version with the rows, schema and metadata of an old one.

    Args:
        version: number or tag.

    Raises:
        DatasetError: no such dataset or version.
        OutputLocked: a build or another command works on the dataset.
    """
    from lance import LanceDataset, LanceOperation, Transaction

    # A lock makes its folder: opening first refuses a path where there is nothing.
    with output_lock(open_version(uri, version, storage_options).uri):
        old = open_version(uri, version, storage_options)
        number, latest = old.number, int(old.dataset.latest_version)
        if number != latest:
            operation = LanceOperation.Restore(number)
            transaction = Transaction(latest, operation, transaction_properties={"lance_prep.restore": str(number)})
            options = dict(storage_options or {}) or None
            latest = int(LanceDataset.commit(old.uri, transaction, storage_options=options).version)
            seal(old.files, latest)
    return Restored(number, latest, old.metadata.rows, old.metadata.content_hash)
