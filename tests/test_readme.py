"""The README's blocks run as printed, in order, in an empty folder, without a Hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import lance

README = Path(__file__).parents[1] / "README.md"

#: Runs blocks as a reader does: one shell command after the other, and one Python session.
SESSION = r"""
import ast, json, subprocess, sys

session = {"__name__": "__main__"}
for number, (language, block) in enumerate(json.loads(sys.stdin.read())):
    print(f"--- block {number}:\n{block}", flush=True)
    if language == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", block], check=True)
        continue
    tree = ast.parse(block)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"block {number}", "exec"), session)
    if last is not None:
        assert eval(compile(ast.Expression(last.value), f"block {number}", "eval"), session) is not False
"""


def blocks() -> list[tuple[str, str]]:
    """Shell and Python blocks, without those that need a Hub or a package that is not installed."""
    found = []
    for comment, language, block in re.findall(
        r"(?:<!-- (.*?) -->\n)?```(\w*)\n(.*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL
    ):
        needs = re.match(r"needs (\w+)$", comment)
        there = needs is not None and find_spec(needs[1]) is not None
        if language in ("sh", "python") and (not comment or there):
            found.append((language, block))
    return found


def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    chosen = blocks()
    assert {language for language, _ in chosen} == {"sh", "python"}
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        input=json.dumps(chosen),
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    # What the text beside the blocks promises.
    metadata = [
        json.loads(lance.dataset(str(tmp_path / f"{name}.lance")).schema.metadata[b"lance_prep"])
        for name in ("from-recipe", "again")
    ]
    assert metadata[0]["content_hash"] == metadata[1]["content_hash"]
    assert [v["version"] for v in lance.dataset(str(tmp_path / "tea.lance")).versions()][:3] == [1, 2, 3]
    assert "\n  Tea\n  Boil the water." in done.stdout
    for rank in (0, 1):
        assert f"{rank} 2 (4, 128)" in done.stdout
