"""The rows of a dataset, in batches of a fixed number of rows, however they are cut into fragments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from lance_prep.errors import UsageError, reading_dataset
from lance_prep.exchange.base import ExportOptions, Source, Target
from lance_prep.layouts import LAYOUTS
from lance_prep.store import DatasetVersion


class StoredRows:
    """Rows as they are stored; see `Source`."""

    def __init__(self, opened: DatasetVersion) -> None:
        self.opened = opened
        with reading_dataset(opened.uri):
            self.rows: int = opened.dataset.count_rows()
        self.length: int | None = opened.metadata.block_size if LAYOUTS[opened.metadata.layout].packed else None

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        waiting: list[pa.RecordBatch] = []
        count = 0
        with reading_dataset(self.opened.uri):
            scanner = self.opened.dataset.scanner(
                columns=list(columns), offset=start or None, batch_size=min(size, 8192)
            )
            for batch in scanner.to_batches():
                while count + batch.num_rows >= size:
                    waiting.append(batch.slice(0, size - count))
                    batch = batch.slice(size - count)
                    yield pa.concat_batches(waiting)
                    waiting, count = [], 0
                if batch.num_rows:
                    waiting.append(batch)
                    count += batch.num_rows
        if waiting:
            yield pa.concat_batches(waiting)


def open_source(opened: DatasetVersion, target: Target, options: ExportOptions) -> Source:
    """Return the rows of a dataset as a target needs them.

    Raises:
        UsageError: the target cannot hold them, or `max_seq_length` is missing or contradicts the dataset.
    """
    layout, stored = LAYOUTS[opened.metadata.layout], StoredRows(opened)
    if target.tokens and not layout.tokens:
        raise UsageError(
            f"{opened.uri} has layout {layout.name!r}: its rows hold no tokens, which format={target.name!r} needs",
            "build it with another layout",
        )
    asked = options.max_seq_length
    if not target.fixed:
        return stored
    if stored.length is None:
        raise UsageError(
            f"{opened.uri} has layout {layout.name!r}, with rows of different lengths", "set max_seq_length"
        )
    if asked not in (None, stored.length):
        raise UsageError(
            f"max_seq_length={asked} differs from the {stored.length} tokens of the blocks in {opened.uri}",
            "leave it out, or build blocks of that size",
        )
    return stored
