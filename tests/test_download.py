"""Collections downloaded from the loopback Hub: JSON lines by category, with stats, killed and continued."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.collection import collection_status, download, read_download
from lance_prep.collection.folder import read_stats
from lance_prep.collection.json_lines import LineWriter
from lance_prep.collection.unfinished import State, Unfinished
from lance_prep.errors import UsageError
from lance_prep.store import LocalFiles
from tests.loopback_hub import LoopbackHub
from tests.sources import parquet_bytes


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def seed(hub: LoopbackHub) -> dict[str, Any]:
    """Put three sources in two categories on the Hub; returns the recipe."""
    texts = [f'row {i}: "quoted" \\ and\n{"x" * (i % 50)} é' for i in range(2000)]
    hub.add_dataset("owner/web", {"train.parquet": parquet_bytes({"text": texts})})
    hub.add_dataset("owner/wiki", {"a.jsonl": json_lines([{"body": f"page {i}", "n": i} for i in range(500)])})
    answers = [{"question": f"q{i}", "answer": {"value": f"a{i}"}} for i in range(300)]
    hub.add_dataset("owner/qa", {"train.jsonl": json_lines(answers) + b"not json\n"})
    return {
        "name": "mine",
        "categories": {
            "web": {
                "share": 3,
                "sources": {
                    "pages": {"source": "owner/web"},
                    "wiki": {"source": "owner/wiki", "text_column": "body", "max_rows": 120},
                },
            },
            "questions": {
                "share": 1,
                "sources": {"trivia": {"source": "owner/qa", "template": "{{ question }}\n{{ answer.value }}"}},
            },
        },
    }


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_three_sources_in_two_categories(hub: LoopbackHub, tmp_path: Path) -> None:
    report = download(seed(hub), tmp_path)
    assert [outcome.status for outcome in report.outcomes] == ["downloaded"] * 3
    pages = records(tmp_path / "web" / "pages.jsonl")
    assert len(pages) == 2000
    assert pages[7] == {
        "text": f'row 7: "quoted" \\ and\n{"x" * 7} é',
        "id": "pages-7",
        "source": "pages",
        "category": "web",
        "metadata": {"repo": "owner/web", "commit": hub.repos["datasets/owner/web"].branches["main"], "row": 7},
    }
    assert [record["text"] for record in records(tmp_path / "web" / "wiki.jsonl")] == [f"page {i}" for i in range(120)]
    assert records(tmp_path / "questions" / "trivia.jsonl")[299]["text"] == "q299\na299"
    found = read_download(tmp_path)
    assert [(each.category, each.name) for each in found.sources] == [
        ("questions", "trivia"),
        ("web", "pages"),
        ("web", "wiki"),
    ]
    assert found.recipe is not None
    assert found.recipe.shares() == {"web": 0.75, "questions": 0.25}
    for each in found.sources:
        data = each.path.read_bytes()
        assert each.stats is not None
        assert each.stats.bytes == len(data)
        assert each.stats.sha256 == hashlib.sha256(data).hexdigest()
        assert each.stats.rows == len(data.splitlines()) == each.stats.ledger["rows_used"]
        assert each.stats.characters == sum(len(record["text"]) for record in records(each.path))
    trivia = found.sources[0].stats
    assert trivia is not None
    assert trivia.ledger["reasons"] == {"invalid JSON": 1}
    assert records(tmp_path / "questions" / "trivia.rejected.jsonl")[0]["text"] == "not json"


def test_a_second_download_fetches_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    download(recipe, tmp_path)
    hub.log.clear()
    assert [outcome.status for outcome in download(recipe, tmp_path).outcomes] == ["unchanged"] * 3
    assert hub.log == []


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=20), st.integers(0, 2**50))
def test_lines_are_those_of_json_dumps(texts: list[str], first: int) -> None:
    writer = LineWriter("a\\b", 'c"', {"repo": "o/n"})
    rows = np.arange(first, first + len(texts), dtype=np.uint64)
    array = pa.array(["before", *texts], pa.large_string()).slice(1)
    want = [
        {"text": text, "id": f"a\\b-{row}", "source": "a\\b", "category": 'c"', "metadata": {"repo": "o/n", "row": row}}
        for text, row in zip(texts, rows.tolist(), strict=True)
    ]
    expected = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in want)
    assert b"".join(bytes(piece) for piece in writer.lines(array, rows)) == expected.encode()


def write_recipe(folder: Path, recipe: dict[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return str(folder / "recipe.yaml")


def test_the_table_before_and_after(hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, seed(hub))
    arguments = ["download", recipe, "-o", str(tmp_path / "raw")]
    assert run([*arguments, "--status-only"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\n +wiki +- +120 rows +0.0% +at most [0-9.]+ kB +no\n", said)
    assert re.search(r"\n +pages +- +all 2,000 rows ", said)
    assert "The shares of the categories add up to 4, not 100, and are normalised: web 75.0%, questions 25.0%." in said
    assert "by characters" in said
    assert not (tmp_path / "raw").exists()
    assert run([*arguments, "--dry-run", "--category", "questions"]) == 0
    said = capsys.readouterr().out
    assert "questions/trivia: would download owner/qa at " in said
    assert "web/" not in said
    assert not (tmp_path / "raw").exists()
    assert run([*arguments, "--category", "web"]) == 0
    capsys.readouterr()
    hub.log.clear()
    assert run([*arguments, "--status-only", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["categories"]["questions"] == {"share": 0, "target": 0.25}
    assert status["categories"]["web"] == {"share": 1, "target": 0.75}
    assert [(s["name"], s["status"], s["rows"], s["to_fetch"]) for s in status["sources"][:2]] == [
        ("pages", "complete", 2000, 0),
        ("wiki", "complete", 120, 0),
    ]
    assert {entry["path"].split("owner/")[1][:2] for entry in hub.log} == {"qa"}


def test_a_source_that_fails_does_not_stop_the_others(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = seed(hub)
    hub.add_dataset("owner/gated", {"train.parquet": parquet_bytes({"text": ["x"]})}, gated=True)
    recipe["categories"]["questions"]["sources"] |= {
        "gated": {"source": "owner/gated", "gated": True},
        "gone": {"source": "owner/gone"},
        "wrong": {"source": "owner/qa", "text_column": "body"},
    }
    arguments = ["download", write_recipe(tmp_path, recipe), "-o", str(tmp_path / "raw")]
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert "3 of 6 sources failed" in out
    assert "error: questions/gated: dataset owner/gated is gated" in err
    assert "error: questions/gone: dataset owner/gone: no such repository" in err
    assert "error: questions/wrong: no column 'body' in the source\n" in err
    assert "  try: use one of the source's columns: question (string)" in err
    assert len(records(tmp_path / "raw" / "questions" / "trivia.jsonl")) == 300
    assert run([*arguments, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["sources"]
    failures = {each["source"]: each["error"] for each in told}
    assert {each["source"]: each["status"] for each in told} == {
        **dict.fromkeys(("pages", "wiki", "trivia"), "unchanged"),
        **dict.fromkeys(("gated", "gone", "wrong"), "failed"),
    }
    assert run([*arguments, "--status-only", "--json"]) == 0
    status = {each["name"]: each["error"] for each in json.loads(capsys.readouterr().out)["sources"]}
    assert {name for name, error in status.items() if error} == {"gated", "gone", "wrong"}
    assert status == failures
    assert failures["wrong"]["message"] == "no column 'body' in the source"
    assert failures["wrong"]["advice"].startswith("use one of the source's columns: question (string)")
    # Access that was granted later: the same command fetches what is missing.
    hub.repos["datasets/owner/gated"].gated = False
    assert run([*arguments, "--status-only"]) == 0
    assert run([*arguments, "--category", "web", "--category", "questions"]) == 1
    assert len(records(tmp_path / "raw" / "questions" / "gated.jsonl")) == 1


def test_a_changed_entry_is_downloaded_again_only_if_told(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, raw = seed(hub), tmp_path / "raw"
    arguments = ["-o", str(raw), "--category", "web"]
    assert run(["download", write_recipe(tmp_path, recipe), *arguments]) == 0
    for source in recipe["categories"]["web"]["sources"].values():
        source |= {"license": "MIT", "share": 2.0}  # notes: they decide no text
    wiki = recipe["categories"]["web"]["sources"]["wiki"]
    recipe["categories"]["web"]["sources"]["pages"]["share"] = 1.0
    assert run(["download", write_recipe(tmp_path, recipe), *arguments]) == 0
    wiki["max_rows"] = 300
    capsys.readouterr()
    assert run(["download", write_recipe(tmp_path, recipe), *arguments]) == 1
    said = capsys.readouterr().err
    assert f"error: web/wiki: {raw / 'web/wiki.jsonl'} was downloaded with max_rows 120 (now 300)\n" in said
    assert "  try: use --force to download it again\n" in said
    assert len(records(raw / "web" / "wiki.jsonl")) == 120
    assert run(["download", write_recipe(tmp_path, recipe), *arguments, "--force"]) == 0
    assert len(records(raw / "web" / "wiki.jsonl")) == 300


def test_a_file_that_was_not_downloaded_is_not_replaced(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "pages.jsonl").write_text('{"text": "mine"}\n')
    outcomes = {each.name: each for each in download(recipe, tmp_path).outcomes}
    assert "was not downloaded" in str(outcomes["pages"].error)
    assert (tmp_path / "web" / "pages.jsonl").read_text() == '{"text": "mine"}\n'
    download(recipe, tmp_path, force=True)
    assert len(records(tmp_path / "web" / "pages.jsonl")) == 2000


@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_limits_are_those_of_a_build(hub: LoopbackHub, tmp_path: Path, tokenizer: str, layout: str) -> None:
    recipe = seed(hub)
    recipe["defaults"] = {"tokenizer": tokenizer, "layout": layout}
    recipe["categories"]["web"]["sources"]["pages"]["max_tokens"] = 5000
    outcomes = download(recipe, tmp_path / "raw", categories=["web"]).outcomes
    fields: Any = {"tokenizer": tokenizer, "layout": layout}
    tokens = lance_prep.build("owner/web", output=tmp_path / "a.lance", max_tokens=5000, **fields)
    rows = lance_prep.build(
        "owner/wiki", output=tmp_path / "b.lance", text_column="body", max_source_rows=120, **fields
    )
    assert [outcome.stats and outcome.stats.rows for outcome in outcomes] == [
        tokens.ledger.rows_used,
        rows.ledger.rows_used,
    ]
    assert outcomes[0].stats is not None
    assert outcomes[0].stats.tokens == tokens.ledger.tokens_in - tokens.ledger.tokens_over_limit


def test_a_source_of_which_no_record_fits_fails(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    recipe["categories"]["questions"]["sources"]["trivia"]["template"] = "{{ answer.value.text.strip() }}"
    failed = download(recipe, tmp_path).failed
    assert [outcome.name for outcome in failed] == ["trivia"]
    why = "the template fails: 'str object' has no attribute 'text': 300, invalid JSON: 1"
    said = f"none of 301 records can be used ({why})"
    assert str(failed[0].error) == said
    recipe["categories"]["questions"]["sources"]["trivia"]["template"] = "{{ answer.value }}"
    assert not download(recipe, tmp_path).failed


def test_a_source_that_the_recipe_no_longer_has_is_reported(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, raw = seed(hub), tmp_path / "raw"
    download(recipe, raw)
    sources = recipe["categories"]["web"]["sources"]
    sources["encyclopedia"] = sources.pop("wiki")
    assert run(["download", write_recipe(tmp_path, recipe), "-o", str(raw)]) == 0
    assert "warning: not in mine, and left as they are: web/wiki\n" in capsys.readouterr().err
    assert {each.name for each in read_download(raw).sources} == {"pages", "wiki", "encyclopedia", "trivia"}


def test_a_relative_path_means_the_same_from_any_folder(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "x"}]))
    sources = {"a": {"source": "a.jsonl"}, "b": {"source": ["a.jsonl"]}}
    recipe = write_recipe(tmp_path, {"name": "mine", "categories": {"own": {"share": 1, "sources": sources}}})
    monkeypatch.chdir(tmp_path)
    assert [each.status for each in download(recipe, "raw").outcomes] == ["downloaded"] * 2
    monkeypatch.chdir(tmp_path / "raw")
    assert [each.status for each in download("../recipe.yaml", ".").outcomes] == ["unchanged"] * 2


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--status-only"]])
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file", "file is a file"),
        ("file/below", "file is a file"),
        ("dataset", "is a Lance dataset"),
        ("s3://bucket/raw", "s3://bucket/raw is not a local folder"),
    ],
)
def test_a_folder_that_cannot_be_used(
    hub: LoopbackHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    said: str,
    more: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, seed(hub))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dataset" / "_versions").mkdir(parents=True)
    assert run(["download", recipe, "-o", output, *more]) in (1, 2)
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "file", "dataset"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_may_be_given_as_a_file_uri(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, uri = write_recipe(tmp_path, seed(hub)), f"file://{tmp_path}/raw"
    assert run(["download", recipe, "-o", uri, "--category", "web"]) == 0
    assert len(records(tmp_path / "raw" / "web" / "pages.jsonl")) == 2000
    assert [source.name for source in read_download(uri).sources] == ["pages", "wiki"]
    assert run(["download", recipe, "-o", uri, "--category", "web", "--dry-run"]) == 0
    assert "web/pages: is there: 2,000 rows" in capsys.readouterr().out
    assert run(["verify", uri, "--head", "1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "raw"}
    with pytest.raises(UsageError, match="s3://bucket/raw is not a local folder"):
        read_download("s3://bucket/raw")


def test_force_after_a_kill_before_the_file_got_its_name(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    del recipe["categories"]["questions"]
    download(recipe, tmp_path)
    files, text = LocalFiles(tmp_path), tmp_path / "web" / "pages.jsonl"
    for force in (False, True):
        stats = read_stats(files, "web", "pages")
        assert stats is not None
        Unfinished(files, "web", "pages").save(State(stats.entry, stats=stats))
        text.rename(f"{text}.part")
        (tmp_path / "web" / "pages.stats.json").unlink()
        hub.add_dataset("owner/web", {"train.parquet": parquet_bytes({"text": ["new"]})})
        pages, _ = download(recipe, tmp_path, force=force).outcomes
        assert (pages.status, len(records(text))) == (("downloaded", 1) if force else ("resumed", 2000))
    assert records(text)[0]["text"] == "new"
    assert not list(tmp_path.rglob("*.part"))


def test_the_shares_in_json(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    for name, share in (("pages", 1), ("wiki", 2)):
        recipe["categories"]["web"]["sources"][name]["share"] = share
    download(recipe, tmp_path, categories=["questions"])
    status = collection_status(recipe, tmp_path)
    assert [(each["share"], each["target"]) for each in status.as_json()["sources"]] == [(0, 0.25), (0, 0.5), (1, None)]
    assert not {"share", "target"} & set(status.sources[0].as_json())
