"""Collections downloaded from the loopback Hub: JSON lines by category, with stats, killed and continued."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lance_prep.collection import download, read_download
from lance_prep.collection.json_lines import LineWriter
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
