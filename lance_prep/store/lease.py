"""The lock of an output in an object store: a lease that its holder renews.

    NAME.lance/.lance_prep/leases/00000007.json     the holder, and how often it has renewed the lease

A command takes the lock by creating the object with the next number, which the store refuses if it exists. So one of
several commands gets it. The holder writes its object again every 5 seconds. A command that finds another's object
watches it. If it changes, the holder is alive, and the command is refused. If it stays the same for 30 seconds, or its
process ran on this machine and is gone, the command takes the next number. So it does if its process is this one and
has ended the lease, but could not write so. No clocks are compared.

A lease cannot stop a holder that was suspended for 30 seconds and goes on. The commit does: a command that has taken
the lease over removes files only after a commit of its own, and then the other's commit is refused (see
`store.leftovers`). So the lease saves work and says early who builds. What keeps a dataset whole is the commit.

Both need a store that refuses to replace an object. Some ignore the condition, and lose commits without an error (Lance
issue 6595). So each holder tries to create its object a second time, and gives up if that succeeds.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import LancePrepError, OutputError, OutputLocked
from lance_prep.store.lock import OutputLock
from lance_prep.store.metadata import FOLDER
from lance_prep.store.sidecar import UNCONDITIONAL, UNCONDITIONAL_ADVICE, Files

LEASES = f"{FOLDER}/leases"
RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 30.0
_POLL_SECONDS = 0.5
#: Tokens of the leases that this process takes or holds. One that is not here lost its last write: nothing renews it.
_OURS: set[str] = set()


class ConditionalFiles(Files, Protocol):
    """Files of a store with conditional writes."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written."""
        ...


@dataclass(frozen=True)
class Holder:
    """What a lease's object says.

    Attributes:
        token: drawn by the holder, so that it knows its own object.
        host, pid, since: for messages.
        machine, started: with `pid`, name a process of this machine; empty if that cannot be told.
        renewals: counted, so that the object changes.
        state: "held"; "released" after success, "failed" otherwise.
    """

    token: str
    host: str
    pid: int
    since: str
    machine: str
    started: float
    renewals: int = 0
    state: str = "held"

    @classmethod
    def read(cls, data: bytes | None) -> Holder | None:
        """Return what an object says; None if it is missing or damaged."""
        with suppress(ValueError, TypeError):
            return cls(**json.loads(data or b""))
        return None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Machine(Protocol):
    """What a lease asks of the machine and process of its holder: time, a thread, and which processes are alive."""

    def holder(self) -> Holder:
        """Return what names this process, with a new token."""
        ...

    def is_alive(self, holder: Holder) -> bool | None:
        """Return whether a process lives; None if it ran on another machine, or that cannot be told.

        This process knows its leases, so of one that it has ended it says False.
        """
        ...

    def now(self) -> float:
        """Return seconds since some moment."""
        ...

    def sleep(self, seconds: float) -> None: ...

    def mutex(self) -> AbstractContextManager[Any]:
        """Return a lock between this process and what it does `every` few seconds."""
        ...

    def every(self, seconds: float, do: Callable[[], None]) -> Callable[[], None]:
        """Do something again and again in the background. Return a function that ends that, and waits for its end."""
        ...


