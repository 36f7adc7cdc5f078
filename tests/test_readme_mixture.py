"""The tutorial "A mixture from the Hub", literally, against the loopback Hub, with a kill in each stage."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, given_to
from tests.documents_hub import seed
from tests.loopback_hub import LoopbackHub
from tests.processes import make_killer


def section() -> tuple[str, str]:
    """Return the tutorial's shell block and its Python block."""
    found = given_to("test_readme_mixture", DOCS / "tutorials/mixture.md")
    assert [language for language, _ in found] == ["sh", "python"]
    return found[0][1], found[1][1]


def commands(block: str) -> list[str]:
    """Split a block into its commands: a heredoc stays with its line."""
    script, rest = re.split(r"\n(?=EOF\n)", block, maxsplit=1)
    return [script + "\nEOF", *rest.removeprefix("EOF\n").splitlines()]


#: Command and the folder that it writes: these are killed on the way.
KILLED = {"download mine.yaml -o raw": "raw", "build raw": "tokens", "export": "exported"}


def run_shell(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def kill_at(change: int, command: str, below: Path, killer: Path, environment: dict[str, str]) -> bool:
    """Run a command that is killed at its Nth change on disk below a folder; False if it made fewer changes."""
    doomed = {**environment, "LD_PRELOAD": str(killer), "KILL_AT": str(change), "KILL_BELOW": f"/{below.name}"}
    words = shlex.split(command, comments=True)
    done = subprocess.run(words, cwd=below.parent, env=doomed, text=True, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), f"{command}\n{done.stderr}"
    return done.returncode != 0


def digest(folder: Path) -> dict[str, str]:
    """Hash the files that a user gets: no times, and no state of ours."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".") and not name.endswith("stats.json") and ".lance" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def follow(folder: Path, hub: LoopbackHub, killer: Path | None) -> tuple[str, dict[str, dict[str, str]]]:
    """Run the section in a folder; with `killer`, kill each stage on the way first. Return its output and files."""
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder.parent / f"{folder.name}-hf"),
    }
    shell, python = section()
    printed = ""
    for command in commands(shell):
        stage = next((start for start in KILLED if command.startswith(f"lance-prep {start}")), None)
        if stage is not None and killer is not None and "--status-only" not in command:
            below = folder / KILLED[stage]
            kills = [kill_at(change, command, below, killer, environment) for change in (3, 9, 17)]
            assert kills.count(True) >= 2, f"{command} was not killed"
        printed += run_shell(command, folder, environment)
    tree = "import ast, sys\ntree = ast.parse(sys.stdin.read())\nscope = {}\nfor node in tree.body:\n"
    tree += "    if isinstance(node, ast.Expr):\n"
    tree += "        assert eval(compile(ast.Expression(node.value), 'tutorial', 'eval'), scope) is not False\n"
    tree += "    else:\n        exec(compile(ast.Module([node], []), 'tutorial', 'exec'), scope)\n"
    done = subprocess.run(
        [sys.executable, "-c", tree], input=python, cwd=folder, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return printed, {name: digest(folder / name) for name in ("raw", "tokens", "exported")}


@pytest.mark.timeout(300)
def test_the_mixture_of_the_tutorial_with_a_kill_in_each_stage(hub: LoopbackHub, tmp_path: Path) -> None:
    seed(hub)
    killer = make_killer(tmp_path)
    printed, whole = follow(tmp_path / "whole", hub, None)
    again, killed = follow(tmp_path / "killed", hub, killer)
    assert killed == whole
    texts = {"math/gsm8k.jsonl", "chat/ultrachat.jsonl", "chat/codealpaca.jsonl", "notes/mine.jsonl"}
    assert texts <= whole["raw"].keys()
    assert "manifest.json" in whole["tokens"]
    assert "gsm8k/shard_0000.parquet" in whole["exported"]
    for text in (printed, again):
        assert re.search(r"math\s+-\s+0\.0%\s+40\.0%", text)  # the status before the download
        assert re.search(r"chat\s+[\d,]+\s+\d+\.\d%\s+60\.0%", text)  # the summary of the build
