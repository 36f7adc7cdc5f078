"""The directions of import that `lance_prep/README.md` states, read off the source."""

from __future__ import annotations

import ast
import io
import re
import resource
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import lance_prep

ROOT = Path(lance_prep.__file__).parent

#: What everything may import; each of these imports only from those before it.
GROUND = (
    "errors",
    "template_limits",
    "bounded_jinja",
    "ledger",
    "keyed",
    "loss_mask",
    "process",
    "arrow_text",
    "transport",
    "hub_session",
    "hub_path",
    "layouts",
    "filter",
    "recipe",
    "model",
)
BUILD = {"fetch", "formats", "plan", "source", "text", "tokenizer", "layout", "store", "engine"}
#: package -> packages of ours that it may import besides `GROUND`, at the top of a module or inside a function
MAY_IMPORT: dict[str, set[str]] = {
    "fetch": set(),
    "formats": {"fetch"},
    "tokenizer": {"fetch"},
    "plan": {"fetch", "formats"},
    "source": {"fetch", "formats", "plan"},
    "text": {"fetch", "source", "tokenizer"},
    "layout": {"source", "text", "tokenizer"},
    "store": set(),
    "engine": BUILD | {"viz"},
    "dataset": {"store"},
    "collection": BUILD - {"fetch", "formats"} | {"dataset"},
    "exchange": {"formats", "plan", "engine", "store", "tokenizer"},
    "spark": {"formats", "plan", "text", "tokenizer", "store", "engine", "hub"},
    "hub": {"fetch", "store"},
    "report": {"store", "dataset", "tokenizer"},
    "viz": {"store", "dataset", "tokenizer", "report"},
    "train": {"store", "hub", "viz"},
    "cli": {"formats", "plan", "tokenizer", "store", "engine", "dataset", "collection", "exchange", "hub", "report"},
}
#: modules that may import more than their package
MORE = {
    "dataset.check_builds": {"text"},
    "dataset.check_source": {"plan", "source", "text", "tokenizer", "layout"},
    "dataset.check_stored": {"layout"},
    "dataset.show": {"tokenizer"},
}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem[0] != "_")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = ["lance_prep", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(tree: ast.AST, *, types: bool = False) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import, in functions too; of those for type checkers only if asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif types or not is_for_types(node):
            yield from imports_of(node, types=types)


#: lazy package -> export -> (module, name there)
EXPORTS = {
    name: {
        alias.asname or alias.name: (node.module or "", alias.name)
        for block in tree.body
        if is_for_types(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, tree in TREES.items()
    if "= lazy_exports(" in SOURCES[name]
}


def home_of(module: str, name: str) -> str:
    """Return the module that an import loads in the end."""
    if f"{module}.{name}" in TREES:
        return f"{module}.{name}"
    return home_of(*EXPORTS[module][name]) if name in EXPORTS.get(module, {}) else module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package, name = package_of(path), name_of(path)
    names = {f"{module}.{name}" for module, name in imports_of(TREES[name], types=True)}
    ours = {name.split(".")[1] for name in names if name.startswith("lance_prep.")} - {package, "__version__"}
    if package in GROUND:
        assert ours <= set(GROUND[: GROUND.index(package)])
    else:
        assert ours - set(GROUND) <= MAY_IMPORT[package] | MORE.get(name.removeprefix("lance_prep."), set())
    if package != "train":
        assert not any(name.split(".")[0] == "torch" for name in names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_other_packages_are_imported_through_their_exports(path: Path) -> None:
    for module, name in imports_of(TREES[name_of(path)], types=True):
        _, *parts = module.split(".")
        if module.startswith("lance_prep.") and parts[0] != package_of(path):
            assert len(parts) == 1, f"import {name or module} from lance_prep.{parts[0]}"
            assert f"{module}.{name}" not in TREES, f"export what you need of {module}.{name} from {module}"


def test_no_module_imports_itself_through_others() -> None:
    edges = {
        name: {home_of(*found) for found in imports_of(tree) if found[0].startswith("lance_prep")}
        for name, tree in TREES.items()
    }
    for start, found in edges.items():
        path = {name: [start] for name in found}  # name -> how it is reached
        waiting = list(found)
        while waiting:
            name = waiting.pop()
            assert name != start, " -> ".join([*path[name], name])
            for other in edges.get(name, set()) - set(path):
                path[other] = [*path[name], name]
                waiting.append(other)


def texts_of(node: ast.AST) -> Iterator[str]:
    """Yield the strings in a piece of code, f-strings whole, without docstrings."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in () if isinstance(node, ast.JoinedStr) else ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts_of(child)


def test_messages_of_the_library_name_fields_not_options() -> None:
    """The command line makes options of them (`cli.common.as_options`). Whole commands may be named."""
    for name, tree in TREES.items():
        for text in texts_of(tree) if not name.startswith("lance_prep.cli") else ():
            rest = re.sub("`[^`]*`|lance-prep .*|^ --.*", "", text)  # commands, and pieces of one
            assert not re.search(r"--[a-z]", rest), f"{name}: {text}"


def test_no_module_is_named_like_another_library() -> None:
    used = {module.split(".")[0] for tree in TREES.values() for module, _ in imports_of(tree, types=True)}
    taken = (sys.stdlib_module_names | used) - {"lance_prep", "__main__"}
    assert not [name for name in TREES if name.rpartition(".")[2] in taken]


def test_every_package_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in {package_of(path) for path in modules()}:
        assert f"`{package}`" in text, f"lance_prep/README.md does not name {package}"


def test_the_public_names() -> None:
    assert sorted(lance_prep.__all__) == [
        "BuildReport",
        "CollectionReport",
        "DatasetVersion",
        "LancePrepError",
        "Recipe",
        "Verification",
        "Version",
        "build",
        "build_collection",
        "info",
        "load_recipe",
        "push",
        "stream",
        "verify",
        "versions",
    ]
    assert all(getattr(lance_prep, name) for name in lance_prep.__all__)


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_exports_what_it_imports_for_type_checkers(package: str) -> None:
    # In a process of its own, and modules first: importing `dataset.verify` must not hide the function `verify`.
    inside = [name for name in TREES if name.rpartition(".")[0] == package and not name.endswith("__main__")]
    code = f"""
import importlib, types
for name in {inside}:
    importlib.import_module(name)
package = importlib.import_module({package!r})
assert sorted(package.__all__) == {sorted(EXPORTS[package])}, package.__all__
assert not [name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


TRAIN = (
    "layouts",
    "loss_mask",
    "errors",
    "keyed",
    "ledger",
    "arrow_text",
    "transport",
    "hub_session",
    "hub_path",
    "store",
    "train",
)
HEAVY = {
    "click",
    "numpy",
    "pyarrow",
    "lance",
    "torch",
    "pydantic",
    "tokenizers",
    "huggingface_hub",
    "fsspec",
    "sqlglot",
}


@pytest.mark.parametrize(
    ("code", "ours", "heavy"),
    [
        ("import lance_prep", (), set()),
        ("import lance_prep.train", ("train",), set()),
        # A loader's worker process.
        ("from lance_prep.train import TokenLoader", TRAIN, {"torch", "numpy", "pyarrow"}),
        # The helper process of a worker that was forked.
        ("import lance_prep.train.lance_reads", TRAIN, {"numpy", "pyarrow"}),
        ("from lance_prep.cli.main import cli; cli(['--help'], standalone_mode=False)", ("cli",), {"click"}),
    ],
)
def test_an_import_loads_little(code: str, ours: tuple[str, ...], heavy: set[str]) -> None:
    loaded = loaded_by(code)
    assert {name.split(".")[1] for name in loaded if name.startswith("lance_prep.")} <= {"process", *ours}
    assert not any(name.startswith("lance_prep.store.journal") for name in loaded)
    assert loaded & HEAVY <= heavy


@pytest.mark.parametrize("command", ["", "build", "info", "verify"])
def test_help_is_quick(command: str) -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "lance_prep", *command.split(), "--help"], check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # CPU seconds, of which the least of three counts, so that other processes of a busy machine do not.
    assert min(cpu_seconds() for _ in range(3)) < 0.3


def code_lines(text: str, tree: ast.Module) -> int:
    """Count the lines of a module without blank lines, comments, docstrings and imports."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or (is_docstring and isinstance(node.value.value, str)):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for t in tokens if t.type not in layout for line in range(t.start[0], t.end[0] + 1)}
    return len(lines - left_out)


#: What was built around the core: it has a bound of its own.
AROUND = {"collection", "exchange", "cli", "spark", "text", "hub"}
ALL = {package_of(path) for path in modules()}


@pytest.mark.parametrize(
    ("left_out", "most", "most_lines"),
    [(AROUND, 144, 19_000), (AROUND | {"train"}, 118, 14_900), (ALL - AROUND, 86, 12_000)],
)
def test_the_package_does_not_grow(left_out: set[str], most: int, most_lines: int) -> None:
    """Bounds of modules and lines of code: make room elsewhere before adding a module."""
    counted = [path for path in modules() if package_of(path) not in left_out]
    assert sum(path.name != "__init__.py" for path in counted) <= most
    assert sum(code_lines(SOURCES[name_of(path)], TREES[name_of(path)]) for path in counted) <= most_lines
