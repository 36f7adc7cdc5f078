"""The pieces of a source: rows, checked and encoded on several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa

from lance_prep.exchange.base import Encoder, Piece, Source
from lance_prep.exchange.checks import check_rows


def encoded(source: Source, encoder: Encoder, start: int, workers: int) -> Generator[Piece, None, None]:
    """Yield the rows of a source from row `start`, in pieces.

    Raises:
        DamagedDataset: the rows cannot be read, or contradict themselves.
        UsageError: the encoder's files cannot hold an id.
    """
    waiting: deque[Future[Piece]] = deque()
    batches = source.batches(start, encoder.batch_rows, encoder.columns)
    with ThreadPoolExecutor(workers, "lance-prep-export") as pool, closing(batches):
        try:
            for batch in batches:
                waiting.append(pool.submit(_encode, batch, start, source, encoder))
                start += batch.num_rows
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encode(batch: pa.RecordBatch, first: int, source: Source, encoder: Encoder) -> Piece:
    check_rows(batch, first, source, encoder)
    return encoder.encode(batch)


class Waiting:
    """The pieces that are not written yet.

    Attributes:
        more: whether there are any.
    """

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._next = next(pieces, None)

    @property
    def more(self) -> bool:
        return self._next is not None

    def take(self, room: int | None, *, first: bool) -> Piece | None:
        """Return the rows of the next piece that fit in `room` bytes, or None if none does.

        Args:
            room: None for any number of bytes.
            first: the rows are the first of a file. A row that is larger than a file has a file to itself.
        """
        piece = self._next
        assert piece is not None
        fits, rest = (piece, None) if room is None else piece.split(room)
        if fits is None and first:
            fits, rest = piece.first()
        if fits is not None:
            self._next = rest if rest is not None else next(self._pieces, None)
        return fits
