"""Builds in a simulated store: what is built, by which processes, and what must hold whatever happens to them."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from lance_prep.engine import BuildReport, Hooks, RunOptions, Schedule, ShardTask, make_shard
from lance_prep.engine.run import make_job, run_job
from lance_prep.engine.schedule import Running
from lance_prep.engine.shard import BuildJob, Built
from lance_prep.errors import LancePrepError
from lance_prep.formats import Chunk, Format, PartJob, register_format
from lance_prep.formats.base import row_chunks
from lance_prep.ledger import Ledger
from lance_prep.model import PinnedSource, Plan, SourceFile
from lance_prep.plan import restrict
from lance_prep.recipe import Limit, Recipe
from lance_prep.store import Output, Receipt, receipts_of
from lance_prep.transport import Transport
from tests.simulated_store import KINDS, STORE, URI, Broken, Faults, Killed, Manifest, StoreFailed, World

ROWS = 4  # of a shard, in two batches
SIZE = 1 << 20  # of a source file, which is a shard
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


class Numbers(Format):
    """A source whose file `simulated://s/7` has the rows 70, 71, 72, 73."""

    def peek(self, files: Any, recipe: Recipe, transport: Transport) -> pa.Schema:
        return SCHEMA

    def read(self, job: PartJob) -> Iterator[Chunk]:
        yield from row_chunks(batches_of(job.file), job)


def batches_of(file: SourceFile, most: int = ROWS) -> Iterator[pa.RecordBatch]:
    first = int(file.identity) * 10
    for at in range(first, first + min(ROWS, most), 2):
        values = pa.array(range(at, min(at + 2, first + most)), pa.int64())
        yield pa.RecordBatch.from_arrays([values], schema=SCHEMA)


register_format("numbers", Numbers(), (), is_file=False)


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        numbers: of the source's files, each of which is a shard.
        max_rows: limit.
        flags: of `RunOptions`.
    """

    numbers: tuple[int, ...]
    max_rows: int | None = None
    flags: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """What the dataset must hold in the end."""
        return tuple(n * 10 + i for n in self.numbers for i in range(ROWS))[: self.max_rows]

    @property
    def job(self) -> BuildJob:
        return _job(self.numbers, self.max_rows, "others" if 3 in self.numbers else "numbers")


@lru_cache
def _job(numbers: tuple[int, ...], max_rows: int | None, source: str) -> BuildJob:
    recipe = Recipe(source=source, layout="raw", shuffle=False, max_rows=max_rows, shard_size=SIZE)
    files = tuple(SourceFile(f"numbers://{source}/{n}", "numbers", SIZE, str(n)) for n in numbers)
    plan = Plan(recipe, PinnedSource(source), files, (), SCHEMA, SCHEMA)
    plan = restrict(plan, files, Transport(), first_shard=0)
    return make_job(plan, Output(URI), Transport())


@dataclass
class Cluster:
    """Builds shards on simulated executors, as Spark does: tasks are lost, run again, and run twice at once.

    Attributes:
        twice: probability that a task is also run by a second executor.
        real: executors read the source with `make_shard`; else only what they do to the store is real, which is
            five times faster.
    """

    world: World
    at_once: int
    twice: float
    real: bool = False

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        world, arrived = self.world, deque[tuple[ShardTask, Built | BaseException]]()
        running, losses = Running(), 0
        while not schedule.done:
            while len(running) < self.at_once and (job := schedule.next()) is not None:
                running.add([job])
                for _ in range(1 + (world.draw.random() < self.twice)):
                    self._start(*job, arrived)
            world.wait(lambda: bool(arrived))
            task, result = arrived.popleft()
            if not running.awaits(task.shard.index):
                continue
            if isinstance(result, Built):
                schedule.add(running.keep(result))
            elif losses > 3:
                raise result if isinstance(result, Exception) else StoreFailed("executors are lost")
            else:
                losses += 1
                for job in running.lost([task.shard.index]):
                    self._start(*job, arrived)

    def _start(self, task: ShardTask, limit: Limit, arrived: deque[Any]) -> None:
        def work() -> None:
            try:
                arrived.append((task, self._make(task, limit)))
            except (LancePrepError, StoreFailed) as error:
                arrived.append((task, error))
            except Killed as error:
                arrived.append((task, error))
                raise

        self.world.start(f"executor of shard {task.shard.index}", work)

    def _make(self, task: ShardTask, limit: Limit) -> Built:
        if self.real:
            return make_shard(task, limit, Hooks())
        wanted = limit.rows if limit.rows is not None else ROWS
        written = task.output.write(batches_of(task.plan.files[0], wanted), task.schema, layout="raw")
        ledger = Ledger(rows_in=ROWS, rows_used=written.rows, over_limit=ROWS - written.rows)
        receipt = Receipt(
            task.shard.index, limit, written.rows, 0, ledger, written.content_hash, 0, written.fragment, None
        )
        return Built(task.output.journal(task.key).sync(receipt), b"")


