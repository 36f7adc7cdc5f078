"""One shard, from source to receipt: the same function wherever it runs."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import pyarrow as pa

from lance_prep.engine.report import Progress, Silent
from lance_prep.errors import Interrupted, TokenizerError, UsageError
from lance_prep.formats import is_read_once
from lance_prep.layout import LayoutJob, lay_out, row_schema
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard
from lance_prep.process import read_ahead, trim
from lance_prep.recipe import Limit
from lance_prep.source import Render, SourceBatch, read_shard
from lance_prep.store import Journal, Output, Quarantine, Receipt, hash_bytes, read_by_hash, tokenizer_path
from lance_prep.text import ChatEncoder, ChatTables, Dropped, chat_renderer, needs_scan
from lance_prep.tokenizer import (
    BackendDisagrees,
    CheckedEncoder,
    Encoder,
    ExactEncoder,
    FunctionEncoder,
    FunctionSpec,
    IdsEncoder,
    ReferenceEncoder,
    SpecialTokenGuard,
    TokenizerSpec,
    make_encoder,
)
from lance_prep.transport import Transport

#: Rows that wait for the writer while the next batch is tokenized. Two batches are enough to keep both busy.
WRITE_AHEAD_BATCHES = 2

#: Code points whose texts `tokenizers` encodes; None for all texts.
Points = frozenset[int] | None


@dataclass(frozen=True)
class BuildJob:
    """A whole build: what is built into which dataset.

    Attributes:
        plan: what to build.
        spec: the tokenizer; None for layout `raw`.
        origin: how to reach the source.
        output: the dataset.
        key: of the build, see `store.journal`.
    """

    plan: Plan
    spec: TokenizerSpec | None
    origin: Transport
    output: Output
    key: str

    @property
    def uri(self) -> str:
        """Absolute path or URI of the dataset."""
        return self.output.uri

    @property
    def render(self) -> Render | None:
        """The renderer of conversations, or None if the recipe names no column with conversations."""
        return chat_renderer(self.spec.chat, self.plan.recipe) if self.spec is not None else None

    @property
    def schema(self) -> pa.Schema:
        """Schema of the dataset's rows, without its metadata."""
        return row_schema(self.plan, self.spec)

    @property
    def journal(self) -> Journal:
        """The journal of the build."""
        return self.output.journal(self.key)

    def tasks(self) -> list[ShardTask]:
        """Return one task for each shard, in order."""
        spec = replace(self.spec, file=b"") if self.spec is not None else None
        return [ShardTask(plan, spec, self.origin, self.output, self.key) for plan in self.plan.split()]


@dataclass(frozen=True)
class ShardTask(BuildJob):
    """One shard to build. Small, so that it can be pickled and built by any process.

    `plan` is of this shard alone (see `Plan.split`), and `spec` lacks the tokenizer's file. The output has the file.
    """

    @property
    def shard(self) -> Shard:
        """The shard."""
        return self.plan.shards[0]


@dataclass(frozen=True)
class Lent:
    """The encoder of one shard, lent by `Encoders`.

    Attributes:
        encoder: encodes the shard's texts.
        guard: refuses texts with special tokens; None if the recipe does not ask for it.
        checked: `encoder`, with a sample of its answers compared with the reference's; None if it is the reference.
        tables: for conversations, what places their tokens.
    """

    encoder: Encoder
    guard: SpecialTokenGuard | None
    checked: CheckedEncoder | None
    tables: ChatTables | None = None

    @property
    def whole(self) -> Encoder:
        """The encoder of a layout's texts."""
        encoder = self.checked or self.encoder
        return ChatEncoder(encoder, self.tables) if self.tables is not None else encoder


