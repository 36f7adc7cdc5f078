"""The documentation builds without a warning, asks for nothing from the network, and its reference is up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "recipe.md", "api.md"])
def test_the_generated_reference_is_up_to_date(generator: ModuleType, page: str) -> None:
    committed = (DOCS / "reference" / page).read_text(encoding="utf-8")
    assert committed == generator.PAGES[page](), f"{page} is stale; run: python docs/generate.py"


def test_the_site_builds_strictly_and_asks_for_nothing_from_the_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="NOT TESTED: the documentation. mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="NOT TESTED: the documentation. mkdocstrings is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len([*DOCS.rglob("*.md")])
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text())
        assert loaded == [], page.name
    assert "lance_prep.build" in (tmp_path / "site/reference/api.html").read_text()
