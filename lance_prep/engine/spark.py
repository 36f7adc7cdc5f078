"""Shards on Spark executors.

A shard is a task of a Spark job. The executor reads, tokenizes and writes it, and sends back its receipt, which the
driver alone writes into the journal. So Spark may run a task twice, as it does after a failure and when it
speculates: only the data file in the receipt that arrived counts, and the commit removes the others.

Receipts arrive through an accumulator, when their task ends. The result of a job would bring them all at its end, and
a driver that is killed before would have to build every shard again.
"""

from __future__ import annotations

import pickle
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.engine.executor import Result, Work
from lance_prep.engine.schedule import Engine, Running, Schedule, register_engine
from lance_prep.engine.shard import Built, Hooks, ShardTask
from lance_prep.engine.spark_context import check_installed, failure, spark_context
from lance_prep.errors import EngineError, Interrupted, UsageError
from lance_prep.recipe import Limit
from lance_prep.store import Output, Receipt, hash_bytes, hash_file

#: Jobs at once, each with a thread in the driver, if a limit makes shards wait for each other.
MOST_JOBS = 64
#: Without an executor for this long, the user is told.
WAIT_SECONDS = 20.0
#: Time for Spark to cancel a job.
CANCEL_SECONDS = 5.0
_AGAIN = "run the same command again: it builds the shard again; if it fails again, check the executor's machine"
#: Tasks that end without a receipt, because it was lost on its way to the driver, are run again this often.
ROUNDS = 3


class SparkEngine(Engine):
    """Builds shards on the executors of a Spark cluster, or on threads of a local Spark.

    It uses the Spark session of this process, or starts one, which ends with the process.

    Args:
        master: URL such as `spark://host:7077`, `yarn`, or `local[4]`; by default a local one.
        conf: Spark settings.
        workers: number of shards built at once by a local Spark; by default one for each core.

    Raises:
        EngineError: pyspark or Java is not installed.
        UsageError: `workers` is given with a master, which has its own number.
    """

    def __init__(
        self, master: str | None = None, conf: Mapping[str, str] | None = None, *, workers: int | None = None
    ) -> None:
        if master and workers:
            said = f"workers has no effect with the Spark master {master}"
            raise UsageError(said, f"remove it, and use local[{workers}]; on a cluster, set spark.cores.max={workers}")
        check_installed()
        self._master, self._conf, self._workers = master, dict(conf or {}), workers

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        if schedule.done:
            return
        context = spark_context(self._master, self._conf, self._workers)
        parallel = context.defaultParallelism
        # Under a limit, how much of a shard is needed depends on those before it, so few are built at once.
        at_once = min(MOST_JOBS, parallel) if schedule.tasks[0].plan.recipe.limit.limits else len(schedule.tasks)
        with _Jobs(context, schedule.tasks[0], hooks) as jobs:
            while not schedule.done:
                tasks: list[tuple[ShardTask, Limit]] = []
                while len(jobs.running) + len(tasks) < at_once and (job := schedule.next()) is not None:
                    tasks.append(job)
                if tasks:
                    jobs.submit(tasks)
                schedule.add(jobs.next_receipt())


class Arrivals:
    """Hears what tasks add to an accumulator, in the order in which they end. In an executor it keeps it for Spark.

    Args:
        hear: called in the driver, on a thread of Spark; None in an executor.
    """

    def __init__(self, hear: Callable[[bytes], None] | None = None) -> None:
        self._hear = hear

    def zero(self, value: list[bytes]) -> list[bytes]:
        return []

    def addInPlace(self, there: list[bytes], more: list[bytes]) -> list[bytes]:  # noqa: N802
        if self._hear is None:
            return [*there, *more]
        for item in more:
            self._hear(item)
        return there

    def __reduce__(self) -> tuple[type[Arrivals], tuple[()]]:
        return Arrivals, ()


@dataclass(frozen=True)
class _Ended:
    """A job has ended: the shards it was of, and its error."""

    shards: tuple[int, ...]
    error: Exception | None


