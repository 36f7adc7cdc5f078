"""The blocks of the README and of the documentation run as printed, in order, in an empty folder for each page."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import pytest

from tests.documents import README, ROOT, RUN, SHOWN, blocks, pages, run_pages
from tests.documents_hub import seed
from tests.loopback_hub import LoopbackHub

#: What takes the blocks of a page that the test below does not run.
OTHER_TESTS = {"test_readme_mixture", "test_readme_spark", "test_s3"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 2 * len(blocks(page)) == sum(line.lstrip().startswith("```") for line in text.splitlines())
    for block in blocks(page):
        if block.mark.startswith("run by "):
            assert block.mark.removeprefix("run by ") in OTHER_TESTS, block.where
        elif not block.mark.startswith("not run: "):
            assert block.language in (*RUN, *SHOWN), f"{block.where}: {block.language!r} blocks need <!-- not run: -->"
        assert block.language != "console" or page.name == "cli.md", f"{block.where}: write commands as sh"


@pytest.mark.timeout(600)
def test_the_pages_run_as_printed(hub: LoopbackHub, tmp_path: Path) -> None:
    seed(hub)
    chosen = {str(page.relative_to(ROOT)): [block for block in blocks(page) if block.runs] for page in pages()}
    printed = run_pages(chosen, tmp_path)
    # What the text beside the blocks promises.
    tea = tmp_path / README.name / "tea.lance"
    assert [version["version"] for version in lance.dataset(str(tea)).versions()] == [1, 2]
    for rank in (0, 1):
        assert f"{rank} 2 (4, 128)" in printed
    hashes = [
        json.loads(lance.dataset(str(path)).schema.metadata[b"lance_prep"])["content_hash"]
        for path in (tmp_path / "docs/how-to/own-data.md").glob("*.lance")
        if path.stem in ("from-recipe", "again")
    ]
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    assert "⟦<think>" in printed  # chat: what is learned
