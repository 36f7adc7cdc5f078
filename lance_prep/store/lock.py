"""One process builds into an output at a time: the lock of a folder on a local disk."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from lance_prep.errors import UNSUPPORTED, DatasetError, OutputError, OutputLocked
from lance_prep.store.metadata import FOLDER
from lance_prep.store.sidecar import make_durable, refuse_links


class OutputLock:
    """A lock that is held.

    Attributes:
        interrupted: the command that held the lock before did not end well (it was killed, or failed), so it may have
            left files behind or a commit half noted.
    """

    def __init__(self, *, interrupted: bool = False) -> None:
        self.interrupted = interrupted

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            OutputError: the folder was removed, or replaced by another one.
            OutputLocked: another process has taken the lock over.
        """


class _FileLock(OutputLock):
    def __init__(self, uri: str, file: IO[str], *, interrupted: bool) -> None:
        super().__init__(interrupted=interrupted)
        self._uri = uri
        self._file = file

    def check(self) -> None:
        held = os.fstat(self._file.fileno())
        try:
            there = _path(self._uri).lstat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise OutputError(
                f"{self._uri} was removed while it was being built", "run the same command again: it builds it anew"
            )


def _path(uri: str) -> Path:
    return Path(uri) / FOLDER / "lock"


@contextmanager
def file_lock(uri: str, doing: str) -> Iterator[OutputLock]:
    """Hold the lock of a folder on a local disk while the block runs.

    It is the kernel's (`flock`), which ends with its process however that ends: a dead process never blocks others.
    Arguments and errors: see `output_lock`.
    """
    refuse_links(uri)
    path = _path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as file, _flock(file, uri, doing):
        file.seek(0)
        interrupted = bool(file.read(1))
        # In place, and cut to its length afterwards: on a full disk the text of an interrupted command stays.
        file.seek(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
        file.flush()
        file.truncate()
        make_durable(file.fileno())  # a command after a power cut also learns of this one
        yield _FileLock(uri, file, interrupted=interrupted)
        file.truncate(0)  # only after success: text in the file tells the next command to look for leftovers


def _open(path: Path) -> IO[str]:
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DatasetError(f"{path} is a symbolic link to {str(path.readlink())!r}", "remove the link") from error
        raise


@contextmanager
def _flock(file: IO[str], uri: str, doing: str) -> Iterator[None]:
    """Hold the kernel's lock on a file while the block runs."""
    try:
        import fcntl
    except ImportError as error:
        raise OutputError(UNSUPPORTED[0], UNSUPPORTED[1]) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLocked(f"{uri} is being {doing} by {_holder(file)}", "wait for it, or end it") from None
    owner = os.getpid()
    try:
        yield
    finally:
        # A process that was forked meanwhile, such as a worker of a DataLoader, has the file open too. Closing the file
        # here alone would leave the dataset locked until that process ends.
        if os.getpid() == owner:
            file.flush()
            fcntl.flock(file, fcntl.LOCK_UN)


def _holder(file: IO[str]) -> str:
    """Return the process named in the lock's file. A new holder may not have replaced what a killed one wrote."""
    for _ in range(20):
        file.seek(0)
        try:
            holder = json.loads(file.read())
            if holder["host"] != socket.gethostname() or _lives(holder["pid"]):
                return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError, TypeError):
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