class Encoders:
    """The encoders of one build in one process. Shards take turns with them.

    An encoder takes 0.2 s to make, and gets faster as it learns the words of the corpus. The reference is shared by
    all threads, which saves 60 MB each. Thread-safe, and never sent to another process.

    Args:
        spec: the tokenizer with its file; by default it is read from the output of the first task.
        at_once: shards built at once in this process, whose encoders share one memory limit.
        parallel: let one encoder use all cores, for when shards are fewer than workers.
    """

    def __init__(self, spec: TokenizerSpec | None = None, *, at_once: int = 1, parallel: bool = False) -> None:
        self._spec = spec
        self._at_once = at_once
        self._parallel = parallel
        self._reference: ReferenceEncoder | None = None
        self._guard: SpecialTokenGuard | None = None
        self._tables: ChatTables | None = None
        self._idle: list[Encoder] = []
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        """What builds must have in common to share encoders: tokenizer and chat template."""
        return self._spec.key if self._spec is not None else ""

    def sized(self, at_once: int, *, parallel: bool) -> Encoders:
        """Return encoders of the same tokenizer for this number of shards at once."""
        return Encoders(self._spec, at_once=at_once, parallel=parallel)

    @contextmanager
    def lend(self, task: ShardTask, points: Points = frozenset()) -> Iterator[Lent | None]:
        """Lend an encoder to one shard while the block runs; None if the layout takes no tokenizer.

        Raises:
            DamagedDataset: the tokenizer's file is missing from the output, or damaged.
            TokenizerError: the recipe's backend cannot be used with the tokenizer.
        """
        if task.spec is None:
            yield None
            return
        if isinstance(task.spec, FunctionSpec):
            yield Lent(FunctionEncoder(task.spec), None, None)
            return
        if task.plan.recipe.ids_column is not None:
            yield Lent(IdsEncoder(task.spec, task.plan.recipe), None, None)
            return
        recipe = task.plan.recipe
        with self._lock:
            spec, reference = self._load(task, task.spec)
            idle = self._idle.pop() if self._idle and points is not None else None
        encoder: Encoder = reference
        if points is not None:
            encoder = idle or make_encoder(spec, recipe, reference, encoders=self._at_once, parallel=self._parallel)
        lent = encoder.with_points(points) if points and isinstance(encoder, ExactEncoder) else encoder
        check = CheckedEncoder(lent, reference, seed=recipe.seed, shard=task.shard.index)
        try:
            with check if encoder is not reference else nullcontext() as checked:
                yield Lent(lent, self._guard, checked, self._tables)
        finally:
            if points is not None:
                with self._lock:
                    self._idle.append(encoder)

    def _load(self, task: ShardTask, spec: TokenizerSpec) -> tuple[TokenizerSpec, ReferenceEncoder]:
        if self._spec is None:
            self._spec = replace(spec, file=read_by_hash(task.output.files, tokenizer_path(spec.sha256)))
        if self._reference is None:
            self._reference = ReferenceEncoder(self._spec, task.plan.recipe)
            if task.plan.recipe.special_tokens == "error":
                self._guard = SpecialTokenGuard(self._spec)
            if self._spec.chat is not None:
                self._tables = ChatTables(self._spec)
        return self._spec, self._reference


@dataclass(frozen=True)
class Hooks:
    """What a shard shares with the other shards of its process. Never sent to another process.

    Attributes:
        progress: told of each batch and each finished shard.
        stop: set to make the shards in work end with `Interrupted`.
        encoders: the process' encoders.
    """

    progress: Progress = field(default_factory=Silent)
    stop: threading.Event = field(default_factory=threading.Event)
    encoders: Encoders = field(default_factory=Encoders)
    _warned: threading.Event = field(default_factory=threading.Event)

    def warn_once(self, message: str) -> None:
        """Warn the user, unless another shard did already."""
        if not self._warned.is_set():
            self._warned.set()
            self.progress.warned(message)


@dataclass(frozen=True)
class Built:
    """A shard whose rows are durable, and whose receipt is not yet in the journal. Picklable.

    Attributes:
        receipt: of the shard.
        rejected: its rejected rows, as JSON lines.
    """

    receipt: Receipt
    rejected: bytes


def build_shard(task: ShardTask, limit: Limit, hooks: Hooks | None = None) -> Receipt:
    """Read, tokenize, lay out and write one shard, and make its receipt durable.

    Args:
        limit: write at most this.
        hooks: shared by the shards of this process; one's own by default.

    Raises:
        LancePrepError: what went wrong. The shard has no receipt then.
    """
    hooks = hooks or Hooks()
    receipt = keep_shard(task, make_shard(task, limit, hooks))
    hooks.progress.finished(receipt)
    return receipt


