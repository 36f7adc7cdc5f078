"""The list of hostile inputs, each in a process of its own: `make torture` runs all, `make test` a few."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lance_prep.cli.main import run
from tests.hostile.case import Case, check, write_common
from tests.hostile.table import PAGE, page
from tests.hostile.themes import THEMES


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two versions, the first with a tag."""
    home = tmp_path_factory.mktemp("torture") / "work"
    write_common(home)
    output = home / "d.lance"
    for seed in ("1", "2"):
        words = ["build", str(home / "s.jsonl"), "--tokenizer", str(home / "t"), "--layout", "documents"]
        assert run([*words, "--keep-columns", "n", "-o", str(output), "--overwrite", "--seed", seed]) == 0
        assert run(["tag", str(output), f"v{seed}"]) == 0
    return output


def _parameters() -> list[object]:
    return [
        pytest.param(case, id=f"{name}: {case.name}", marks=[] if case.quick else pytest.mark.torture)
        for name, theme in THEMES.items()
        for case in theme.cases
    ]


@pytest.mark.parametrize("case", _parameters())
def test_hostile_input(case: Case, tmp_path: Path, dataset: Path) -> None:
    check(case, tmp_path / "home", dataset)
    shutil.rmtree(tmp_path / "home")  # bombs are large


def test_the_list_is_long_enough() -> None:
    names = [(name, case.name) for name, theme in THEMES.items() for case in theme.cases]
    assert len(set(names)) == len(names) >= 200


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.hostile.table`"
