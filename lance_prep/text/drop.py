"""Drop what an earlier pass over the source found: whole documents, and lines of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import NEWLINE, bytes_of, drop_blank, offsets_of, split_lines, without_nulls
from lance_prep.keyed import U64, Indices
from lance_prep.ledger import Tally
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.text.quality import keep_quality, kept_rows, without_label

#: The reason for which the ledger counts a document whose text, or each line of it, is that of an earlier one.
DUPLICATE = "duplicate"
#: `row << 24 | line` is the number of a line, for a row of the shard and a line of its text.
LINE_BITS = 24
_REASON = "documents: "


def no_units() -> U64:
    """Return an empty array of rows or lines."""
    return np.empty(0, np.uint64)


@dataclass(frozen=True)
class Dropped:
    """What is dropped from one shard.

    Attributes:
        documents: reason -> source rows of the shard, uint64, ascending. No row has two reasons.
        lines: numbers of lines, uint64, ascending; see `LINE_BITS`.
        contaminated: source rows in which a benchmark's text was found, whether they are dropped for it or not.
    """

    documents: Mapping[str, U64] = field(default_factory=dict)
    lines: U64 = field(default_factory=no_units)
    contaminated: U64 = field(default_factory=no_units)

    def as_arrays(self) -> dict[str, U64]:
        """Return it as named arrays, for a file."""
        rest = {"lines": self.lines, "contaminated": self.contaminated}
        return {**rest, **{f"{_REASON}{reason}": rows for reason, rows in self.documents.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, U64]) -> Dropped:
        """Return what `as_arrays` was made of."""
        lines, contaminated = (arrays.get(name, no_units()) for name in ("lines", "contaminated"))
        return cls(reasons_in(arrays), lines, contaminated)


def reasons_in(arrays: Mapping[str, U64]) -> dict[str, U64]:
    """Return the arrays of documents by the reason for which they are dropped."""
    return {name.removeprefix(_REASON): rows for name, rows in arrays.items() if name.startswith(_REASON)}


def keep_texts(
    batches: Iterable[SourceBatch], recipe: Recipe, tally: Tally, dropped: Dropped | None
) -> Iterator[SourceBatch]:
    """Yield the batches of a shard without what is dropped, and count that. Leave out batches that are empty then.

    Args:
        dropped: what a pass over the whole source found; None if nothing needs one.
    """
    for batch in batches:
        left = without_label(keep_quality(batch, recipe, tally.ledger), recipe)
        if dropped is not None:
            tally.ledger.contaminated += len(_places(left.rows, dropped.contaminated))
            left = _without_documents(left, tally, dropped.documents)
            if len(dropped.lines):
                left = _without_lines(left, tally, dropped.lines)
        if len(left.rows):
            yield left


def _without_documents(batch: SourceBatch, tally: Tally, documents: Mapping[str, U64]) -> SourceBatch:
    keep = np.ones(len(batch.rows), bool)
    for reason, rows in documents.items():
        found = _places(batch.rows, rows)
        tally.ledger.drop(reason, len(found))
        keep[found] = False
    return kept_rows(batch, keep)


def _without_lines(batch: SourceBatch, tally: Tally, lines: U64) -> SourceBatch:
    rows = lines >> np.uint64(LINE_BITS)
    mine = slice(*np.searchsorted(rows, [batch.rows[0], batch.rows[-1] + 1])) if len(batch.rows) else slice(0)
    found = _places(batch.rows, np.unique(rows[mine]))  # a row may be on the other side of a split
    if not len(found):
        return batch
    texts = without_nulls(batch.columns.column(0))
    joined, removed = _join_lines(texts.take(pa.array(found)), batch.rows[found], lines[mine])
    tally.ledger.lines_in += removed
    tally.ledger.lines_dropped += removed
    place = np.arange(len(texts))
    place[found] = np.arange(len(texts), len(texts) + len(found))
    columns = [pa.concat_arrays([texts, joined]).take(pa.array(place)), *batch.columns.columns[1:]]
    filled = np.ones(len(texts), bool)
    filled[found] = False
    filled[found[drop_blank(joined)[1]]] = True  # of the others nothing is left but blank lines
    tally.ledger.drop(DUPLICATE, int(np.count_nonzero(~filled)))
    changed = pa.RecordBatch.from_arrays(columns, schema=batch.columns.schema)
    return kept_rows(replace(batch, columns=changed), filled)


def _join_lines(texts: pa.LargeStringArray, rows: U64, lines: U64) -> tuple[pa.LargeStringArray, int]:
    """Return texts without the lines with these numbers, and how many that were.

    What is left of a text is what `"\\n".join` makes of its other lines.
    """
    pieces, parents = split_lines(texts)
    starts = np.searchsorted(parents, np.arange(len(texts)))
    keep = ~np.isin(number_lines(rows, parents, starts), lines)
    # A newline stays if a line before it stays and one after it, so it belongs to the next line that stays.
    left = np.add.reduceat(keep, starts, dtype=np.int64)
    order = np.cumsum(keep) - np.repeat(np.cumsum(left) - left, np.diff(np.append(starts, len(parents))))
    before = (keep & (order > 1)).astype(np.int64)
    lengths = np.where(keep, pc.binary_length(pieces).to_numpy(zero_copy_only=False), 0)
    ends = np.cumsum(lengths + before)
    data = np.full(int(ends[-1]) if len(ends) else 0, NEWLINE, np.uint8)
    kept = pieces.filter(pa.array(keep))
    flat = bytes_of(kept)[offsets_of(kept)[0] : offsets_of(kept)[-1]]
    is_text = np.ones(len(data), bool)
    is_text[(ends - lengths - before)[before.astype(bool)]] = False
    data[is_text] = flat
    offsets = np.concatenate([[0], ends[np.append(starts[1:], len(parents)) - 1]]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers), int(np.count_nonzero(~keep))


def number_lines(rows: U64, parents: Indices, starts: Indices) -> U64:
    """Return the numbers of lines, given the text of each and the first line of each text."""
    return rows[parents] << np.uint64(LINE_BITS) | (np.arange(len(parents)) - starts[parents]).astype(np.uint64)


def _places(rows: U64, wanted: U64) -> Indices:
    """Return where the wanted rows are among a batch's; those of other batches are left out. Both ascend."""
    if not len(rows) or not len(wanted):
        return np.empty(0, np.int64)
    first, last = np.searchsorted(wanted, [rows[0], rows[-1] + 1])
    mine = wanted[first:last]
    place = np.searchsorted(rows, mine)
    found: Indices = place[rows[place] == mine]
    return found
