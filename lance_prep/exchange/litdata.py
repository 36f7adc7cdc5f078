"""The target `litdata`: chunks of tokens for `litdata.StreamingDataset(item_loader=TokensLoader(block_size=...))`.

A chunk holds whole rows of `block_size` tokens, padding included, since TokensLoader leaves out what is left of a chunk
after its last whole block.

A chunk is: the number of items, where each begins, and the items. `index.json` lists the chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source, Written
from lance_prep.exchange.flat import full_rows, stored_type
from lance_prep.exchange.mds import check_shard_size, rows_per_file

#: Offsets in a chunk are uint32.
_LARGEST = (1 << 32) - (1 << 20)
#: litdata's numbers of the types.
_CODES = {"uint16": 20, "int32": 16}


class LitdataEncoder(Encoder):
    """Encodes rows as items; see `Encoder`."""

    held = True

    def __init__(self, source: Source, options: ExportOptions) -> None:
        assert source.length is not None
        assert options.shard_size is not None
        self._length = source.length
        # It has no uint32.
        self._dtype = np.dtype("<u2" if stored_type(source.opened).itemsize == 2 else "<i4")
        self._shard_size, self._item = options.shard_size, self._length * self._dtype.itemsize
        check_shard_size(options.shard_size, len(self.begin([])) + self._item + 4, _LARGEST)
        self.columns: Sequence[str] = ["input_ids", "num_tokens"]
        self.batch_rows = rows_per_file(options.shard_size - len(self.begin([])), self._item + 4)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        ids, lengths = full_rows(batch)
        data = ids.astype(self._dtype, copy=False).reshape(-1).view(np.uint8)
        # The place of each item in the chunk takes 4 bytes before the first.
        return Piece([data], data.nbytes, batch.num_rows, int(lengths.sum()), 4 * batch.num_rows)

    def begin(self, pieces: Sequence[Piece]) -> bytes:
        rows = sum(piece.rows for piece in pieces)
        offsets = 4 + 4 * (rows + 1) + np.arange(rows + 1) * self._item
        return rows.to_bytes(4, "little") + offsets.astype("<u4").tobytes()

    def beside(self, files: Sequence[Written]) -> Iterator[tuple[str, Iterable[Any]]]:
        chunks = [
            {
                "chunk_bytes": file.bytes,
                "chunk_size": file.rows,
                "dim": file.rows * self._length,
                "filename": file.name,
            }
            for file in files
        ]
        config = {
            "chunk_bytes": self._shard_size,
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_tensor:{_CODES[self._dtype.name]}"],
            "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        yield "index.json", [json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode()]

    def about(self) -> dict[str, Any]:
        return {"block_size": self._length, "dtype": self._dtype.name}
