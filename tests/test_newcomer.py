"""A newcomer's path: clone, `make demo`, open the report, run a notebook, build a dataset of their own text, train."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Runs the code of the first notebook, as `Run all` would, and then trains. One process imports torch once.
PROGRAM = """
import json
import sys

session = {"__name__": "__main__"}
with open("notebooks/quickstart.ipynb", encoding="utf-8") as file:
    for cell in json.load(file)["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), session)
assert session["found"].ok

import torch
from torch.utils.data import DataLoader

import lance_prep
from lance_prep.train import LanceDataset

ds = LanceDataset("mine.lance")
model = torch.nn.Sequential(torch.nn.Embedding(4096, 16), torch.nn.Linear(16, 4096))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-1)
losses = []
for _, batch in zip(range(10), DataLoader(ds, batch_size=2, shuffle=True)):
    logits = model(batch["input_ids"])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert len(losses) == 10
assert losses[-1] < losses[0], losses
print(lance_prep.__file__)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this repository, in a folder with a space in its name."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git, and a checkout rather than an unpacked sdist")
    folder = tmp_path / "lance prep"
    call("git", "clone", "--quiet", ROOT, folder, cwd=tmp_path, environment={})
    return folder


def call(*command: object, cwd: Path, environment: Mapping[str, str]) -> str:
    """Run a command that must succeed, and return what it prints."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **environment}, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def walk(clone: Path, python: Path, environment: Mapping[str, str]) -> None:
    """Do what the README says, with the interpreter of the clone's environment."""
    shown = call("make", "demo", cwd=clone, environment=environment)
    assert "content hash" in shown
    assert "row 2:" in shown
    program = clone / ".venv" / "bin" / "lance-prep"
    call(program, "report", "sample.lance", cwd=clone, environment=environment)
    assert "<svg" in (clone / "report.html").read_text(encoding="utf-8")
    texts = [f"Text number {n} of a newcomer, who has {n * n} more." for n in range(200)]
    (clone / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    build = "build mine.jsonl --tokenizer lance-prep:sample --layout blocks --block-size 64 -o mine.lance --json"
    report = json.loads(call(program, *build.split(), cwd=clone, environment=environment))
    assert report["ledger"]["rows_in"] == report["ledger"]["rows_used"] == 200
    environment = {**environment, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    printed = call(python, "-c", PROGRAM, cwd=clone, environment=environment).splitlines()
    assert Path(printed[-1]) == clone / "lance_prep" / "__init__.py"


def test_a_newcomers_path_in_this_environment(clone: Path) -> None:
    """The packages of this environment, and everything else from the clone."""
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    program = folder / "lance-prep"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lance_prep "$@"\n')
    program.chmod(0o755)
    (clone / ".venv" / ".base").touch()  # `make` has nothing to install
    walk(clone, Path(sys.executable), {"PYTHONPATH": str(clone)})


@pytest.mark.torture
def test_a_newcomers_path_with_everything_installed(clone: Path) -> None:
    call("make", "demo", f"PYTHON={sys.executable}", cwd=clone, environment={})
    shutil.rmtree(clone / "sample.lance")
    pip = [clone / ".venv" / "bin" / "pip", "install", "--quiet", "--constraint", "constraints.txt"]
    call(*pip, "--editable", ".[train,notebook]", cwd=clone, environment={})
    walk(clone, clone / ".venv" / "bin" / "python", {})