def keep_shard(task: ShardTask, built: Built) -> Receipt:
    """Write a shard's receipt into the journal: from now on it counts as done. One process at a time may do so."""
    journal = task.output.journal(task.key)
    journal.write_rejected(built.receipt, built.rejected)
    journal.add(built.receipt)
    return built.receipt


def make_shard(task: ShardTask, limit: Limit, hooks: Hooks) -> Built:
    """Read, tokenize, lay out and write one shard. May be done more than once, also at the same time.

    Arguments and errors: see `build_shard`.
    """
    points: Points = frozenset()
    while True:
        try:
            return _build(task, limit, hooks, points)
        except BackendDisagrees as error:
            if any(map(is_read_once, task.plan.files)):
                raise TokenizerError(str(error), "use tokenizer_backend='tokenizers'") from error
            hooks.warn_once(f"shard {task.shard.index}: {error}; {error.advice}")
            # If the texts are plain ASCII, or their characters are in `points` already, `tokenizers` encodes all texts.
            points = points | error.points if points is not None and error.points - points else None


def _build(task: ShardTask, limit: Limit, hooks: Hooks, points: Points) -> Built:
    quarantine = Quarantine(strict=task.plan.recipe.strict)
    tally = Tally(on_reject=quarantine.add)
    with hooks.encoders.lend(task, points) as lent:
        made = shard_rows(task, limit, tally, hooks, lent)
        with closing(read_ahead(made, WRITE_AHEAD_BATCHES)) as rows:
            written = task.output.write(rows, task.schema, layout=task.plan.recipe.layout)
    if points is None:
        tally.ledger.shards_by_reference += 1
    if broken := limit.broken(written.rows, tally.ledger):
        said = f"layout {task.plan.recipe.layout!r} wrote more {broken}"
        raise UsageError(said, "remove the limit, or make the layout's RowMaker call LayoutJob.admit and order")
    receipt = Receipt(
        shard=task.shard.index,
        limit=limit,
        rows=written.rows,
        tokens=tally.ledger.tokens_written,
        ledger=tally.ledger,
        content_hash=written.content_hash,
        text_bytes=tally.text_bytes,
        fragment=written.fragment,
        backend=lent.encoder.name if lent else None,
        retries=tally.retries,
        lengths=tally.lengths.record() if lent else None,
        quarantine_hash=hash_bytes(quarantine.lines),
    )
    receipt = task.output.journal(task.key).sync(receipt)
    trim()
    return Built(receipt, quarantine.lines)


def shard_rows(
    task: ShardTask, limit: Limit, tally: Tally, hooks: Hooks, lent: Lent | None
) -> Generator[pa.RecordBatch, None, None]:
    """Yield the rows of one shard, as they are written.

    Args:
        limit: yield at most this.
        tally: counted into.

    Raises:
        BackendDisagrees: the reference check failed; nothing that was yielded may be used.
    """
    recipe, index = task.plan.recipe, task.shard.index
    layout = LayoutJob(recipe=recipe, shard=index, schema=task.schema, tally=tally, spec=task.spec, limit=limit)
    if needs_scan(recipe):
        layout.dropped = Dropped.from_arrays(task.journal.dropped(index))
    if lent is not None:
        layout.encoder, layout.guard = lent.whole, lent.guard
    read = read_shard(task.plan, task.shard, tally, task.origin, stop=hooks.stop, render=task.render)
    with closing(read) as source:  # type: ignore[type-var]
        yield from lay_out(_watched(source, index, tally, hooks), layout)
        if lent is not None and lent.checked is not None:
            lent.checked.finish()
            tally.ledger.rows_checked += lent.checked.rows_checked


def _watched(source: Iterable[SourceBatch], shard: int, tally: Tally, hooks: Hooks) -> Iterator[SourceBatch]:
    """Pass batches on: stop when told to, count bytes and report progress."""
    tokens = 0
    for batch in source:
        if hooks.stop.is_set():
            raise Interrupted("stopped", "run the same command again: it continues where it stopped")
        tally.text_bytes += batch.source_bytes
        yield batch
        made = tally.ledger.tokens_in
        hooks.progress.advanced(shard, len(batch.rows), made - tokens, batch.source_bytes)
        tokens = made