class _Jobs:
    """The Spark jobs of one build. Used by one thread."""

    def __init__(self, context: Any, task: ShardTask, hooks: Hooks) -> None:
        self.running = Running()
        self._context, self._hooks, self._output = context, hooks, task.output
        self._group = f"lance-prep-{uuid.uuid4().hex}"
        self._arrived: queue.Queue[bytes | _Ended] = queue.Queue()
        self._work = Work(task, context.accumulator([], Arrivals(self._arrived.put)))
        self._lost = 0
        self._first = True
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Jobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Wait for shards that a limit made unneeded, or after an error cancel what still runs.

        The Python process of a cancelled task ends only when Spark kills it, so its files may appear after this. They
        are leftovers, as those of a killed build. An unneeded shard is under the same limit, so it ends soon.
        """
        if kind is not None:
            self._context.cancelJobGroup(self._group)
        for thread in self._threads:
            thread.join(CANCEL_SECONDS if kind is not None else None)

    def submit(self, tasks: list[tuple[ShardTask, Limit]]) -> None:
        """Run a job with a task for each shard, on a thread of its own."""
        self.running.add(tasks)
        items = [pickle.dumps((task.plan, limit)) for task, limit in tasks]
        shards = tuple(task.shard.index for task, _ in tasks)
        thread = threading.Thread(target=self._run, args=(items, shards), name="spark-job", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _run(self, items: list[bytes], shards: tuple[int, ...]) -> None:
        error: Exception | None = None
        try:
            self._context.setJobGroup(self._group, "lance-prep build", interruptOnCancel=True)
            self._context.parallelize(items, len(items)).foreachPartition(self._work)
        except Exception as caught:  # raised by the thread that waits for receipts
            error = caught
        self._arrived.put(_Ended(shards, error))

    def next_receipt(self) -> Receipt:
        """Wait for a shard to be finished, write its receipt into the journal, and return it.

        Raises:
            LancePrepError: the error of a shard.
            EngineError: the job failed.
        """
        while True:
            if self._hooks.stop.is_set():
                raise Interrupted("stopped", "run the same command again: it continues where it stopped")
            try:
                arrived = self._arrived.get(timeout=WAIT_SECONDS if self._first else 1)
            except queue.Empty:
                self._warn_without_executors()
                continue
            if isinstance(arrived, _Ended):
                self._end(arrived)
                continue
            result = read_result(arrived)
            if self.running.awaits(result.shard):
                return self._take(result)

    def _take(self, result: Result) -> Receipt:
        for message in result.warnings:
            self._hooks.warn_once(message)
        if result.error is not None:
            raise result.error
        assert result.built is not None
        check_built(self._output, result.shard, result.built)
        receipt = self.running.keep(result.built)
        progress, ledger = self._hooks.progress, receipt.ledger
        progress.finished(receipt)  # first, so that a line that the rows complete counts the shard
        progress.advanced(result.shard, ledger.rows_in, ledger.tokens_in, receipt.text_bytes)
        return receipt

    def _end(self, ended: _Ended) -> None:
        if ended.error is not None:
            raise failure(ended.error) from ended.error
        if lost := self.running.lost(ended.shards):
            self._lost += 1
            if self._lost > ROUNDS:
                raise EngineError("receipts of Spark tasks do not reach the driver", "see the log of the driver")
            self.submit(lost)

    def _warn_without_executors(self) -> None:
        if self._first:
            self._first = False
            # The driver counts itself.
            if self._context._jsc.sc().getExecutorMemoryStatus().size() < 2 and not self._context.master.startswith(
                "local"
            ):
                self._hooks.progress.warned(
                    f"no executor has started on {self._context.master} for {WAIT_SECONDS:.0f} s; "
                    "check that the cluster has free cores and memory"
                )


def read_result(arrived: bytes) -> Result:
    """Return what an executor sent.

    Raises:
        EngineError: it is not the result of a shard.
    """
    try:
        result = pickle.loads(arrived)
    except Exception as error:  # damaged pickles raise many kinds
        raise EngineError(f"an executor sent {len(arrived):,} bytes that cannot be read: {error}", _AGAIN) from error
    if not isinstance(result, Result) or (result.built is None) == (result.error is None):
        raise EngineError(f"an executor sent a {type(result).__name__} that is not the result of a shard", _AGAIN)
    return result


def check_built(output: Output, shard: int, built: Built) -> None:
    """Check what an executor says of a shard, before its receipt is written: that of another machine may be wrong.

    In a folder, the files must have the size and the hash of the receipt. Hashing takes 0.2 s per GB. In an object
    store it would fetch all data again, so there only their sizes are compared, right before the commit.

    Raises:
        EngineError: names the shard and the file.
    """
    receipt, said = built.receipt, f"the executor of shard {shard} returned"
    if receipt.shard != shard:
        raise EngineError(f"{said} the receipt of shard {receipt.shard}", _AGAIN)
    try:
        receipt.check()
    except ValueError as error:
        raise EngineError(f"{said} an invalid receipt: {error}", _AGAIN) from error
    if hash_bytes(built.rejected) != receipt.quarantine_hash:
        raise EngineError(f"{said} other rejected rows than its receipt states", _AGAIN)
    if not output.is_local:
        return
    for name, size in receipt.sizes().items():
        path = Path(output.uri) / "data" / name
        if not path.is_file():
            raise EngineError(
                f"{said} {path}, which the driver does not see",
                "use an output on a file system that all machines share, or in an object store",
            )
        if size is not None and (actual := path.stat().st_size) != size:
            raise EngineError(f"{said} {path} of {size:,} bytes, but it has {actual:,}", _AGAIN)
        if (digest := hash_file(path)) != receipt.file_hashes.get(name):
            raise EngineError(f"{said} {path}, but its content is not what was written: its xxh3 is {digest}", _AGAIN)


def _make(workers: int | None) -> Engine:
    return SparkEngine(workers=workers)


register_engine("spark", _make)
