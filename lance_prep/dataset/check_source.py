"""Rows drawn at random, made again from the source with `tokenizers` and compared with what is on disk.

At most 16 shards are read, so that checking 200 rows of a dataset of thousands of shards does not read its whole source
again. `doc_id` (`doc_ids` for blocks) names the shard of the plan and the source row in it. By layout:

- `documents`: the row is the document's ids. `lines`: it is the ids of one of the document's lines (a line's number is
  not kept, and lines are shuffled). Kept columns are compared too.
- `blocks`, `concat`: all ids of the block are those of a stretch of the stream of documents that begins in the block's
  first one. `best-fit`: the block begins with its first document, or with a piece of it.
  Documents of more than 1 MiB are left out, and counted.
- `raw`: there is no doc_id: the shard is read and shuffled again, and the rows at the drawn places compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.dataset.blocks import LONGEST_TEXT, BlockSearch
from lance_prep.dataset.check_builds import BuildJournal, Verification
from lance_prep.dataset.check_rows import ShardRows
from lance_prep.errors import LancePrepError, SourceChanged
from lance_prep.layout import ROW_BITS, LayoutJob, document_affixes, lay_out, row_schema
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard, SourceFile
from lance_prep.plan import make_plan
from lance_prep.source import SourceBatch, check_unchanged, read_shard
from lance_prep.store.content_hash import ShardHash
from lance_prep.store.seal import hash_file
from lance_prep.store.version import DatasetVersion
from lance_prep.tokenizer import ReferenceEncoder, TokenizerSpec, TokenLists
from lance_prep.transport import Transport, is_local

MOST_SHARDS = 16
SAMPLE_ROWS = 200


@dataclass(frozen=True)
class SourceCheck:
    """What to compare with the source.

    Attributes:
        rows: how many; 0 for none.
        seed: which.
        storage_options: for a source in an object store.
    """

    rows: int = 0
    seed: int = 0
    storage_options: Mapping[str, str] | None = None


def check_against_source(
    opened: DatasetVersion,
    journals: list[BuildJournal],
    shards: list[ShardRows],
    check: SourceCheck,
    found: Verification,
    on_note: Callable[[str], None],
) -> None:
    """Compare `check.rows` rows with the source; differences and what could not be read go to `found`."""
    plans = {s.index: (journal, s) for journal in journals if journal.plan for s in journal.plan.shards}
    hashes = {build.key: {f.url: f.hash for f in opened.files_of_build(build)} for build in opened.builds}
    drawn = draw([shard for shard in shards if shard.receipt and shard.receipt.shard in plans], check)
    if not drawn:
        found.wrong("no row can be compared with the source: plans or receipts are not there")
        return
    spec: TokenizerSpec | None = None
    with found.reading("the tokenizer"):
        spec = _spec(opened)
    if spec is None and opened.metadata.tokenizer is not None:
        return
    for shard, rows in drawn:
        assert shard.receipt is not None
        journal, planned = plans[shard.receipt.shard]
        assert journal.plan is not None
        on_note(f"shard {planned.index}: comparing {len(rows)} rows with the source")
        with found.reading(f"shard {planned.index} cannot be compared with the source"):
            plan = _where_it_is_now(journal.plan, planned, hashes.get(journal.key, {}))
            job = _Job(plan, planned, shard, rows, spec, check.storage_options, found)
            job.compare(opened.dataset.take(rows.tolist()))


def _where_it_is_now(plan: Plan, shard: Shard, hashes: Mapping[str, str | None]) -> Plan:
    """Return the plan with the local files of a shard that were touched or renamed since, known by their content.

    Args:
        hashes: of the files as they were recorded, by URL.

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


def draw(shards: list[ShardRows], check: SourceCheck) -> list[tuple[ShardRows, npt.NDArray[np.int64]]]:
    """Rows of the dataset to compare, ascending, by shard. Each row is as likely as any other."""
    rng = np.random.default_rng(check.seed)
    sizes = np.array([shard.rows for shard in shards], np.float64)
    if len(shards) > MOST_SHARDS:
        chosen = np.sort(rng.choice(len(shards), MOST_SHARDS, replace=False, p=sizes / sizes.sum()))
        shards = [shards[i] for i in chosen]
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    total = int(starts[-1])
    if not total:
        return []
    n = min(check.rows, total)
    places = np.arange(total) if n == total else np.unique(rng.integers(0, total, n * 2))
    if len(places) > n:
        places = np.sort(rng.choice(places, n, replace=False))
    drawn = []
    for shard, start, stop in zip(shards, starts[:-1], starts[1:], strict=True):
        rows = places[(places >= start) & (places < stop)] - start + shard.first
        if len(rows):
            drawn.append((shard, rows))
    return drawn


def _spec(opened: DatasetVersion) -> TokenizerSpec | None:
    stated = opened.metadata.tokenizer
    if stated is None:
        return None
    fields = {name: value for name, value in asdict(stated).items() if name != "backends"}
    return TokenizerSpec(**fields, file=opened.tokenizer_file())


