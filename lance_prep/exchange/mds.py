"""The target `mds`: shards of MosaicML's StreamingDataset.

A sample is a row: `tokens`, an array of one length, and `num_tokens`, how many of them are not padding. Training code
that knows only `tokens`, such as llm-foundry's, takes padding for tokens.

A shard is: the number of samples, where each begins, the columns as JSON, and the samples. `index.json` lists the
shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source, Written
from lance_prep.exchange.flat import full_rows, stored_type

#: Offsets in a shard are uint32.
_LARGEST = (1 << 32) - (1 << 20)
_PIECE_BYTES = 8 << 20


class MdsEncoder(Encoder):
    """Encodes rows as samples; see `Encoder`."""

    held = True

    def __init__(self, source: Source, options: ExportOptions) -> None:
        assert source.length is not None
        assert options.shard_size is not None
        self._length, self._dtype = source.length, stored_type(source.opened)
        self._shard_size = options.shard_size
        self._sample = 4 + self._length * self._dtype.itemsize
        check_shard_size(options.shard_size, len(self.begin([])) + self._sample + 4, _LARGEST)
        self.columns: Sequence[str] = ["input_ids", "num_tokens"]
        self.batch_rows = rows_per_file(options.shard_size - len(self.begin([])), self._sample + 4)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        ids, lengths = full_rows(batch)
        samples = np.empty((batch.num_rows, self._sample), np.uint8)
        samples[:, :4] = lengths.astype("<u4").view(np.uint8).reshape(-1, 4)
        samples[:, 4:] = ids.astype(self._dtype, copy=False).view(np.uint8)
        # The place of each sample in the shard takes 4 bytes before the first.
        return Piece([samples.reshape(-1)], samples.size, batch.num_rows, int(lengths.sum()), 4 * batch.num_rows)

    def begin(self, pieces: Sequence[Piece]) -> bytes:
        rows = sum(piece.rows for piece in pieces)
        config = json.dumps(self._config(), sort_keys=True).encode()
        offsets = 4 + 4 * (rows + 1) + len(config) + np.arange(rows + 1) * self._sample
        return rows.to_bytes(4, "little") + offsets.astype("<u4").tobytes() + config

    def beside(self, files: Sequence[Written]) -> Iterator[tuple[str, Iterable[Any]]]:
        shards = [
            {
                **self._config(),
                "raw_data": {"basename": file.name, "bytes": file.bytes, "hashes": {}},
                "samples": file.rows,
                "version": 2,
                "zip_data": None,
            }
            for file in files
        ]
        yield "index.json", [json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()]

    def _config(self) -> dict[str, Any]:
        """Return what each shard says of itself."""
        return {
            "column_encodings": ["uint32", f"ndarray:{self._dtype.name}:{self._length}"],
            "column_names": ["num_tokens", "tokens"],
            "column_sizes": [4, self._sample - 4],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": self._shard_size,
        }


def check_shard_size(size: int, least: int, most: int) -> None:
    """Refuse a size of files that a row does not fit in, or that the format cannot address.

    Raises:
        UsageError: names the limit.
    """
    if not least <= size <= most:
        raise UsageError(f"shard_size={size}B is out of range", f"use at least {least}B and at most {most}B")


def rows_per_file(room: int, row: int) -> int:
    """Return the rows of a piece, so that whole pieces of a few MB fill a file.

    Args:
        room: bytes in a file.
        row: bytes of a row.
    """
    return max(1, room // row // -(-room // _PIECE_BYTES))
