"""Duplicates dropped at build time: which survive, whatever the workers, the pieces of an append and the kills."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import verify
from lance_prep.text.dedup import find_later, first_units

SEED = 20_261_124


def write_rows(path: Path, texts: Iterable[str], start: int = 0) -> Path:
    """Write a JSON Lines file whose rows have a text and a number, `n`."""
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"text": text, "n": n}) for n, text in enumerate(texts, start))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def numbers(uri: str | Path) -> list[int]:
    """Return the kept column `n` of a dataset, sorted."""
    return sorted(lance.dataset(str(uri)).to_table(columns=["n"]).column("n").to_pylist())


def first_ones(texts: Sequence[str]) -> list[int]:
    """Return the numbers of the texts that are not blank and that no earlier one equals: the naive reference."""
    seen: set[str] = set()
    return [n for n, text in enumerate(texts) if text.strip() and not (text in seen or seen.add(text))]  # type: ignore[func-returns-value]


def repeated_texts(rows: int, different: int, seed: int = SEED) -> list[str]:
    draw = random.Random(seed)
    return [
        draw.choice(["", " \n"]) if draw.random() < 0.05 else f"text {draw.randrange(different)}" for _ in range(rows)
    ]


def dedup(source: Path, output: Path, tokenizer: str, **options: Any) -> lance_prep.BuildReport:
    fields: dict[str, Any] = {"layout": "documents", "keep_columns": ["n"], "dedup": "exact", **options}
    return lance_prep.build(str(source), output=output, tokenizer=tokenizer, **fields)


def test_the_command_drops_duplicates_and_counts_them(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "x.jsonl", ["one two", "three", "one two", "", "One two", "one two"])
    output = str(tmp_path / "x.lance")
    command = ["build", str(tmp_path / "x.jsonl"), "--tokenizer", tokenizer, "--dedup", "exact", "-o", output]
    assert run([*command, "--layout", "documents", "--keep-columns", "n"]) == 0
    said = capsys.readouterr().out
    assert "6 = 3 used + 1 empty + 0 filtered + 0 rejected + 2 dropped + 0 over limit" in said
    assert "dropped for" in said
    assert "duplicate: 2" in said
    assert numbers(output) == [0, 1, 4]
    assert run(["info", output]) == 0
    said = capsys.readouterr().out
    assert "2 dropped" in said
    assert "exact" in said
    assert run(["verify", output, "--against-source"]) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_of_equal_texts_survives_in_whatever_shard_it_is(
    tmp_path: Path, tokenizer: str, workers: int
) -> None:
    texts = repeated_texts(3000, 400)
    source = write_rows(tmp_path / "x.jsonl", texts)
    report = dedup(source, tmp_path / "x.lance", tokenizer, shard_size=10_000, workers=workers)
    assert report.shards > 5
    assert numbers(tmp_path / "x.lance") == first_ones(texts)
    assert report.ledger.dropped_for == {"duplicate": 3000 - report.ledger.empty - len(first_ones(texts))}
    assert verify(tmp_path / "x.lance").problems == []


def test_an_append_in_ten_pieces_keeps_what_one_build_keeps(tmp_path: Path, tokenizer: str) -> None:
    texts = repeated_texts(2000, 600)
    for piece in range(10):
        start = piece * 200
        write_rows(tmp_path / "source" / f"{piece}.jsonl", texts[start : start + 200], start)
        dedup(tmp_path / "source", tmp_path / "pieces.lance", tokenizer, append=piece > 0)
    whole = dedup(tmp_path / "source", tmp_path / "whole.lance", tokenizer)
    assert numbers(tmp_path / "pieces.lance") == numbers(tmp_path / "whole.lance") == first_ones(texts)
    there = lance_prep.info(tmp_path / "pieces.lance")
    assert there.number == 10
    assert there.metadata.ledger.dropped == whole.ledger.dropped
    assert verify(tmp_path / "pieces.lance").problems == []


Key = st.tuples(st.integers(0, 3), st.integers(0, 3))
Units = st.lists(st.lists(Key, min_size=2, max_size=2, unique=True), max_size=6)


@given(st.lists(Units, min_size=1, max_size=4), st.integers(1, 4000))
def test_units_with_an_earlier_key_are_found_in_any_memory(
    shards: list[list[list[tuple[int, int]]]], memory: int
) -> None:
    """Keys that share a half are not equal; a unit (here with two keys) is dropped if either of its keys is known."""
    spread = [0, 1, (1 << 63) + 5, (1 << 64) - 1]
    seen: set[tuple[int, int]] = set()
    expected, found, scans = [], [], []
    for units in shards:
        mine = set()
        for unit, pair in enumerate(units):
            if any(key in seen for key in pair):
                mine.add(unit)
            seen |= set(pair)
        expected.append(mine)
        keys = np.array([[spread[a], spread[b]] for pair in units for a, b in pair], np.uint64).reshape(-1, 2)
        scan, repeats = first_units(keys, np.arange(len(keys), dtype=np.uint64) // np.uint64(2))
        scans.append(scan)
        found.append(set(repeats.tolist()))
    for repeated, later in zip(found, find_later(scans, memory), strict=True):
        repeated |= set(later.tolist())
    assert found == expected
