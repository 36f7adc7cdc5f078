"""What differs between two versions, by what is written in them: no row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lance_prep.store.metadata import Metadata
from lance_prep.store.version import DatasetVersion, open_version


@dataclass(frozen=True)
class Difference:
    """Version `new` against version `old`.

    Attributes:
        old, new: their numbers.
        rows, tokens: `(old, new)`.
        same_content: their content hashes are equal: the same rows in the same order.
        files_added, files_gone, files_changed: URLs of source files; changed: under the same name, with other content.
        recipe: field to `(old, new)`, where the recipes differ.
        other: commit, tokenizer, versions of libraries, to `(old, new)`, where they differ.
    """

    old: int
    new: int
    rows: tuple[int, int]
    tokens: tuple[int, int]
    same_content: bool
    files_added: tuple[str, ...]
    files_gone: tuple[str, ...]
    files_changed: tuple[str, ...]
    recipe: dict[str, tuple[Any, Any]]
    other: dict[str, tuple[Any, Any]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def diff_versions(
    uri: str | Path, old: int | str, new: int | str, storage_options: Mapping[str, str] | None = None
) -> Difference:
    """Compare two versions, by number or tag.

    Raises:
        DatasetError: there is no such dataset or version, or it is not ours.
    """
    a, b = open_version(uri, old, storage_options), open_version(uri, new, storage_options)
    was, now = a.metadata, b.metadata
    files_was, files_now = _files(a), _files(b)
    return Difference(
        old=a.number,
        new=b.number,
        rows=(was.rows, now.rows),
        tokens=(was.tokens, now.tokens),
        same_content=was.content_hash == now.content_hash,
        files_added=tuple(sorted(files_now.keys() - files_was.keys())),
        files_gone=tuple(sorted(files_was.keys() - files_now.keys())),
        files_changed=tuple(sorted(u for u in files_was.keys() & files_now.keys() if files_was[u] != files_now[u])),
        recipe=_differences(was.recipe, now.recipe),
        other=_differences(_other(was), _other(now)),
    )


def _files(version: DatasetVersion) -> dict[str, tuple[int, str]]:
    # A hash of the content says more than the time of the last change, if there is one.
    return {file.url: (file.size, file.hash or file.identity) for file in version.source_files}


def _other(data: Metadata) -> dict[str, Any]:
    return {
        "commit": data.source.commit,
        "tokenizer sha256": data.tokenizer.sha256 if data.tokenizer else None,
        "dtype": data.dtype,
        "shards": data.shards,
        **data.versions,
    }


def _differences(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*now, *(name for name in was if name not in now)]
    return {name: (was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)}
