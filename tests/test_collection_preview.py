"""`build COLLECTION --dry-run`: what each source would do, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lance_prep.cli.main import run
from lance_prep.collection import load_collection
from tests.collection_sources import add_source
from tests.loopback_hub import LoopbackHub

NAMES = ["gsm8k", "squad", "starcoder"]


@pytest.fixture
def recipe(hub: LoopbackHub, tmp_path: Path, tokenizer: str) -> str:
    """Three of the sources of `distillation`. One is gated."""
    kept = load_collection("distillation").model_dump(mode="json", exclude_none=True)
    for category in kept["categories"].values():
        category["sources"] = {name: source for name, source in category["sources"].items() if name in NAMES}
    kept["categories"] = {name: category for name, category in kept["categories"].items() if category["sources"]}
    kept["defaults"] = {"tokenizer": tokenizer, "block_size": 64}
    for name in NAMES:
        add_source(hub, name)
    (tmp_path / "c.yaml").write_text(json.dumps(kept))
    return str(tmp_path / "c.yaml")


def dry_run(recipe: str, *more: str, capsys: Any) -> tuple[int, dict[str, str]]:
    """Return the exit code, and what each source would do. Checks that nothing is written."""
    folder = Path(recipe).parent
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    capsys.readouterr()
    code = run(["build", recipe, "-o", str(folder / "out"), "--dry-run", "--json", *more])
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    sources = json.loads(capsys.readouterr().out)["sources"]
    return code, {each["name"]: each["build"]["action"] if each["build"] else "fail" for each in sources}


def test_a_dry_run_says_what_each_source_would_do_and_writes_nothing(
    hub: LoopbackHub, recipe: str, capsys: Any
) -> None:
    assert dry_run(recipe, capsys=capsys) == (1, {"starcoder": "fail", "gsm8k": "build", "squad": "build"})
    assert run(["build", recipe, "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert [line.split()[:6] for line in shown.out.splitlines()[1:5]] == [
        ["source", "category", "would", "files", "shards", "rows"],
        ["starcoder", "code", "fail"],
        ["gsm8k", "math_reasoning", "build", "1", "1", "12"],
        ["squad", "factual_qa", "build", "1", "1", "12"],
    ]
    assert shown.out.startswith("The shares of the categories add up to 55, not 100, and are normalised: ")
    assert "would fail: starcoder: reading hf://datasets/bigcode/starcoderdata" in shown.err
    assert "1 of 3 sources would fail" in shown.err
    hub.repos["datasets/bigcode/starcoderdata"].gated = False
    assert dry_run(recipe, capsys=capsys) == (0, dict.fromkeys(["starcoder", "gsm8k", "squad"], "build"))
    assert run(["build", recipe, "-o", str(Path(recipe).parent / "out")]) == 0
    assert dry_run(recipe, capsys=capsys) == (0, dict.fromkeys(["starcoder", "gsm8k", "squad"], "nothing"))
    add_source(hub, "squad", 20)
    assert dry_run(recipe, capsys=capsys)[1]["squad"] == "overwrite"
    code, would = dry_run(recipe, "--block-size", "32", capsys=capsys)
    assert (code, set(would.values())) == (1, {"refuse"})
    assert run(["build", recipe, "-o", str(Path(recipe).parent / "out"), "--block-size", "32", "--dry-run"]) == 1
    assert "would fail: starcoder, gsm8k, squad: its dataset was built by another recipe" in capsys.readouterr().err
    code, would = dry_run(recipe, "--block-size", "32", "--overwrite", capsys=capsys)
    assert (code, set(would.values())) == (0, {"overwrite"})
