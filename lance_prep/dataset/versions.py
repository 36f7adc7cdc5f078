"""Lists the versions of a dataset and what made each of them. No row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

from lance_prep.errors import DatasetError, one_line
from lance_prep.hub_path import pinned_uri
from lance_prep.store import KEY, DatasetVersion, open_any, opened, version_numbers
from lance_prep.transport import Transport, absolute_uri


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        number: Lance's.
        time: of its commit, ISO 8601, UTC.
        rows, tokens: None if it cannot be read, or another program made it.
        made: `build`, `append`, `overwrite`, `restore`, `compact`, or what another program did.
        of: the build's key, the version restored, or the fragments merged; or why it cannot be read.
        content_hash: of its rows.
        tags: names that point to it, sorted.
        files_new, files_gone: URLs of the source files added and removed since the version before.
    """

    number: int
    time: str
    rows: int | None
    tokens: int | None
    made: str
    of: str
    content_hash: str | None
    tags: tuple[str, ...]
    files_new: tuple[str, ...] = ()
    files_gone: tuple[str, ...] = ()


def list_versions(uri: str | Path, storage_options: Mapping[str, str] | None = None) -> list[Version]:
    """Return all versions, the oldest first. One that cannot be read is listed as such.

    Raises:
        DatasetError: not a dataset.
    """
    transport = Transport.of(storage_options)
    where = pinned_uri(absolute_uri(uri), transport)
    latest = open_any(where, None, transport)
    tags = tags_by_version(latest)
    try:
        times = {
            int(entry["version"]): entry["timestamp"].astimezone(UTC).isoformat(timespec="seconds")
            for entry in version_entries(latest)
        }
    except DatasetError:
        # Lance lists all or none.
        times = dict.fromkeys(version_numbers(where, transport), "time unknown")
    lister, found = _Lister(where, latest, transport), []
    for number, time in times.items():
        found.append(replace(lister.next(number), time=time, tags=tags.get(number, ())))
    return found


def version_entries(dataset: Any) -> list[dict[str, Any]]:
    """Return Lance's list of versions: `version`, `timestamp` (local time, without a time zone).

    Raises:
        DatasetError: a manifest is damaged.
    """
    try:
        return list(dataset.versions())
    except (RuntimeError, OSError, ValueError) as error:
        raise DatasetError(
            f"a version is damaged: {one_line(error)}",
            "`lance-prep versions` lists it; other versions stay readable: choose one with `version`",
        ) from error


def tags_by_version(dataset: Any) -> dict[int, tuple[str, ...]]:
    """Return the names of tags, sorted, by the version that they point to."""
    found: dict[int, tuple[str, ...]] = {}
    for name, tag in sorted(dataset.tags.list().items()):
        found[int(tag["version"])] = (*found.get(int(tag["version"]), ()), name)
    return found


class _Lister:
    """Describes versions in order; remembers the source files of the version before."""

    def __init__(self, where: str, latest: Any, transport: Transport) -> None:
        self._where = where
        self._latest = latest
        self._transport = transport
        self._urls: dict[str, frozenset[str]] = {}  # by the hash of a build's list: later versions have it too
        self._before: frozenset[str] = frozenset()

    def next(self, number: int) -> Version:
        """Describe a version, without its time and tags."""
        try:
            return self._describe(number)
        except BaseException as error:  # a damaged version can raise anything, also a panic of Lance
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return Version(number, "", None, None, "cannot be read", one_line(error), None, ())

    def _describe(self, number: int) -> Version:
        dataset = self._latest.checkout_version(number)
        transaction = dataset.read_transaction(number)
        if KEY not in (dataset.schema.metadata or {}):
            made = type(transaction.operation).__name__.lower()
            return Version(number, "", dataset.count_rows(), None, made, "another program", None, ())
        version = opened(self._where, dataset, self._transport)
        data, urls = version.metadata, self._urls_of(version)
        made, of = _made(transaction, version)
        new, gone = tuple(sorted(urls - self._before)), tuple(sorted(self._before - urls))
        self._before = urls
        return Version(number, "", data.rows, data.tokens, made, of, data.content_hash, (), new, gone)

    def _urls_of(self, version: DatasetVersion) -> frozenset[str]:
        for build in version.builds:
            if build.sources not in self._urls:
                self._urls[build.sources] = frozenset(file.url for file in version.files_of_build(build))
        return frozenset().union(*(self._urls[build.sources] for build in version.builds))


def _made(transaction: Any, version: DatasetVersion) -> tuple[str, str]:
    properties = transaction.transaction_properties if transaction is not None else {}
    if (key := properties.get("lance_prep.build")) is not None:
        return next((build.how for build in version.builds if build.key == key), "build"), str(key)
    if (restored := properties.get("lance_prep.restore")) is not None:
        return "restore", f"version {restored}"
    if (merged := properties.get("lance_prep.compact")) is not None:
        return "compact", str(merged)
    return type(transaction.operation).__name__.lower(), "another program"
