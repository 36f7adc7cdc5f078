"""`LanceDataset`: a version of a token dataset as a map-style torch dataset."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, TypedDict, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.train.access import Access, Reader, Verdict, open_reader
from lance_prep.train.lance_reads import Facts, Lance, ReadOptions, Way, renew_after_fork
from lance_prep.train.order import PAD_ROW
from lance_prep.train.samples import Batch, Labels, Sample, SampleOptions
from lance_prep.train.sources import Origin
from lance_prep.train.views import BlockView, Mask, RecordView, RowView, StreamView, View, read_columns
from lance_prep.transport import Transport, absolute_uri

#: Columns of the on-disk format that are returned as tensors, unlike kept columns.
_NUMBERS = ("num_tokens", "doc_id")


class DatasetOptions(TypedDict, total=False):
    """Keyword arguments of `LanceDataset`, which describes them, that a `Mixture` passes on to its datasets."""

    version: int | str | None
    filter: str | None
    columns: Sequence[str] | None
    labels: Labels
    attention_mask: bool
    position_ids: bool
    document_ids: bool
    mask_boundaries: bool
    access: Way
    cache_dir: str | Path | None
    cache_bytes: int | None
    storage_options: Mapping[str, str] | None


class LanceDataset(Dataset[dict[str, Any]]):
    """A version of a dataset, for `torch.utils.data.DataLoader` and for this package's sampler and loader.

    Args:
        path: a local `.lance` directory, or a URL that Lance reads.
        block_size: tokens per sample. `blocks` have one already, so it can be left out. `lines` and `documents` are
            read as one stream of rows, each followed by EOS, that is cut into samples of this size, the last one
            padded. Without it each row is a sample, of its own length.
        version: number or tag of a version. By default the latest one at first use.
        filter: rows to keep, in SQL over the dataset's columns. Evaluated once.
        columns: additional columns of each sample. For `raw`, the columns to read, all by default. Not possible with
            a stream.
        labels: "same" by default (see `SampleOptions`). Not for `raw`.
        attention_mask, position_ids, document_ids, mask_boundaries: see `SampleOptions`. Not for `raw`.
        access: "auto" maps files into memory if their pages are flat, and otherwise reads through Lance's `take`.
            "mmap" raises an error instead of using `take`. "take" always uses it. The tensors are the same.
            `ds.access` says which is in use, and why.
        cache_dir: where the index is kept. By default `.lance_prep/cache` in a local dataset that can be written,
            else `~/.cache/lance-prep`.
        cache_bytes: the largest flat copy of the tokens that may be made there, for ragged rows that cannot be
            memory-mapped; by default 4 GiB for a local dataset and none for another.
        storage_options: for Lance.

    Samples are dicts of int64 tensors `[block_size]`: `input_ids`, `labels` (-100 where nothing is learned), and what
    else was asked for. Samples of `raw` are dicts of Python values, and their batches dicts of lists.

    Files are opened at first use, in the process that uses them. An instance pickles in under 10 KB and can be sent to
    forked, forkserver and spawned workers. Threads may share one.

    Raises:
        UsageError: options contradict each other or, at first use, the dataset's layout.
        DatasetError: at first use: there is no such dataset or version, lance-prep did not build it, or it is damaged.
            Later: it cannot be read, or another dataset was built at its path.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        block_size: int | None = None,
        version: int | str | None = None,
        filter: str | None = None,
        columns: Sequence[str] | None = None,
        labels: Labels | EllipsisType = ...,
        attention_mask: bool = False,
        position_ids: bool = False,
        document_ids: bool = False,
        mask_boundaries: bool = False,
        access: Way = "auto",
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._read = ReadOptions(
            absolute_uri(path),
            version,
            filter,
            access,
            str(cache_dir) if cache_dir else None,
            cache_bytes,
            Transport.of(storage_options),
        )
        chosen: Labels = "same" if isinstance(labels, EllipsisType) else labels
        self._labels_given = labels is not ...
        self._asked = SampleOptions(chosen, attention_mask, position_ids, document_ids, mask_boundaries)
        if block_size is not None and block_size < 1:
            raise UsageError(f"block_size must be at least 1, got {block_size}")
        self._block_size = block_size
        self._columns = None if columns is None else tuple(columns)
        self._known: Facts | None = None
        self._verdict: Verdict | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._lance = Lance(self._read, self._known)
        self._reader: Reader | None = None
        self._view: View | None = None
        self._text: Any = None
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_read", "_asked", "_labels_given", "_block_size", "_columns", "_known")
        verdict = self._verdict if self._reader is None else self._reader.verdict
        return {**{name: getattr(self, name) for name in kept}, "_verdict": verdict}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # What it is.

    @property
    def _facts(self) -> Facts:
        """The version's metadata, read at first use."""
        if self._known is None:
            with self._lock:
                self._known = self._known or self._lance.facts()
        return self._known

    @property
    def version(self) -> int:
        """The number of the version in use."""
        return self._facts.version

    @property
    def block_size(self) -> int | None:
        """Tokens per sample, or None if samples vary in length or have no tokens."""
        return self._facts.block_size if LAYOUTS[self._facts.layout].packed else self._block_size

    @property
    def access(self) -> Access:
        """How tokens are read, and why."""
        self._open()
        assert self._reader is not None
        return self._reader.access

    @property
    def uri(self) -> str:
        """Absolute path or URL of the dataset."""
        return self._read.uri

    @property
    def _content_hash(self) -> str:
        """Hash of the version's rows, whatever its path."""
        return self._facts.content_hash

    @property
    def _read_rows(self) -> int:
        """How many samples are best read at once: 64 K tokens of maps, which fit a cache; 8 M tokens by `take`."""
        tokens = (8 << 20) if self._slow else (64 << 10)
        return min(max(1, tokens // max(1, int(self._mean_tokens or 1))), 8192)

    @property
    def _slow(self) -> bool:
        """Whether rows are read through `take`, for which reading ahead always pays."""
        return self.access.way == "take"

    @property
    def _mean_tokens(self) -> float | None:
        """Mean tokens per sample without padding; None for `raw`."""
        view = self._open()
        index = self._reader.index if self._reader else None
        if index is None:
            return None
        if not len(view):
            return 1.0
        if isinstance(view, BlockView):
            size = self.block_size or 0
            return size - float((size - index.short_tokens).sum()) / max(index.rows, 1)
        if isinstance(view, StreamView):
            return float(self._block_size or 0)
        return index.tokens / max(index.rows, 1)

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what must be equal for a checkpoint, made at any position, to be resumed on this dataset."""
        return {
            "content_hash": self._facts.content_hash,
            "layout": self._facts.layout,
            "block_size": self.block_size,
            "filter": self._read.filter,
            "samples": len(self),
        }

    def __repr__(self) -> str:
        return f"LanceDataset({self.uri!r}, version={self.version}, block_size={self.block_size}, samples={len(self)})"

    # Samples.

    def __len__(self) -> int:
        return len(self._open())

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> Sample | Batch:
        """Return a sample, or a batch of the samples in a slice. Negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
            DatasetError: the dataset cannot be read.
        """
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self)), dtype=np.int64))
        return self.take([index])[0]

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor) -> Batch:
        """Return the samples at indices, in their order. All are read at once.

        Args:
            indices: `[samples]`. Negative ones count from the end.

        Returns:
            A sequence of samples (dicts). `batch["input_ids"]` is the int64 tensor of all, `[samples, block_size]`, or
            flat `[tokens]` if samples vary in length. Kept columns are lists of `samples` values.

        Raises:
            IndexError: an index is out of range.
            DatasetError: the dataset cannot be read.
        """
        view = self._open()
        array = np.asarray(indices, dtype=np.int64).reshape(-1)
        padding = None
        if array.size:
            low, high = array.min(), array.max()
            if low < 0 or high >= len(view):
                array, padding = _normalised(array, len(view))
        batch = view.read(array, padding)
        if self._columns is not None and not isinstance(view, RecordView):
            self._add_columns(batch, view, array, padding)
        return batch

    #: torch fetches a batch in one call.
    __getitems__ = take

    def _add_columns(self, batch: Batch, view: View, indices: Indices, padding: Mask | None) -> None:
        values = read_columns(self._take_columns, view.row_of(indices), list(self._columns or ()))
        for name, found in values.items():
            empty = 0 if name in _NUMBERS else None
            skip = [False] * len(found) if padding is None else padding.tolist()
            column = [empty if pad else value for value, pad in zip(found, skip, strict=True)]
            if name in _NUMBERS and batch.offsets is None:
                batch.tensors[name] = torch.tensor(column, dtype=torch.int64)
            else:
                batch.lists[name] = column

    def origins(self, indices: Indices) -> list[Origin]:
        """Return where samples come from, leaving out padding samples."""
        indices = indices[indices != PAD_ROW]
        rows = self._open().row_of(indices)
        documents: list[tuple[int, ...]] = [()] * len(rows)
        if LAYOUTS[self._facts.layout].tokens and len(rows):
            name = "doc_ids" if LAYOUTS[self._facts.layout].packed else "doc_id"
            found = read_columns(self._take_columns, rows, [name])[name]
            documents = [tuple(ids) if isinstance(ids, list) else (ids,) for ids in found]
        return [Origin(self.uri, row, docs) for row, docs in zip(rows.tolist(), documents, strict=True)]

    # Text.

    def text(self, index: int) -> str:
        """Return the text of a sample, with special tokens and without padding, by this version's own tokenizer.

        Raises:
            IndexError: out of range.
            UsageError: the dataset is raw and has no tokens.
            DatasetError: the tokenizer is missing or damaged.
        """
        sample = self[index]
        if "input_ids" not in sample:
            raise UsageError("a raw dataset has no tokens", "its records are text already: use ds[i]")
        return self.decode(sample["input_ids"][: sample.valid])

    def decode(self, ids: torch.Tensor | npt.NDArray[np.integer[Any]] | Sequence[int]) -> str:
        """Return the text of token ids `[length]`, special tokens included.

        Raises:
            DatasetError: the tokenizer is missing or damaged.
        """
        text: str = self._tokenizer().decode(torch.as_tensor(ids).tolist(), skip_special_tokens=False)
        return text

    def _tokenizer(self) -> Any:
        if self._text is None:
            self._text = self._read_tokenizer()
        return self._text

    def _read_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_buffer(self._lance.tokenizer(self.version))

    # Opening.

    def _take_columns(self, rows: Indices, columns: list[str]) -> Any:
        documents = self._reader.documents(rows) if self._reader and columns == ["doc_ids"] else None
        if documents is not None:
            return pa.table({"doc_ids": documents})
        return self._lance.take(self._facts.version, rows, columns)

    def _open(self) -> View:
        if self._view is None:
            with self._lock:
                if self._view is None:
                    facts = self._facts
                    self._reader = open_reader(self._read, facts, self._lance, self._verdict)
                    self._view = self._make_view(facts, self._reader)
        return self._view

    def _check_raw(self) -> None:
        a = self._asked
        asked = {
            "block_size": self._block_size is not None,
            "access='mmap'": self._read.access == "mmap",
            f"labels={a.labels!r}": self._labels_given and a.labels is not None,
            "attention_mask": a.attention_mask,
            "position_ids": a.position_ids,
            "document_ids": a.document_ids,
            "mask_boundaries": a.mask_boundaries,
        }
        if wrong := [name for name, given in asked.items() if given]:
            raise UsageError(
                f"{', '.join(wrong)}: not possible with a raw dataset, which has no tokens", "remove these options"
            )

    def _make_view(self, facts: Facts, reader: Reader) -> View:
        missing = sorted(set(self._columns or ()) - set(facts.columns))
        if missing:
            raise UsageError(f"unknown columns: {', '.join(missing)}", f"use some of: {', '.join(facts.columns)}")
        pad = facts.pad_id if facts.pad_id is not None else facts.eos_id
        a = self._asked
        options = SampleOptions(
            a.labels, a.attention_mask, a.position_ids, a.document_ids, a.mask_boundaries, facts.eos_id, pad or 0
        )
        if not LAYOUTS[facts.layout].tokens or reader.tokens is None:
            self._check_raw()
            return RecordView(reader, self._take_columns, options, list(self._columns or facts.columns))
        if LAYOUTS[facts.layout].packed:
            if self._block_size not in (None, facts.block_size):
                raise UsageError(
                    f"block_size={self._block_size} differs from the dataset's blocks of {facts.block_size} tokens",
                    "remove block_size, or build the dataset with it",
                )
            return BlockView(reader, reader.tokens, options, facts.block_size or 0)
        if self._block_size is None:
            return RowView(reader, reader.tokens, options)
        if facts.eos_id is None:
            raise UsageError("the tokenizer has no EOS token to join rows with", "remove block_size, or build blocks")
        if self._columns:
            raise UsageError(
                "columns cannot be combined with block_size: a sample then holds many rows", "remove one of them"
            )
        return StreamView(reader, reader.tokens, options, self._block_size)


def _normalised(indices: Indices, size: int) -> tuple[Indices, Mask | None]:
    """Return indices as 0..size-1, and which of them are padding samples (index 0 then), or None if none is.

    Raises:
        IndexError: an index is out of range.
    """
    padding = indices == PAD_ROW
    bad = ((indices < -size) & ~padding) | (indices >= size)
    if bad.any():
        raise IndexError(f"index {indices[bad][0]} is out of range for {size} samples")
    indices = np.where(padding, 0, np.where(indices < 0, indices + size, indices))
    return indices, padding if padding.any() else None
