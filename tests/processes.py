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

import lance

from lance_prep.dataset import open_version, verify
from lance_prep.store.version import LOADER_FILE

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


def leftovers(uri: str | Path) -> list[str]:
    """Return the files of a local dataset that belong to no version: data, transactions, sidecar, temporary files."""
    root = Path(uri)
    dataset = lance.dataset(str(uri))
    named = set(dataset.tracked_files().read_all()["path"].to_pylist())
    needed = set()
    for entry in dataset.versions():
        version = open_version(uri, entry["version"])
        needed |= {build.key for build in version.builds} | {f"{build.sources}.zst" for build in version.builds}
        needed.add(f"{version.metadata.builds}.zst")
        if version.metadata.tokenizer is not None:
            needed.add(f"{version.metadata.tokenizer.sha256}.json")
    found = set()
    for path in root.rglob("*"):
        name, parts = path.relative_to(root).as_posix(), path.relative_to(root).parts
        if path.is_dir() or name == LOADER_FILE:
            continue
        temporary = ".tmp" in path.name or path.name.endswith(".part") or "#" in path.name
        unnamed = parts[0] in ("data", "_transactions") and name not in named
        sidecar = parts[0] == ".lance_prep" and parts[1] in ("builds", "lists", "tokenizers")
        if temporary or unnamed or (sidecar and parts[2] not in needed):
            found.add(name)
    return sorted(found)


def check_whole(uri: str | Path) -> None:
    """`verify` finds nothing wrong, and nothing is left over."""
    problems = verify(str(uri)).problems
    assert problems == [], problems
    assert leftovers(uri) == [], leftovers(uri)
