"""The packages that `make dist` writes: their contents, and that they work in an empty environment.

`make check-dist` runs these tests. They install from the package index without constraints.txt, once for each
supported Python that they find: on the PATH, or in pyenv's folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lance_prep

pytestmark = pytest.mark.torture

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: The Pythons that the classifiers name.
PYTHONS = [
    found[1]
    for line in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]

TRAIN = """
import torch
from torch.utils.data import DataLoader

from lance_prep.train import LanceDataset, TokenLoader

ds = LanceDataset("blocks.lance")
model = torch.nn.Sequential(torch.nn.Embedding(4096, 16), torch.nn.Linear(16, 4096))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _, batch in zip(range(10), DataLoader(ds, batch_size=8, shuffle=True, num_workers=1)):
    logits = model(batch["input_ids"])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert next(iter(TokenLoader(ds, global_batch_size=8, seed=1)))["input_ids"].shape == (8, 128)
"""


def python_of(version: str) -> str | None:
    """Path of an interpreter of this version, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (sys.executable, f"python{version}", *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        try:
            said = subprocess.check_output([candidate, "--version"], text=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):  # missing, or a shim of pyenv for another version
            continue
        if said.startswith(f"Python {version}."):
            return str(candidate)
    return None


def call(*command: object, cwd: Path) -> str:
    """Run a command as a user's shell would: nothing of this environment reaches it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "VIRTUAL_"))
    }
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


def files_of(*names: str) -> set[str]:
    """Paths of the checkout's files below these names."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *names, cwd=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


def test_the_metadata_is_accepted_by_twine(dist: Path) -> None:
    call(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)


def test_the_wheel_holds_the_package_and_its_licence(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    assert path.name == f"lance_prep-{lance_prep.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    info = f"lance_prep-{lance_prep.__version__}.dist-info"
    assert names - {name for name in names if name.startswith(info)} == files_of("lance_prep") - {
        "lance_prep/README.md"
    }
    assert {"lance_prep/py.typed", f"{info}/licenses/LICENSE"} <= names


def test_the_sdist_holds_what_its_tests_need_and_nothing_else(dist: Path, tmp_path: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    names = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    chosen = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert names - {"PKG-INFO", ".gitignore", "pyproject.toml"} == files_of(*chosen)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only"]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works_in_an_empty_environment(dist: Path, version: str, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} on the PATH or in pyenv's folder")
    call(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_folder, work = tmp_path / "venv" / "bin", tmp_path / "work"
    (wheel,) = dist.glob("*.whl")
    call(bin_folder / "pip", "install", "--quiet", wheel, cwd=tmp_path)
    work.mkdir()
    for arguments in (
        "--help",
        "build sample",
        "build sample --layout blocks --block-size 128 -o blocks.lance",
        "show sample.lance",
        "info sample.lance",
        "verify sample.lance",
        "report sample.lance",
        "doctor",
    ):
        assert call(bin_folder / "lance-prep", *arguments.split(), cwd=work), arguments
    assert (work / "report.html").stat().st_size > 10_000
    says = call(bin_folder / "python", "-c", "import lance_prep; print(lance_prep.__version__)", cwd=work).strip()
    assert says == lance_prep.__version__
    assert call(bin_folder / "lance-prep", "--version", cwd=work).split()[-1] == says
    # The version of torch of which pip finds a small wheel, where there is one.
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert torch is not None
    call(bin_folder / "pip", "install", "--quiet", f"{wheel}[train]", torch[0], cwd=tmp_path)
    call(bin_folder / "python", "-c", TRAIN, cwd=work)
