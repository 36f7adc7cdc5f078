"""Which shard comes next, under a row limit that shards built at the same time share."""

from __future__ import annotations

from lance_prep.model import Plan, Shard
from lance_prep.store import Receipt


class Schedule:
    """Hands out shards until every one that is needed has a receipt that counts.

    With `max_rows` the dataset is the first so many rows in shard order. How many of them a shard may give is known
    when all before it are done; one that is built earlier gets the most that it could be, and is built again if
    that proves too many. So the result does not depend on how many are built at once.

    Not thread-safe: one thread hands out and takes in.

    Args:
        receipts: of shards that are done, by shard index.
        max_rows: rows that the shards may give together; None for all.
    """

    def __init__(self, plan: Plan, receipts: dict[int, Receipt], *, max_rows: int | None) -> None:
        self._shards = plan.shards
        self._first = plan.shards[0].index if plan.shards else 0
        self._max_rows = max_rows
        self._receipts = {shard - self._first: receipt for shard, receipt in receipts.items()}
        self._prefix = 0  # shards before it are done for good
        self._taken = 0  # rows of those
        self._next = 0
        self._in_flight: set[int] = set()
        self._settle()

    @property
    def done(self) -> bool:
        """No further shard is needed."""
        return self._prefix >= len(self._shards) or self._left() == 0

    def next(self) -> tuple[Shard, int | None] | None:
        """The next shard and its row limit, or None while there is nothing to hand out."""
        if self.done:
            return None
        if self._prefix not in self._receipts and self._prefix not in self._in_flight:
            return self._hand_out(self._prefix)
        while self._next < len(self._shards):
            index = self._next
            self._next += 1
            if index not in self._receipts and index not in self._in_flight and index >= self._prefix:
                return self._hand_out(index)
        return None

    def add(self, receipt: Receipt) -> None:
        """Take in a finished shard."""
        position = receipt.shard - self._first
        self._in_flight.discard(position)
        self._receipts[position] = receipt
        self._settle()

    def result(self) -> list[Receipt]:
        """The receipts that make the dataset, in order."""
        return [self._receipts[i] for i in range(self._prefix)]

    def _hand_out(self, index: int) -> tuple[Shard, int | None]:
        self._in_flight.add(index)
        return self._shards[index], self._left()

    def _left(self) -> int | None:
        return self._max_rows - self._taken if self._max_rows is not None else None

    def _settle(self) -> None:
        while self._prefix < len(self._shards) and self._prefix in self._receipts:
            left, receipt = self._left(), self._receipts[self._prefix]
            if left == 0:
                return
            if left is not None and receipt.rows >= left and receipt.limit != left:
                del self._receipts[self._prefix]
                return
            self._taken += receipt.rows
            self._prefix += 1
