"""`read_shard`: a shard in, batches of text out."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from lance_prep.errors import SourceChanged, translating
from lance_prep.fetch import state_of
from lance_prep.filter import compile_where
from lance_prep.formats import PartJob, find_registered, format_named
from lance_prep.ledger import Tally
from lance_prep.model import Plan, Shard, SourceFile
from lance_prep.plan import compile_template
from lance_prep.process import read_ahead
from lance_prep.source.cutter import Cutter, Delivery, SourceBatch
from lance_prep.source.prepare import Render, prepare
from lance_prep.transport import Transport, is_local

# Bytes of batches that wait for the caller, per shard: enough to bridge a row group's decompression.
AHEAD_BYTES = 32 << 20
_LOOKUPS = 16


def read_shard(
    plan: Plan,
    shard: Shard,
    tally: Tally,
    transport: Transport | None = None,
    *,
    stop: threading.Event | None = None,
    render: Render | None = None,
) -> Iterator[SourceBatch]:
    """Yield the rows of a shard in the source's order, read ahead in a thread while the caller works.

    Args:
        tally: counts all source rows up to the last row of each batch when the batch is yielded, and the rest of the
            shard after the last batch. Counts retries when the iterator ends.
        transport: how to reach the source.
        stop: if it is set, the iterator neither waits nor retries.
        render: makes the text of a record; by default the recipe's template, if it has one.

    Yields:
        Batches of `recipe.shuffle_batch_size` rows with schema `plan.schema`. The last one, and one whose text reaches
        64 MiB, has fewer rows. Their ends depend on the rows only. Close the iterator to end its threads.

    Raises:
        SourceChanged: a file is not what it was when it was planned.
        BadFile, HubUnreachable, AccessDenied, SourceNotFound: it cannot be read.
        RowRejected: from `tally.on_reject`.
    """
    transport = (transport or Transport()).retrying(stop)
    made = _deliveries(plan, shard, transport, render)
    deliveries = read_ahead(made, AHEAD_BYTES, cost=lambda delivery: delivery.nbytes, on_stop=transport.retries.stop)
    try:
        for delivery in deliveries:
            delivery.count(tally)
            if delivery.batch is not None:
                yield delivery.batch
    finally:
        deliveries.close()
        tally.retries += transport.retries.count


def read_some(
    plan: Plan,
    shard: Shard,
    tally: Tally,
    transport: Transport,
    most_bytes: int | None,
    *,
    render: Render | None = None,
) -> Iterator[SourceBatch]:
    """Yield the first rows of a shard as `read_shard` does, and read little more: no thread reads ahead.

    Args:
        most_bytes: stop with the batch that brings the text to this many bytes; None to read the whole shard.
        render: see `read_shard`.
    """
    held = 0
    with closing(_deliveries(plan, shard, transport, render)) as deliveries:
        for delivery in deliveries:
            delivery.count(tally)
            if delivery.batch is None:
                continue
            yield delivery.batch
            held += delivery.batch.source_bytes
            if most_bytes is not None and held >= most_bytes:
                return


def _deliveries(
    plan: Plan, shard: Shard, transport: Transport, render: Render | None
) -> Generator[Delivery, None, None]:
    where = compile_where(plan.recipe.filter, plan.read_schema) if plan.recipe.filter else None
    if plan.recipe.template is not None:
        render = compile_template(plan.recipe.template)
    cutter = Cutter(plan.recipe.shuffle_batch_size, ids=plan.recipe.ids_column is not None)
    first = 0
    for part in shard.parts:
        file = plan.files[part.file]
        job = PartJob(file, part, first, plan.recipe, plan.schema, plan.read_schema, where, transport)
        with translating(f"reading {file.url}"):
            check_unchanged(file, transport)
            for chunk in format_named(file.format).read(job):
                first = chunk.end
                yield from cutter.add(prepare(chunk, job, render))
            check_unchanged(file, transport)
    yield from cutter.finish()


def check_all_unchanged(files: Sequence[SourceFile], transport: Transport) -> None:
    """Refuse files as `check_unchanged` does. Objects are looked up at the same time: 100,000 would take an hour."""
    if len(files) == 1 or all(is_local(file.url) or _is_pinned(file) for file in files):
        for file in files:
            check_unchanged(file, transport)
        return
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        for _ in pool.map(lambda file: check_unchanged(file, transport), files):
            pass


def _is_pinned(file: SourceFile) -> bool:
    return not find_registered(file.format).is_file or file.url.startswith("hf://")


def check_unchanged(file: SourceFile, transport: Transport) -> None:
    """Refuse a file that is not what it was when it was planned: size and time of a local one, ETag of an object.

    Files of the Hub are pinned by their commit, and their blob ids are checked by each request; a Lance dataset is
    pinned by its version.

    Raises:
        SourceChanged: says both sizes and times.
    """
    if _is_pinned(file):
        return
    try:
        size, identity = state_of(file, transport)
    except FileNotFoundError as error:
        raise SourceChanged(f"{file.url}: gone since it was planned", "bring it back, or use overwrite=True") from error
    if size != file.size or identity not in (None, file.identity):
        raise SourceChanged(
            f"{file.url}: {size} bytes, state {identity}; as planned, {file.size} bytes, state {file.identity}",
            "run the same command again: it plans anew",
        )
