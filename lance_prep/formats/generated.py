"""Sources without files of their own: what only `datasets` can read, and the documentation that Python ships."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lance_prep.fetch import HubPath, parse_hub_url
from lance_prep.formats.base import Chunk, Format, PartJob, row_chunks
from lance_prep.model import PinnedSource, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

TOPICS = "pydoc:topics"
_STREAM_ROWS = 1024


class HubStream(Format):
    """A split of a Hub dataset that only `datasets` can read, without a download to disk."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the schema that `datasets` resolves."""
        stream = _stream(files[0])
        features = stream.features or stream._resolve_features().features
        return features.arrow_schema

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows of the split."""
        stream = _stream(job.file).select_columns(job.read_schema.names).with_format("arrow")
        tables = stream.iter(batch_size=_STREAM_ROWS)
        yield from row_chunks((batch for table in tables for batch in table.combine_chunks().to_batches()), job)


def stream_file(source: PinnedSource) -> SourceFile:
    """Return the file that stands for a split of a Hub dataset. Its path is `config/split`."""
    assert source.commit is not None
    at = HubPath(str(source.repo), source.commit, f"{source.config}/{source.split}")
    return SourceFile(at.url, "streaming", 0, source.commit)


def _stream(file: SourceFile) -> Any:
    from datasets import load_dataset

    at = parse_hub_url(file.url)
    config, _, split = at.path.rpartition("/")
    return load_dataset(at.repo, config, split=split, revision=at.revision, streaming=True)


class PythonTopics(Format):
    """The topics of Python's documentation, which every Python ships."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the two columns: text and topic."""
        return pa.schema([("text", pa.string()), ("topic", pa.string())])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the topics by name."""
        topics = _topics()
        arrays = {"text": pa.array(topics.values()), "topic": pa.array(topics)}
        yield from row_chunks(iter([pa.RecordBatch.from_pydict(arrays)]), job)


def topics_file() -> SourceFile:
    """Return the file that stands for the topics of this Python."""
    text = "\0".join(f"{name}\0{topic}" for name, topic in _topics().items()).encode()
    return SourceFile(TOPICS, "topics", len(text), hashlib.sha256(text).hexdigest())


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))
