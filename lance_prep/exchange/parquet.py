"""The `parquet` target: `input_ids`, `attention_mask` and `labels`, each a list of `max_seq_length` int32.

Labels are shifted: the label of a token is the next one. It is -100 at the end of a row, on padding and, with
`mask_boundaries`, at the end of each document, as in `LanceDataset(labels="shifted")`. Of conversations only what the
assistant wrote is learned, as with `labels="assistant-shifted"`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source
from lance_prep.exchange.parquet_pages import MAGIC, RowGroup, Rows, encode_row_group, footer
from lance_prep.keyed import Indices
from lance_prep.loss_mask import MASK_COLUMN, runs_to_spans
from lance_prep.store import EXPORT_KEY

#: Tokens in a row group. The two dictionaries, 200 KB each for 50,000 ids, are then 3 % of it.
_GROUP_TOKENS = 4 << 20
#: Metadata of a row group in the footer is at most this long.
_GROUP_END = 512
#: A token takes at most 8 bytes if nothing can be compressed, or 4 beside dictionaries that take 0.5. The rest is room.
_TOKEN_BYTES, _FILE_END = 10, 4096


class ParquetEncoder(Encoder):
    """Encodes rows as row groups; see `Encoder`.

    Attributes:
        packed: labels are not shifted, and a column `seq_lengths` says where documents end.
    """

    packed = False

    def __init__(self, source: Source, options: ExportOptions) -> None:
        assert source.length is not None
        assert options.shard_size is not None
        metadata = source.opened.metadata
        self._length, self._mask_boundaries = source.length, options.mask_boundaries
        tokenizer = metadata.tokenizer
        self._metadata = {
            "content_hash": metadata.content_hash,
            "max_seq_length": source.length,
            "tokenizer_sha256": tokenizer and tokenizer.sha256,
        }
        self._masked = MASK_COLUMN in source.opened.dataset.schema.names
        others = {"seq_lengths": options.mask_boundaries or self.packed, MASK_COLUMN: self._masked}
        self.columns = ["input_ids", "num_tokens", *(name for name, asked in others.items() if asked)]
        # Several row groups per shard, so that shards come close to their maximum size.
        largest = (options.shard_size - _FILE_END) // _TOKEN_BYTES
        if source.length > largest:
            raise UsageError(
                f"shard_size={options.shard_size}B is too small for a row of {source.length} tokens",
                f"use at least {source.length * _TOKEN_BYTES + _FILE_END}B",
            )
        self.batch_rows = max(1, min(_GROUP_TOKENS, largest // 4) // source.length)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        ids = batch["input_ids"].flatten().to_numpy().reshape(batch.num_rows, self._length)
        valid = batch["num_tokens"].to_numpy().astype(np.int64)
        following = batch["following"].to_numpy() if "following" in batch.schema.names else None
        ignored = _document_ends(batch["seq_lengths"], self._length) if self._mask_boundaries else None
        if self._masked:
            unlearned = _not_learned(batch[MASK_COLUMN], self._length, shifted=not self.packed)
            ignored = unlearned if ignored is None else np.union1d(ignored, unlearned)
        documents = _documents(batch["seq_lengths"], self._length - valid) if self.packed else None
        group = encode_row_group(Rows(ids, valid, following, ignored, not self.packed, documents))
        data = [page for chunk in group.chunks for page in chunk.pages]
        return Piece(data, group.size, group.rows, int(valid.sum()), _GROUP_END, group.without_pages())

    def begin(self, pieces: Sequence[Piece]) -> bytes:
        return MAGIC

    def end(self, notes: Sequence[RowGroup]) -> bytes:
        # `train.ParquetDataset` reads what has the key, and expects shifted labels.
        key = EXPORT_KEY + b"_trl" if self.packed else EXPORT_KEY
        return footer(notes, self._length, {key: json.dumps(self._metadata).encode()}, documents=self.packed)


class TrlEncoder(ParquetEncoder):
    """Encodes rows that are packed as TRL packs them, so that SFTTrainer takes them as they are.

    A column `seq_lengths` has the lengths of a row's documents. Padding is one more document, whose labels are -100.
    Labels are not shifted, since the model does that.
    """

    packed = True


def _documents(lengths: Any, padding: Indices) -> tuple[npt.NDArray[np.int32], Indices]:
    """Return the lengths of the documents of all rows, with padding as a last one, and where those of a row begin."""
    offsets = lengths.offsets.to_numpy().astype(np.int64)
    starts, padded = offsets - offsets[0], padding > 0
    values = np.insert(lengths.flatten().to_numpy().astype(np.int32), starts[1:][padded], padding[padded])
    return values, starts + np.append(np.zeros(1, np.int64), np.cumsum(padded))


def _not_learned(runs: Any, size: int, *, shifted: bool) -> Indices:
    """Return the places whose label is not learned, in rows of `size` tokens laid end to end.

    Args:
        shifted: the label of a token is the next one.
    """
    offsets = runs.offsets.to_numpy().astype(np.int64)
    starts, stops, bounds = runs_to_spans(runs.flatten().to_numpy(), offsets - offsets[0])
    begin = np.repeat(np.arange(len(runs)) * size, np.diff(bounds))
    change = np.zeros(len(runs) * size + 1, np.int64)
    np.add.at(change, begin + starts, 1)
    np.add.at(change, begin + stops, -1)
    learned = np.cumsum(change)[:-1].reshape(-1, size) > 0
    if not shifted:
        places: Indices = np.flatnonzero(~learned)
        return places
    # The label of a row's last token is not in the row, and is ignored by what follows it.
    after = np.concatenate([learned[:, 1:], np.ones((len(runs), 1), np.bool_)], axis=1)
    found: Indices = np.flatnonzero(~after)
    return found


def _document_ends(lengths: Any, size: int) -> Indices:
    """Return the places of the last token of each document, in rows of `size` tokens laid end to end."""
    offsets = lengths.offsets.to_numpy().astype(np.int64)
    counts = np.diff(offsets)
    ends = np.cumsum(lengths.flatten().to_numpy().astype(np.int64))
    before = np.concatenate([np.zeros(1, np.int64), ends])[offsets[:-1] - offsets[0]]
    found: Indices = ends - np.repeat(before - np.arange(len(counts)) * size, counts) - 1
    return found
