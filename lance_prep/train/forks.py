"""Forked processes: new locks for them, and a helper process that reads for them.

Lance does not survive a fork: in a child of a process that had used it, 3 of 25 `take`s hung, even on a dataset that
the child opened itself. torch's DataLoader forks by default on Linux. So such a child starts a fresh interpreter as a
helper, and asks it over a pipe.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from typing import Any

from lance_prep.errors import DatasetError

_after_lance = False

#: Objects with locks, which a thread of the parent may hold when it forks.
_locked: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_after_fork(owner: Any) -> None:
    """Call `owner._after_fork()` in every forked child, so that it can replace its locks."""
    _locked.add(owner)


def forked_with_lance() -> bool:
    """Whether this process was forked from one that had loaded Lance, so that Lance may hang in it."""
    return _after_lance


def _after_fork() -> None:
    global _after_lance
    _after_lance = "lance" in sys.modules
    for owner in list(_locked):
        owner._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Helper:
    """A fresh interpreter that reads for a forked process, and ends with it.

    Args:
        program: Python code that reads `first` and then questions from stdin, and writes answers to stdout.
        first: what the program needs to know before the first question.

    Questions and answers are pickles, each preceded by its length in 8 bytes. The pipes are unbuffered, so a child
    forked in between does not inherit half of a question.

    Attributes:
        asking: whether an answer is awaited. If it still is at the next question, the caller was interrupted, and the
            next answer would be that of the old question.
    """

    asking = False

    def __init__(self, program: str, first: Any) -> None:
        # -P: import no module from the current folder, except as far as this process does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self._send(first)

    def disown(self) -> None:
        """Close this process's copies of the pipes: the helper belongs to the process that this one was forked from."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.returncode = 0  # otherwise Popen warns that it is still running

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        write_pipe(self._process.stdin.fileno(), value)

    def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the answer to a question: the name of a method, and its arguments.

        Raises:
            DatasetError: the helper ended. Also what it raised.
        """
        assert self._process.stdout is not None
        self.asking = True
        try:
            self._send((name, args, kwargs))
            failed, value = read_pipe(self._process.stdout.fileno())
        except (EOFError, BrokenPipeError):
            raise DatasetError(
                f"the process that reads {name} through Lance ended with {self._process.wait()}",
                "use multiprocessing_context='forkserver'",
            ) from None
        self.asking = False
        if failed:
            raise value
        return value


def write_pipe(pipe: int, value: Any) -> None:
    """Write a value, so that `read_pipe` returns it."""
    data = pickle.dumps(value, protocol=5)
    for part in (len(data).to_bytes(8, "little"), data):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe, view) :]


def read_pipe(pipe: int) -> Any:
    """Read a value that `write_pipe` wrote.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    return pickle.loads(_read_bytes(pipe, int.from_bytes(_read_bytes(pipe, 8), "little")))


def _read_bytes(pipe: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(pipe, [view])
        if not count:
            raise EOFError
        view = view[count:]
    return data
