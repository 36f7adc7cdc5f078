"""One process builds into an output at a time."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from lance_prep.errors import OutputError, OutputLocked, translate_output, translating
from lance_prep.store.files import is_local
from lance_prep.store.metadata import FOLDER


class OutputLock:
    """A lock that is held. In an object store there is none to hold."""

    def __init__(self, uri: str, file: IO[str] | None = None) -> None:
        self._uri = uri
        self._file = file

    def check(self) -> None:
        """See that it is still the output's: who removes the folder removes the lock with it.

        Raises:
            OutputError: the folder was removed, or replaced by another one.
        """
        if self._file is None:
            return
        held = os.fstat(self._file.fileno())
        try:
            there = _path(self._uri).stat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise OutputError(
                f"{self._uri} was removed while it was being built", "run the same command again: it builds it anew"
            )


@contextmanager
def output_lock(uri: str) -> Iterator[OutputLock]:
    """Hold the output's lock while the block runs.

    On a local disk it is the kernel's (`flock`), which goes with its process however that ends: a dead one's is never
    in the way. In an object store there is none: of two that build at once, the commit lets one win.

    Raises:
        OutputLocked: another process holds it: says which and since when.
        OutputError: what the system or Lance raised while the lock was held.
    """
    with translating(uri, translate_output):
        if is_local(uri):
            with _held(uri) as lock:
                yield lock
        else:
            yield OutputLock(uri)


def _path(uri: str) -> Path:
    return Path(uri) / FOLDER / "lock"


@contextmanager
def _held(uri: str) -> Iterator[OutputLock]:
    import fcntl

    path = _path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputLocked(f"{uri} is being built by {_holder(file)}", "wait for it, or end it") from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}))
        file.flush()
        try:
            yield OutputLock(uri, file)
        finally:
            file.truncate(0)


def _holder(file: IO[str]) -> str:
    """Who wrote itself into the lock's file. It may be about to, and what a killed one wrote may still be there."""
    for _ in range(20):
        file.seek(0)
        try:
            holder = json.loads(file.read())
            if holder["host"] != socket.gethostname() or _lives(holder["pid"]):
                return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError):
            pass
        time.sleep(0.05)
    return "another process"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
