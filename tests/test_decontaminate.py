"""Benchmark texts in documents: found as a naive search finds them, reported, and dropped only if asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import verify
from lance_prep.errors import OutputExists, UsageError
from lance_prep.text import decontaminate
from lance_prep.text.decontaminate import Benchmark, Item
from lance_prep.text.words import WORD, hash_words, spell_words

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
#: The same words in another case and with other punctuation.
WRITTEN_ANEW = "NATALIA sold clips — to 48 of her “friends” in april; and then she\nsold half as many clips"


def documents(folder: Path, texts: list[str]) -> Path:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "bench.jsonl"
    records = [{"question": "Short?", "answers": ["72"]}, {"question": QUESTION, "answers": ["seventy two"]}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def build(source: Path, tokenizer: str, **fields: Any) -> lance_prep.BuildReport:
    report = lance_prep.build(
        str(source),
        output=source.parent / "o.lance",
        tokenizer=tokenizer,
        layout="documents",
        keep_columns=["n"],
        **fields,
    )
    assert verify(report.uri).problems == []
    return report


def kept(source: Path) -> list[int]:
    return sorted(lance.dataset(str(source.parent / "o.lance")).to_table()["n"].to_pylist())


def test_hits_are_reported_with_item_and_span_and_dropped_if_asked(
    tmp_path: Path, tokenizer: str, benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["Nothing to see.", f"Here is one: {WRITTEN_ANEW}, said he.", QUESTION[:40], "", f"ab {QUESTION} cd"]
    source = documents(tmp_path, texts)
    command = ["build", str(source), "--tokenizer", tokenizer, "-o", str(tmp_path / "o.lance"), "--layout", "documents"]
    assert run([*command, "--keep-columns", "n", "--decontaminate", str(benchmark)]) == 0
    said = capsys.readouterr()
    assert "2 source rows share text with the benchmark" in said.out
    assert str(tmp_path / "o.contaminated.jsonl") in said.out
    assert "3 of 4 texts" in said.err
    assert kept(tmp_path / "x") == [0, 1, 2, 4]
    hits = [json.loads(line) for line in (tmp_path / "o.contaminated.jsonl").read_text().splitlines()]
    assert [(hit["row"], hit["words"], hit["item"]["row"], hit["item"]["column"]) for hit in hits] == [
        (1, 18, 1, "question"),
        (4, 20, 1, "question"),
    ]
    for hit in hits:
        start, stop = hit["span"]
        assert texts[hit["row"]][start:stop] == hit["text"]
        start, stop = hit["item"]["span"]
        assert QUESTION[start:stop].lower().split()[0] == "natalia"
    report = build(source, tokenizer, decontaminate=str(benchmark), decontaminate_drop=True, overwrite=True)
    assert kept(source) == [0, 2]
    assert report.ledger.dropped_for == {"benchmark text": 2}
    assert report.ledger.contaminated == 2
    assert report.contaminated_file == str(tmp_path / "o.contaminated.jsonl")


def test_a_changed_benchmark_is_another_recipe(tmp_path: Path, tokenizer: str, benchmark: Path) -> None:
    source = documents(tmp_path, ["One.", QUESTION])
    build(source, tokenizer, decontaminate=str(benchmark), decontaminate_drop=True)
    assert build(source, tokenizer, decontaminate=str(benchmark), decontaminate_drop=True).status == "unchanged"
    other = "Something else that has thirteen words, so that it can be found, yes indeed."
    benchmark.write_text(json.dumps({"question": other}))
    with pytest.raises(OutputExists, match="was built with decontaminate"):
        build(source, tokenizer, decontaminate=str(benchmark), decontaminate_drop=True)


def test_a_benchmark_of_which_nothing_can_be_found_is_refused(tmp_path: Path, tokenizer: str, benchmark: Path) -> None:
    with pytest.raises(UsageError, match=r"no text of .* has 99 words"):
        build(documents(tmp_path, ["One."]), tokenizer, decontaminate=str(benchmark), decontaminate_ngram=99)


def test_the_words_of_an_item_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that 300 items share is in 100 documents: the items are not split into words again for each of these."""
    shared = "one two three four five"
    items = [f"{shared} item{n}" for n in range(300)]
    searched: list[str] = []

    class Counting:
        findall = staticmethod(WORD.findall)

        @staticmethod
        def finditer(text: str) -> Any:
            searched.append(text)
            return WORD.finditer(text)

    monkeypatch.setattr(decontaminate, "WORD", Counting)
    benchmark = Benchmark([Item(n, "text", item) for n, item in enumerate(items)], 5)
    hits = list(benchmark.hits(pa.array([shared] * 100, pa.large_string()), np.arange(100, dtype=np.uint64)))
    assert len(hits) == 300 * 100
    assert sorted(text for text in searched if text != shared) == sorted(items)


PIECES = ["a", "B", "c,", "é", "İ", "水", "水水", "—", "“x”", "\n", "it's", "K", ""]
Text = st.lists(st.sampled_from(PIECES)).map(" ".join)


def naive_words(text: str) -> list[str]:
    return [spell_words(word)[0] for word in WORD.findall(text)]


@given(st.lists(Text, min_size=1, max_size=6), st.lists(Text, min_size=1, max_size=4), st.integers(1, 4))
def test_the_same_runs_are_found_as_by_a_naive_search(texts: list[str], items: list[str], ngram: int) -> None:
    benchmark = Benchmark([Item(n, "text", item) for n, item in enumerate(items)], ngram)
    found: set[tuple[int, int, int, int]] = set()  # document, item, and the words with which a run begins in each
    for hit in benchmark.hits(pa.array(texts, pa.large_string()), pa.array(range(len(texts))).to_numpy().astype("u8")):
        assert texts[hit.row][hit.start : hit.stop] == hit.text
        document = len(WORD.findall(texts[hit.row][: hit.start]))
        item = len(WORD.findall(hit.item.text[: hit.item_start]))
        found |= {(hit.row, hit.item.row, document + i, item + i) for i in range(hit.words - ngram + 1)}
    expected = set()
    for row, text in enumerate(texts):
        words = naive_words(text)
        for number, item in enumerate(items):
            others = naive_words(item)
            for i in range(len(words) - ngram + 1):
                for j in range(len(others) - ngram + 1):
                    if words[i : i + ngram] == others[j : j + ngram]:
                        expected.add((row, number, i, j))
    assert found == expected


@given(st.lists(st.one_of(st.text(max_size=30), Text), max_size=8))
def test_words_are_those_that_the_regular_expression_finds(texts: list[str]) -> None:
    words = hash_words(pa.array(texts, pa.large_string()))
    assert words.offsets.tolist()[0] == 0
    counts = [len(WORD.findall(text)) for text in texts]
    assert [int(stop - start) for start, stop in zip(words.offsets, words.offsets[1:], strict=False)] == counts
    spelled = [word for text in texts for word in naive_words(text)]
    assert len(set(zip(spelled, words.hashes.tolist(), strict=True))) == len(set(spelled))
    assert len(set(words.hashes.tolist())) == len(set(spelled))
