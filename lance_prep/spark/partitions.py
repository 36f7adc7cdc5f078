"""Runs a function over each partition of a DataFrame, and reports each result as soon as its task ends.

The DataFrame's one job returns the results, so a partition that Spark runs twice counts once. An accumulator also
brings each result to the driver when its task ends, for progress and to cancel the job at the first error. Spark
Connect has no accumulators, so there the driver hears of all partitions at the end.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import pyarrow as pa

from lance_prep.engine import Arrivals, ExecutorSetup, spark_failures
from lance_prep.errors import LancePrepError

Result = TypeVar("Result")
#: Rows of one partition.
Rows = Iterator[pa.RecordBatch]


def run_partitions(
    df: Any, work: Callable[[ExecutorSetup, int, Rows], Result], hear: Callable[[int, Result], None]
) -> dict[int, Result]:
    """Run a function in the executors, once for each partition, and return partition -> result.

    Args:
        df: the DataFrame.
        work: called with the driver's setup, which it has applied, the number of the partition and its rows. What it
            returns travels as a pickle, and so does the function.
        hear: called once for each partition, as soon as it has ended, from one thread at a time.

    Raises:
        LancePrepError: the first one that `work` raised. Spark does not run that task again.
        EngineError: a task failed for another reason, and its retries did too.
    """
    job = _Job(df.sparkSession, hear)
    try:
        with job.tagged(), spark_failures():
            rows = df.mapInArrow(_task(work, job.accumulator), "partition long, result binary").collect()
    except LancePrepError:
        if job.error is not None:  # the one caught only says that the job was cancelled
            raise job.error from None
        raise
    for row in rows:
        job.take(row.result)
    if job.error is not None:
        raise job.error
    return job.results


class _Job(Generic[Result]):
    """What has arrived of the job of one DataFrame. Spark calls `take` on a thread of its own."""

    def __init__(self, session: Any, hear: Callable[[int, Result], None]) -> None:
        self.results: dict[int, Result] = {}
        self.error: LancePrepError | None = None
        self._hear, self._lock = hear, threading.Lock()
        self._context = session.sparkContext if hasattr(session, "_jsparkSession") else None
        self._tag = f"lance-prep-{uuid.uuid4().hex}"
        self.accumulator = self._context and self._context.accumulator([], Arrivals(self.take))

    @contextmanager
    def tagged(self) -> Iterator[None]:
        """Tag the jobs of the block, so that they can be cancelled, and cancel them if it is left by an exception."""
        if self._context is None:
            yield
            return
        self._context.addJobTag(self._tag)
        try:
            yield
        except BaseException:  # Ctrl-C too
            self._context.cancelJobsWithTag(self._tag)
            raise
        finally:
            self._context.removeJobTag(self._tag)

    def take(self, data: bytes) -> None:
        partition, result = pickle.loads(data)
        with self._lock:
            if self.error is not None or partition in self.results:
                return
            if isinstance(result, LancePrepError):
                self.error = result
                if self._context is not None:
                    self._context.cancelJobsWithTag(self._tag)
            else:
                self.results[partition] = result
                self._hear(partition, result)


def _task(work: Callable[[ExecutorSetup, int, Rows], Result], accumulator: Any) -> Callable[[Rows], Rows]:
    setup = ExecutorSetup.of_driver()

    def task(rows: Rows) -> Rows:
        from pyspark import TaskContext

        setup.apply()
        context = TaskContext.get()
        assert context is not None
        partition = context.partitionId()
        try:
            result: Result | LancePrepError = work(setup, partition, rows)
        except LancePrepError as error:
            result = error
        data = pickle.dumps((partition, result))
        if accumulator is not None:
            accumulator.add([data])
        yield pa.RecordBatch.from_pydict({"partition": [partition], "result": [data]})

    return task
