"""Sources that come as tables: Arrow IPC, Lance datasets, streams of `datasets`, the topics of Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lance_prep.fetch import parse_hub_url
from lance_prep.formats.base import Chunk, PartJob, row_chunk
from lance_prep.formats.peek import open_arrow, open_lance

_ROWS = 8192


def _chunks(batches: Iterator[pa.RecordBatch], job: PartJob, file_row: int) -> Iterator[Chunk]:
    at = 0
    for batch in batches:
        # In pieces: a record batch may be a whole file.
        for start in range(0, len(batch), _ROWS):
            piece = batch.slice(start, _ROWS)
            yield row_chunk(piece, job.first + at, file_row + at)
            at += len(piece)


def read_arrow(job: PartJob) -> Iterator[Chunk]:
    """An Arrow IPC file or stream, local ones memory-mapped."""

    def batches(reader: Any) -> Iterator[pa.RecordBatch]:
        if hasattr(reader, "get_batch"):
            return (reader.get_batch(i) for i in range(reader.num_record_batches))
        return iter(reader)

    with open_arrow(job.file, job.transport, ahead=True) as reader:
        yield from _chunks(batches(reader), job, 0)


def read_lance(job: PartJob) -> Iterator[Chunk]:
    """Rows of a Lance dataset at the planned version, in its order; only the columns that are needed."""
    part = job.part
    scanner = open_lance(job.file, job.transport).scanner(
        columns=job.plan.read_schema.names,
        offset=part.start,
        limit=part.stop - part.start,
        scan_in_order=True,
        batch_size=_ROWS,
    )
    yield from _chunks(scanner.to_batches(), job, part.start)


def read_streaming(job: PartJob) -> Iterator[Chunk]:
    """What only `datasets` reads, one record batch at a time, without a download to disk."""
    from datasets import load_dataset

    source = job.plan.source
    at = parse_hub_url(job.file.url)
    stream = load_dataset(at.repo, source.config, split=source.split, revision=at.revision, streaming=True)
    stream = stream.select_columns(job.plan.read_schema.names).with_format("arrow")
    tables = stream.iter(batch_size=1024)
    yield from _chunks((batch for table in tables for batch in table.combine_chunks().to_batches()), job, 0)


def read_topics(job: PartJob) -> Iterator[Chunk]:
    """The documentation of Python that every Python ships, by topic."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    arrays = {"text": pa.array([topics[name] for name in names]), "topic": pa.array(names)}
    yield from _chunks(iter([pa.RecordBatch.from_pydict(arrays)]), job, 0)
