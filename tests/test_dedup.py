"""Duplicates dropped at build time: which survive, whatever the workers, the pieces of an append and the kills."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck, verify
from lance_prep.errors import DatasetError, OutputExists, RecipeError, UsageError
from lance_prep.store import arrays
from lance_prep.text.dedup import find_later, first_units
from tests.helpers import check_whole
from tests.processes import killed_at, make_killer

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


@pytest.mark.parametrize("kind", ["exact", "minhash"])
def test_an_append_in_ten_pieces_keeps_what_one_build_keeps(tmp_path: Path, tokenizer: str, kind: str) -> None:
    texts = repeated_texts(1000, 300) if kind == "exact" else varied_texts(1000, 100)
    for piece in range(10):
        start = piece * 100
        write_rows(tmp_path / "source" / f"{piece}.jsonl", texts[start : start + 100], start)
        dedup(tmp_path / "source", tmp_path / "pieces.lance", tokenizer, append=piece > 0, dedup=kind)
    whole = dedup(tmp_path / "source", tmp_path / "whole.lance", tokenizer, dedup=kind)
    assert numbers(tmp_path / "pieces.lance") == numbers(tmp_path / "whole.lance")
    assert 0 < whole.ledger.dropped < 1000
    if kind == "exact":
        assert numbers(tmp_path / "whole.lance") == first_ones(texts)
    there = lance_prep.info(tmp_path / "pieces.lance")
    assert there.number == 10
    assert there.metadata.ledger.dropped == whole.ledger.dropped
    assert verify(tmp_path / "pieces.lance").problems == []


def varied_texts(rows: int, different: int) -> list[str]:
    """Return texts of 60 words, each a copy of one of a few with one word replaced."""
    draw = random.Random(SEED)
    words = [f"w{n}" for n in range(3000)]
    bases = [draw.choices(words, k=60) for _ in range(different)]
    texts = []
    for _ in range(rows):
        text = list(draw.choice(bases))
        text[draw.randrange(60)] = draw.choice(words)
        texts.append(" ".join(text))
    return texts


def test_minhash_finds_texts_that_are_nearly_equal_and_no_others(tmp_path: Path, tokenizer: str) -> None:
    draw = random.Random(SEED)
    words = [f"w{n}" for n in range(5000)]
    texts = [" ".join(draw.choices(words, k=100)) for _ in range(200)]
    near = [" ".join([*text.split()[:50], "another", *text.split()[51:]]) for text in texts[:100]]
    other = [text.upper().replace(" ", ", ") for text in texts[100:110]]  # the same words
    unlike = [" ".join([*text.split()[:50], *draw.choices(words, k=50)]) for text in texts[110:]]
    odd = ["?!", "...", "?!", "one", "ONE", "one two", "一二三四五六七", "一二三四五六七", "一二三四五六九"]
    source = write_rows(tmp_path / "x.jsonl", [*texts, *near, *other, *unlike, *odd])
    report = dedup(source, tmp_path / "x.lance", tokenizer, dedup="minhash", shard_size=8_000)
    left = numbers(tmp_path / "x.lance")
    assert left[:200] == list(range(200))
    assert sum(200 <= n < 300 for n in left) <= 2  # a similarity of 0.9 is found with a probability of 0.999
    assert not any(300 <= n < 310 for n in left)
    assert sum(310 <= n < 400 for n in left) >= 88  # one of 0.33, with 0.002
    assert [n - 400 for n in left if n >= 400] == [0, 1, 3, 5, 6, 8]
    assert report.shards > 3
    again = dedup(source, tmp_path / "y.lance", tokenizer, dedup="minhash", shard_size=8_000, workers=1)
    assert again.content_hash == report.content_hash


def texts_of(uri: str | Path, tokenizer: str) -> list[str]:
    """Return the decoded rows of a dataset."""
    decoder = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    return [decoder.decode(ids) for ids in lance.dataset(str(uri)).to_table()["input_ids"].to_pylist()]


def without_repeated_lines(texts: Sequence[str]) -> list[str]:
    """Return the texts without lines that an earlier line equals, if more than blank lines are left: the reference."""
    seen: set[str] = set()
    left = []
    for text in texts:
        lines = [line for line in text.split("\n") if not line.strip() or not (line in seen or seen.add(line))]  # type: ignore[func-returns-value]
        if "\n".join(lines).strip():
            left.append("\n".join(lines))
    return left


def test_lines_are_dropped_from_documents(tmp_path: Path, tokenizer: str) -> None:
    draw = random.Random(SEED)
    pieces = [f"line {n}" for n in range(150)] + ["", " ", "end\n"]
    texts = ["\n".join(draw.choices(pieces, k=draw.randint(0, 5))) for _ in range(300)]
    source = write_rows(tmp_path / "x.jsonl", texts)
    options = {"dedup_unit": "line", "shuffle": False, "shard_size": 2000}
    report = dedup(source, tmp_path / "x.lance", tokenizer, **options)
    assert report.shards > 3
    expected = without_repeated_lines(texts)
    assert texts_of(tmp_path / "x.lance", tokenizer) == expected
    before, after = (sum(text.count("\n") + 1 for text in some) for some in (texts, expected))
    assert 0 < report.ledger.lines_dropped < before - after + 1
    assert verify(tmp_path / "x.lance", against=SourceCheck(rows=None)).problems == []
    rows = lance_prep.stream(
        str(source), tokenizer=tokenizer, layout="documents", keep_columns=["n"], dedup="exact", **options
    )
    assert rows.read_all()["n"].to_pylist() == numbers(tmp_path / "x.lance")


def test_layout_lines_compares_lines(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "x.jsonl", ["a\nb\na\n", "b\n\nc", "a\nb"])
    report = dedup(source, tmp_path / "x.lance", tokenizer, layout="lines", shuffle=False)
    assert texts_of(tmp_path / "x.lance", tokenizer) == ["a", "b", "c"]
    ledger = report.ledger
    assert (ledger.lines_in, ledger.lines_used, ledger.lines_empty, ledger.lines_dropped) == (8, 3, 1, 4)
    assert ledger.dropped_for == {"duplicate": 1}
    assert run(["info", str(tmp_path / "x.lance")]) == 0
    assert "8 = 3 used + 1 empty + 4 duplicate + 0 over limit" in capsys.readouterr().out


def test_what_is_left_out_for_another_reason_is_no_original(tmp_path: Path, tokenizer: str) -> None:
    rows = [
        {"text": "same", "n": 0, "keep": False},
        {"text": "same", "n": 1, "keep": True},
        {"text": "same", "n": 2, "keep": True},
        {"text": "same\u0000", "n": 3, "keep": True},
    ]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = dedup(source, tmp_path / "x.lance", tokenizer, filter="keep")
    assert numbers(tmp_path / "x.lance") == [1, 3]
    assert (report.ledger.filtered, report.ledger.dropped) == (1, 1)


def test_limits_count_what_is_left(tmp_path: Path, tokenizer: str) -> None:
    texts = repeated_texts(1000, 300)
    source = write_rows(tmp_path / "x.jsonl", texts)
    report = dedup(source, tmp_path / "x.lance", tokenizer, max_source_rows=100, shard_size=2_000, workers=1)
    assert numbers(tmp_path / "x.lance") == first_ones(texts)[:100]
    assert verify(tmp_path / "x.lance").problems == []
    scanned = len(list(tmp_path.glob("x.lance/.lance_prep/builds/*/scan-*")))
    assert report.shards <= scanned < 10  # of 16: the rest of the source is not needed, and not read
    more = dedup(source, tmp_path / "y.lance", tokenizer, max_source_rows=100, shard_size=2_000, workers=3)
    assert more.content_hash == report.content_hash


def test_no_text_is_on_both_sides_of_a_split(tmp_path: Path, tokenizer: str) -> None:
    texts = varied_texts(400, 60)
    source = write_rows(tmp_path / "x.jsonl", texts)
    dedup(source, tmp_path / "all.lance", tokenizer, dedup="minhash")
    report = dedup(source, tmp_path / "x.lance", tokenizer, dedup="minhash", val_fraction=0.3)
    assert report.validation is not None
    sides = [numbers(one.uri) for one in (report, report.validation)]
    assert all(sides)
    assert sorted([*sides[0], *sides[1]]) == numbers(tmp_path / "all.lance")
    assert report.ledger.imbalance() == report.validation.ledger.imbalance() == []


def test_a_killed_build_continues(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    killer = make_killer(tmp_path)
    texts = repeated_texts(600, 200)
    first = write_rows(tmp_path / "source" / "0.jsonl", texts[:300])
    output = tmp_path / "killed.lance"
    shape = ["--tokenizer", tokenizer, "--layout", "documents", "--keep-columns", "n", "--shard-size", "3000"]
    command = ["build", str(first.parent), *shape, "--dedup", "exact", "-o", str(output), "--memory", "1MiB"]
    kills = 0
    for append, changes in ((False, (6, 11, 17)), (True, (7, 12))):
        if append:
            write_rows(first.parent / "1.jsonl", texts[300:], 300)
            command.append("--append")
        for change in changes:
            kills += killed_at(killer, output, change, *command)
        assert run(command) == 0, capsys.readouterr().err
        check_whole(output)
    assert kills == 5
    assert numbers(output) == first_ones(texts)
    assert verify(output).problems == []


def test_what_was_compared_is_checked_and_needed(tmp_path: Path, tokenizer: str) -> None:
    source = write_rows(tmp_path / "source" / "0.jsonl", ["one", "two", "one"]).parent
    output = tmp_path / "x.lance"
    dedup(source, output, tokenizer)
    dropped = next(output.glob(".lance_prep/builds/*/dropped-000000.bin"))
    scan = dropped.with_name("scan-000000.bin")
    whole = dropped.read_bytes()
    dropped.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert any("dropped-000000.bin is damaged" in problem for problem in verify(output).problems)
    dropped.write_bytes(whole)
    scan.unlink()
    assert any("scan-000000.bin is missing" in problem for problem in verify(output).problems)
    write_rows(source / "1.jsonl", ["two", "three"], 3)
    with pytest.raises(DatasetError, match=r"scan-000000.bin is missing"):
        dedup(source, output, tokenizer, append=True)
    report = dedup(source, output, tokenizer, overwrite=True)
    assert (report.version, numbers(output)) == (2, [0, 1, 4])
    write_rows(source / "2.jsonl", ["three", "four"], 5)
    with pytest.raises(OutputExists, match="dedup was 'exact', now 'none'"):
        dedup(source, output, tokenizer, dedup="none", append=True)


def test_an_append_after_a_restore_is_compared_with_what_is_there(tmp_path: Path, tokenizer: str) -> None:
    source = write_rows(tmp_path / "source" / "0.jsonl", ["one", "two"]).parent
    output = tmp_path / "x.lance"
    dedup(source, output, tokenizer)
    write_rows(source / "1.jsonl", ["two", "three"], 2)
    dedup(source, output, tokenizer, append=True)
    assert numbers(output) == [0, 1, 3]
    (source / "0.jsonl").unlink()
    write_rows(source / "00.jsonl", ["three"], 9)
    (source / "1.jsonl").rename(tmp_path / "aside")
    dedup(source, output, tokenizer, overwrite=True)
    (tmp_path / "aside").rename(source / "1.jsonl")
    dedup(source, output, tokenizer, append=True)
    assert numbers(output) == [2, 9]


def test_each_source_of_a_collection_is_compared_with_itself(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "texts"
    for name in ("a", "b"):
        write_rows(folder / f"{name}.jsonl", ["one", "two", "one"])
    report = lance_prep.build_collection(
        str(folder), output=tmp_path / "out", tokenizer=tokenizer, block_size=4, dedup="exact"
    )
    assert report.failed == ()
    assert [source.build.ledger.dropped for source in report.sources if source.build] == [1, 1]


def test_memory_is_for_dedup_alone(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(write_rows(tmp_path / "x.jsonl", ["a"])), "--tokenizer", tokenizer]
    assert run([*command, "-o", str(tmp_path / "x.lance"), "--memory", "2GiB"]) == 2
    assert "--memory has no effect without --dedup" in capsys.readouterr().err
    assert run([*command, "-o", str(tmp_path / "x.lance"), "--memory", "1KiB", "--dedup", "exact"]) == 2
    assert "must be at least 1,048,576 bytes, got 1,024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dedup": "none", "dedup_unit": "line"}, "dedup_unit has no effect with dedup='none'"),
        ({"minhash_bands": 3}, "minhash_bands has no effect with dedup='exact'"),
        ({"layout": "raw"}, "dedup has no effect with layout='raw'"),
        ({"dedup": "fuzzy"}, "dedup"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, RecipeError), match=says):
        lance_prep.load_recipe(str(write_rows(tmp_path / "x.jsonl", ["a"])), {"dedup": "exact", **fields})


Key = st.tuples(st.integers(0, 3), st.integers(0, 3))
Units = st.lists(st.lists(Key, min_size=2, max_size=2, unique=True), max_size=6)


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: mappings are listed in /proc")
def test_many_shards_take_one_mapping(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped file stays open, and a process may open 1,024 on many systems."""
    source = tmp_path / "in"
    for part in range(2):
        write_rows(source / f"{part}.jsonl", repeated_texts(300, 200, seed=part), start=300 * part)
        one_by_one = dedup(source, tmp_path / "a.lance", tokenizer, shard_size=1000, append=part > 0)
    maps = []

    def counted(shards: Any, memory: int) -> Any:
        maps.append(Path("/proc/self/maps").read_text().count("/scan-"))
        return find_later(shards, memory)

    monkeypatch.setattr("lance_prep.engine.scan.find_later", counted)
    dedup(source, tmp_path / "c.lance", tokenizer, shard_size=1000)
    monkeypatch.setattr(arrays, "MOST_MAPPED", 3)
    (source / "1.jsonl").rename(tmp_path / "1.jsonl")
    for part in range(2):
        heaped = dedup(source, tmp_path / "b.lance", tokenizer, shard_size=1000, append=part > 0)
        (tmp_path / "1.jsonl").rename(source / "1.jsonl") if not part else None
    assert heaped.content_hash == one_by_one.content_hash
    assert maps[0] > 3
    assert maps[1:] == [0, 0]
    check_whole(tmp_path / "b.lance")


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
