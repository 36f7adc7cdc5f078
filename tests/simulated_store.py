"""A store, processes and a scheduler that one random number drives: the commit protocol under everything that can go
wrong, in one thread and without waiting.

The code under test is the real one: `engine.run.run_job` with `decide`, `Schedule`, `Journal`, `Output` and
`commit_build`. It reaches its output through `store.stores.Store`, and here that is `SimulatedStore`: objects in a
dict. Each process is a greenlet. Before each operation on the store it hands over to the scheduler, which decides by
the seed who goes next and what happens to the operation:

- the process is killed before the operation, or after it, or while it is under way: it takes effect later;
- the reply is lost: it took effect, and the caller is told that the connection broke;
- the store refuses it for the moment (503);
- of a write of rows, only the first half is read before it fails.

Lance itself is replaced by what it promises: a data file is an object of rows, a version an object that names data
files, put if it is absent. A store may ignore that condition (`conditional=False`), as some do.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import greenlet
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError

from lance_prep.store import DatasetVersion, Files, OutputLock, lease, opened
from lance_prep.store.stores import register_store
from lance_prep.transport import Transport

T = TypeVar("T")
SCHEME = "simulated"
URI = f"{SCHEME}://bucket/x.lance"
_LAST = (1 << 64) - 1


class Killed(BaseException):
    """The process is dead: nothing that it does has an effect any more."""


class StoreFailed(OSError):
    """The store did not answer, after the retries of its client."""


class Broken(AssertionError):
    """A promise of the protocol was broken."""


@dataclass(frozen=True)
class Faults:
    """What may go wrong.

    Attributes:
        rate: share of operations to which something happens.
        most: of them in one schedule.
        kinds: which of `KINDS` happen.
        sticky: probability that the same process goes on after an operation.
        conditional: whether the store honours put-if-absent.
        script: faults that happen in any case: what the operation must match (`PROCESS WHAT PATH`, a regular
            expression), which of those that match, from 1, and what happens to it.
    """

    rate: float
    most: int
    kinds: tuple[str, ...]
    sticky: float
    conditional: bool = True
    script: tuple[tuple[str, int, str], ...] = ()


#: Kinds of faults; "late" is a kill while a write is under way.
KINDS = ("kill before", "kill after", "late", "lost reply", "refused", "stalled")
#: Seconds of a step: a process that is suspended for this many steps loses its lease.
STEP_SECONDS = 0.25
STALL = round(lease.EXPIRE_SECONDS / STEP_SECONDS)


@dataclass
class Process:
    """A simulated process.

    Attributes:
        name: for the trace.
        of: the process that this one is a thread of, which shares its fate.
        number: its id.
        killed: it, or the process that it is a thread of.
        stalled: step before which it does not go on.
    """

    name: str
    run: Callable[[], None]
    of: Process | None = None
    number: int = 0
    killed: bool = False
    stalled: int = 0
    waits: Callable[[], bool] | None = None
    green: Any = None

    @property
    def dead(self) -> bool:
        return self.killed or (self.of is not None and self.of.killed)

    def kill(self) -> None:
        (self.of or self).killed = True

    def is_ready(self, step: int) -> bool:
        """Return whether it can take the next step, if only to end."""
        if self.dead:
            return True
        suspended = self.of is not None and self.of.stalled > step
        return self.stalled <= step and not suspended and (self.waits is None or self.waits())


@dataclass
class Manifest:
    """A version, as Lance keeps it."""

    version: int
    schema: pa.Schema
    fragments: list[dict[str, Any]]
    properties: dict[str, str]
    transaction: str


@dataclass
class World:
    """One schedule: the objects, the processes, and the random numbers that decide."""

    seed: int
    faults: Faults
    objects: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[bytes, Manifest] = field(default_factory=dict)
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    on_version: Callable[[Manifest], None] = lambda manifest: None
    most_steps: int = 20_000

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.step = 0
        self.happened = 0
        self._started = 0
        self._processes: list[Process] = []
        self._current: Process | None = None
        self._late: list[tuple[int, str, Callable[[], object]]] = []
        self.one_machine = self.draw.random() < 0.5
        self._main = greenlet.getcurrent()
        self._matched = Counter[str]()

    # Processes.

    def start(self, name: str, run: Callable[[], None], of: Process | None = None) -> Process:
        """Start a process, or a thread `of` one; it takes its first step when the scheduler chooses it."""
        self._started += 1
        process = Process(name, run, of, self._started)
        process.green = greenlet.greenlet(lambda: self._live(process), parent=self._main)
        self._processes.append(process)
        return process

    def _live(self, process: Process) -> None:
        try:
            process.run()
        except Killed:
            self.note("is dead")
        finally:
            self._processes.remove(process)

    def run(self) -> None:
        """Let processes take steps until all have ended."""
        while self._processes or self._late:
            self.step += 1
            if self.step > self.most_steps:
                raise Broken("the processes do not end")
            self._land()
            ready = [process for process in self._processes if process.is_ready(self.step)]
            if not ready:
                self._skip()
                continue
            if self._current not in ready or self.draw.random() >= self.faults.sticky:
                self._current = self.draw.choice(ready)
            assert self._current is not None
            self._current.green.switch()

    def _skip(self) -> None:
        """Let time pass until something can happen."""
        soon = [process.stalled for process in self._processes if process.stalled > self.step]
        soon += [step for step, _, _ in self._late]
        self.step = max(self.step, min(soon, default=self.step) - 1)

    def kill_all(self) -> None:
        """End all processes, those that only wait too."""
        for process in list(self._processes):
            process.kill()
        while self._processes:
            self._current = self._processes[0]
            self._current.green.switch()

    def wait(self, until: Callable[[], bool]) -> None:
        """Suspend the current process until something is true."""
        process = self._process()
        process.waits = until
        self._main.switch()
        process.waits = None
        if process.dead:
            raise Killed

    def _process(self) -> Process:
        assert self._current is not None
        assert greenlet.getcurrent() is self._current.green
        return self._current

    def pause(self, steps: int, *, of_all: bool = False) -> None:
        """Let the current thread wait, or all of its process, as when the machine sleeps."""
        process = self._process()
        process.stalled = self.step + steps
        if of_all and process.of is not None:
            process.of.stalled = process.stalled
        self._main.switch()
        if process.dead:
            raise Killed

    # Operations.

    def act(self, what: str, path: str, effect: Callable[[], T], *, changes: bool = False) -> T:
        """Do one operation of the current process on the store, or what the seed makes of it."""
        if greenlet.getcurrent() is self._main:
            return effect()  # of the test, which looks at the store
        process = self._process()
        if process.dead:
            raise Killed
        self._main.switch()
        if process.dead:
            raise Killed
        fault = self._scripted(f"{process.name} {what} {path}") or self._fault(changes)
        if fault == "stalled":
            self.note("is stalled")
            self.pause(self.draw.randint(1, 2 * STALL), of_all=True)
            fault = ""
        self.note(what, path, fault)
        if fault == "refused":
            raise StoreFailed(f"{what} {path}: 503 slow down")
        if fault == "late":
            self._late.append((self.step + self.draw.randint(1, 200), f"{what} {path} of {process.name}", effect))
        elif fault != "kill before":
            result = effect()
            if fault == "":
                return result
        if fault == "lost reply":
            raise StoreFailed(f"{what} {path}: connection reset")
        process.kill()
        raise Killed

    def _scripted(self, operation: str) -> str:
        for pattern, number, fault in self.faults.script:
            if re.search(pattern, operation):
                self._matched[pattern] += 1
                if self._matched[pattern] == number:
                    return fault
        return ""

    def _fault(self, changes: bool) -> str:
        if self.happened >= self.faults.most or self.draw.random() >= self.faults.rate:
            return ""
        self.happened += 1
        kind = self.draw.choice(self.faults.kinds)
        if not changes and kind in ("late", "kill after", "lost reply"):
            return "refused" if kind == "lost reply" else "kill before"
        return kind

    def _land(self) -> None:
        """Let operations of dead processes take effect."""
        for item in [item for item in self._late if item[0] <= self.step]:
            self._late.remove(item)
            self.trace.append((self.step, "", "late:", item[1], ""))
            item[2]()

    def note(self, *what: str) -> None:
        """Add a line to the trace."""
        self.trace.append((self.step, self._current.name if self._current else "", *what))

    def story(self) -> str:
        """Return the trace as text."""
        return "\n".join(f"{line[0]:5}  {' '.join(str(part) for part in line[1:] if part)}" for line in self.trace)

    # The store's objects.

    def put(self, path: str, data: bytes) -> None:
        self.objects[path] = data

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Put an object; False if it is there. A store that ignores the condition replaces it."""
        if path in self.objects and self.faults.conditional:
            return False
        self.put(path, data)
        return True

    def names(self, folder: str) -> list[str]:
        prefix = folder.rstrip("/") + "/"
        return sorted(path for path in self.objects if path.startswith(prefix))

    def versions(self) -> dict[int, Manifest]:
        """Return the versions that can be read."""
        names = self.names("_versions")  # the latest comes first
        return {found.version: found for found in (self.manifests[self.objects[name]] for name in reversed(names))}

    def rows(self, manifest: Manifest) -> tuple[int, ...]:
        """Return the rows of a version.

        Raises:
            Broken: a data file is missing.
        """
        rows: list[int] = []
        for fragment in manifest.fragments:
            for file in fragment["files"]:
                data = self.objects.get(f"data/{file['path']}")
                if data is None:
                    raise Broken(f"version {manifest.version}: data/{file['path']} is missing")
                rows += np.frombuffer(data, np.int64).tolist()
        return tuple(rows)

    def publish(self, manifest: Manifest) -> bool:
        """Put a version, if its number is free."""
        data = f"{manifest.transaction} {len(self.manifests)}".encode()
        self.manifests[data] = manifest
        done = self.put_if_absent(f"_versions/{_LAST - manifest.version:020}.manifest", data)
        if done:
            self.on_version(manifest)
        return done

    def name(self) -> str:
        """Return the name of a new data file, as Lance makes them."""
        return f"{self.draw.getrandbits(24):024b}{self.draw.getrandbits(104):026x}"

    def uuid(self) -> str:
        """Return the id of a new transaction."""
        return str(uuid.UUID(int=self.draw.getrandbits(128)))


