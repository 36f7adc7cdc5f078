"""The directions of import that `lance_prep/README.md` states, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lance_prep

ROOT = Path(lance_prep.__file__).parent

#: package -> packages and modules of ours that it may import, at the top of a module or inside a function
BASE = {"layouts", "errors", "ledger", "keyed", "process", "arrow_text", "transport"}
MAY_IMPORT = {
    "errors": set(),
    "layouts": set(),
    "ledger": set(),
    "keyed": set(),
    "process": {"errors"},
    "transport": {"errors"},
    "arrow_text": set(),
    "filter": {"errors"},
    "recipe": BASE,
    "model": {"recipe"},
    "fetch": BASE | {"recipe", "model"},
    "formats": BASE | {"recipe", "filter", "model", "fetch"},
    "plan": BASE | {"recipe", "filter", "model", "fetch", "formats"},
    "source": BASE | {"recipe", "filter", "model", "fetch", "formats", "plan"},
    "tokenizer": BASE | {"fetch", "recipe"},
    "layout": BASE | {"recipe", "model", "source", "tokenizer"},
    "store": BASE | {"recipe", "model"},
    "engine": BASE | {"recipe", "model", "plan", "source", "tokenizer", "layout", "store"},
    "dataset": BASE | {"recipe", "model", "plan", "source", "tokenizer", "layout", "store"},
    "train": {"layouts", "errors", "process", "keyed", "arrow_text", "transport", "store"},
    "cli": BASE | {"recipe", "model", "plan", "layout", "engine", "dataset", "store"},
}
BUILD_SIDE = set(MAY_IMPORT) - {"train"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem[0] != "_")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = package_of(path)
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("lance_prep.")} - {"__version__"}
    assert ours - {package} <= MAY_IMPORT[package]
    if package in BUILD_SIDE:
        assert not any(name.split(".")[0] == "torch" for name in imports_of(path))


def test_every_package_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in {package_of(path) for path in modules()}:
        assert f"`{package}`" in text, f"lance_prep/README.md does not name {package}"


def test_the_public_names() -> None:
    assert sorted(lance_prep.__all__) == [
        "BuildReport",
        "DatasetVersion",
        "LancePrepError",
        "Recipe",
        "Verification",
        "Version",
        "build",
        "info",
        "load_recipe",
        "stream",
        "verify",
        "versions",
    ]
    assert all(getattr(lance_prep, name) for name in lance_prep.__all__)


LAZY = [path for path in ROOT.rglob("__init__.py") if "lazy_exports(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", LAZY, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_exports_what_it_imports_for_type_checkers(path: Path) -> None:
    package = ".".join(["lance_prep", *path.relative_to(ROOT).parts[:-1]])
    # In a process of its own, and modules first: importing `dataset.verify` must not hide the function `verify`.
    modules = [f"{package}.{other.stem}" for other in path.parent.glob("*.py") if other.stem[0] != "_"]
    code = f"""
import importlib, types, lance_prep.process
package = importlib.import_module({package!r})
for name in {modules!r}:
    importlib.import_module(name)
assert sorted(package.__all__) == sorted(lance_prep.process._type_checking_imports({package!r})), "__all__"
assert not [name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing() -> None:
    heavy = ("pyarrow", "lance", "torch", "numpy", "pydantic")
    code = f"import sys, lance_prep; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
