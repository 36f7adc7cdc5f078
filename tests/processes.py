"""Builds as processes of their own, and what must hold of their outputs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("lance-prep"))


def start(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `lance-prep ARGUMENTS`."""
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr at the end of a process."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a build with `--json` says of itself. It must have gone well."""
    code, out, err = finish(process)
    assert code == 0, err
    return dict(json.loads(out))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> bool:
    """Poll every half millisecond until it holds; False if the process ends before, or after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if (process is not None and process.poll() is not None) or time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def write_texts(folder: Path, *, files: int, rows: int, seed: int = 0) -> str:
    """Some JSON Lines files of made-up words; returns the folder."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(500)]
    folder.mkdir()
    for number in range(files):
        lines = (json.dumps({"text": " ".join(draw.choices(words, k=40))}) for _ in range(rows))
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return str(folder)
