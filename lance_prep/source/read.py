"""`read_shard`: a shard in, batches of text out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

from lance_prep.errors import SourceChanged, translate
from lance_prep.files import Retries, is_local
from lance_prep.ledger import Tally
from lance_prep.plan import Plan, Shard, SourceFile
from lance_prep.plan.where import compile_where
from lance_prep.source.ahead import read_ahead
from lance_prep.source.chunk import Chunk, PartJob
from lance_prep.source.csv import read_csv
from lance_prep.source.cutter import Cutter, Delivery
from lance_prep.source.jsonl import read_jsonl
from lance_prep.source.lines import read_text
from lance_prep.source.model import SourceBatch
from lance_prep.source.parquet import read_parquet
from lance_prep.source.prepare import prepare, renderer
from lance_prep.source.tables import read_arrow, read_lance, read_streaming, read_topics
from lance_prep.source.values import read_json

# Batches that wait for the caller: enough to bridge a row group's decompression, for each shard in work.
AHEAD_BYTES = 32 << 20

_READERS: dict[str, Callable[[PartJob], Iterator[Chunk]]] = {
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "text": read_text,
    "arrow": read_arrow,
    "lance": read_lance,
    "topics": read_topics,
    "streaming": read_streaming,
}


def read_shard(
    plan: Plan, shard: Shard, tally: Tally, *, storage_options: Mapping[str, str] | None = None
) -> Iterator[SourceBatch]:
    """The rows of a shard in the source's order, read ahead in a thread while the caller works.

    Args:
        tally: counts all source rows, those filtered and those rejected, up to the last row of each batch as it is
            handed over (and to the shard's end, when there is no further one); `retries` when the iterator ends.

    Returns:
        Batches of `recipe.batch_size` rows (the last one fewer, and one that reaches 64 MiB of text fewer) with schema
        `plan.schema`. Where they end depends on the rows alone. Close the iterator to end its threads.

    Raises:
        SourceChanged: a local file is not what it was when it was planned.
        BadFile, HubUnreachable, AccessDenied, SourceNotFound: it cannot be read.
        RowRejected: from `tally.on_reject`.
    """
    retries = Retries()
    deliveries = read_ahead(_deliveries(plan, shard, storage_options, retries), AHEAD_BYTES, retries.stop)
    try:
        for delivery in deliveries:
            for rejected in delivery.rejects:
                tally.reject(rejected)
            tally.ledger.rows_in += delivery.rows_in
            tally.ledger.filtered += delivery.filtered
            if delivery.batch is not None:
                yield delivery.batch
    finally:
        deliveries.close()  # type: ignore[attr-defined]
        tally.retries += retries.count


def _deliveries(
    plan: Plan, shard: Shard, options: Mapping[str, str] | None, retries: Retries
) -> Generator[Delivery, None, None]:
    where = compile_where(plan.recipe.filter, plan.read_schema) if plan.recipe.filter else None
    render = renderer(plan)
    cutter = Cutter(plan.recipe.batch_size)
    first = 0
    for part in shard.parts:
        job = PartJob(plan, part, first, where, options, retries)
        try:
            check_unchanged(job.file)
            for chunk in _READERS[job.file.format](job):
                first = chunk.end
                yield from cutter.add(prepare(chunk, job, render))
        except Exception as error:
            ours = translate(error, doing=f"reading {job.file.url}")
            if ours is None or ours is error:
                raise
            raise ours from error
    yield from cutter.finish()


def check_unchanged(file: SourceFile) -> None:
    """Refuse a local file that is not what it was when it was planned. Others are pinned by commit or version.

    Raises:
        SourceChanged: says both sizes and times.
    """
    if not is_local(file.url) or file.format in ("lance", "topics"):
        return
    try:
        stat = Path(file.url).stat()
    except FileNotFoundError as error:
        raise SourceChanged(f"{file.url}: gone since it was planned", "bring it back, or use --overwrite") from error
    if (stat.st_size, str(stat.st_mtime_ns)) != (file.size, file.identity):
        raise SourceChanged(
            f"{file.url}: {stat.st_size} bytes, changed at {stat.st_mtime_ns}; when it was planned, "
            f"{file.size} bytes, changed at {file.identity}",
            "--append adds what is new as a new version, --overwrite builds everything anew",
        )
