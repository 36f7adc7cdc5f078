"""Rows to batches: `shuffle_batch_size` rows each, or fewer if they hold 64 MiB of text.

The end of a batch depends on the rows only. So does the number of source rows that is counted with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.arrow_text import byte_ends
from lance_prep.formats import Chunk
from lance_prep.ledger import Rejected, Tally

BATCH_BYTES = 64 << 20
# Largest number of rejected rows that wait for the batch around them. Each holds up to 4 KiB.
_WAITING = 1024


def _id_ends(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return int64 `[len(batch) + 1]`: bytes of ids in the rows before each row, and in total."""
    lists = batch.column(0)
    offsets = lists.offsets.to_numpy()
    ends: npt.NDArray[np.int64] = (offsets - offsets[0]) * (lists.type.value_type.bit_width // 8)
    return ends


@dataclass(frozen=True)
class SourceBatch:
    """`Recipe.shuffle_batch_size` source rows that passed the filter, in source order.

    A batch has fewer rows at the end of the shard, or if they hold 64 MiB of text.

    Attributes:
        columns: schema `Plan.schema`; the text column is first, `large_string`, valid UTF-8, and may hold nulls. For a
            source of ids it is `large_list<uint16|uint32>` without nulls.
        rows: uint64 `[len(columns)]`, the row in the shard (counting all source rows), ascending.
        source_bytes: bytes of text in it, for progress.
    """

    columns: pa.RecordBatch
    rows: npt.NDArray[np.uint64]
    source_bytes: int


@dataclass(frozen=True)
class Delivery:
    """A batch, and the source rows that are counted with it.

    Attributes:
        batch: None if there are only rejected rows.
        rows_in: source rows since the last delivery.
        filtered: those of them that were neither delivered, rejected nor held out.
        held_out: those of them that belong to the other side of a split.
    """

    batch: SourceBatch | None
    rows_in: int
    filtered: int
    rejects: list[Rejected] = field(default_factory=list)
    held_out: int = 0

    def count(self, tally: Tally) -> None:
        """Add its source rows to a tally."""
        for rejected in self.rejects:
            tally.reject(rejected)
        tally.ledger.rows_in += self.rows_in
        tally.ledger.filtered += self.filtered
        tally.ledger.held_out += self.held_out

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return (self.batch.source_bytes + 8 * len(self.batch.rows) if self.batch else 0) + 4096 * len(self.rejects)


class Cutter:
    """Cuts chunks into deliveries.

    Args:
        batch_size: rows in a batch.
        batch_bytes: a batch ends with the row that brings its text to at least this many bytes.
        ids: rows hold ids in place of text.
    """

    def __init__(self, batch_size: int, batch_bytes: int = BATCH_BYTES, *, ids: bool = False) -> None:
        self._ends = _id_ends if ids else byte_ends
        self._batch_size = batch_size
        self._batch_bytes = batch_bytes
        self._held: list[tuple[pa.RecordBatch, npt.NDArray[np.uint64]]] = []
        self._count = 0
        self._bytes = 0
        self._rejects: list[tuple[int, Rejected]] = []
        self._held_out: list[npt.NDArray[np.uint64]] = []  # ascending
        self._counted = 0  # source rows up to the last delivery
        self._early = 0  # rejected rows beyond them that are handed on already
        self._end = 0

    def add(self, chunk: Chunk) -> Iterator[Delivery]:
        """Yield the deliveries that a chunk completes."""
        self._end = chunk.end
        self._rejects += sorted(chunk.rejects, key=lambda reject: reject[0])
        if chunk.held_out is not None:
            self._held_out.append(chunk.held_out)
        ends = self._ends(chunk.columns)
        at, rows = 0, len(chunk.rows)
        while at < rows:
            full = int(np.searchsorted(ends, ends[at] + self._batch_bytes - self._bytes))
            stop = min(at + self._batch_size - self._count, full, rows)
            self._held.append((chunk.columns.slice(at, stop - at), chunk.rows[at:stop]))
            self._count += stop - at
            self._bytes += int(ends[stop] - ends[at])
            if self._count == self._batch_size or self._bytes >= self._batch_bytes:
                yield self._deliver(int(chunk.rows[stop - 1]) + 1)
            at = stop
        if len(self._rejects) >= _WAITING:
            rejects = [rejected for _, rejected in self._rejects]
            self._rejects = []
            self._early += len(rejects)
            yield Delivery(None, len(rejects), 0, rejects)

    def finish(self) -> Iterator[Delivery]:
        """Yield the rest at the end of the shard."""
        if self._end > self._counted or self._held or self._rejects:
            yield self._deliver(self._end)

    def _deliver(self, end: int) -> Delivery:
        passed = sum(row < end for row, _ in self._rejects)
        rejects = [rejected for _, rejected in self._rejects[:passed]]
        rows_in = end - self._counted - self._early
        held_out = self._take_held_out(end)
        filtered = rows_in - self._count - len(rejects) - held_out
        batch = None
        if self._held:
            parts = [part for part, _ in self._held]
            columns = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
            batch = SourceBatch(columns, np.concatenate([rows for _, rows in self._held]), self._bytes)
        self._rejects = self._rejects[passed:]
        self._held, self._count, self._bytes, self._early, self._counted = [], 0, 0, 0, end
        return Delivery(batch, rows_in, filtered, rejects, held_out)

    def _take_held_out(self, end: int) -> int:
        """Count the rows before `end` that are held out, and keep the others."""
        if not self._held_out:
            return 0
        rows = np.concatenate(self._held_out)
        taken = int(np.searchsorted(rows, end))
        self._held_out = [rows[taken:]]
        return taken
