"""Build shards again from the source, and compare the content hash of their rows with the receipt's.

Shards are read with the recorded plan and laid out by the recorded layout, so a layout needs no rules here. Rows are
drawn at random; the shards that hold them are built again whole, at most `MOST_SHARDS` of them. The reference
tokenizer, `tokenizers`, encodes 3 MB/s, so it encodes only a random share of the texts: as large a share as the drawn
rows are of all rows in these shards. The recorded backend encodes the others, as in the build. With `rows=None`, every
shard is built again, and `tokenizers` encodes all texts.

If the hash differs, the shard is built once more with `tokenizers` alone, and its rows are compared with the stored
ones. The first row that differs is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.dataset.check_builds import BuildJournal, Verification
from lance_prep.dataset.check_rows import ShardRows
from lance_prep.errors import LancePrepError, SourceChanged
from lance_prep.layout import LayoutJob, lay_out, row_schema
from lance_prep.layouts import ROW_BITS
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard, SourceFile
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe
from lance_prep.source import check_unchanged, read_shard
from lance_prep.store.content_hash import ShardHash
from lance_prep.store.seal import hash_file
from lance_prep.store.version import DatasetVersion
from lance_prep.tokenizer import Encoder, ReferenceEncoder, TokenizerSpec, TokenLists, make_encoder
from lance_prep.transport import Transport, is_local

#: A shard takes 1 to 3 s, or 30 to 60 s if `tokenizers` encodes all of it.
MOST_SHARDS = 8
SAMPLE_ROWS = 200
#: A longer text is left to the recorded backend: `tokenizers` took four minutes for one of 27 MB.
LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class SourceCheck:
    """What to compare with the source.

    Attributes:
        rows: number of rows to draw; None to check every row of every shard.
        seed: decides which rows are drawn.
        storage_options: for a source in an object store.
    """

    rows: int | None = SAMPLE_ROWS
    seed: int = 0
    storage_options: Mapping[str, str] | None = None


class SampledEncoder:
    """Encodes a random share of the texts with the reference, and the others with the backend of the build.

    Args:
        share: 0 to 1, of the texts of at most `LONGEST_TEXT` bytes.
    """

    def __init__(self, fast: Encoder, reference: ReferenceEncoder, share: float, rng: np.random.Generator) -> None:
        self.name = fast.name
        self.rows_checked = 0
        self._fast = fast
        self._reference = reference
        self._share = share
        self._rng = rng

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        if self._fast is self._reference:
            self.rows_checked += len(texts)
            return self._reference.encode(texts)
        short = pc.binary_length(texts).to_numpy(zero_copy_only=False) <= LONGEST_TEXT
        drawn = np.flatnonzero(short & (self._rng.random(len(texts)) < self._share))
        self.rows_checked += len(drawn)
        if len(drawn) == len(texts):
            return self._reference.encode(texts)
        return self._fast.encode(texts).replaced(drawn, self._reference.encode(texts.take(pa.array(drawn))))


def check_against_source(
    opened: DatasetVersion,
    journals: list[BuildJournal],
    shards: list[ShardRows],
    check: SourceCheck,
    found: Verification,
    on_note: Callable[[str], None],
) -> None:
    """Compare shards with the source. Differences, and shards that cannot be compared, are problems in `found`."""
    plans = {shard.index: (journal, shard) for journal in journals if journal.plan for shard in journal.plan.shards}
    hashes = {build.key: {f.url: f.hash for f in opened.files_of_build(build)} for build in opened.builds}
    known = [shard for shard in shards if shard.receipt and shard.receipt.shard in plans]
    if not known:
        found.wrong("no row can be compared with the source: plans or receipts are missing")
        return
    chosen, share = _draw(known, check)
    encoders = lru_cache(1)(partial(_encoders, _spec(opened)))
    for shard in chosen:
        assert shard.receipt is not None
        journal, planned = plans[shard.receipt.shard]
        assert journal.plan is not None
        on_note(f"shard {planned.index}: comparing {shard.rows:,} rows with the source")
        with found.reading(f"shard {planned.index} cannot be compared with the source"):
            plan = _where_it_is_now(journal.plan, planned, hashes.get(journal.key, {}))
            _Rebuild(opened, plan, planned, shard, check, encoders, found).compare(share)


def _draw(shards: list[ShardRows], check: SourceCheck) -> tuple[list[ShardRows], float]:
    """Return the shards that hold the drawn rows, and the share of their texts that the reference encodes."""
    if check.rows is None:
        return shards, 1.0
    rng = np.random.default_rng(check.seed)
    sizes = np.array([shard.rows for shard in shards], np.int64)
    if len(shards) > MOST_SHARDS:
        chosen = np.sort(rng.choice(len(shards), MOST_SHARDS, replace=False, p=sizes / sizes.sum()))
        shards, sizes = [shards[i] for i in chosen], sizes[chosen]
    total = int(sizes.sum())
    if check.rows < total:
        rows = rng.choice(total, check.rows, replace=False)
        hit = np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right"))
        shards, sizes = [shards[i] for i in hit], sizes[hit]
    return shards, min(1.0, check.rows / int(sizes.sum()))


def _where_it_is_now(plan: Plan, shard: Shard, hashes: Mapping[str, str | None]) -> Plan:
    """Return the plan with the current places of a shard's local files, which are known by their content.

    Args:
        hashes: recorded hashes of the files, by URL.

    Raises:
        SourceChanged: a file has other content now, or is missing.
    """
    files = list(plan.files)
    for number in {part.file for part in shard.parts}:
        file, digest = files[number], hashes.get(files[number].url)
        if digest is None or not is_local(file.url):
            continue
        try:
            check_unchanged(file, Transport())
        except SourceChanged:
            files[number] = _same_content(plan, file, digest)
    return replace(plan, files=tuple(files))


def _same_content(plan: Plan, file: SourceFile, digest: str) -> SourceFile:
    """Find a file with this hash: in its own place, beside it, then anywhere in the source."""
    for path in _candidates(plan, file):
        with suppress(OSError):
            stat = path.stat()
            if path.is_file() and stat.st_size == file.size and hash_file(path) == digest:
                return replace(file, url=str(path), identity=str(stat.st_mtime_ns))
    raise SourceChanged(
        f"{file.url} is missing or has other content than when it was built, and no other file has that content",
        "bring the file back",
    )


def _candidates(plan: Plan, file: SourceFile) -> Iterator[Path]:
    path = Path(file.url)
    yield path
    with suppress(OSError):
        yield from sorted(path.parent.iterdir())
    with suppress(LancePrepError):
        yield from (Path(found.url) for found in make_plan(plan.recipe).files if is_local(found.url))


class _Rebuild:
    """One shard, built again in memory."""

    def __init__(
        self,
        opened: DatasetVersion,
        plan: Plan,
        planned: Shard,
        shard: ShardRows,
        check: SourceCheck,
        encoders: Callable[[Recipe], _Encoders | None],
        found: Verification,
    ) -> None:
        self._opened, self._plan, self._planned, self._shard = opened, plan, planned, shard
        self._check, self._encoders, self._found = check, encoders(plan.recipe), found

    def compare(self, share: float) -> None:
        assert self._shard.receipt is not None
        content = ShardHash()
        for batch in self._rows(share):
            content.update(batch)
        if content.hexdigest() != self._shard.receipt.content_hash:
            difference = self._first_difference()
            if difference is not None:
                self._found.wrong(f"shard {self._planned.index}, {difference}")
        self._found.count("rows against the source", self._shard.rows)

    def _rows(self, share: float) -> Iterator[pa.RecordBatch]:
        """Lay out the shard as the build did; count the texts that the reference encoded."""
        assert self._shard.receipt is not None
        tally, recipe, encoders = Tally(), self._plan.recipe, self._encoders
        spec = encoders.spec if encoders else None
        schema, limit = row_schema(self._plan, spec), self._shard.receipt.limit
        job = LayoutJob(recipe, self._planned.index, schema, tally, limit=limit, spec=spec)
        if encoders is not None:
            rng = np.random.default_rng([self._check.seed, self._planned.index])
            job.encoder = sampled = SampledEncoder(encoders.fast, encoders.reference, share, rng)
        source = read_shard(self._plan, self._planned, tally, Transport.of(self._check.storage_options))
        with closing(source):  # type: ignore[type-var]
            yield from lay_out(source, job)
        if encoders is not None:
            self._found.count("texts encoded with tokenizers", sampled.rows_checked)

    def _first_difference(self) -> str | None:
        """Build the shard with the reference alone, and describe the first stored row that is not equal."""
        at, stop = self._shard.first, self._shard.first + self._shard.rows
        for batch in self._rows(1.0):
            n = min(len(batch), stop - at)
            stored = _one_batch(self._opened.dataset.to_table(offset=at, limit=n).cast(batch.schema)) if n else batch
            row = _first_unequal(batch.slice(0, n), stored)
            if row is not None:
                return f"row {at + row:,}{_origin(stored, row)}: {_what_differs(batch, stored, row)}"
            at += n
            if n < len(batch):
                return f"row {stop:,}: the source gives more rows than the {self._shard.rows:,} that were written"
        if at < stop:
            return f"row {at:,}: the source gives only {at - self._shard.first:,} of the {self._shard.rows:,} rows"
        return None


class _Encoders(NamedTuple):
    spec: TokenizerSpec
    fast: Encoder
    reference: ReferenceEncoder


def _encoders(spec: TokenizerSpec | None, recipe: Recipe) -> _Encoders | None:
    if spec is None:
        return None
    reference = ReferenceEncoder(spec, recipe)
    return _Encoders(spec, make_encoder(spec, recipe, reference, parallel=True), reference)


def _spec(opened: DatasetVersion) -> TokenizerSpec | None:
    stated = opened.metadata.tokenizer
    if stated is None:
        return None
    fields = {name: value for name, value in asdict(stated).items() if name != "backends"}
    return TokenizerSpec(**fields, file=opened.tokenizer_file())


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def _first_unequal(made: pa.RecordBatch, stored: pa.RecordBatch) -> int | None:
    """Return the first row in which two batches of the same length differ."""
    if _hash(made) == _hash(stored):
        return None
    first, last = 0, len(made) - 1
    while first < last:
        n = (last - first) // 2 + 1
        if _hash(made.slice(first, n)) == _hash(stored.slice(first, n)):
            first += n
        else:
            last = first + n - 1
    return first


def _hash(batch: pa.RecordBatch) -> str:
    """Return a hash that is equal for equal rows, NaN included, which Arrow's own comparison calls unequal."""
    content = ShardHash()
    content.update(batch)
    return content.hexdigest()


def _origin(stored: pa.RecordBatch, row: int) -> str:
    for name in ("doc_id", "doc_ids"):
        if name in stored.schema.names:
            value = stored.column(name)[row].as_py()
            doc = value[0] if isinstance(value, list) else value
            return f" (doc_id {doc}, source row {doc & ((1 << ROW_BITS) - 1):,})"
    return ""


def _what_differs(made: pa.RecordBatch, stored: pa.RecordBatch, row: int) -> str:
    said = []
    for name in made.schema.names:
        one, other = stored.select([name]).slice(row, 1), made.select([name]).slice(row, 1)
        if _hash(one) != _hash(other):
            said.append(_difference(name, one.column(0)[0].as_py(), other.column(0)[0].as_py()))
    return "; ".join(said)


def _difference(name: str, stored: Any, made: Any) -> str:
    if isinstance(stored, list) and isinstance(made, list):
        pairs = zip(stored, made, strict=False)
        at = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(stored), len(made)))
        return f"{name} has {stored[at : at + 3]} from place {at:,} on, the source gives {made[at : at + 3]}"
    return f"{name} is {repr(stored)[:60]}, the source gives {repr(made)[:60]}"