@dataclass
class _Job:
    """The drawn rows of one shard."""

    plan: Plan
    shard: Shard
    where: ShardRows
    rows: npt.NDArray[np.int64]
    spec: TokenizerSpec | None
    storage_options: Mapping[str, str] | None
    found: Verification

    def compare(self, table: pa.Table) -> None:
        batch = table.combine_chunks().to_batches()[0]
        layout = self.plan.recipe.layout
        if layout == "raw":
            self._compare_raw(batch)
        elif layout == "blocks":
            self._compare_blocks(batch)
        else:
            self._compare_texts(batch)

    def _source(self, tally: Tally) -> Iterator[SourceBatch]:
        return read_shard(self.plan, self.shard, tally, Transport.of(self.storage_options))

    def _differs(self, row: int, what: str) -> None:
        self.found.wrong(f"shard {self.shard.index}, row {row:,}: {what}")

    def _compare_raw(self, batch: pa.RecordBatch) -> None:
        assert self.where.receipt is not None
        tally = Tally()
        job = LayoutJob(
            self.plan.recipe, self.shard.index, row_schema(self.plan, None), tally, limit=self.where.receipt.limit
        )
        wanted, first = self.rows - self.where.first, 0
        for made in lay_out(self._source(tally), job):
            for i in np.flatnonzero((wanted >= first) & (wanted < first + len(made))).tolist():
                self.found.count("rows against the source")
                if _row_hash(made, int(wanted[i]) - first) != _row_hash(batch, i):
                    self._differs(int(self.rows[i]), "is not what the source has")
            first += len(made)
        for row in self.rows[wanted >= first].tolist():
            self._differs(row, "the source has fewer rows")

    def _compare_texts(self, batch: pa.RecordBatch) -> None:
        assert self.spec is not None
        encoder = ReferenceEncoder(self.spec, self.plan.recipe)
        affixes = (self.spec.prefix, self.spec.suffix) if self.plan.recipe.add_special_tokens else ((), ())
        sought = _source_rows(batch)
        left = set(range(len(batch)))
        for given in self._source(Tally()):
            for i in [i for i in left if given.rows[0] <= sought[i] <= given.rows[-1]]:
                at = int(np.searchsorted(given.rows, sought[i]))
                if given.rows[at] != sought[i]:
                    continue
                left.discard(i)
                self._compare_text(i, given, at, batch, lambda texts: encoder.encode(texts).wrapped(*affixes))
        self._not_there(left, sought)

    def _compare_text(
        self,
        i: int,
        given: SourceBatch,
        at: int,
        batch: pa.RecordBatch,
        encode: Callable[[pa.LargeStringArray], TokenLists],
    ) -> None:
        """Row `i` of the drawn ones against source row `at` of a batch."""
        text = given.columns.column(0)[at].as_py() or ""
        texts = text.split("\n") if self.plan.recipe.layout == "lines" else [text]
        short = [text for text in texts if len(text) <= LONGEST_TEXT]
        made = encode(pa.array(short, pa.large_string()))
        ids, kept = batch.column("input_ids")[i].as_py(), batch.schema.names[3:]
        if not any(made.slice(k, k + 1).ids.tolist() == ids for k in range(len(made))):
            if len(short) < len(texts):
                self.found.count("rows too long to compare")
                return
            self._differs(int(self.rows[i]), f"its ids are not those of source row {given.rows[at]:,} ({text[:60]!r})")
        if kept and _row_hash(given.columns.select(kept), at) != _row_hash(batch.select(kept), i):
            self._differs(int(self.rows[i]), f"its columns are not those of source row {given.rows[at]:,}")
        self.found.count("rows against the source")

    def _compare_blocks(self, batch: pa.RecordBatch) -> None:
        assert self.spec is not None
        recipe = self.plan.recipe
        encoder = ReferenceEncoder(self.spec, recipe)
        affixes = document_affixes(self.spec, add_special_tokens=recipe.add_special_tokens)
        sought = _source_rows(batch)
        lengths = batch.column("num_tokens").to_pylist()
        blocks = [
            np.asarray(ids.values.to_numpy()[:n]) for ids, n in zip(batch.column("input_ids"), lengths, strict=True)
        ]
        search = BlockSearch(blocks, sought, whole=recipe.packing == "concat", block_size=recipe.block_size)
        for given in self._source(Tally()):
            search.add(given, lambda texts: encoder.encode(texts).wrapped(*affixes))
            if search.done:
                break
        for i, right in search.results().items():
            self.found.count("rows against the source")
            if not right:
                self._differs(int(self.rows[i]), f"its ids are not those of the source from row {sought[i]:,} on")
        if search.too_long:
            self.found.count("rows too long to compare", len(search.too_long))
        self._not_there(search.never, sought)

    def _not_there(self, left: set[int], sought: list[int]) -> None:
        for i in sorted(left):
            self._differs(int(self.rows[i]), f"the source has no row {sought[i]:,} in this shard")


def _source_rows(batch: pa.RecordBatch) -> list[int]:
    mask = (1 << ROW_BITS) - 1
    if "doc_ids" in batch.schema.names:  # blocks: the first document
        return [docs[0] & mask for docs in batch.column("doc_ids").to_pylist()]
    return [doc & mask for doc in batch.column("doc_id").to_pylist()]


def _row_hash(batch: pa.RecordBatch, row: int) -> str:
    """Equal for equal rows, NaN included, which Arrow's own comparison calls unequal."""
    content = ShardHash()
    content.update(batch.slice(row, 1))
    return content.hexdigest()
