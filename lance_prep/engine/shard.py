"""One shard, from source to receipt: the same function wherever it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pyarrow as pa

from lance_prep.engine.quarantine import Quarantine
from lance_prep.engine.report import Progress, Silent
from lance_prep.errors import Interrupted
from lance_prep.layout import LayoutJob, lay_out, row_schema
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard
from lance_prep.process import read_ahead, trim
from lance_prep.source import SourceBatch, read_shard
from lance_prep.store import Files, Journal, Output, Receipt, hash_bytes
from lance_prep.tokenizer import (
    BackendDisagrees,
    CheckedEncoder,
    Encoder,
    ExactEncoder,
    ReferenceEncoder,
    SpecialTokenGuard,
    TokenizerSpec,
    make_encoder,
)
from lance_prep.transport import Transport

#: Rows that wait for the writer while the next batch is tokenized. Two batches are enough to keep both busy.
WRITE_AHEAD_BATCHES = 2


@dataclass(frozen=True)
class BuildJob:
    """What every shard of a build needs. Picklable.

    Attributes:
        plan: what to build.
        spec: the tokenizer; None for layout `raw`.
        output: the dataset.
        origin: how to reach the source.
        key: of the build, see `store.journal`.
        at_once: shards built at once in one process.
        parallel_encode: let one shard's tokenizer use all cores: for when shards are fewer than workers.
    """

    plan: Plan
    spec: TokenizerSpec | None
    output: Output
    origin: Transport
    key: str
    at_once: int = 1
    parallel_encode: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Of the dataset's rows, without its metadata."""
        return row_schema(self.plan, self.spec)

    @property
    def uri(self) -> str:
        return self.output.uri

    def files(self) -> Files:
        return self.output.files

    def make_reference(self) -> ReferenceEncoder | None:
        """The reference encoder that this process' workers share."""
        return ReferenceEncoder(self.spec, self.plan.recipe) if self.spec is not None else None


@dataclass
class Worker:
    """What one thread keeps between shards: encoders, which take 0.2 s to make and learn the corpus' words.

    Attributes:
        job: the build.
        reference: shared by the workers of a process, which saves 60 MB each; None for `raw`.
        progress: told of each batch.
        stop: set to make the shard in work end with `Interrupted`.
        disagreed: set once the user was warned that the fast backend disagrees with the reference.
    """

    job: BuildJob
    reference: ReferenceEncoder | None
    progress: Progress = field(default_factory=Silent)
    stop: threading.Event = field(default_factory=threading.Event)
    disagreed: threading.Event = field(default_factory=threading.Event)
    _encoder: Encoder | None = field(default=None, init=False)

    def build_shard(self, shard: Shard, limit: int | None) -> Receipt:
        """Read, tokenize, lay out and write one shard, and make its receipt durable.

        Args:
            limit: write at most so many rows; None for all.

        Raises:
            LancePrepError: what went wrong; nothing of the shard counts then.
        """
        points: frozenset[int] | None = frozenset()
        while True:
            try:
                return self._attempt(shard, limit, points)
            except BackendDisagrees as error:
                if not self.disagreed.is_set():
                    self.disagreed.set()
                    self.progress.warned(f"shard {shard.index}: {error}; {error.advice}")
                # Of plain ASCII, or of characters that tokenizers encoded already, nothing can be singled out.
                points = points | error.points if points is not None and error.points - points else None

    def rows(
        self, shard: Shard, limit: int | None, tally: Tally, *, points: frozenset[int] | None = frozenset()
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one shard, as they are written.

        Args:
            points: code points whose texts `tokenizers` encodes; None for all texts.

        Raises:
            BackendDisagrees: the reference check failed; nothing that was yielded may be used.
        """
        job, recipe = self.job, self.job.plan.recipe
        layout = LayoutJob(recipe=recipe, shard=shard.index, schema=job.schema, tally=tally, spec=job.spec, limit=limit)
        with ExitStack() as stack:
            checked = None
            if job.spec is not None and self.reference is not None:
                layout.encoder = self._get_encoder(points)
                if recipe.special_tokens == "error":
                    layout.guard = SpecialTokenGuard(job.spec)
                if not isinstance(layout.encoder, ReferenceEncoder):
                    checked = CheckedEncoder(layout.encoder, self.reference, seed=recipe.seed, shard=shard.index)
                    layout.encoder = stack.enter_context(checked)
            source = read_shard(job.plan, shard, tally, job.origin, stop=self.stop)
            stack.enter_context(closing(source))  # type: ignore[type-var]
            yield from lay_out(self._watched(source, shard, tally), layout)
            if checked is not None:
                checked.finish()
                tally.ledger.rows_checked += checked.rows_checked
            if points is None:
                tally.ledger.shards_by_reference += 1

    def _attempt(self, shard: Shard, limit: int | None, points: frozenset[int] | None) -> Receipt:
        job = self.job
        journal = Journal(job.files(), job.key)
        quarantine = Quarantine(strict=job.plan.recipe.strict)
        tally = Tally(on_reject=quarantine.add)
        batches = read_ahead(self.rows(shard, limit, tally, points=points), WRITE_AHEAD_BATCHES)
        with closing(batches):
            written = job.output.write(batches, job.schema, layout=job.plan.recipe.layout)
        receipt = Receipt(
            shard=shard.index,
            limit=limit,
            rows=written.rows,
            tokens=tally.ledger.tokens_written,
            ledger=tally.ledger,
            content_hash=written.content_hash,
            text_bytes=tally.text_bytes,
            fragment=written.fragment,
            backend=self._backend_name(points),
            retries=tally.retries,
            lengths=tally.lengths.record() if job.spec is not None else None,
            quarantine_hash=hash_bytes(quarantine.lines),
        )
        journal.write_rejected(shard.index, quarantine.lines)
        journal.add(receipt)
        trim()
        self.progress.finished(receipt)
        return receipt

    def _watched(self, source: Iterator[SourceBatch], shard: Shard, tally: Tally) -> Iterator[SourceBatch]:
        tokens = 0
        for batch in source:
            if self.stop.is_set():
                raise Interrupted("stopped", "run the same command again: it goes on where it stopped")
            tally.text_bytes += batch.source_bytes
            yield batch
            made = tally.ledger.tokens_in
            self.progress.advanced(shard.index, len(batch.rows), made - tokens, batch.source_bytes)
            tokens = made

    def _get_encoder(self, points: frozenset[int] | None) -> Encoder:
        assert self.job.spec is not None
        assert self.reference is not None
        if points is None:
            return self.reference
        if self._encoder is None:
            self._encoder = make_encoder(
                self.job.spec,
                self.job.plan.recipe,
                self.reference,
                encoders=self.job.at_once,
                parallel=self.job.parallel_encode,
            )
        if points and isinstance(self._encoder, ExactEncoder):
            return self._encoder.with_points(points)
        return self._encoder

    def _backend_name(self, points: frozenset[int] | None) -> str | None:
        return self._get_encoder(points).name if self.job.spec is not None else None
