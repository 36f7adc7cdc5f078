"""Ids equal those of `tokenizers` although gigatoken carries another Unicode version."""

from __future__ import annotations

import json
import random
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.recipe import Recipe
from lance_prep.tokenizer import ExactEncoder, ReferenceEncoder, make_encoder
from lance_prep.tokenizer.spec import describe
from lance_prep.tokenizer.unicode import PointFinder, differing_points
from tests import tokenizers_made as made
from tests.processes import finish, report_of, start

PATTERNS = ["gpt2", "llama3", "o200k", "qwen2"]
AROUND = ("{c}\n", "a{c}\n", "1{c}\n", " {c}\n", "{c}a\n", "{c}1\n", "{c} \n", "{c}{c}\n", "A{c}Aa\n", "..{c}.\n")


def encoders(file: bytes) -> tuple[ExactEncoder, ReferenceEncoder]:
    recipe, spec = Recipe(source="x"), describe("test", file, {})
    reference = ReferenceEncoder(spec, recipe)
    exact = make_encoder(spec, recipe, reference)
    assert isinstance(exact, ExactEncoder)
    return exact, reference


def check(file: bytes, texts: list[str]) -> None:
    exact, reference = encoders(file)
    for at in range(0, len(texts), 20_000):
        part = pa.array(texts[at : at + 20_000], pa.large_string())
        have, want = exact.encode(part), reference.encode(part)
        if not have.equals(want):
            wrong = [
                i for i in range(len(part)) if have.slice(i, i + 1).ids.tolist() != want.slice(i, i + 1).ids.tolist()
            ]
            raise AssertionError(f"{len(wrong)} texts differ, the first is {part[wrong[0]].as_py()!r}")


def texts_of(points: list[int], known: set[int]) -> list[str]:
    """Each code point in each neighbourhood. Those that go to the reference have texts of their own."""
    texts = []
    for flagged in (True, False):
        some = [point for point in points if (point in known) == flagged]
        step = 1 if flagged else 48
        for at in range(0, len(some), step):
            texts.append("".join(each.format(c=chr(point)) for point in some[at : at + step] for each in AROUND))
    return texts


@pytest.mark.parametrize("pattern", PATTERNS)
def test_code_points_in_each_neighbourhood(pattern: str) -> None:
    """The first 12,544 and a sample of the others; `make torture` takes all."""
    file = made.across(pattern)
    known = set(differing_points(file).tolist())
    draw = random.Random(0)
    points = [c for c in range(0x80, 0x110000) if not 0xD800 <= c < 0xE000]
    check(file, texts_of([*draw.sample(points, 15_000), *draw.sample(sorted(known), 1000), *range(0x3100)], known))


@pytest.mark.torture
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_code_point_in_every_neighbourhood(pattern: str) -> None:
    file = made.across(pattern)
    known = set(differing_points(file).tolist())
    check(file, texts_of([c for c in range(0x110000) if not 0xD800 <= c < 0xE000], known))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_strings_have_the_ids_of_tokenizers(pattern: str) -> None:
    """Letters, digits, spaces and marks between code points of any kind, assigned or not."""
    draw = random.Random(7)
    file = made.across(pattern)
    known = differing_points(file).tolist()
    kinds = [
        lambda: draw.choice("aAzZ019 .,'\n\t-_s"),
        lambda: draw.choice("é中한ш½²٣\u0301\u3000\u00a0ǅʕ😀ª"),
        lambda: chr(draw.choice(known)),
        lambda: chr(draw.randrange(0x80, 0xD800)),
        lambda: chr(draw.randrange(0x10000, 0x34000)),
        lambda: chr(draw.randrange(0xE000, 0x110000)),
    ]
    check(file, ["".join(draw.choice(kinds)() for _ in range(draw.randint(1, 6))) for _ in range(50_000)])


def test_the_pairs_that_were_wrong() -> None:
    check(made.across("gpt2"), ["\U000324b6\u6909", "a\U000324b6\u6909b"])
    check(
        made.across("llama3"), [f"x{chr(c)}y 1{chr(c)}2" for c in (*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7))]
    )
    check(made.across("o200k"), ["aʕA ʕAa", "A\u1ad0."])


def test_only_texts_with_such_a_code_point_go_to_the_reference() -> None:
    """Most texts do not, and the code points are few: newly assigned ones."""
    points = differing_points(made.across("gpt2"))
    assert 0 < len(points) < 10_000
    assert points.min() > 0x7F
    assert not set(points.tolist()) & {ord(c) for c in "éß中한кирил“”…—😀½"}


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.integers(0x80, 0x10FFFF).filter(lambda c: not 0xD800 <= c < 0xE000), max_size=30),
    st.lists(st.text(max_size=30), max_size=12),
    st.data(),
)
def test_texts_with_a_code_point_are_found(points: set[int], texts: list[str], data: st.DataObject) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    if points:
        extra = data.draw(st.lists(st.text(st.sampled_from([*map(chr, points), "a", "é"]), max_size=5), max_size=5))
        texts = data.draw(st.permutations([*texts, *extra]))
    skip = data.draw(st.integers(0, len(texts)))
    array = pa.array(texts, pa.large_string()).slice(skip)
    found = PointFinder(np.fromiter(points, np.uint32)).rows(array)
    assert found.tolist() == [i for i, text in enumerate(texts[skip:]) if points & {ord(char) for char in text}]


