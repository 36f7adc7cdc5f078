"""Makes an old version the latest again, as a new version. Nothing is copied, and the versions between stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lance_prep.store.leftovers import open_locked
from lance_prep.store.output import commit_restore
from lance_prep.store.seal import seal
from lance_prep.store.version import DatasetVersion, open_version


@dataclass(frozen=True)
class Restored:
    """A version that was restored.

    Attributes:
        restored: the old version.
        version: the new one, or the latest if that is equal to the old one already.
        rows, content_hash: of both.
    """

    restored: int
    version: int
    rows: int
    content_hash: str


def restore(uri: str | Path, version: int | str, *, storage_options: Mapping[str, str] | None = None) -> Restored:
    """Make a new version with the rows, schema and metadata of an old one, unless the latest has them already.

    Args:
        version: number or tag.

    Raises:
        DatasetError: no such dataset or version.
        OutputLocked: a build or another command works on the dataset.
    """
    with open_locked(uri, version, storage_options) as old:
        latest = open_version(uri, None, storage_options)
        made = latest.number
        # Restored twice it would be one version too many: the first run may have been killed after its commit.
        if not _same(old, latest):
            made = commit_restore(
                old.uri,
                old.number,
                read_version=latest.number,
                properties={"lance_prep.restore": str(old.number)},
                storage_options=storage_options,
            )
            seal(old.files, made)
        return Restored(old.number, made, old.metadata.rows, old.metadata.content_hash)


def _same(old: DatasetVersion, latest: DatasetVersion) -> bool:
    """Return whether two versions have the same files, schema and metadata."""
    if old.number == latest.number:
        return True
    same_schema = old.dataset.schema.equals(latest.dataset.schema, check_metadata=True)
    return bool(same_schema) and old.fragments() == latest.fragments()
