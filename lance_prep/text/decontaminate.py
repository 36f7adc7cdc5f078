"""Find texts that contain a part of a benchmark: runs of words that an item of it has too.

The benchmark is any source that can be built: each record is an item, and each of its texts is searched for by itself.
Runs of `decontaminate_ngram` words are looked up by their hash, and each hit is then compared word by word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from lance_prep.arrow_text import hash_texts, without_nulls
from lance_prep.keyed import U64, Indices
from lance_prep.text.words import WORD, hash_runs, hash_words, spell_words

CONTAMINATED = "benchmark text"
#: The lowest bits of a run's hash are looked up first, in a table that fits into the processor's cache.
_TABLE = np.uint64((1 << 22) - 1)


@dataclass(frozen=True)
class Item:
    """One text of a benchmark.

    Attributes:
        row: of the record.
        column: with the text; of nested ones, the path.
    """

    row: int
    column: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A run of words that a document and an item have in common, as long as possible.

    Attributes:
        row: source row of the document in its shard.
        start, stop: characters of the document's text.
        text: these characters.
        item: the item.
        item_start, item_stop: characters of the item's text.
        words: number of words.
    """

    row: int
    start: int
    stop: int
    text: str
    item: Item
    item_start: int
    item_stop: int
    words: int

    def as_json(self, shard: int, doc_id: int) -> bytes:
        """Return a line of the report."""
        item = {"row": self.item.row, "column": self.item.column, "span": [self.item_start, self.item_stop]}
        record = {"doc_id": doc_id, "shard": shard, "row": self.row, "span": [self.start, self.stop]}
        said = {**record, "words": self.words, "text": self.text, "item": item}
        return json.dumps(said, ensure_ascii=False).encode() + b"\n"


class Benchmark:
    """The runs of words of a benchmark's items.

    Args:
        items: texts of the benchmark.
        ngram: words in a run.

    Attributes:
        items: number of items.
        too_short: number of items with fewer words than a run, which cannot be found.
        digest: of the items and `ngram`, in hexadecimal.
    """

    def __init__(self, items: Iterable[Item], ngram: int) -> None:
        self._items, self._ngram = list(items), ngram
        self.items = len(self._items)
        self._spans: dict[int, list[tuple[int, int]]] = {}
        texts = pa.array([item.text for item in self._items], pa.large_string())
        words = hash_words(texts)
        runs, offsets = hash_runs(words, ngram)
        self.too_short = int(np.count_nonzero(np.diff(offsets) == 0))
        order = np.argsort(runs, kind="stable")
        self._runs = runs[order]
        self._item = np.repeat(np.arange(len(self._items)), np.diff(offsets))[order]
        self._word = (np.arange(len(runs)) - np.repeat(offsets[:-1], np.diff(offsets)))[order]
        self._table = np.zeros(int(_TABLE) + 1, bool)
        self._table[(runs & _TABLE).astype(np.int64)] = True
        self.digest = f"{xxhash.xxh3_128_hexdigest(hash_texts(texts).tobytes())}, {ngram} words"

    def hits(self, texts: pa.LargeStringArray, rows: U64) -> Iterator[Hit]:
        """Yield what texts have in common with items: for each text and item, each longest run of words."""
        texts = without_nulls(texts)
        runs, offsets = hash_runs(hash_words(texts), self._ngram)
        maybe = np.flatnonzero(self._table[(runs & _TABLE).astype(np.int64)])
        at = np.minimum(np.searchsorted(self._runs, runs[maybe]), max(len(self._runs) - 1, 0))
        found = maybe[self._runs[at] == runs[maybe]] if len(self._runs) else maybe[:0]
        parents = np.searchsorted(offsets, found, side="right") - 1
        for parent in np.unique(parents).tolist():
            mine = found[parents == parent]
            yield from self._hits_of(texts[parent].as_py(), int(rows[parent]), mine - offsets[parent], runs[mine])

    def _hits_of(self, text: str, row: int, words: Indices, runs: U64) -> Iterator[Hit]:
        document = list(WORD.finditer(text))
        first, last = np.searchsorted(self._runs, runs), np.searchsorted(self._runs, runs, side="right")
        # A longest run is a diagonal: the same item, and the same distance between its words and the document's.
        diagonals: dict[tuple[int, int], list[int]] = {}
        for word, start, stop in zip(words.tolist(), first.tolist(), last.tolist(), strict=True):
            for place in range(start, stop):
                shift = word - int(self._word[place])
                diagonals.setdefault((int(self._item[place]), shift), []).append(word)
        for (number, shift), starts in sorted(diagonals.items()):
            item = self._items[number]
            own = self._words_of(number)
            begin = previous = starts[0]
            for start in [*starts[1:], -1]:
                if start == previous + 1:
                    previous = start
                    continue
                stop = previous + self._ngram
                one, other = document[begin].start(), document[stop - 1].end()
                left, right = own[begin - shift][0], own[stop - 1 - shift][1]
                if spell_words(text[one:other]) == spell_words(item.text[left:right]):
                    yield Hit(row, one, other, text[one:other], item, left, right, stop - begin)
                begin = previous = start

    def _words_of(self, number: int) -> list[tuple[int, int]]:
        """Return the characters of each word of an item. Kept: many documents may have a run of it."""
        if number not in self._spans:
            self._spans[number] = [word.span() for word in WORD.finditer(self._items[number].text)]
        return self._spans[number]


def items_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Item]:
    """Yield every text in the records of a benchmark, in lists and structs too."""
    row = 0
    for batch in batches:
        for record in batch.to_pylist():
            for column, value in record.items():
                yield from _texts_in(row, column, value)
            row += 1


def _texts_in(row: int, column: str, value: object) -> Iterator[Item]:
    if isinstance(value, str):
        yield Item(row, column, value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts_in(row, f"{column}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts_in(row, f"{column}[{number}]", inner)