class ThisMachine:
    """The real one."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    mutex = staticmethod(threading.Lock)

    def holder(self) -> Holder:
        import psutil

        return Holder(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine(),
            started=psutil.Process().create_time(),
        )

    def is_alive(self, holder: Holder) -> bool | None:
        import psutil

        if not holder.machine or holder.machine != _machine():
            return None
        try:
            process = psutil.Process(holder.pid)
            same = abs(process.create_time() - holder.started) < 0.01
            if same and holder.pid == os.getpid():
                return holder.token in _OURS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    def every(self, seconds: float, do: Callable[[], None]) -> Callable[[], None]:
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(seconds):
                do()

        def end() -> None:
            ended.set()
            thread.join()

        thread = threading.Thread(target=work, name="lease", daemon=True)
        thread.start()
        return end


def _machine() -> str:
    """Return what names a running system and its process ids: containers have ids of their own. Empty if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Lease(OutputLock):
    """A lease that is held, and renewed in the background."""

    def __init__(
        self, files: ConditionalFiles, uri: str, number: int, holder: Holder, machine: Machine, *, interrupted: bool
    ) -> None:
        super().__init__(interrupted=interrupted)
        self._files, self._uri, self._number, self._holder = files, uri, number, holder
        self._writing = machine.mutex()
        self._end = machine.every(RENEW_SECONDS, self._renew)

    def check(self) -> None:
        self._write("held")
        if _numbers(self._files)[-1:] != [self._number]:
            raise OutputLocked(
                f"another process has taken over {self._uri}: this one gave no sign of life for "
                f"{EXPIRE_SECONDS:.0f} seconds",
                "wait for the other one, then run the same command again",
            )

    def release(self, state: str) -> None:
        """End the lease. A store that cannot be reached is no error: the lease then expires."""
        self._end()
        with suppress(LancePrepError, OSError, RuntimeError):
            self._write(state)

    def _renew(self) -> None:
        with suppress(LancePrepError, OSError, RuntimeError):  # renewed next time; `check` reports the error
            self._write("held")

    def _write(self, state: str) -> None:
        with self._writing:
            self._holder = replace(self._holder, renewals=self._holder.renewals + 1, state=state)
            self._files.write(_path(self._number), self._holder.to_bytes())


@contextmanager
def lease(files: ConditionalFiles, uri: str, doing: str, machine: Machine | None = None) -> Iterator[Lease]:
    """Hold the lock of an output in an object store while the block runs.

    Args:
        machine: on which it is held; by default, this one.

    Other arguments and errors: see `output_lock`.
    """
    machine = machine or ThisMachine()
    ours, state = machine.holder(), "failed"
    _OURS.add(ours.token)
    try:
        held = _take(files, uri, doing, machine, ours)
        try:
            yield held
            state = "released"
        finally:
            held.release(state)
    finally:
        _OURS.discard(ours.token)


def _take(files: ConditionalFiles, uri: str, doing: str, machine: Machine, ours: Holder) -> Lease:
    while True:
        numbers = _numbers(files)
        latest = numbers[-1] if numbers else 0
        # An object besides the latest is of a holder that went on after it had lost its lease.
        interrupted = (bool(latest) and _wait_for_end(files, latest, uri, doing, machine)) or len(numbers) > 1
        number = latest + 1
        if not files.create(_path(number), ours.to_bytes()):
            found = Holder.read(files.read(_path(number)))
            if found is None or found.token != ours.token:  # else the reply to the first attempt was lost
                continue
        elif files.create(_path(number), ours.to_bytes()):
            files.delete(_path(number))
            raise OutputError(f"{uri}: {UNCONDITIONAL}", UNCONDITIONAL_ADVICE)
        if _numbers(files)[-1:] != [number]:  # others took and removed this number, or the folder was removed
            files.delete(_path(number))
            continue
        for old in numbers:
            files.delete(_path(old))
        return Lease(files, uri, number, ours, machine, interrupted=interrupted)


def _wait_for_end(files: Files, number: int, uri: str, doing: str, machine: Machine) -> bool:
    """Wait until the lease of this number is over. Return whether its command did not end well.

    Raises:
        OutputLocked: its holder is alive.
    """
    first, since = files.read(_path(number)), machine.now()
    if first is None:  # Another process has taken it over since it was listed, and may have been killed.
        return True
    while True:
        data = files.read(_path(number))
        holder = Holder.read(data)
        if holder is not None and holder.state != "held":
            return holder.state != "released"
        alive = machine.is_alive(holder) if holder is not None else None
        if alive or data != first:
            raise OutputLocked(f"{uri} is being {doing} by {holder or 'another process'}", "wait for it, or end it")
        if alive is False or machine.now() - since >= EXPIRE_SECONDS:
            return True
        machine.sleep(_POLL_SECONDS)


def _numbers(files: Files) -> list[int]:
    """Return the numbers of the leases that exist, ascending."""
    stems = [Path(path).stem for path in files.list(LEASES)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _path(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"
