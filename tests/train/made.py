"""Write datasets in the on-disk format by hand, so that the train side is tested without the build side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from tokenizers import Tokenizer, models, pre_tokenizers

from lance_prep.store.metadata import TokenizerRecord
from lance_prep.store.sidecar import LocalFiles
from lance_prep.store.version import tokenizer_path, write_by_hash
from tests.metadata import metadata_of

EOS, PAD, VOCAB = 1, 0, 300
#: Lance lays rows of 256 bytes and more out flat.
BLOCK = 128


@dataclass
class Made:
    """A dataset as written, and what it must read as.

    Attributes:
        rows: the tokens of each row, without padding.
        pieces: for blocks, the lengths of the documents in each row; they have nothing to do with EOS ids.
    """

    path: Path
    layout: str
    rows: list[np.ndarray]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    pieces: list[list[int]] = field(default_factory=list)

    def stream(self, keep: Sequence[int] | None = None) -> np.ndarray:
        """The rows, each followed by EOS, end to end."""
        rows = self.rows if keep is None else [self.rows[i] for i in keep]
        return np.concatenate([np.append(row, EOS) for row in rows]) if rows else np.empty(0, np.int64)

    def owners(self) -> np.ndarray:
        """The row of each token of `stream()`."""
        return np.repeat(np.arange(len(self.rows)), [len(row) + 1 for row in self.rows])

    def documents(self, row: int) -> list[int]:
        """The number of the document of each token of a block."""
        return [number for number, length in enumerate(self.pieces[row]) for _ in range(length)]


def _fields(layout: str, dtype: pa.DataType, block_size: int | None) -> list[pa.Field]:
    kind = pa.list_(dtype, block_size) if layout == "blocks" else pa.list_(pa.field("item", dtype, nullable=False))
    documents = {"doc_id": pa.uint64()}
    if layout == "blocks":
        documents = {"seq_lengths": pa.list_(pa.uint32()), "doc_ids": pa.list_(pa.uint64())}
    columns = {"input_ids": kind, "num_tokens": pa.uint32(), **documents}
    return [pa.field(name, type_, nullable=False) for name, type_ in columns.items()]


def _tokenizer() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def _metadata(layout: str, dtype: str, block_size: int | None, seed: int) -> dict[bytes, bytes]:
    sha256 = hashlib.sha256(_tokenizer()).hexdigest()
    tokenizer = TokenizerRecord("test", None, sha256, VOCAB, None, EOS, PAD, (), (), True)
    data = metadata_of(
        layout=layout,
        block_size=block_size,
        dtype=None if layout == "raw" else dtype,
        seed=seed,
        content_hash=f"hash-{layout}-{seed}",
        tokenizer=None if layout == "raw" else tokenizer,
    )
    return {b"lance_prep": json.dumps(data.as_json()).encode()}


def commit(path: Path, schema: pa.Schema, shards: list[list[pa.RecordBatch]], file_version: str) -> None:
    """Each shard one fragment, all of them one version."""
    fragments = []
    for batches in shards:
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        fragments += write_fragments(
            reader, str(path), schema=schema, mode="overwrite", data_storage_version=file_version
        )
    version = lance.dataset(str(path)).version if (path / "_versions").exists() else 0
    lance.LanceDataset.commit(str(path), lance.LanceOperation.Overwrite(schema, fragments), read_version=version)
    write_by_hash(LocalFiles(path), tokenizer_path(hashlib.sha256(_tokenizer()).hexdigest()), _tokenizer())


def _documents(made: Made, lengths: Sequence[int], shard: int, rng: np.random.Generator) -> list[pa.Array]:
    """Cut each block at random places into documents: its `seq_lengths` and `doc_ids`."""
    first = len(made.pieces)
    for length in lengths:
        cuts = np.unique(rng.integers(1, length, rng.integers(0, 6))) if length > 1 else np.empty(0, np.int64)
        pieces = np.diff(np.concatenate([[0], cuts, [length]])).astype(int).tolist()
        made.pieces.append(pieces)
        next_doc = made.columns.setdefault("doc_ids", [])
        next_doc.append([(shard << 40) | (10 * len(next_doc) + i) for i in range(len(pieces))])
    lists = (made.pieces[first:], made.columns["doc_ids"][first:])
    return [pa.array(values, pa.list_(kind)) for values, kind in zip(lists, (pa.uint32(), pa.uint64()), strict=True)]


def make_tokens(
    path: Path,
    layout: str,
    shards: Sequence[int],
    *,
    block_size: int | None = None,
    dtype: str = "uint16",
    seed: int = 0,
    batch: int = 7,
    file_version: str | None = None,
    longest: int = 30,
) -> Made:
    """A dataset of random tokens: `shards[i]` rows in shard i, written in batches of `batch` rows."""
    rng = np.random.default_rng(seed)
    arrow = {"uint16": pa.uint16(), "uint32": pa.uint32()}[dtype]
    numpy_type = np.dtype(dtype)
    kept = [] if layout == "blocks" else [pa.field("title", pa.string())]
    schema = pa.schema(_fields(layout, arrow, block_size) + kept, metadata=_metadata(layout, dtype, block_size, seed))
    made = Made(path, layout, [], {"title": [], "doc_id": []})
    written = []
    for shard, rows in enumerate(shards):
        batches = []
        for start in range(0, rows, batch):
            count = min(batch, rows - start)
            ids, lengths = [], []
            for i in range(count):
                if layout == "blocks":
                    last = start + i == rows - 1
                    length = int(rng.integers(1, block_size)) if last else block_size
                    row = rng.integers(2, VOCAB, length)
                    row[rng.random(length) < 0.1] = EOS
                    padded = np.concatenate([row, np.full(block_size - length, PAD)])
                else:
                    length = int(rng.integers(0, longest))
                    row = padded = rng.integers(2, VOCAB, length)
                ids.append(padded.astype(numpy_type))
                lengths.append(length)
                made.rows.append(row.astype(np.int64))
                made.columns["doc_id"].append((shard << 40) | (start + i))
                made.columns["title"].append(None if i % 3 == 0 else f"title {shard}.{start + i}")
            values = pa.array(np.concatenate(ids).astype(numpy_type), arrow)
            if layout == "blocks":
                tokens = pa.FixedSizeListArray.from_arrays(values, type=schema.field(0).type)
            else:
                bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                tokens = pa.ListArray.from_arrays(pa.array(bounds), values, type=schema.field(0).type)
            columns = [tokens, pa.array(lengths, pa.uint32())]
            if layout == "blocks":
                columns += _documents(made, lengths, shard, rng)
            else:
                columns.append(pa.array(made.columns["doc_id"][-count:], pa.uint64()))
            if kept:
                columns.append(pa.array(made.columns["title"][-count:], pa.string()))
            batches.append(pa.record_batch(columns, schema=schema))
        written.append(batches)
    commit(path, schema, written, file_version or "2.0")
    return made


def make_raw(path: Path, shards: Sequence[int]) -> Made:
    """A raw dataset: text, a number that may be null, and a list."""
    schema = pa.schema(
        [pa.field("text", pa.string()), pa.field("score", pa.float64()), pa.field("tags", pa.list_(pa.string()))],
        metadata=_metadata("raw", "uint16", None, 0),
    )
    made, written, n = Made(path, "raw", [], {"text": [], "score": [], "tags": []}), [], 0
    for rows in shards:
        values = {
            "text": [f"text {n + i}" for i in range(rows)],
            "score": [None if i % 4 == 0 else i / 2 for i in range(rows)],
            "tags": [["a"] * (i % 3) for i in range(rows)],
        }
        for name, column in values.items():
            made.columns[name] += column
        written.append([pa.record_batch([pa.array(values[f.name], f.type) for f in schema], schema=schema)])
        n += rows
    commit(path, schema, written, "2.1")
    return made
