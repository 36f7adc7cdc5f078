"""Estimate what a build will cost, from a sample that is read, tokenized and laid out as a build does it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lance_prep.errors import LESS_SPACE, DiskFull, UsageError, size
from lance_prep.fetch import open_ranges, read_head
from lance_prep.formats import format_named
from lance_prep.layout import LayoutJob, lay_out, row_schema
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Tally
from lance_prep.model import Part, Plan, Shard, SourceFile
from lance_prep.plan import SAMPLE_BYTES, Cost, Counted, Estimate, Sample, Speed, choose_samples, estimate_cost
from lance_prep.recipe import Limit
from lance_prep.source import Render, SourceBatch, read_some
from lance_prep.text import ChatEncoder, ChatTables, chat_renderer
from lance_prep.tokenizer import (
    Encoder,
    FunctionEncoder,
    FunctionSpec,
    IdsEncoder,
    ReferenceEncoder,
    TokenizerSpec,
    make_encoder,
)
from lance_prep.transport import Meter, Transport, is_local

_THREADS = 4
# Text is at most about this many times as large as its compressed file.
_GROWS = 8
# A file system may compress 32-bit token ids to less than half.
_COMPRESSES = 2.5


@dataclass(frozen=True)
class _Read:
    """A sample, read: its rows, what was counted, and its size as in `Counted`."""

    plan: Plan
    batches: list[SourceBatch]
    tally: Tally
    size: float
    begun: float
    more_rows: int = 0  # that begin in these bytes and were not read
    whole: bool = False  # it is a shard


def estimate(
    plan: Plan, spec: TokenizerSpec | None, transport: Transport, *, limit: Limit, workers: int, output: str = ""
) -> Cost | None:
    """Estimate the cost of building a plan; None if the source cannot be sampled, because its size is unknown.

    Reads about `SAMPLE_BYTES`. Which ones depends only on the plan.

    Args:
        spec: the plan's tokenizer; None if the layout takes none.
        transport: how to reach the source.
        limit: what the build may still write.
        workers: number of shards built at once.
        output: the dataset, to tell how much space is free.

    Raises:
        SourceError: the source cannot be read.
        TokenizerError: the tokenizer cannot be used.
    """
    metered = replace(transport, meter=Meter())
    assert metered.meter is not None
    started = time.monotonic()
    render = chat_renderer(spec.chat, plan.recipe) if spec is not None else None
    sampling = choose_samples(plan, metered)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sample") as pool:
        read = list(pool.map(lambda sample: _read(sample, metered, render), sampling.samples))
    reading = max(time.monotonic() - started, 1e-6)
    if not any(one.batches for one in read):
        return None
    encoder = _encoder(plan, spec)
    counted = [_count(one, spec, encoder) for one in read]
    started = time.monotonic()
    # Once more: an encoder gets ten times faster as it learns the words of the corpus.
    together = _Read(read[0].plan, _joined(batch for one in read for batch in one.batches), Tally(), size=0, begun=0)
    again = _count(together, spec, encoder)
    timed = max(time.monotonic() - started, 1e-6)
    stored = int(sum(one.begun for one in read))
    local = all(is_local(file.url) for file in plan.files)
    speed = Speed(max(again.text_bytes, 1) / timed, max(stored if local else metered.meter.bytes, 1) / reading)
    cost = estimate_cost(plan, sampling, counted, limit, speed, workers)
    return replace(
        cost,
        free=free_space(output) if output else None,
        sample_bytes=stored if local else metered.meter.bytes,
        sample_requests=metered.meter.requests,
    )


def _read(sample: Sample, transport: Transport, render: Render | None) -> _Read:
    plan, tally = sample.plan, Tally()
    file, part = plan.files[0], plan.shards[0].parts[0]
    if sample.from_beginning:
        data, stored = read_head(file, transport, sample.most_bytes or SAMPLE_BYTES)
        return _read_bytes(sample, data, stored, stored, render, at_end=stored >= file.size)
    if sample.rows is None and part.stop:  # a range of bytes
        data = open_ranges(file, transport).fetch(part.start, part.stop)
        skipped = data.find(b"\n") + 1 or len(data) if part.start else 0
        rest = data[skipped:]
        return _read_bytes(sample, rest, len(rest), len(data), render, at_end=part.stop == file.size)
    batches = _joined(read_some(plan, plan.shards[0], tally, transport, sample.most_bytes, render=render))
    share = tally.ledger.rows_in / sample.rows if sample.rows else 1.0
    read = sample.size * _part_read(sample, batches, share)
    return _Read(plan, batches, tally, read, sample.size * share, whole=sample.most_bytes is None)


def _part_read(sample: Sample, batches: list[SourceBatch], share: float) -> float:
    """Return the part of a sample that was read: by its bytes if they can be told, else by its rows."""
    recipe = sample.plan.recipe
    if share == 1 or not sample.by_weight or recipe.filter is not None or recipe.makes_text:
        return share
    length = 4  # of a text, beside it
    return min(1.0, sum(batch.source_bytes + length * len(batch.rows) for batch in batches) / sample.size)


def _read_bytes(sample: Sample, data: bytes, stored: int, begun: int, render: Render | None, *, at_end: bool) -> _Read:
    """Read the whole records in the bytes of a file, from a temporary file.

    Args:
        stored: bytes that they take in the source.
        begun: as in `Counted`.
        at_end: nothing follows them, so that the last record is whole.
    """
    file, tally = sample.plan.files[0], Tally()
    whole = data if at_end else format_named(file.format).whole_records(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample"
        path.write_bytes(whole)
        stat = path.stat()
        there = SourceFile(str(path), file.format, stat.st_size, str(stat.st_mtime_ns))
        plan = replace(sample.plan, files=(there,), shards=(Shard(0, (Part(0),), there.size),))
        batches = _joined(read_some(plan, plan.shards[0], tally, Transport(), None, render=render))
    part = len(whole) / max(len(data), 1)
    return _Read(plan, batches, tally, stored * part, begun, more_rows=int(len(whole) < len(data)))


def _joined(batches: Iterable[SourceBatch]) -> list[SourceBatch]:
    """Return the rows of small batches as one, as large as those of a build: each has its fixed costs."""
    parts = list(batches)
    if not parts:
        return []
    columns = pa.concat_batches([part.columns for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    return [SourceBatch(columns, rows, sum(part.source_bytes for part in parts))]


def _encoder(plan: Plan, spec: TokenizerSpec | None) -> Encoder | None:
    if spec is None:
        return None
    if isinstance(spec, FunctionSpec):
        return FunctionEncoder(spec)
    if plan.recipe.ids_column is not None:
        return IdsEncoder(spec, plan.recipe)
    encoder = make_encoder(spec, plan.recipe, ReferenceEncoder(spec, plan.recipe), parallel=False)
    return ChatEncoder(encoder, ChatTables(spec)) if spec.chat is not None else encoder


def _count(read: _Read, spec: TokenizerSpec | None, encoder: Encoder | None) -> Counted:
    """Lay a sample out, and count what it gives."""
    recipe, ledger = read.plan.recipe, read.tally.ledger
    job = LayoutJob(recipe, 0, row_schema(read.plan, spec), read.tally, encoder, spec)
    made = nbytes = 0
    for batch in lay_out(iter(read.batches), job):
        made += len(batch)
        nbytes += batch.nbytes
    rows: float = made
    if (
        made and ledger.padding and not read.whole
    ):  # the last block of a sample is padded; in a build, that of a shard is
        padding = ledger.padding if recipe.packing == "best-fit" else 0
        rows = (ledger.tokens_written + padding) / recipe.block_size
    return Counted(
        size=read.size,
        begun=read.begun,
        rows_in=ledger.rows_in + read.more_rows,
        source_rows=ledger.rows_used * (1 + read.more_rows / max(ledger.rows_in, 1)),
        tokens=ledger.tokens_written,
        rows=rows,
        disk=nbytes / made * rows if made else 0,
        text_bytes=sum(batch.source_bytes for batch in read.batches),
    )


def estimate_fraction(plan: Plan, spec: TokenizerSpec | None, transport: Transport, tokens: int) -> float:
    """Return the part of a plan's documents that has about this many tokens.

    Raises:
        UsageError: there are not that many tokens, or the source cannot be sampled.
        SourceError, TokenizerError: the source cannot be read, or the tokenizer cannot be used.
    """
    whole = replace(plan, recipe=plan.recipe.model_copy(update={"side": None}))
    cost = estimate(whole, spec, transport, limit=plan.recipe.limit, workers=1)
    if cost is None:
        raise UsageError("val_tokens: the size of the source is not known, so it cannot be sampled", "use val_fraction")
    if tokens >= cost.tokens.value:
        said = f"val_tokens is {tokens:,}, and the source has about {round(cost.tokens.value):,} tokens"
        raise UsageError(said, "set aside fewer tokens")
    return float(f"{tokens / cost.tokens.value:.4g}")


def check_space(plan: Plan, spec: TokenizerSpec | None, transport: Transport, *, limit: Limit, uri: str) -> str:
    """Refuse a build that the disk has no room for, before it starts; return a warning if it may be too small.

    The source is sampled only if the disk is small for it: a build that has room starts as quickly as without this.

    Raises:
        DiskFull: even a file system that compresses has too little space.
        SourceError, TokenizerError: the source cannot be read, or the tokenizer cannot be used.
    """
    free = free_space(uri)
    if free is None or free >= _most_disk(plan, spec, limit):
        return ""
    cost = estimate(plan, spec, transport, limit=limit, workers=1, output=uri)
    return compare_space(uri, cost.disk, free) if cost is not None else ""


def compare_space(uri: str, disk: Estimate, free: int) -> str:
    """Return a warning if a build may need more space than is free.

    Raises:
        DiskFull: even a file system that compresses has too little space.
    """
    needed, error = disk.value, disk.error
    if needed <= free:
        return ""
    said = f"{uri} needs about {size(needed)}, and {size(free)} are free on the disk"
    if needed - 2 * (needed / 4 if error is None else error) > _COMPRESSES * free:
        raise DiskFull(said, LESS_SPACE)
    return said


def _most_disk(plan: Plan, spec: TokenizerSpec | None, limit: Limit) -> float:
    """Return more bytes than a build of ordinary text can write."""
    grows = max((_GROWS if _is_compressed(file) else 1) for file in plan.files)
    most = float(sum(shard.bytes for shard in plan.shards)) * grows * 2
    if limit.rows is not None and LAYOUTS[plan.recipe.layout].packed and spec is not None:
        row = plan.recipe.block_size * (spec.dtype.itemsize + 12)  # a document may have one token
        most = min(most, limit.rows * row)
    return most


def _is_compressed(file: SourceFile) -> bool:
    return file.compression is not None or file.format == "parquet"


def free_space(uri: str) -> int | None:
    """Return the bytes that are free on the disk where a dataset is to be written; None in an object store."""
    if not is_local(uri):
        return None
    folder = Path(uri)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
