"""Changes which version is used: tags give versions names, and `restore` makes an old version the latest again.

`version=`, `restore` and training take a tag, and `prune` never removes a tagged version. A restored version is a new
one: nothing is copied, and the versions between stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lance_prep.errors import DatasetError, UsageError
from lance_prep.store import DatasetVersion, Output

_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Tagged:
    """A tag that was set or deleted.

    Attributes:
        name: of the tag.
        version: the version that it points to; None for a deleted tag.
        was: the version that it pointed to before; None for a new tag.
    """

    name: str
    version: int | None
    was: int | None


def tag(
    uri: str | Path,
    name: str,
    version: int | str | None = None,
    *,
    force: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Tagged:
    """Give a version a name.

    Args:
        version: number or tag; the latest by default.
        force: move a tag that points to another version.

    Raises:
        UsageError: invalid tag name.
        DatasetError: no such dataset or version, or the tag points elsewhere.
        OutputLocked: a build or another command works on the dataset.
    """
    if not _NAME.fullmatch(name) or name.isdigit() or name.startswith(".") or name.endswith((".lock", ".")):
        raise UsageError(
            f"invalid tag name {name!r}", "use letters, digits, '.', '-' and '_'; digits alone are a version"
        )
    with Output.at(uri, storage_options).locked(version) as opened:
        number = opened.number
        known = opened.dataset.tags.list().get(name)
        was = int(known["version"]) if known else None
        if was is None:
            opened.dataset.tags.create(name, number)
        elif was != number:
            if not force:
                raise DatasetError(f"tag {name} points to version {was} already", "move it with force=True")
            opened.dataset.tags.update(name, number)
    return Tagged(name, number, was)


def delete_tag(uri: str | Path, name: str, *, storage_options: Mapping[str, str] | None = None) -> Tagged:
    """Delete a tag; its version stays.

    Raises:
        DatasetError: no such dataset or tag.
        OutputLocked: a build or another command works on the dataset.
    """
    with Output.at(uri, storage_options).locked() as opened:
        tags = opened.dataset.tags.list()
        if name not in tags:
            raise DatasetError(
                f"there is no tag {name}", f"use one of: {', '.join(sorted(tags))}" if tags else "there are no tags"
            )
        opened.dataset.tags.delete(name)
    return Tagged(name, None, int(tags[name]["version"]))


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
    output = Output.at(uri, storage_options)
    with output.locked(version) as old:
        latest = output.version()
        made = latest.number
        # An earlier run may have been killed after its commit: do not restore twice.
        if not _same(old, latest):
            why = {"lance_prep.restore": str(old.number)}
            made = output.restore(old.number, on=latest.number, why=why)
        return Restored(old.number, made, old.metadata.rows, old.metadata.content_hash)


def _same(old: DatasetVersion, latest: DatasetVersion) -> bool:
    """Return whether two versions have the same files, schema and metadata."""
    if old.number == latest.number:
        return True
    same_schema = old.dataset.schema.equals(latest.dataset.schema, check_metadata=True)
    return bool(same_schema) and old.fragments() == latest.fragments()
