"""Shards on Spark executors.

A shard is a task of a Spark job. The executor reads, tokenizes and writes it, and sends back its receipt, which the
driver alone writes into the journal. So Spark may run a task twice, as it does after a failure and when it
speculates: only the data file in the receipt that arrived counts, and the commit removes the others.

Receipts arrive through an accumulator, when their task ends. The result of a job would bring them all at its end, and
a driver that is killed before would have to build every shard again.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.engine.report import Silent
from lance_prep.engine.schedule import Engine, Running, Schedule, register_engine
from lance_prep.engine.shard import BuildJob, Built, Encoders, Hooks, ShardTask, make_shard
from lance_prep.engine.spark_context import check_installed, failure, spark_context
from lance_prep.errors import EngineError, Interrupted, LancePrepError, UsageError, translate, translate_output
from lance_prep.recipe import Limit
from lance_prep.store import FOLDER, Receipt, versions_in_use
from lance_prep.transport import held_credentials, hold_credentials

#: Variables that sources and object stores are reached with. Executors get them from the driver, unless they have them.
ENVIRONMENT = (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_XET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
)
#: Jobs at once, each with a thread in the driver, if a limit makes shards wait for each other.
MOST_JOBS = 64
#: Without an executor for this long, the user is told.
WAIT_SECONDS = 20.0
#: Time for Spark to cancel a job.
CANCEL_SECONDS = 5.0
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


@dataclass(frozen=True)
class _Result:
    """What an executor sends back of a shard: what it built, or why it could not."""

    shard: int
    built: Built | None = None
    error: LancePrepError | None = None
    warnings: tuple[str, ...] = ()


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
        self._work = _Work(task, context.accumulator([], Arrivals(self._arrived.put)))
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
            result: _Result = pickle.loads(arrived)
            if self.running.awaits(result.shard):
                return self._take(result)

    def _take(self, result: _Result) -> Receipt:
        for message in result.warnings:
            self._hooks.warn_once(message)
        if result.error is not None:
            raise result.error
        assert result.built is not None
        data = Path(self._output.uri) / "data"
        if self._output.is_local and not all((data / name).is_file() for name in result.built.receipt.data_files()):
            raise EngineError(
                f"the executors write {self._output.uri} where the driver does not see it",
                "use an output on a file system that all machines share, or in an object store",
            )
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


#: Variables of this Python worker that a driver has set, so that its next build may change them.
_applied: set[str] = set()


@dataclass(frozen=True)
class ExecutorSetup:
    """What a shard needs in an executor beside its task. Part of the function that Spark sends there.

    What may be secret (passwords in URLs, tokens) travels in this, which Spark keeps in memory.

    Attributes:
        versions: of the libraries that the driver uses.
        urls: that were given with credentials.
        environment: variables that reach sources and stores.
    """

    versions: Mapping[str, str]
    urls: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def of_driver(cls) -> ExecutorSetup:
        """Return what executors need to work as this process would."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        if "HF_TOKEN" not in environment and (token := _hub_token()):
            environment["HF_TOKEN"] = token
        return cls(versions_in_use(), tuple(held_credentials()), environment)

    def apply(self) -> None:
        """Set up this process, before it imports huggingface_hub, which copies the environment."""
        for name, value in self.environment.items():
            if name not in os.environ or name in _applied:
                os.environ[name] = value
                _applied.add(name)
        for url in self.urls:
            hold_credentials(url)

    def make(self, task: ShardTask, limit: Limit) -> tuple[Built, tuple[str, ...]]:
        """Make a shard in an executor. Return it, and what the user should know.

        Raises:
            LancePrepError: as `build_shard`, also for errors of other libraries that we know.
            EngineError: this machine has other versions, or does not see the output.
        """
        heard = _Heard()
        try:
            self._check(task)
            built = make_shard(task, limit, Hooks(heard, encoders=_encoders(task)))
        except Exception as error:  # raised again, as an error of ours where it is a known one
            shard = f"building shard {task.shard.index}"
            if (ours := translate_output(error, task.uri) or translate(error, shard)) is None:
                raise
            raise ours from error
        return built, tuple(heard.warnings)

    def _check(self, task: ShardTask) -> None:
        host, here = socket.gethostname(), versions_in_use()
        if task.output.is_local and not (Path(task.uri) / FOLDER).is_dir():
            said = f"the executor on {host} does not see {task.uri}"
            raise EngineError(said, "use an output on a file system that all machines share, or in an object store")
        other = [name for name, version in self.versions.items() if here.get(name) != version]
        if other:
            there = ", ".join(f"{name} {here.get(name)} (driver: {self.versions[name]})" for name in other)
            said = f"the executor on {host} has other versions: {there}"
            raise EngineError(said, "install the driver's versions on the executors")


class _Work:
    """Builds shards of one build in an executor. The plans come as items, which Spark writes to a temporary file."""

    def __init__(self, job: BuildJob, arrivals: Any) -> None:
        self._job = (job.spec and replace(job.spec, file=b""), job.origin, job.output, job.key)
        self._arrivals = arrivals
        self._setup = ExecutorSetup.of_driver()

    def __call__(self, items: Iterator[bytes]) -> Iterator[None]:
        self._setup.apply()
        for item in items:
            plan, limit = pickle.loads(item)
            self._arrivals.add([pickle.dumps(self._build(ShardTask(plan, *self._job), limit))])
        return iter(())

    def _build(self, task: ShardTask, limit: Limit) -> _Result:
        try:
            built, warnings = self._setup.make(task, limit)
            return _Result(task.shard.index, built, warnings=warnings)
        except LancePrepError as error:
            return _Result(task.shard.index, error=error)


@dataclass
class _Heard(Silent):
    """Keeps warnings for the driver."""

    warnings: list[str] = field(default_factory=list)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


#: The encoders of this Python worker, which Spark uses for many tasks, one after the other. They take 0.2 s to make and
#: get faster with each shard. Those of the latest tokenizer alone: they take up to 200 MB.
_kept: dict[tuple[object, ...], Encoders] = {}


def _encoders(task: ShardTask) -> Encoders:
    recipe = task.plan.recipe
    sha256 = task.spec.sha256 if task.spec else ""
    key = (sha256, recipe.tokenizer_backend, recipe.add_special_tokens, recipe.special_tokens)
    if key not in _kept:
        _kept.clear()
        _kept[key] = Encoders()
    return _kept[key]


def _hub_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _make(workers: int | None) -> Engine:
    return SparkEngine(workers=workers)


register_engine("spark", _make)
