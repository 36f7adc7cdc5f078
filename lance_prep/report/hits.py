"""Read the lists of benchmark hits: counts, items and spans. Describe how duplicates were found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lance_prep.errors import LancePrepError
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe
from lance_prep.store import DatasetVersion, files_of, hash_bytes, published, read_quarantine_note
from lance_prep.transport import is_local

#: Items of a benchmark that are shown: those with the most hits.
MOST_ITEMS = 25
#: Larger lists of hits are not read, so that the memory of a report stays bounded.
MOST_BYTES = 256 << 20
_TEXT = 200  # characters


@dataclass
class Item:
    """One text of a benchmark, and where it was found.

    Attributes:
        dataset: name of the source in a collection; empty for a single dataset.
        row, column: of the benchmark's record.
        hits: how often a part of it was found.
        words: number of words of the longest part.
        text: the longest part, cut short.
        where: where the longest part was found: shard, source row, first and last character.
    """

    dataset: str
    row: int
    column: str
    hits: int = 0
    words: int = 0
    text: str = ""
    where: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class Hits:
    """Hits: parts of texts that are also in a benchmark.

    Attributes:
        items: those with the most hits first, at most `MOST_ITEMS`.
        number_of_items, number: of all items that were found, and of all hits.
        not_read: datasets whose list of hits cannot be shown, with the reason.
    """

    items: list[Item] = field(default_factory=list)
    number_of_items: int = 0
    number: int = 0
    not_read: dict[str, str] = field(default_factory=dict)


def find_hits(opened: dict[str, DatasetVersion]) -> Hits:
    """Read the lists of hits that builds wrote beside the datasets."""
    hits, items = Hits(), dict[tuple[str, int, str], Item]()
    for name, each in opened.items():
        if not each.metadata.ledger.contaminated:
            continue
        try:
            for record in _records(each):
                _count(items, name, record)
                hits.number += 1
        except (LancePrepError, ValueError, KeyError, TypeError, OSError) as error:
            hits.not_read[name] = str(error)
    ordered = sorted(items.values(), key=lambda item: (-item.hits, item.dataset, item.row, item.column))
    hits.items, hits.number_of_items = ordered[:MOST_ITEMS], len(ordered)
    return hits


def _records(opened: DatasetVersion) -> Iterator[Any]:
    path = published(opened.uri, opened.files, opened.metadata.builds, "contaminated")
    note = read_quarantine_note(opened.files, "contaminated")
    if path is None or note is None:
        raise ValueError("the list of hits is of another version")
    if is_local(path) and Path(path).is_file() and Path(path).stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is too large to be shown")
    folder, _, file = path.rpartition("/")
    data = files_of(folder or "/", opened.transport).read(file)
    # The name comes from the dataset, which may be a stranger's: show only what the build wrote.
    if data is None or hash_bytes(data) != note.hash:
        raise ValueError(f"{path} is missing or was changed")
    for line in data.splitlines():
        yield json.loads(line)


def _count(items: dict[tuple[str, int, str], Item], dataset: str, record: Any) -> None:
    row, column = int(record["item"]["row"]), str(record["item"]["column"])
    item = items.setdefault((dataset, row, column), Item(dataset, row, column))
    item.hits += 1
    if (words := int(record["words"])) > item.words:
        start, stop = record["span"]
        text = str(record["text"])
        item.words, item.where = words, (int(record["shard"]), int(record["row"]), int(start), int(stop))
        item.text = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def dedup_rules(opened: DatasetVersion) -> str:
    """Return how duplicates were found, or nothing if texts were not compared."""
    recipe = opened.metadata.recipe
    kind = recipe.get("dedup", "none")
    if kind == "none":
        return ""
    unit = recipe.get("dedup_unit") or ("line" if LAYOUTS[opened.metadata.layout].splits else "document")
    if kind != "minhash":
        return f"{kind}, by {unit}"
    words, bands, rows = (
        recipe.get(name) or Recipe.model_fields[name].default
        for name in ("minhash_ngram", "minhash_bands", "minhash_rows")
    )
    return f"minhash, by {unit}: runs of {words} words, {bands} bands of {rows} hashes"
