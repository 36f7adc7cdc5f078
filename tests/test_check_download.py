"""`lance-prep verify` on a folder of text: stats, lines, duplicates and one's own data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_prep.arrow_text import hash_texts
from lance_prep.cli.main import run
from lance_prep.collection import check_download, download, read_download
from lance_prep.collection.duplicates import Place, TextHashes
from tests.loopback_hub import LoopbackHub
from tests.sources import parquet_bytes


@pytest.fixture
def raw(hub: LoopbackHub, tmp_path: Path) -> Path:
    """A download of two sources, without duplicates."""
    hub.add_dataset("owner/web", {"train.parquet": parquet_bytes({"text": [f"page {i}\n" for i in range(300)]})})
    hub.add_dataset("owner/qa", {"train.parquet": parquet_bytes({"text": [f"answer {i}" for i in range(200)]})})
    web, questions = ({"share": 1, "sources": {name: {"source": f"owner/{name}"}}} for name in ("web", "qa"))
    recipe = {"name": "mine", "categories": {"pages": web, "questions": questions}}
    assert not download(recipe, tmp_path / "raw").failed
    return tmp_path / "raw"


def append(path: Path, *lines: bytes | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for line in lines:
            file.write(json.dumps(line).encode() + b"\n" if isinstance(line, dict) else line)


def test_a_download_is_whole(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(raw), "--head", "2"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "whole: 2 files, 500 rows"
    assert "pages/web.jsonl, line 2: page 1\n" in said
    assert "line 3" not in said
    assert "repeat" not in said.replace("repeated", "")
    assert run(["verify", str(raw), "--head", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["head"]["questions/qa.jsonl"][0]["id"] == "qa-0"
    assert [(each["path"], each["rows"], each["characters"]) for each in found["files"]] == [
        ("pages/web.jsonl", 300, sum(len(f"page {i}\n") for i in range(300))),
        ("questions/qa.jsonl", 200, sum(len(f"answer {i}") for i in range(200))),
    ]


def test_a_flipped_byte_a_cut_file_and_a_missing_one(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web, qa = raw / "pages" / "web.jsonl", raw / "questions" / "qa.jsonl"
    whole = web.read_bytes()
    web.write_bytes(whole.replace(b"page 7", b"page 8", 1))
    qa.write_bytes(qa.read_bytes()[:-30])
    assert run(["verify", str(raw)]) == 1
    said = capsys.readouterr().out
    assert "wrong: pages/web.jsonl: its sha256 is" in said
    assert "wrong: questions/qa.jsonl, line 200: invalid JSON" in said
    assert re.search(r"wrong: questions/qa.jsonl: [0-9,]+ bytes; as downloaded, it had [0-9,]+\n", said)
    web.unlink()
    (raw / "questions" / "qa.stats.json").write_text("{}")
    assert run(["verify", str(raw)]) == 1
    said = capsys.readouterr().out
    assert "wrong: pages/web.jsonl is missing; its stats are there" in said
    assert "qa.stats.json is invalid: missing field" in said
    web.write_bytes(whole)
    assert "whole" not in said


def test_bad_lines_of_own_data_are_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = raw / "notes" / "deep" / "mine.jsonl"
    append(own, b"\xef\xbb\xbf", {"text": "good"}, b"\n", {"body": "no text"}, b"not json\n", {"text": 5}, b"[1]\n")
    append(own, {"text": None}, b'{"text": "\xff"}\n', {"text": " "}, {"text": "page 3\n"})
    (raw / "link.jsonl").symlink_to(own)
    assert run(["verify", str(raw)]) == 1
    said = capsys.readouterr().out
    for line, reason in (
        (3, "no `text`"),
        (4, "invalid JSON"),
        (5, "`text` is not a string"),
        (6, "not a JSON object"),
    ):
        assert f"wrong: notes/deep/mine.jsonl, line {line}: {reason}\n" in said
    assert "notes/deep/mine.jsonl: 2 of its rows have no text" in said
    assert "link.jsonl is left out: a link" in said
    assert "pages/web.jsonl, line 4 repeats notes/deep/mine.jsonl, line 10: 'page 3\\n'" in said
    assert said.splitlines()[-1] == "5 problems: 3 files, 509 rows"
    found = {(each.category, each.name, each.stats is None) for each in read_download(raw).sources}
    assert found == {("pages", "web", False), ("questions", "qa", False), ("notes", "notes-deep-mine", True)}


def test_a_file_without_any_text_is_reported_line_by_line_up_to_a_point(tmp_path: Path) -> None:
    append(tmp_path / "own" / "a.jsonl", *({"body": f"row {i}"} for i in range(5000)))
    append(tmp_path / "own" / "b.jsonl")
    found = check_download(tmp_path)
    assert found.problems[0] == "own/a.jsonl, line 1: no `text`"
    assert found.problems[-1] == "own/a.jsonl: 5,000 bad lines; the first 10 are named (no `text`: 5,000)"
    assert len(found.problems) == 11
    assert [(each.rows, each.bad) for each in found.files] == [(5000, 5000), (0, 0)]


def test_an_interrupted_download_is_noted(raw: Path) -> None:
    (raw / "pages" / "web.jsonl").unlink()
    (raw / "pages" / "web.stats.json").unlink()
    (raw / "pages" / "web.jsonl.part").write_bytes(b"{")
    found = check_download(raw)
    assert found.ok
    assert found.notes == ["pages/web of the recipe is not downloaded; run `lance-prep download` to fetch it"]


def test_wrong_use(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(raw), "--against-source"]) == 2
    assert "--against-source has no effect" in capsys.readouterr().err
    (raw / "empty").mkdir()
    assert run(["verify", str(raw / "empty"), "--head", "2"]) == 2
    assert "is not a folder of text" in capsys.readouterr().err


@given(
    files=st.lists(st.lists(st.sampled_from(["", "a", "b", "ab", "é", None]), max_size=30), max_size=5),
    sorted_rows=st.integers(1, 8),
)
def test_duplicates_are_those_of_a_dictionary(files: list[list[str | None]], sorted_rows: int) -> None:
    hashes, first, pairs, examples = TextHashes(), dict[str, Place](), dict[tuple[int, int], int](), []
    for number, texts in enumerate(files):
        hashes.begin_file()
        kept = [row for row, text in enumerate(texts) if text is not None]
        array = pa.array([texts[row] for row in kept], pa.large_string())
        hashes.add(len(texts), [np.array(kept, np.uint64)], [hash_texts(array)])
        for row in kept:
            before = first.setdefault(str(texts[row]), Place(number, row))
            if before != Place(number, row):
                pairs[before.file, number] = pairs.get((before.file, number), 0) + 1
                examples.append((before, Place(number, row)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lance_prep.collection.duplicates.SORTED_ROWS", sorted_rows)
        found = hashes.duplicates(3)
    assert found.pairs == pairs
    assert found.examples == examples[:3]