@pytest.mark.parametrize("filler", ["plain text ", "наречие ", "中文字符", "한국어 갂", "हिन्दी ", "mixed 😀 “é” "])
def test_texts_are_found_in_many_bytes(filler: str) -> None:
    points = differing_points(made.across("gpt2"))
    texts = [filler * 200] * 400
    for row, point in ((3, 0), (250, len(points) // 2), (399, -1)):
        texts[row] = texts[row] + chr(points[point]) + texts[row]
    assert PointFinder(points).rows(pa.array(texts, pa.large_string())).tolist() == [3, 250, 399]


def lines_of(folder: Path, texts: list[str]) -> str:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def ids_of(dataset: Path) -> list[list[int]]:
    rows = lance.dataset(str(dataset)).to_table(columns=["input_ids", "doc_id"]).to_pylist()
    return [row["input_ids"] for row in sorted(rows, key=lambda row: row["doc_id"])]


OPTIONS = ["--layout", "documents", "--json", "--no-add-special-tokens"]


def test_a_build_has_the_reference_ids(tmp_path: Path) -> None:
    texts = [f"ordinary text {i}" for i in range(3000)]
    texts[2999] = "wrong without this: \U000324b6\u6909"
    tokenizer = made.save(tmp_path / "t", made.across("gpt2"))
    report_of(start("build", lines_of(tmp_path, texts), "-o", tmp_path / "x.lance", "--tokenizer", tokenizer, *OPTIONS))
    assert ids_of(tmp_path / "x.lance") == made.reference_ids(made.across("gpt2"), texts)


@pytest.mark.parametrize("memory", [b"[]", b"\x00", b"[200, 300, 250, 400]"])
def test_a_damaged_memory_is_not_believed_or_is_corrected(tmp_path: Path, memory: bytes) -> None:
    """`[]` says that there is no difference: the sampled check finds the first, and the shard is built again."""
    tokenizer = made.save(tmp_path / "t", made.across("gpt2"))
    texts = ["first \U000324b6\u6909", *(f"ordinary text {i}" for i in range(3000)), "last \U000324b6\u6909"]
    arguments = ["build", lines_of(tmp_path, texts), "--tokenizer", tokenizer, "--overwrite", *OPTIONS]
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    report_of(start(*arguments, "-o", tmp_path / "x.lance", environment=environment))
    (path,) = (tmp_path / "lance-prep").glob("unicode-*.json")
    path.write_bytes(memory)
    code, _, err = finish(start(*arguments, "-o", tmp_path / "y.lance", "--seed", "5", environment=environment))
    assert code == 0, err
    assert ("disagree on '" in err) == (memory == b"[]")
    want = made.reference_ids(made.across("gpt2"), texts)
    assert ids_of(tmp_path / "x.lance") == want
    assert ids_of(tmp_path / "y.lance") == want


def test_ascii_and_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A corpus of ASCII does not wait for the comparison."""
    tokenizer = made.save(tmp_path / "t", made.across("gpt2"))
    (tmp_path / "file").write_text("in the way")
    for name, texts in (("a", ["plain"] * 10), ("b", ["\U000324b6\u6909"] * 10)):
        (tmp_path / name).mkdir()
        for cache in ("cache", "file"):
            output = tmp_path / f"{name}-{cache}.lance"
            arguments = ["build", lines_of(tmp_path / name, texts), "-o", output, "--tokenizer", tokenizer, *OPTIONS]
            report_of(start(*arguments, environment={"XDG_CACHE_HOME": str(tmp_path / cache)}))
            assert ids_of(output) == made.reference_ids(made.across("gpt2"), texts)
        assert bool(list(tmp_path.glob("cache/lance-prep/unicode-*"))) == (name == "b")


SETTINGS = {
    "a step that is ignored": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]},
    "no step at all": None,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_gigatoken_ignores_go_to_the_reference(name: str) -> None:
    data = json.loads(made.across("gpt2"))
    steps = SETTINGS[name]
    if steps is not None:
        steps = {**steps, "pretokenizers": [*steps["pretokenizers"], data["pre_tokenizer"]]}  # type: ignore[dict-item, misc]
    data["pre_tokenizer"] = steps
    recipe, spec = Recipe(source="x"), describe("test", json.dumps(data).encode(), {})
    assert make_encoder(spec, recipe, ReferenceEncoder(spec, recipe)).name == "tokenizers"
