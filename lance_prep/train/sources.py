"""What a sampler, a loader and a mixture ask of the data that they read."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from lance_prep.keyed import Indices
from lance_prep.train.samples import Batch


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

    def __getitems__(self, indices: Indices, /) -> Batch: ...

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
