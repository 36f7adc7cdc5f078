"""What a sampler, a loader and a mixture ask of the data that they read, and how samples are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from lance_prep.keyed import Indices
from lance_prep.train.order import PAD_ROW
from lance_prep.train.samples import Batch, Sample

Mask = npt.NDArray[np.bool_]


class Origin(NamedTuple):
    """Where a sample comes from.

    Attributes:
        source: the dataset.
        row: the row of the dataset in which the sample begins.
        documents: the `doc_ids` of that row, shard << 40 | row of the source: one per document in a block, one for
            `lines` and `documents`, none for `raw`.
    """

    source: str
    row: int
    documents: tuple[int, ...]


class Samples(Protocol):
    """Data that a loader reads, such as a `Mixture`. Threads may share one. Workers get a pickle."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Indices, /) -> Batch:
        """Return samples; or a list of items, if a transform made them."""

    def origins(self, indices: Indices, /) -> list[Origin]:
        """Return where samples come from, leaving out padding samples."""

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return the values that must not differ when a checkpoint made at a position is resumed."""

    @property
    def _read_rows(self) -> int:
        """Number of samples that are best read at once."""

    @property
    def _slow(self) -> bool:
        """Whether reading waits for more than memory, so that reading ahead always pays."""


class Source(Samples, Protocol):
    """Data that a mixture can mix. It opens nothing before one of these is used."""

    @property
    def block_size(self) -> int | None:
        """Tokens per sample, or None if samples vary in length or have no tokens."""

    @property
    def _mean_tokens(self) -> float | None:
        """Mean tokens per sample without padding; None for records, which have no tokens."""

    @property
    def _content_hash(self) -> str:
        """Names the content, whatever its path. Seeds the order of the samples."""

    @property
    def _tokenizer_hash(self) -> str | None:
        """SHA-256 of the tokenizer's file; None if it is unknown, or samples have no tokens."""


class MapStyle(Dataset[dict[str, Any]]):
    """A map-style torch dataset over samples that are read in batches."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _read(self, indices: Indices, padding: Mask | None) -> Batch:
        """Return the samples at indices in 0..len-1, in any order. Those marked in `padding` are all padding."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> Sample | Batch:
        """Return a sample, or a batch of the samples in a slice. Negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
            TypeError: it is not an integer.
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
            TypeError: an index is not an integer.
            DatasetError: the dataset cannot be read.
        """
        array, size = as_indices(indices), len(self)
        padding = None
        if array.size and (array.min() < 0 or array.max() >= size):
            array, padding = _normalised(array, size)
        return self._read(array, padding)

    #: torch fetches a batch in one call.
    __getitems__ = take


def as_indices(indices: Any) -> Indices:
    """Return indices as a flat int64 array.

    Raises:
        TypeError: they are not integers. A bool would otherwise be read as sample 0 or 1, and 1.5 as sample 1.
    """
    array = np.asarray(indices)
    if array.dtype.kind not in "iu" and array.size:
        hint = "; use np.flatnonzero(mask)" if array.dtype.kind == "b" else ""
        raise TypeError(f"indices must be integers, got {array.dtype}{hint}")
    return array.astype(np.int64, copy=False).reshape(-1)


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
