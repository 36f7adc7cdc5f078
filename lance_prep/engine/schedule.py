"""Which shard comes next, under a limit that shards built at the same time share; and the engines that ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lance_prep.engine.shard import Built, Hooks, ShardTask, keep_shard
from lance_prep.errors import UsageError
from lance_prep.recipe import Limit
from lance_prep.store import Receipt


class Schedule:
    """Hands out tasks until every shard that is needed has a receipt that counts.

    A limit holds for all shards together, in shard order. How much of it is left for a shard is known when all shards
    before it are done. A shard that is built earlier gets the most that could be left, and is built again if that
    proves too much. So the result does not depend on how many shards are built at once.

    Not thread-safe: one thread calls `next` and `add`.

    Args:
        tasks: of all shards, in order.
        receipts: of finished shards, by shard index.
        limit: of all shards together.
    """

    def __init__(self, tasks: Sequence[ShardTask], receipts: dict[int, Receipt], limit: Limit) -> None:
        self.tasks = tasks
        self._first = tasks[0].shard.index if tasks else 0
        self._receipts = {shard - self._first: receipt for shard, receipt in receipts.items()}
        self._prefix = 0  # the shards before it are final
        self._left = limit  # for the shards from there on
        self._next = 0
        self._in_flight: set[int] = set()
        self._settle()

    @property
    def reached(self) -> bool:
        """Whether the limit is reached, so that no further shard would add anything."""
        return self._left.reached

    @property
    def done(self) -> bool:
        """Whether no further shard is needed."""
        return self._prefix >= len(self.tasks) or self.reached

    def next(self) -> tuple[ShardTask, Limit] | None:
        """Return the next task and its limit, for `build_shard`; None if all must wait for receipts."""
        if self.done:
            return None
        if self._prefix not in self._receipts and self._prefix not in self._in_flight:
            return self._hand_out(self._prefix)
        while self._next < len(self.tasks):
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
        """Return the receipts that make the dataset, in order."""
        return [self._receipts[i] for i in range(self._prefix)]

    def _hand_out(self, index: int) -> tuple[ShardTask, Limit]:
        self._in_flight.add(index)
        return self.tasks[index], self._left

    def _settle(self) -> None:
        while not self.done and self._prefix in self._receipts:
            receipt = self._receipts[self._prefix]
            left = self._left.after_all(receipt.rows, receipt.ledger)
            if left.reached and receipt.limit != self._left:
                del self._receipts[self._prefix]
                return
            self._left = left
            self._prefix += 1


class Running:
    """The tasks in work of an engine that may lose a task, run it again, or run it twice at the same time.

    Each task that was handed out gives one receipt: that of the first copy that ends. Not thread-safe.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[ShardTask, Limit]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, tasks: Sequence[tuple[ShardTask, Limit]]) -> None:
        """Wait for the results of these tasks."""
        self._tasks.update({task.shard.index: (task, limit) for task, limit in tasks})

    def awaits(self, shard: int) -> bool:
        """Return whether a result of this shard counts: no other copy of its task has ended before."""
        return shard in self._tasks

    def keep(self, built: Built) -> Receipt:
        """Write the receipt of a shard that is awaited into the journal."""
        task, _ = self._tasks[built.receipt.shard]
        receipt = keep_shard(task, built)
        del self._tasks[receipt.shard]
        return receipt

    def lost(self, shards: Sequence[int]) -> list[tuple[ShardTask, Limit]]:
        """Return those tasks of a job that has ended which gave no result, to be run again."""
        return [self._tasks[shard] for shard in shards if shard in self._tasks]


class Engine(Protocol):
    """Decides where shards are built: threads, processes, a cluster. It calls `build_shard` for each task.

    Tasks can be pickled, receipts too. Hooks cannot: `build_shard` in another process makes its own. Order and place
    do not change a row.
    """

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        """Build what the schedule hands out, and add the receipts to it, until it is done.

        Raises:
            LancePrepError: the first error of a shard, after the shards in work have ended. Finished shards keep their
                receipts, so the next run continues.
        """
        ...


_ENGINES: dict[str, Callable[[int | None], Engine]] = {}


def register_engine(name: str, make: Callable[[int | None], Engine]) -> None:
    """Add an engine, for `build(engine=name)`.

    Args:
        make: takes the number of shards to build at once, or None for the engine's default.
    """
    _ENGINES[name] = make


def make_engine(name: str | Engine, workers: int | None) -> Engine:
    """Return the engine with this name; an engine as it is.

    Raises:
        UsageError: there is no such engine.
    """
    if not isinstance(name, str):
        return name
    if name not in _ENGINES:
        raise UsageError(f"unknown engine {name!r}", f"use one of: {', '.join(sorted(_ENGINES))}")
    return _ENGINES[name](workers)
