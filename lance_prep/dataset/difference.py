"""Compares two versions of a dataset, two datasets, or two collections.

Recipes, counts and ledgers come from metadata. Lengths are counted in one scan of the small columns, which can be left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lance_prep.dataset.lengths import Histogram, Measured
from lance_prep.dataset.parts import Parts, adding_up, open_parts
from lance_prep.errors import DatasetError
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Ledger
from lance_prep.store import DatasetVersion, Metadata, Split

Pair = tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """Differences between an old and a new dataset or collection.

    Attributes:
        old, new: versions; None for a collection.
        old_uri, new_uri: where they are.
        rows, tokens: `(old, new)`.
        counts: `(old, new)` of `rows`, `tokens`, `bytes` (data files), `documents` (source rows used), `sources`
            (source files) and `datasets`.
        same_content: the content hashes are equal, so the rows and their order are the same.
        files_added, files_gone, files_changed: URLs of source files; a changed one kept its name but not its content.
        recipe: fields of the recipe that differ, with `(old, new)`. In a collection, `name: field` if datasets differ
            in different ways.
        other: commit, tokenizer and library versions that differ, with `(old, new)`.
        ledger: counts and reasons that differ, with `(old, new)`.
        datasets: of a collection: sources that differ, with the tokens `(old, new)`; None if there is no such source.
        lengths: `(old, new)` of the documents in tokens; None if they were not read, or a side has no tokens.
        unit: what the lengths are of: `document` or `line`.
        counts_parts: the lengths are of parts if a block ends within a document.
    """

    old: int | None
    new: int | None
    old_uri: str
    new_uri: str
    rows: Pair
    tokens: Pair
    counts: dict[str, Pair]
    same_content: bool
    files_added: tuple[str, ...]
    files_gone: tuple[str, ...]
    files_changed: tuple[str, ...]
    recipe: dict[str, tuple[Any, Any]]
    other: dict[str, tuple[Any, Any]]
    ledger: dict[str, Pair]
    datasets: dict[str, tuple[int | None, int | None]]
    lengths: tuple[Histogram, Histogram] | None = None
    unit: str = "document"
    counts_parts: bool = False

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "lengths"}
        return {**fields, "lengths": None if self.lengths is None else [each.as_json() for each in self.lengths]}


def diff_versions(
    uri: str | Path, old: int | str, new: int | str, storage_options: Mapping[str, str] | None = None
) -> Difference:
    """Compare two versions of a dataset, named by number or tag, without their lengths. No row is read.

    Raises:
        DatasetError: no such dataset or version, or another program made it.
    """
    return compare(uri, uri, old, new, storage_options, lengths=False)


def compare(
    old: str | Path,
    new: str | Path,
    old_version: int | str | None = None,
    new_version: int | str | None = None,
    storage_options: Mapping[str, str] | None = None,
    *,
    lengths: bool = True,
    on_rows: Callable[[int, int], None] | None = None,
) -> Difference:
    """Compare two datasets or two collections.

    Args:
        old_version, new_version: numbers or tags; the latest by default.
        lengths: count the lengths of the documents, which reads the small columns of both.
        on_rows: called with the number of rows read so far, and the total.

    Raises:
        DatasetError: no such dataset or version, another program made it, or one of them is a collection and the other
            a dataset.
    """
    was, now = (open_parts(where, at, storage_options) for where, at in ((old, old_version), (new, new_version)))
    if (was.manifest is None) != (now.manifest is None):
        names = (old, new) if was.manifest is not None else (new, old)
        raise DatasetError(
            f"{names[0]} is a collection, and {names[1]} is a dataset", "compare two datasets or two collections"
        )
    _refuse_missing(old, was)
    _refuse_missing(new, now)
    files_was, files_now = _files(was), _files(now)
    counts = _pairs(_counts(was), _counts(now))
    found = Difference(
        old=was.opened[""].number if was.manifest is None else None,
        new=now.opened[""].number if now.manifest is None else None,
        old_uri=was.opened[""].uri if was.manifest is None else str(old),
        new_uri=now.opened[""].uri if now.manifest is None else str(new),
        rows=counts["rows"],
        tokens=counts["tokens"],
        counts=counts,
        same_content=_hashes(was) == _hashes(now),
        files_added=tuple(sorted(files_now.keys() - files_was.keys())),
        files_gone=tuple(sorted(files_was.keys() - files_now.keys())),
        files_changed=tuple(sorted(u for u in files_was.keys() & files_now.keys() if files_was[u] != files_now[u])),
        recipe=_of_parts(was, now, lambda opened: opened.metadata.recipe) | _of_manifests(was, now),
        other=_of_parts(was, now, lambda opened: _other(opened.metadata)),
        ledger=_changed(_ledger(was), _ledger(now)),
        datasets=_datasets(was, now),
    )
    if not lengths or not _has_tokens(was, now):
        return found
    layouts = [LAYOUTS[each.metadata.layout] for parts in (was, now) for each in _each(parts)]
    units = {layout.unit for layout in layouts}
    return replace(
        found,
        lengths=_measure(was, now, found.same_content, on_rows),
        unit=units.pop() if len(units) == 1 else "document",
        counts_parts=any(layout.packed for layout in layouts),
    )


def _each(parts: Parts) -> Sequence[DatasetVersion]:
    return list(parts.opened.values())


def _refuse_missing(where: str | Path, parts: Parts) -> None:
    """Raise if a source of a collection cannot be opened: the counts would be of a part."""
    for name, why in parts.left_out.items():
        if parts.manifest is not None and name in parts.manifest.splits:
            raise DatasetError(f"{where}: dataset {name} cannot be opened: {why}", "build the collection again")


def _has_tokens(*sides: Parts) -> bool:
    return all(any(LAYOUTS[each.metadata.layout].tokens for each in _each(parts)) for parts in sides)


def _measure(
    was: Parts, now: Parts, same: bool, on_rows: Callable[[int, int], None] | None
) -> tuple[Histogram, Histogram]:
    sides = (was,) if same else (was, now)
    total = sum(each.metadata.rows for parts in sides for each in _each(parts))
    advance = adding_up(total, on_rows)
    found = []
    for parts in sides:
        measured = Measured()
        for each in _each(parts):
            measured.scan(each, advance)
        found.append(measured.documents)
    return found[0], found[-1]


def _files(parts: Parts) -> dict[str, tuple[int, str]]:
    # Prefer the hash of the content: the time of the last change may differ for the same content.
    files = (file for each in _each(parts) for file in each.source_files)
    return {file.url: (file.size, file.hash or file.identity) for file in files}


def _hashes(parts: Parts) -> dict[str, str]:
    return {name: opened.metadata.content_hash for name, opened in parts.opened.items()}


def _counts(parts: Parts) -> dict[str, int]:
    each = [opened.metadata for opened in _each(parts)]
    counts = {
        "rows": sum(one.rows for one in each),
        "tokens": sum(one.tokens for one in each),
        "bytes": sum(_data_bytes(opened) for opened in _each(parts)),
        "documents": sum(one.ledger.rows_used for one in each),
        "sources": sum(one.files for one in each),
    }
    return counts if parts.manifest is None else {**counts, "datasets": len(each)}


def _data_bytes(opened: DatasetVersion) -> int:
    """Return the size of the version's data files."""
    fragments = opened.dataset.get_fragments()
    return sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.data_files())