@dataclass
class Run:
    """One schedule of some commands, checked all along.

    Attributes:
        allowed: rows that a version may have.
    """

    world: World
    allowed: set[tuple[int, ...]]
    draw: random.Random
    reports: list[tuple[Command, BuildReport]] = field(default_factory=list)

    def __post_init__(self) -> None:
        STORE.world = self.world
        self.world.on_version = self.check

    def check(self, manifest: Manifest) -> None:
        """Check that a version is one whole build."""
        rows = self.world.rows(manifest)
        if rows not in self.allowed:
            raise Broken(f"version {manifest.version} has rows {rows}")

    def check_all(self) -> None:
        there = self.world.versions()
        for manifest in there.values():
            self.check(manifest)
        if list(there) != list(range(1, len(there) + 1)):
            raise Broken(f"versions {list(there)}")
        for command, report in self.reports:
            manifest = there.get(report.version)
            if manifest is None or report.rows != len(self.world.rows(manifest)) or report.rows != len(command.rows):
                raise Broken(f"a command reported {report.rows} rows in version {report.version}")

    def check_journals(self) -> None:
        """Check that the receipts of each version are those of its fragments, as `verify` does."""
        for manifest in self.world.versions().values():
            version = STORE.version(manifest.version)
            names = [name for b in version.builds for r in receipts_of(version.files, b) for name in r.data_files()]
            if names != [file["path"] for fragment in manifest.fragments for file in fragment["files"]]:
                raise Broken(f"version {manifest.version}: its receipts name other data files")

    def engine(self) -> Cluster:
        real = self.draw.random() < 0.01
        return Cluster(self.world, self.draw.randint(1, 3), self.draw.choice((0, 0, 0.5)), real=real)

    def process(self, command: Command, again: int) -> Callable[[], None]:
        """Return what a process does: run a command, and if that fails, run it again up to `again` times."""

        def run() -> None:
            for _ in range(again + 1):
                try:
                    self.command(command)
                    return
                except (LancePrepError, StoreFailed) as error:
                    self.world.note("fails:", type(error).__name__, str(error))

        return run

    def command(self, command: Command) -> BuildReport:
        options = RunOptions(URI, **dict.fromkeys(command.flags, True))
        report = run_job(command.job, self.engine(), options, time.monotonic())
        self.world.note("reports", report.status, f"version {report.version}")
        self.reports.append((command, report))
        return report


@dataclass(frozen=True)
class Scenario:
    """Commands that run at the same time.

    Attributes:
        commands: each in a process of its own.
        before: what was built before, undisturbed.
        refusals: the commands exclude each other, so one may be refused in the end.
        versions: how many there may be in the end, at most.
    """

    commands: tuple[Command, ...]
    before: tuple[Command, ...] = ()
    refusals: bool = False
    versions: int | None = 1

    @property
    def allowed(self) -> set[tuple[int, ...]]:
        return {command.rows for command in (*self.before, *self.commands)}


A, B = Command((1, 2)), Command((3,))
OVER = ("overwrite",)
GROWN = Command((1, 2, 4), flags=("append",))
LIMITED = Command((1, 2, 5), max_rows=6)

SCENARIOS = {
    "once": Scenario((A,)),
    "twice": Scenario((A, A)),
    "limit": Scenario((LIMITED, LIMITED)),
    "overwrite": Scenario((replace(A, flags=OVER), replace(B, flags=OVER)), versions=None),
    "overwrite again": Scenario((replace(B, flags=OVER), replace(A, flags=OVER)), (A,), versions=None),
    "append": Scenario((GROWN, GROWN), (A,), versions=2),
    "append or overwrite": Scenario((GROWN, replace(B, flags=OVER)), (A,), refusals=True, versions=None),
    "either": Scenario((A, B), refusals=True),
}
CALM = Faults(0, 0, KINDS, 0)


