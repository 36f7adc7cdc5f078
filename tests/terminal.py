"""A real terminal for commands that run in this process: stdout and stderr are the two ends of a pseudo-terminal."""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import Any

import pytest

from lance_prep.cli.main import run


def run_in_terminal(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, columns: int = 80, **env: str) -> str:
    """Run a command with both streams on a terminal, and return what it wrote to stdout. It must succeed."""
    return _run(arguments, monkeypatch, columns, env)[0]


def errors_in_terminal(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, columns: int = 80, **env: str) -> str:
    """Do the same, and return what it wrote to stderr, which is its progress."""
    return _run(arguments, monkeypatch, columns, env)[1]


def _run(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, columns: int, env: dict[str, str]) -> tuple[str, str]:
    size = {"COLUMNS": str(columns), "LINES": "1000"}
    out, error = _Terminal(), _Terminal()
    with monkeypatch.context() as patched:
        for name in ("NO_COLOR", "CLICOLOR_FORCE", "ACCESSIBLE", "LC_ALL", "LC_CTYPE"):
            patched.delenv(name, raising=False)
        for name, value in {**size, "TERM": "xterm", "LANG": "C.UTF-8", **env}.items():
            patched.setenv(name, value)
        patched.setattr(sys, "stdout", out.stream)
        patched.setattr(sys, "stderr", error.stream)
        code = run([str(argument) for argument in arguments])
    said, progress = out.close(), error.close()
    assert code == 0, (said, progress)
    return said, progress


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class _Terminal:
    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")
        self._read: list[bytes] = []
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # Linux reports the end of a pseudo-terminal as an error
                return
            if not data:
                return
            self._read.append(data)

    def close(self) -> str:
        self.stream.close()
        self._thread.join()
        os.close(self._ours)
        return b"".join(self._read).decode().replace("\r\n", "\n")
