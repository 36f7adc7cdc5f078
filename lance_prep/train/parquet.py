"""`ParquetDataset`: a folder of exported Parquet shards, as a map-style torch dataset.

Parquet has no random access: to read one row, Arrow decodes its whole row group, which takes 100 ms for 4 M tokens. So
the shards are converted once, at first use, into a flat copy of the tokens in a cache, at 30 to 40 Mtok/s. After that,
rows are read from a memory map: 250 Mtok/s at 8 rows of 1,024 tokens, or 200 with shifted labels. The copy takes 2
bytes per token (4 if ids exceed 65,535), and another bit if labels are ignored within rows. Labels are not stored: each
is the next token, or ignored.

A Lance dataset needs no copy, so train from that where there is a choice.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.store import IGNORE, Cache, Stat
from lance_prep.train.access import CACHE_BYTES
from lance_prep.train.forks import renew_after_fork
from lance_prep.train.order import PAD_ROW
from lance_prep.train.parquet_files import Rows, Shards, convert, load_rows, read_footers
from lance_prep.train.samples import Batch, Documents, Labels, SampleOptions
from lance_prep.train.sources import MapStyle, Mask, Origin
from lance_prep.train.views import fixed_batch


class ParquetDataset(MapStyle):
    """Rows of `input_ids` and shifted `labels` in a folder of Parquet shards, such as `lance-prep export` writes.

    Args:
        path: the folder. Its `.parquet` files are read in the order of their names, with numbers in numeric order.
        labels: "same" (equal to input_ids: the model shifts, as in Hugging Face), "shifted" (as in the files), or None.
        attention_mask: 1 for tokens, 0 for padding.
        cache_dir: where the flat copy of the tokens is kept; by default `.lance_prep/cache` in the folder if it can be
            written, else `~/.cache/lance-prep`.
        cache_bytes: the largest flat copy that may be made; 4 GiB by default.

    The columns are lists of equal length: `input_ids`; `labels`, each the next token or -100, all learned if the column
    is missing; `attention_mask`, ones and then zeros, all ones if it is missing. Samples are dicts of int64 tensors
    `[block_size]`. The document boundaries of packed rows are not in the files, so `position_ids`, `document_ids` and
    `varlen_collate` need the Lance dataset.

    The flat copy is made at first use. An instance pickles in a few KB and can be sent to forked, forkserver and
    spawned workers. Threads may share one.

    Raises:
        DatasetError: at first use: the folder has no shards, they are damaged, or a column is not as described above.
            The flat copy is larger than `cache_bytes`, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labels: Labels = "same",
        attention_mask: bool = False,
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._options = SampleOptions(labels, attention_mask, packed=True)
        if self._options.masked:
            raise UsageError(
                f"labels={labels!r}: the labels in the files say what is learned", "use labels='same' or 'shifted'"
            )
        self._chosen = Path(cache_dir) if cache_dir else None
        self._cache_bytes = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._known: Shards | None = None
        self._checked: dict[str, Stat] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._rows: Rows | None = None
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # What it is.

    @property
    def shards(self) -> Shards:
        """What the footers say, read at first use."""
        if self._known is None:
            with self._lock:
                self._known = self._known or read_footers(self._path, self._chosen)
        return self._known

    @property
    def block_size(self) -> int:
        """Tokens per sample."""
        return self.shards.block_size

    @property
    def uri(self) -> str:
        """Absolute path of the folder."""
        return str(self._path)

    def __repr__(self) -> str:
        return f"ParquetDataset({self.uri!r}, block_size={self.block_size}, samples={len(self)})"

    def __len__(self) -> int:
        return self._open().count

    # What samplers, loaders and mixtures ask.

    @property
    def _content_hash(self) -> str:
        return self.shards.content_hash

    @property
    def _tokenizer_hash(self) -> str | None:
        return self.shards.tokenizer

    @property
    def _mean_tokens(self) -> float:
        rows = self._open()
        return float(rows.valid.mean()) if rows.valid is not None and rows.count else float(self.block_size)

    @property
    def _read_rows(self) -> int:
        return min(max(1, (64 << 10) // self.block_size), 8192)

    @property
    def _slow(self) -> bool:
        return False

    def _identity(self, position: int = 0) -> dict[str, Any]:
        return {
            "content_hash": self._content_hash,
            "layout": "parquet",
            "block_size": self.block_size,
            "filter": None,
            "samples": len(self),
        }

    def origins(self, indices: Indices) -> list[Origin]:
        """Return the row of each sample, counted through all shards, leaving out padding samples."""
        return [Origin(self.uri, row, ()) for row in indices[indices != PAD_ROW].tolist()]

    # Reading.

    def _read(self, indices: Indices, padding: Mask | None) -> Batch:
        rows, options = self._open(), self._options
        tokens = rows.tokens.blocks(indices, self.block_size)
        valid = None if rows.valid is None else rows.valid[indices]
        if padding is not None:
            tokens[padding] = rows.pad_id
            valid = np.where(padding, 0, self.block_size if valid is None else valid)
        following = None if rows.following is None else rows.following[indices]
        batch = fixed_batch(tokens, self.block_size, options, _no_documents, valid=valid, following=following)
        if rows.ignored is not None and options.labels is not None:
            ignored = np.unpackbits(rows.ignored[indices], axis=1, count=self.block_size).view(np.bool_)
            labels = batch.tensors["labels"].numpy()
            if options.labels == "shifted":
                labels[ignored] = IGNORE
            else:  # the bit of a token is about the label of the next one
                labels[:, 1:][ignored[:, :-1]] = IGNORE
        return batch

    def _open(self) -> Rows:
        if self._rows is None:
            with self._lock:
                if self._rows is None:
                    cache = Cache(Path(self.shards.cache), self._checked)
                    self._rows = load_rows(cache, self.shards) or convert(cache, self.shards, self._cache_bytes)
                    self._checked = cache.checked
        return self._rows


def _no_documents() -> Documents:
    raise UsageError(
        "Parquet shards do not hold the boundaries of documents", "use the Lance dataset that they were exported from"
    )
