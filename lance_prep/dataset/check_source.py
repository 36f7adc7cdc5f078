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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.dataset.check_builds import BuildJournal, Verification
from lance_prep.dataset.check_rows import ShardRows
from lance_prep.errors import LancePrepError, SourceChanged, TokenizerError
from lance_prep.layout import LayoutJob, lay_out, row_schema
from lance_prep.layouts import FUNCTION_PREFIX, ROW_BITS
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard, SourceFile
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe
from lance_prep.source import check_unchanged, read_shard
from lance_prep.store import DatasetVersion, Journal, ShardHash, hash_file
from lance_prep.text import ChatEncoder, ChatTables, Dropped, chat_renderer, needs_scan
from lance_prep.tokenizer import (
    ChatTemplate,
    Dtype,
    Encoder,
    FunctionEncoder,
    FunctionSpec,
    IdsEncoder,
    ReferenceEncoder,
    TextFunction,
    TokenizerSpec,
    TokenLists,
    function_spec,
    make_encoder,
)
from lance_prep.transport import Transport, is_local

#: A shard takes 1 to 3 s, or 30 to 60 s if `tokenizers` encodes all of it.
MOST_SHARDS = 8
SAMPLE_ROWS = 200
#: A longer text is left to the recorded backend: `tokenizers` took four minutes for one of 27 MB.
LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class SourceCheck:
    """Options of a comparison with the source.

    Attributes:
        rows: number of rows to draw; None to check every row of every shard.
        seed: decides which rows are drawn.
        storage_options: for a source in an object store.
        tokenizer: the Python function that made the ids, if one did. Nothing can be compared without it.
    """

    rows: int | None = SAMPLE_ROWS
    seed: int = 0
    storage_options: Mapping[str, str] | None = None
    tokenizer: TextFunction | None = None


@dataclass
class SampledEncoder:
    """Encodes a random share of the texts with the reference, and the others with the backend of the build.

    Attributes:
        share: 0 to 1, of the texts of at most `LONGEST_TEXT` bytes.
        rows_checked: number of texts that the reference encoded.
    """

    fast: Encoder
    reference: Encoder
    share: float
    rng: np.random.Generator
    rows_checked: int = 0
    name: str = "sampled"

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        drawn = np.arange(len(texts))
        if self.fast is not self.reference:
            short = pc.binary_length(texts).to_numpy(zero_copy_only=False) <= LONGEST_TEXT
            drawn = np.flatnonzero(short & (self.rng.random(len(texts)) < self.share))
        self.rows_checked += len(drawn)
        if len(drawn) == len(texts):
            return self.reference.encode(texts)
        return self.fast.encode(texts).replaced(drawn, self.reference.encode(texts.take(pa.array(drawn))))


def check_against_source(
    opened: DatasetVersion,
    journals: list[BuildJournal],
    shards: list[ShardRows],
    check: SourceCheck,
    found: Verification,
    on_note: Callable[[str], None],
    on_rows: Callable[[int, int], None],
) -> None:
    """Compare shards with the source. Differences, and shards that cannot be compared, are problems in `found`.

    Args:
        on_note: called with a sentence for each shard.
        on_rows: called with the number of rows compared so far, and the total.
    """
    plans = {shard.index: (journal, shard) for journal in journals if journal.plan for shard in journal.plan.shards}
    hashes = {build.key: {f.url: f.hash for f in opened.files_of_build(build)} for build in opened.builds}
    known = [shard for shard in shards if shard.receipt and shard.receipt.shard in plans]
    if not known and not shards:
        return  # an empty dataset
    if not known:
        found.wrong("no row can be compared with the source: plans or receipts are missing")
        return
    if all(plan is not None and _is_dataframe(plan) for plan in (journal.plan for journal in journals)):
        found.wrong(
            "the rows cannot be compared with their source, a DataFrame, which is not kept; "
            "write it again, and compare the content hashes"
        )
        return
    chosen, share = _draw(known, check)
    spec: TokenizerSpec | None = None
    encoder = None
    with found.reading("no row can be compared with the source"):
        spec = _spec(opened, check)
    if spec is None and opened.metadata.tokenizer is not None:
        return
    done, total = 0, sum(shard.rows for shard in chosen)
    on_rows(done, total)
    for shard in chosen:
        assert shard.receipt is not None
        journal, planned = plans[shard.receipt.shard]
        assert journal.plan is not None
        on_note(f"shard {planned.index}: comparing {shard.rows:,} rows with the source")
        with found.reading(f"shard {planned.index} cannot be compared with the source"):
            plan = _where_it_is_now(journal.plan, planned, hashes.get(journal.key, {}))
            if spec is not None and encoder is None:  # all builds of a version tokenize in the same way
                encoder = _encoder(spec, plan.recipe, share, check.seed)
            _Rebuild(opened, journal.key, plan, planned, shard, check, spec, encoder, found).compare()
        done += shard.rows
        on_rows(done, total)