def _ledger(parts: Parts) -> dict[str, int]:
    """Return the counts of a ledger, with a line for each reason."""
    ledger = Ledger()
    for each in _each(parts):
        ledger.add(each.metadata.ledger)
    counts = asdict(ledger)
    reasons = {f"rejected: {why}": number for why, number in counts.pop("reasons").items()}
    dropped = {f"dropped: {why}": number for why, number in counts.pop("dropped_for").items()}
    return {**{name.replace("_", " "): number for name, number in counts.items()}, **reasons, **dropped}


def _other(data: Metadata) -> dict[str, Any]:
    return {
        "commit": data.source.commit,
        "tokenizer sha256": data.tokenizer.sha256 if data.tokenizer else None,
        "dtype": data.dtype,
        "shards": data.shards,
        **data.versions,
    }


def _pairs(was: Mapping[str, int], now: Mapping[str, int]) -> dict[str, Pair]:
    names = [*was, *(name for name in now if name not in was)]
    return {name: (was.get(name, 0), now.get(name, 0)) for name in names}


def _changed(was: Mapping[str, int], now: Mapping[str, int]) -> dict[str, Pair]:
    return {name: pair for name, pair in _pairs(was, now).items() if pair[0] != pair[1]}


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*now, *(name for name in was if name not in now)]
    return {name: (was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)}


def _of_parts(was: Parts, now: Parts, of: Callable[[DatasetVersion], dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ. If all datasets of a collection differ in the same way, name the field once."""
    shared = [name for name in now.opened if name in was.opened]
    found = {name: _differences(of(was.opened[name]), of(now.opened[name])) for name in shared}
    first = next(iter(found.values()), {})
    common = {field: pair for field, pair in first.items() if all(each.get(field) == pair for each in found.values())}
    own = {
        f"{name}: {field}": pair
        for name, fields in found.items()
        for field, pair in fields.items()
        if field not in common
    }
    return common | own


def _of_manifests(was: Parts, now: Parts) -> dict[str, tuple[Any, Any]]:
    """Return the target shares of two collections that differ."""
    if was.manifest is None or now.manifest is None:
        return {}
    shares = ({f"share of {name}": share for name, share in m.categories.items()} for m in (was.manifest, now.manifest))
    return _differences(*shares)


def _datasets(was: Parts, now: Parts) -> dict[str, tuple[int | None, int | None]]:
    if was.manifest is None or now.manifest is None:
        return {}

    def tokens(split: Split | None) -> int | None:
        return None if split is None else split.tokens

    old, new = was.manifest.splits, now.manifest.splits
    hashes = _hashes(was), _hashes(now)
    names = [name for name in {**old, **new} if hashes[0].get(name) != hashes[1].get(name)]
    return {name: (tokens(old.get(name)), tokens(new.get(name))) for name in names}
