"""The pass over a shard that comes before any is built: what must be known of all texts to say which are dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from lance_prep.arrow_text import drop_blank, hash_texts, split_lines, without_nulls
from lance_prep.errors import UsageError
from lance_prep.keyed import U64
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch
from lance_prep.text.decontaminate import CONTAMINATED, Benchmark, Hit
from lance_prep.text.dedup import ShardKeys, first_units
from lance_prep.text.drop import DUPLICATE, LINE_BITS, Dropped, no_units, number_lines
from lance_prep.text.minhash import minhash_keys
from lance_prep.text.quality import OTHER_LANGUAGE, Mask, detects_language, in_other_language, keep_quality, kept_rows


@dataclass(frozen=True)
class ShardScan:
    """What a pass over one shard found.

    Attributes:
        keys: of its units, to be compared with those of other shards.
        repeats: units that repeat one of this shard, uint64, ascending.
        documents: rows that are dropped for other reasons, as in `Dropped`.
        contaminated: as in `Dropped`.
    """

    keys: ShardKeys
    repeats: U64
    documents: Mapping[str, U64] = field(default_factory=dict)
    contaminated: U64 = field(default_factory=no_units)

    def as_arrays(self) -> dict[str, U64]:
        """Return it as named arrays, for a file."""
        keys = {"low": self.keys.low, "high": self.keys.high, "units": self.keys.units}
        return {**keys, "repeats": self.repeats, **Dropped(self.documents, contaminated=self.contaminated).as_arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, U64]) -> ShardScan:
        """Return what `as_arrays` was made of.

        Raises:
            ValueError: it was made of something else.
        """
        try:
            keys = ShardKeys(arrays["low"], arrays["high"], arrays["units"])
            repeats = arrays["repeats"]
        except KeyError as error:
            raise ValueError(f"it has no array {error}") from error
        if not len(keys.low) == len(keys.high) == len(keys.units):
            raise ValueError("its arrays differ in length")
        rest = Dropped.from_arrays(arrays)
        return cls(keys, repeats, rest.documents, rest.contaminated)

    def dropped(self, recipe: Recipe, later: U64) -> Dropped:
        """Return what is dropped from the shard.

        Args:
            later: units that repeat one of an earlier shard.
        """
        units = np.union1d(self.repeats, later)
        if recipe.drops_lines:
            return Dropped(self.documents, units, self.contaminated)
        return Dropped({**self.documents, DUPLICATE: units}, contaminated=self.contaminated)


def needs_scan(recipe: Recipe) -> bool:
    """Return whether a recipe's drops can only be known by a pass over the whole source."""
    return recipe.dedup != "none" or recipe.decontaminate is not None or detects_language(recipe)


def scan_shard(
    batches: Iterable[SourceBatch], recipe: Recipe, benchmark: Benchmark | None, on_hit: Callable[[Hit], None]
) -> ShardScan:
    """Read a shard's texts, and find what can be found without the other shards.

    A document that is dropped for another reason is not compared with others: it makes none of them a duplicate.

    Args:
        batches: of the shard, with the rows of both sides of a split.
        benchmark: what `decontaminate` names.
        on_hit: called with what a document has in common with the benchmark.
    """
    keys, units = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)]
    dropped: dict[str, list[U64]] = {}
    contaminated: list[int] = []

    def heard(hit: Hit) -> None:
        contaminated.append(hit.row)
        on_hit(hit)

    for batch in batches:
        left = keep_quality(batch, recipe, None)
        for reason, bad in _verdicts(left, recipe, benchmark, heard):
            dropped.setdefault(reason, []).append(left.rows[bad])
            left = kept_rows(left, ~bad)
        if recipe.dedup != "none":
            some, of = _keys(left, recipe)
            keys.append(some)
            units.append(of)
    kept, repeats = first_units(np.concatenate(keys), np.concatenate(units))
    found = np.unique(np.array(contaminated, np.uint64))
    return ShardScan(kept, repeats, {reason: np.concatenate(rows) for reason, rows in dropped.items()}, found)


def _verdicts(
    batch: SourceBatch, recipe: Recipe, benchmark: Benchmark | None, on_hit: Callable[[Hit], None]
) -> Iterator[tuple[str, Mask]]:
    """Yield each reason to drop documents, and which ones of those that are left. Blank texts are not dropped."""
    texts, kept = drop_blank(without_nulls(batch.columns.column(0)))
    bad = np.zeros(len(batch.rows), bool)
    if detects_language(recipe):
        bad[kept] = in_other_language(texts, recipe)
        yield OTHER_LANGUAGE, bad
        texts, kept = texts.filter(pa.array(~bad[kept])), (np.cumsum(~bad) - 1)[kept[~bad[kept]]]
        batch = kept_rows(batch, ~bad)
    if benchmark is not None:
        bad = np.zeros(len(batch.rows), bool)
        for hit in benchmark.hits(texts, batch.rows[kept]):
            on_hit(hit)
            bad[np.searchsorted(batch.rows, np.uint64(hit.row))] = recipe.decontaminate_drop
        if recipe.decontaminate_drop:
            yield CONTAMINATED, bad


def _keys(batch: SourceBatch, recipe: Recipe) -> tuple[U64, U64]:
    """Return keys of a batch's units and, for each key, its unit. Blank texts and lines have none."""
    texts, units = without_nulls(batch.columns.column(0)), batch.rows
    if recipe.drops_lines:
        texts, units = _lines(texts, units)
    texts, kept = drop_blank(texts)
    if recipe.dedup == "minhash":
        return minhash_keys(texts, units[kept], recipe)
    return hash_texts(texts), units[kept]


def _lines(texts: pa.LargeStringArray, rows: U64) -> tuple[pa.LargeStringArray, U64]:
    lines, parents = split_lines(texts)
    starts = np.searchsorted(parents, np.arange(len(texts)))
    counts = np.diff(np.append(starts, len(parents)))
    if len(counts) and counts.max() > 1 << LINE_BITS:
        row = rows[counts.argmax()]
        said = f"dedup_unit 'line': the text of source row {row:,} has more than {1 << LINE_BITS:,} lines"
        raise UsageError(said, "use dedup_unit 'document'")
    return lines, number_lines(rows, parents, starts)
