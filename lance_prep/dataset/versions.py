"""The versions of a dataset: when, how large, what made each, and which source files came with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timezone
from pathlib import Path
from typing import Any

from lance_prep.dataset.found import describe
from lance_prep.dataset.opened import absolute, version_numbers
from lance_prep.errors import DatasetError
from lance_prep.store.lance_io import open_dataset
from lance_prep.store.metadata import KEY, read_metadata


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        number: Lance's.
        time: of its commit, ISO 8601, UTC.
        rows, tokens: None where it cannot be read, or is not ours.
        made: `build`, `append`, `overwrite`, `restore`, `compact`, or what another program did.
        of: the build's key, the version restored, fragments merged; or why it cannot be read.
        content_hash: of its rows.
        tags: names that point to it, sorted.
        files_new, files_gone: URLs of source files that it has and the version before has not, and the reverse.
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def list_versions(uri: str | Path, storage_options: Mapping[str, str] | None = None) -> list[Version]:
    """All versions that are there, the first one first. One that cannot be read is listed as such.

    Raises:
        DatasetError: there is no dataset.
    """
    where = absolute(uri)
    latest = open_latest(where, storage_options)
    tags = tags_by_version(latest)
    found, before = [], set[str]()
    try:
        times = {int(entry["version"]): _utc(entry) for entry in version_entries(latest)}
    except DatasetError:
        # Lance lists all or none.
        times = dict.fromkeys(version_numbers(where, storage_options), "time unknown")
    for number, time in times.items():
        version, files = _describe(latest, number, time, tags.get(number, ()), before)
        found.append(version)
        before = before if files is None else files
    return found


def open_latest(where: str, storage_options: Mapping[str, str] | None = None) -> Any:
    """The Lance dataset at its latest version.

    Raises:
        DatasetError: there is none.
    """
    latest = open_dataset(where, storage_options=storage_options)
    if latest is None:
        raise DatasetError(f"there is no dataset at {where}", "make one with lance-prep build")
    return latest


def version_entries(dataset: Any) -> list[dict[str, Any]]:
    """Lance's list of versions: `version`, `timestamp` (local time, naive).

    Raises:
        DatasetError: a manifest is damaged.
    """
    try:
        return list(dataset.versions())
    except (RuntimeError, OSError, ValueError) as error:
        raise DatasetError(
            f"a version is damaged: {describe(error)}",
            "`lance-prep versions` says which; others stay readable with --version",
        ) from error


def _utc(entry: dict[str, Any]) -> str:
    return str(entry["timestamp"].astimezone(timezone.utc).isoformat(timespec="seconds"))


def tags_by_version(dataset: Any) -> dict[int, tuple[str, ...]]:
    """Names of tags, sorted, by the version that they point to."""
    found: dict[int, tuple[str, ...]] = {}
    for name, tag in sorted(dataset.tags.list().items()):
        found[int(tag["version"])] = (*found.get(int(tag["version"]), ()), name)
    return found


def _describe(
    latest: Any, number: int, time: str, tags: tuple[str, ...], before: set[str]
) -> tuple[Version, set[str] | None]:
    try:
        dataset = latest.checkout_version(number)
        transaction = dataset.read_transaction(number)
        if KEY not in (dataset.schema.metadata or {}):
            made = type(transaction.operation).__name__.lower()
            return Version(number, time, dataset.count_rows(), None, made, "another program", None, tags), None
        data = read_metadata(dataset.schema)
        files = {file["url"] for file in data["source"]["files"]}
        made, of = _made(transaction, data)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return Version(number, time, None, None, "cannot be read", describe(error), None, tags), None
    new, gone = tuple(sorted(files - before)), tuple(sorted(before - files))
    hashed = data["content_hash"]
    return Version(number, time, data["rows"], data["tokens"], made, of, hashed, tags, new, gone), files


def _made(transaction: Any, data: dict[str, Any]) -> tuple[str, str]:
    properties = transaction.transaction_properties if transaction is not None else {}
    if (key := properties.get("lance_prep.build")) is not None:
        build: dict[str, Any] = next((build for build in data["builds"] if build["key"] == key), {})
        return str(build.get("how", "build")), str(key)
    if (restored := properties.get("lance_prep.restore")) is not None:
        return "restore", f"version {restored}"
    if (merged := properties.get("lance_prep.compact")) is not None:
        return "compact", str(merged)
    return type(transaction.operation).__name__.lower(), "another program"