@lru_cache
def _begun(before: tuple[Command, ...]) -> World:
    """Return a world in which some commands were run."""
    world = World(0, CALM)
    run = Run(world, {command.rows for command in before}, world.draw)
    for command in before:
        world.start("before", run.process(command, 0))
        world.run()
    assert len(run.reports) == len(before)
    return world


def faults_of(draw: random.Random) -> Faults:
    kills, network, sleep = ("kill before", "kill after"), ("lost reply", "refused"), ("stalled",)
    kinds = draw.choice((KINDS, KINDS, kills, ("late",), network, sleep, (*sleep, "late", *kills)))
    rate, most = draw.choice(((0.0, 0), (0.005, 2), (0.02, 4), (0.06, 6)))
    return Faults(rate, most, kinds, draw.choice((0, 0.5, 0.9, 0.98)))


def run_seed(seed: int, *, scenario: str | None = None, faults: Faults | None = None) -> World:
    """Run the schedule of a seed.

    Raises:
        Broken: a promise was broken; with the story of the schedule.
    """
    draw = random.Random(seed)
    name = scenario or draw.choice(list(SCENARIOS))
    chosen, drawn = SCENARIOS[name], faults_of(draw)
    begun = _begun(chosen.before)
    world = World(seed, faults or drawn, dict(begun.objects), dict(begun.manifests))
    run = Run(world, chosen.allowed, world.draw)
    world.note("scenario", name)
    try:
        _run(run, chosen, draw)
        if world.faults.conditional:
            run.check_journals()
    except Exception as error:
        world.kill_all()
        raise Broken(f"seed {seed}: {type(error).__name__}: {error}\n{world.story()}") from error
    return world


def run_suspended(seed: int, where: str) -> World:
    """Run a build that discards an unfinished one and is suspended after its commit; meanwhile the other is resumed.

    Args:
        where: operation before which it is suspended, as in `Faults.script`.

    Raises:
        Broken: a promise was broken; with the story of the schedule.
    """
    script = (("unfinished commit", 1, "kill before"), (f"discards {where}", 1, "stalled"))
    world = World(seed, replace(CALM, script=script))
    world.one_machine = False
    run = Run(world, {A.rows, B.rows}, world.draw)
    a, b = replace(A, flags=OVER), replace(B, flags=OVER)
    try:
        world.start("unfinished", run.process(b, 0))
        world.run()
        discards = world.start("discards", run.process(a, 0))
        resumes = world.start("resumes", run.process(b, 0))

        def starts() -> bool:
            if discards.dead or (1 in world.versions() and discards.stalled > world.step):
                resumes.waits = None
            return resumes.waits is None

        resumes.waits = starts
        world.run()
        run.check_all()
        run.check_journals()
    except Exception as error:
        world.kill_all()
        raise Broken(f"seed {seed}: {type(error).__name__}: {error}\n{world.story()}") from error
    return world


def _run(run: Run, scenario: Scenario, draw: random.Random) -> None:
    world = run.world
    for number, command in enumerate(scenario.commands):
        for attempt in range(draw.choice((1, 1, 1, 2))):
            process = world.start(f"process {number}.{attempt}", run.process(command, draw.choice((0, 0, 1, 2))))
            process.stalled = draw.choice((0, 0, 0, 30, 100))
    world.run()
    run.check_all()
    if not world.faults.conditional:
        if run.reports:
            raise Broken("a command succeeded in a store that loses commits")
        return
    world.faults = CALM
    if not _succeeds(run, draw.choice(scenario.commands)) and not scenario.refusals:
        raise Broken("the same command does not succeed afterwards")
    if scenario.versions is not None and len(world.versions()) > scenario.versions:
        raise Broken(f"there are versions {list(world.versions())}")
    if scenario.refusals and draw.random() < 0.3 and not _succeeds(run, replace(scenario.commands[0], flags=OVER)):
        raise Broken("it cannot be overwritten")


def _succeeds(run: Run, command: Command) -> bool:
    """Run a command undisturbed, and check what it leaves. Return whether it was not refused."""
    before, world = len(run.reports), run.world
    world.note("now undisturbed:", *map(str, command.numbers), *command.flags)
    world.start("last", run.process(command, 1))
    world.run()
    run.check_all()
    if len(run.reports) == before:
        return False
    latest = max(world.versions().values(), key=lambda manifest: manifest.version)
    if world.rows(latest) != command.rows:
        raise Broken(f"in the end, the dataset has rows {world.rows(latest)}")
    return True