class SimulatedFiles(Files):
    """The small files of the simulated dataset."""

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self, path: str) -> bytes | None:
        return self._world.act("read", path, lambda: self._world.objects.get(path))

    def write(self, path: str, data: bytes) -> None:
        self._world.act("write", path, lambda: self._world.put(path, data), changes=True)

    def list(self, folder: str) -> list[str]:
        return self._world.act("list", folder, lambda: self._world.names(folder))

    def create(self, path: str, data: bytes) -> bool:
        return self._world.act("create", path, lambda: self._world.put_if_absent(path, data), changes=True)

    def delete(self, path: str) -> None:
        self._world.act("delete", path, lambda: self._world.objects.pop(path, None), changes=True)

    def sync(self, path: str) -> None:
        """Do nothing, as in an object store."""


class Mutex:
    """A lock between the threads of a process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = False

    def __enter__(self) -> None:
        while self._held:
            self._world.wait(lambda: not self._held)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class SimulatedMachine:
    """Time and processes, for a lease."""

    def __init__(self, world: World) -> None:
        self._world = world

    def holder(self) -> lease.Holder:
        world, process = self._world, self._world._process()
        return lease.Holder(str(world.draw.getrandbits(64)), "host", process.number, "now", "", 0.0)

    def is_alive(self, holder: lease.Holder) -> bool | None:
        """Return None, as for a process on another machine, or what is known of one on this machine."""
        if not self._world.one_machine:
            return None
        return any(process.number == holder.pid and not process.dead for process in self._world._processes)

    def now(self) -> float:
        return self._world.step * STEP_SECONDS

    def sleep(self, seconds: float) -> None:
        self._world.pause(round(seconds / STEP_SECONDS))

    def mutex(self) -> Mutex:
        return Mutex(self._world)

    def every(self, seconds: float, do: Callable[[], None]) -> Callable[[], None]:
        world, process = self._world, self._world._process()
        ended: list[str] = []

        def work() -> None:
            while True:
                world.pause(round(seconds / STEP_SECONDS))
                if ended:
                    return
                do()

        thread = world.start(f"lease of {process.name}", work, of=process)

        def end() -> None:
            ended.append("")
            thread.stalled = 0
            world.wait(lambda: thread not in world._processes)

        return end


@dataclass(frozen=True)
class _Metadata:
    fragment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.fragment


@dataclass(frozen=True)
class _Fragment:
    metadata: _Metadata

    def data_files(self) -> list[_File]:
        return [_File(file["path"]) for file in self.metadata.fragment["files"]]


@dataclass(frozen=True)
class _File:
    path: str


class Table:
    """What `lance.dataset` returns, as far as it is used."""

    uri = URI

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.version, self.schema = manifest.version, manifest.schema

    def get_fragments(self) -> list[_Fragment]:
        return [_Fragment(_Metadata(fragment)) for fragment in self._manifest.fragments]


class SimulatedTable(Table):
    """A table that can also list what other versions name."""

    def __init__(self, world: World, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._world = world

    def tracked_files(self) -> Any:
        def find() -> list[str]:
            manifests = self._world.versions().values()
            data = {f"data/{file['path']}" for m in manifests for f in m.fragments for file in f["files"]}
            return sorted({*data, *self._world.names("_versions"), *(m.transaction for m in manifests)})

        return pa.table({"path": self._world.act("list", "tracked", find)}).to_reader()

    def read_transaction(self, version: int) -> Any:
        properties = self._world.versions()[version].properties

        class Found:
            transaction_properties = properties

        return Found()


class SimulatedStore:
    """The store of the scheme `simulated`. `world` is the schedule that is run now."""

    world: World

    def files(self, uri: str, transport: Transport) -> Files:
        assert uri in (URI, URI.rpartition("/")[0]), uri
        return SimulatedFiles(self.world)

    def lock(self, uri: str, transport: Transport, doing: str) -> AbstractContextManager[OutputLock]:
        """Hold the lease of object stores."""
        return lease.lease(SimulatedFiles(self.world), uri, doing, SimulatedMachine(self.world))

    def open(self, uri: str, version: int | str | None, transport: Transport) -> Any | None:
        there = self.world.act("open", f"version {version or 'latest'}", self.world.versions)
        wanted = max(there, default=None) if version is None else int(version)
        return SimulatedTable(self.world, there[wanted]) if wanted in there else None

    def version(self, number: int) -> DatasetVersion:
        """Open a version, for a test."""
        return opened(URI, SimulatedTable(self.world, self.world.versions()[number]), Transport())

    def write(self, uri: str, rows: pa.RecordBatchReader, file_version: str, transport: Transport) -> list[Any]:
        world, name = self.world, self.world.name()
        values = self._read(rows, name)
        data = np.array(values, np.int64).tobytes()
        world.act("write rows", f"data/{name}.lance", lambda: world.put(f"data/{name}.lance", data), changes=True)
        file = {"path": f"{name}.lance", "fields": [0], "column_indices": [0], "file_major_version": 2}
        file |= {"file_minor_version": 1, "file_size_bytes": len(data), "base_id": None}
        fragment = {"id": 0, "files": [file], "deletion_file": None, "row_id_meta": None, "physical_rows": len(values)}
        return [_Metadata(fragment)]

    def _read(self, rows: pa.RecordBatchReader, name: str) -> list[int]:
        """Read the rows, or half of them."""
        world, values = self.world, list[int]()
        process = world._process().name
        half = world._scripted(f"{process} read rows") or (world._fault(True) if world.draw.random() < 0.3 else "")
        for batch in rows:
            values += batch.column(0).to_pylist()
            if half:
                world.note("read rows", f"data/{name}.lance", "fails after its first batch")
                raise StoreFailed("connection reset while rows were sent")
        return values

    def commit(self, uri: str, transaction: Any, transport: Transport, *, retries: int) -> Any:
        """Commit as Lance does: look for newer versions, put the transaction, put the version if it is absent."""
        world, on = self.world, transaction.read_version
        operation = transaction.operation
        fragments = [json.loads(json.dumps(fragment.to_json())) for fragment in operation.fragments]
        name = f"_transactions/{on}-{world.uuid()}.txn"
        while True:
            latest = max(world.act("open", "version latest", world.versions), default=0)
            if latest > on and (on or not retries):
                raise CommitConflictError(f"version {latest} was committed since {on}")
            world.act("write", name, lambda: world.put(name, b""), changes=True)
            new = Manifest(latest + 1, operation.new_schema, fragments, transaction.transaction_properties, name)
            try:
                done = world.act("commit", f"version {new.version}", lambda new=new: world.publish(new), changes=True)
            except StoreFailed:
                if world.draw.random() < 0.5:
                    raise
                done = False  # the client of the store repeats the put, and is told that the object is there
            if done:
                return SimulatedTable(world, new)


STORE = SimulatedStore()
register_store(SCHEME, STORE)