def _is_dataframe(plan: Plan) -> bool:
    return all(file.format == "dataframe" for file in plan.files)


def _draw(shards: list[ShardRows], check: SourceCheck) -> tuple[list[ShardRows], float]:
    """Return the shards that hold the drawn rows, and the share of their texts that the reference encodes."""
    if check.rows is None:
        return shards, 1.0
    rng = np.random.default_rng(check.seed)
    sizes = np.array([shard.rows for shard in shards], np.int64)
    if len(shards) > MOST_SHARDS:
        chosen = np.sort(rng.choice(len(shards), MOST_SHARDS, replace=False, p=sizes / sizes.sum()))
        shards, sizes = [shards[i] for i in chosen], sizes[chosen]
    if check.rows < sizes.sum():
        rows = rng.integers(0, sizes.sum(), min(check.rows, 1 << 16))
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
    """Find a file with this hash: in its own place, in the same folder, then anywhere in the source."""
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


@dataclass
class _Rebuild:
    """One shard, built again in memory."""

    opened: DatasetVersion
    key: str
    plan: Plan
    planned: Shard
    shard: ShardRows
    check: SourceCheck
    spec: TokenizerSpec | None
    encoder: SampledEncoder | None
    found: Verification

    def compare(self) -> None:
        assert self.shard.receipt is not None
        content = ShardHash()
        for batch in self._rows():
            content.update(batch)
        same = content.hexdigest() == self.shard.receipt.content_hash
        if not same and (difference := self._first_difference()) is not None:
            self.found.wrong(f"shard {self.planned.index}, {difference}")
        self.found.count("rows against the source", self.shard.rows)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Lay out the shard as the build did; count the texts that the reference encoded."""
        assert self.shard.receipt is not None
        tally, limit, schema = Tally(), self.shard.receipt.limit, row_schema(self.plan, self.spec)
        encoder: Encoder | None = self.encoder
        render = None
        if self.spec is not None and self.spec.chat is not None and encoder is not None:
            encoder = ChatEncoder(encoder, ChatTables(self.spec))
            render = chat_renderer(self.spec.chat, self.plan.recipe)
        job = LayoutJob(self.plan.recipe, self.planned.index, schema, tally, encoder, self.spec, limit)
        if needs_scan(self.plan.recipe):
            journal = Journal(self.opened.files, self.key)
            job.dropped = Dropped.from_arrays(journal.dropped(self.planned.index))
        options = Transport.of(self.check.storage_options)
        source = read_shard(self.plan, self.planned, tally, options, render=render)
        with closing(source):  # type: ignore[type-var]
            yield from lay_out(source, job)
        if self.encoder is not None and self.plan.recipe.ids_column is None:
            by = "the function" if isinstance(self.spec, FunctionSpec) else "tokenizers"
            self.found.count(f"texts encoded with {by}", self.encoder.rows_checked)
            self.encoder.rows_checked = 0

    def _first_difference(self) -> str | None:
        """Build the shard with the reference alone, and describe the first stored row that is not equal."""
        if self.encoder is not None:
            self.encoder = replace(self.encoder, share=1.0)
        at, stop = self.shard.first, self.shard.first + self.shard.rows
        for batch in self._rows():
            n = min(len(batch), stop - at)
            stored = self.opened.dataset.to_table(offset=at, limit=n).cast(batch.schema).combine_chunks()
            row = _first_unequal(batch.slice(0, n), stored)
            if row is not None:
                return f"row {at + row:,}{_origin(stored, row)}: {_what_differs(batch, stored, row)}"
            at += n
            if n < len(batch):
                return f"row {stop:,}: the source gives more rows than the {self.shard.rows:,} that were written"
        if at < stop:
            return f"row {at:,}: the source gives only {at - self.shard.first:,} of the {self.shard.rows:,} rows"
        return None


def _spec(opened: DatasetVersion, check: SourceCheck) -> TokenizerSpec | None:
    """Return the tokenizer that made the rows, or None for rows without tokens.

    Raises:
        LancePrepError: it is a Python function, and that was not given.
    """
    stated = opened.metadata.tokenizer
    if stated is None:
        return None
    if not stated.is_function:
        fields = {name: value for name, value in asdict(stated).items() if name not in ("backends", "chat")}
        chat = opened.chat_file()
        return TokenizerSpec(
            **fields, file=opened.tokenizer_record(), chat=ChatTemplate.from_file(chat) if chat is not None else None
        )
    if check.tokenizer is None:
        how = "verify(uri, against=lance_prep.dataset.SourceCheck(tokenizer=function))"
        raise TokenizerError(f"a Python function made the ids, {stated.name}, so compare in Python: {how}")
    dtype: Dtype = "uint16" if stated.vocab_size <= 1 << 16 else "uint32"
    name = stated.name.removeprefix(FUNCTION_PREFIX)
    spec = function_spec(check.tokenizer, name=name, eos_id=stated.eos_id, dtype=dtype)
    if spec.sha256 != stated.sha256:
        raise TokenizerError(f"the function given is not {stated.name}: it returns other ids")
    return spec


def _encoder(spec: TokenizerSpec, recipe: Recipe, share: float, seed: int) -> SampledEncoder:
    rng = np.random.default_rng(seed)
    if recipe.ids_column is not None:
        ids = IdsEncoder(spec, recipe)
        return SampledEncoder(ids, ids, 1.0, rng)
    if isinstance(spec, FunctionSpec):
        function = FunctionEncoder(spec)
        return SampledEncoder(function, function, 1.0, rng)
    reference = ReferenceEncoder(spec, recipe)
    return SampledEncoder(make_encoder(spec, recipe, reference, parallel=True), reference, share, rng)


def _first_unequal(made: pa.RecordBatch, stored: pa.Table) -> int | None:
    """Return the first row in which two batches of the same length differ."""
    if not len(made) or _hash(made) == _hash(stored):
        return None
    return next(row for row in range(len(made)) if _hash(made.slice(row, 1)) != _hash(stored.slice(row, 1)))


def _hash(rows: pa.RecordBatch | pa.Table) -> str:
    """Return a hash that is equal for equal rows, NaN included, which Arrow's own comparison calls unequal."""
    content = ShardHash()
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
        content.update(batch)
    return content.hexdigest()


def _origin(stored: pa.Table, row: int) -> str:
    for name in ("doc_id", "doc_ids"):
        if name in stored.schema.names:
            value = stored.column(name)[row].as_py()
            doc = value[0] if isinstance(value, list) else value
            return f" (doc_id {doc}, source row {doc & ((1 << ROW_BITS) - 1):,})"
    return ""


def _what_differs(made: pa.RecordBatch, stored: pa.Table, row: int) -> str:
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
