"""Sources without files of their own: what only `datasets` can read, and the documentation that Python ships."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lance_prep.errors import SourceError
from lance_prep.formats.base import Chunk, Format, PartJob, row_chunks
from lance_prep.hub_path import HubPath, parse_hub_url
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


class Partition(Format):
    """The rows of one partition of a DataFrame, which exist only while Spark hands them to this process."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Refuse: nothing is left to look at."""
        raise _not_kept(files[0])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the rows that `hand_over` was given for the partition, once."""
        rows = _handed.pop(job.file.url, None)
        if rows is None:
            raise _not_kept(job.file)
        yield from row_chunks(rows, job)


_handed: dict[str, Iterator[pa.RecordBatch]] = {}


def partition_file(number: int, identity: str = "") -> SourceFile:
    """Return the file that stands for a partition of a DataFrame, by the number of its shard."""
    return SourceFile(f"dataframe://partition/{number}", "dataframe", 0, identity)


def is_read_once(file: SourceFile) -> bool:
    """Return whether a file's rows cannot be read a second time."""
    return file.format == "dataframe"


def hand_over(file: SourceFile, rows: Iterator[pa.RecordBatch]) -> None:
    """Give this process the rows of a partition, to be read once."""
    _handed[file.url] = rows


def _not_kept(file: SourceFile) -> SourceError:
    said = f"{file.url}: the rows of a DataFrame are not kept, so they cannot be read again"
    return SourceError(said, "write the DataFrame again")


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
