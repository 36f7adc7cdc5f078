"""`diff`: two versions, two datasets, two collections, in numbers and in drawings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import compare
from tests import tokenizers_made as made
from tests.s3_server import S3
from tests.terminal import run_in_terminal

BLOCKS = "▁▂▃▄▅▆▇█"


def write(path: Path, rows: range, text: str = "row {} of words") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": text.format(i) + " more" * (i % 40), "n": i}) for i in rows))
    return path


@pytest.fixture
def pair(tmp_path: Path, tokenizer: str) -> tuple[Path, Path]:
    """Two datasets of different sources and recipes."""
    for name, rows, fields in (
        ("a", range(300), {"layout": "documents", "dedup": "exact"}),
        ("b", range(200), {"layout": "blocks", "block_size": 32}),
    ):
        source = write(tmp_path / f"{name}.jsonl", rows)
        source.write_text(source.read_text() + '\n{"text": ""}\n{"text": "row 1 of words more", "n": 1}\nnot json')
        lance_prep.build(source, output=tmp_path / f"{name}.lance", tokenizer=tokenizer, **fields)
    return tmp_path / "a.lance", tmp_path / "b.lance"


def output_of(capsys: Any, *arguments: object) -> str:
    assert run(["diff", *map(str, arguments)]) == 0
    return str(capsys.readouterr().out)


def test_two_datasets_side_by_side(pair: tuple[Path, Path], capsys: Any) -> None:
    old, new = pair
    said = output_of(capsys, old, new)
    assert re.search(r"layout +documents +blocks\n", said)
    assert re.search(r"block_size +1024 +32\n", said)
    assert re.search(r"documents +300 +201 +-99  -33\.0%\n", said)
    assert re.search(r"dropped: duplicate +1 +0 +-1", said)
    assert f"+ {new.with_suffix('.jsonl')}\n" in said
    assert f"- {old.with_suffix('.jsonl')}\n" in said
    assert not set(said) & set(BLOCKS)
    found = json.loads(output_of(capsys, old, new, "--json"))
    for side, uri in enumerate((old, new)):
        rows = lance.dataset(str(uri)).to_table()
        assert found["rows"][side] == len(rows)
        lengths = rows["num_tokens"] if uri == old else rows["seq_lengths"].combine_chunks().flatten()
        doubling = np.bincount(np.floor(np.log2(lengths.to_numpy())).astype(int))
        assert {bar["from"]: bar["number"] for bar in found["lengths"][side]["bars"]} == {
            2**power: number for power, number in enumerate(doubling.tolist()) if power >= min(np.flatnonzero(doubling))
        }
        on_disk = sum(file.stat().st_size for file in (uri / "data").iterdir())
        assert found["counts"]["bytes"][side] == on_disk
    assert "lengths" in output_of(capsys, old, new, "--no-lengths", "--json")
    assert "tokens in a" not in output_of(capsys, old, new, "--no-lengths")


def test_versions_are_named_in_each_way(tmp_path: Path, tokenizer: str, capsys: Any) -> None:
    source = write(tmp_path / "a.jsonl", range(50))
    uri = tmp_path / "a.lance"
    for seed in (1, 2, 3):
        lance_prep.build(source, output=uri, tokenizer=tokenizer, layout="documents", seed=seed, overwrite=seed > 1)
    assert run(["tag", str(uri), "gold", "1"]) == 0
    capsys.readouterr()
    for words, versions, seeds in (
        ([], (2, 3), [2, 3]),
        (["1"], (1, 3), [1, 3]),
        (["gold"], (1, 3), [1, 3]),
        (["3", "gold"], (3, 1), [3, 1]),
        ([uri, "--version", "gold", "--other-version", "2"], (1, 2), [1, 2]),
    ):
        found = json.loads(output_of(capsys, uri, *words, "--json"))
        assert (found["old"], found["new"]) == versions
        assert found["recipe"] == {"seed": seeds}
        assert not found["same_content"]
    assert "same rows in the same order" in output_of(capsys, uri, uri)


def test_lengths_are_drawn_on_a_terminal_and_numbers_elsewhere(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = run_in_terminal(["diff", *pair], monkeypatch, 100)
    sparks = re.findall(rf"(?:old|new)  ([{BLOCKS} ]+)\n", drawn)
    assert len(sparks) == 2
    assert "█" in "".join(sparks)
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"ACCESSIBLE": "1"}, {"LC_ALL": "C"}):
        said = run_in_terminal(["diff", *pair], monkeypatch, 100, **plain)
        assert not set(said) & set(BLOCKS), plain
        assert re.search(r"4 to 7 +\d+ +\d+\n", said), plain


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_terminal_has_no_longer_lines(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run_in_terminal(["diff", *pair], monkeypatch, columns)
    # A path is kept in one piece, so that it can be copied.
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= columns


def test_layout_raw_has_no_lengths(tmp_path: Path, capsys: Any) -> None:
    for name, rows in (("a", range(5)), ("b", range(9))):
        lance_prep.build(write(tmp_path / f"{name}.jsonl", rows), output=tmp_path / f"{name}.lance", layout="raw")
    said = output_of(capsys, tmp_path / "a.lance", tmp_path / "b.lance")
    assert re.search(r"rows +5 +9 +\+4", said)
    assert "tokens in" not in said


def test_two_collections(tmp_path: Path, tokenizer: str, capsys: Any) -> None:
    for name, sources in (("a", {"code": 30, "maths": 20}), ("b", {"code": 30, "maths": 25, "tea": 5})):
        for source, rows in sources.items():
            write(tmp_path / name / "raw" / source / f"{source}.jsonl", range(rows), source + " {}")
        arguments = ["build", tmp_path / name / "raw", "-o", tmp_path / name / "out", "--recursive"]
        size = ["--tokenizer", tokenizer, "--block-size", "32" if name == "a" else "64"]
        assert run([*map(str, arguments), *size]) == 0
    capsys.readouterr()
    found = json.loads(output_of(capsys, tmp_path / "a" / "out", tmp_path / "b" / "out", "--json"))
    assert found["counts"]["datasets"] == [2, 3]
    assert found["counts"]["documents"] == [50, 60]
    assert found["recipe"]["block_size"] == [32, 64]
    assert found["datasets"]["tea-tea"][0] is None
    assert found["lengths"][0]["total"] == found["tokens"][0]
    assert "tea-tea" in output_of(capsys, tmp_path / "a" / "out", tmp_path / "b" / "out")
    for words, said in (
        ([tmp_path / "a" / "out"], "is a collection, which has no versions"),
        ([tmp_path / "a" / "out", tmp_path / "a" / "out" / "code-code.lance"], "is a collection, and"),
        ([tmp_path / "a" / "out", tmp_path / "b" / "out", "--version", "1"], "only its datasets have versions"),
    ):
        assert run(["diff", *map(str, words)]) != 0
        assert said in capsys.readouterr().err


def test_an_object_store_is_compared_with_a_folder(tmp_path: Path, by_environment: S3, capsys: Any) -> None:
    source = write(tmp_path / "a.jsonl", range(40))
    file = made.save(tmp_path / "tokenizer", made.byte_level())
    for output, layout in ((tmp_path / "a.lance", "documents"), ("s3://bucket/a.lance", "lines")):
        lance_prep.build(source, output=output, tokenizer=file, layout=layout)
    found = json.loads(output_of(capsys, tmp_path / "a.lance", "s3://bucket/a.lance", "--json"))
    assert found["recipe"]["layout"] == ["documents", "lines"]
    assert found["counts"]["rows"] == [40, 40]


def test_wrong_input_is_one_clear_error(tmp_path: Path, pair: tuple[Path, Path], capsys: Any) -> None:
    old = str(pair[0])
    (tmp_path / "text.txt").write_text("tea")
    for words, said in (
        ([old, "gold"], "has no version or tag 'gold', and there is no dataset at gold"),
        ([old], "has one version only"),
        ([old, "7"], "use version 1"),
        ([old, "1", "2", "3"], "at most three words"),
        ([old, "1", "--other-version", "1"], "are for two datasets"),
        ([str(tmp_path / "text.txt"), old], "there is no dataset at"),
        ([old, old, "--version", "9"], "has no version 9"),
    ):
        assert run(["diff", *words]) in (1, 2)
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("error:") == 1


def test_the_library_compares_without_reading_rows(pair: tuple[Path, Path]) -> None:
    found = compare(*pair, lengths=False)
    assert found.lengths is None
    assert found.ledger["dropped: duplicate"] == (1, 0)
    assert found.ledger["rows in"][0] == 303
