"""Builds as processes of their own, and what must hold of their outputs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

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


#: Kills its process at the Nth change below a folder, before the change is made.
KILLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int changes;
static void change(const char *path) {
    const char *at = getenv("KILL_AT"), *below = getenv("KILL_BELOW");
    if (!at || !below || !path || !strstr(path, below) || strstr(path, "/lock")) return;
    if (__sync_add_and_fetch(&changes, 1) == atoi(at)) { kill(getpid(), SIGKILL); pause(); }
}
#define REAL(name) (__typeof__(&name))dlsym(RTLD_NEXT, #name)
int rename(const char *from, const char *to) { change(from); return (REAL(rename))(from, to); }
int unlink(const char *path) { change(path); return (REAL(unlink))(path); }
int mkdir(const char *path, mode_t mode) { change(path); return (REAL(mkdir))(path, mode); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    change(from); return (REAL(linkat))(a, from, b, to, flags);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = (flags & O_CREAT) ? va_arg(list, mode_t) : 0; va_end(list); \
    if (flags & O_CREAT) change(path); \
    return (REAL(name))(path, flags, mode); }
OPEN(open)
OPEN(open64)
"""


def make_killer(folder: Path) -> Path:
    """Compile the library that kills a process at a change on disk."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (folder / "killer.c").write_text(KILLER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "killer.so", folder / "killer.c", "-ldl"], check=True)
    return folder / "killer.so"


def killed_at(killer: Path, below: Path, change: int, *arguments: object) -> bool:
    """Run a command that is killed at the Nth change on disk below a folder; False if it made fewer changes."""
    environment = {"LD_PRELOAD": str(killer), "KILL_AT": str(change), "KILL_BELOW": below.name}
    code, _, err = finish(start(*arguments, environment=environment))
    assert code in (0, -signal.SIGKILL), err
    return code != 0
