"""A Python function as tokenizer: the rows of the tokenizer it wraps, what is refused, and what `verify` can say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from tokenizers import Tokenizer

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck
from lance_prep.errors import DatasetError, OutputExists, TokenizerError, UsageError
from lance_prep.train import LanceDataset
from tests.helpers import check_whole, ids_of


@pytest.fixture
def source(tmp_path: Path) -> str:
    texts = [f"row {i} says café\nand 中文 {'x ' * (i % 40)}" if i % 9 else " " for i in range(600)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(texts))
    )
    return str(tmp_path / "a.jsonl")


def utf8(text: str) -> list[int]:
    """Its module and name identify it."""
    return list(text.encode())


OPTIONS: dict[str, Any] = {"eos_id": 0, "dtype": "uint16"}


@pytest.mark.parametrize("layout", ["blocks", "documents", "lines"])
@pytest.mark.parametrize("returns", ["list", "uint32", "int64"])
def test_the_rows_are_those_of_the_tokenizer_that_it_wraps(
    tmp_path: Path, source: str, tokenizer: str, layout: Any, returns: str
) -> None:
    wrapped = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    wrapped.encode_special_tokens = True
    eos = wrapped.token_to_id("<|endoftext|>")

    def encode(text: str) -> Any:
        ids = wrapped.encode(text, add_special_tokens=False).ids
        return ids if returns == "list" else np.array(ids, returns)

    options: dict[str, Any] = {"layout": layout, "shuffle_batch_size": 50, "shard_size": 5000}
    if layout == "blocks":
        options["block_size"] = 32
    else:
        options["keep_columns"] = ("n",)
    expected = lance_prep.build(source, output=tmp_path / "t.lance", tokenizer=tokenizer, **options)
    for workers in (1, 3):
        out = tmp_path / f"{workers}.lance"
        made = lance_prep.build(
            source, output=out, tokenizer=encode, tokenizer_name="wrapped", eos_id=eos, dtype="uint16",
            workers=workers, **options,
        )  # fmt: skip
        assert made.shards > 3
        assert made.content_hash == expected.content_hash
        assert made.ledger.rows_in == made.ledger.rows_used + made.ledger.empty
        check_whole(out)
    if layout == "blocks":  # stream gives the same rows
        rows = lance_prep.stream(
            source, tokenizer=encode, tokenizer_name="wrapped", eos_id=eos, dtype="uint16", **options
        ).read_all()
        assert rows["input_ids"].to_pylist() == ids_of(tmp_path / "t.lance")


def test_what_the_dataset_says_of_it(tmp_path: Path, source: str, capsys: Any) -> None:
    out = tmp_path / "o.lance"
    report = lance_prep.build(source, output=out, tokenizer=utf8, block_size=64, **OPTIONS)
    record = lance_prep.info(out).metadata.tokenizer
    assert record is not None
    assert record.name == f"python:{__name__}.utf8"
    assert (record.eos_id, record.backends) == (0, ("function",))
    assert lance_prep.build(source, output=out, tokenizer=utf8, block_size=64, **OPTIONS).status == "unchanged"
    ds = LanceDataset(out)
    assert len(ds) == report.rows
    with pytest.raises(DatasetError, match=r"tokenized by a Python function, python:.*utf8: it has no decoder"):
        ds.text(0)
    assert run(["show", str(out), "--limit", "1"]) == 0
    assert str(ds[0]["input_ids"][:5].tolist())[:-1] in capsys.readouterr().out
    assert run(["info", str(out)]) == 0
    assert "a Python function, ids below 65,536" in capsys.readouterr().out
    assert run(["info", str(out), "--recipe"]) == 0
    (tmp_path / "r.yaml").write_text(capsys.readouterr().out)
    assert run(["build", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "p.lance")]) == 1
    assert "is a Python function, which cannot be found by its name" in capsys.readouterr().err
    assert run(["export", str(out), "-o", str(tmp_path / "x"), "--format", "jsonl"]) == 1
    assert "it has no decoder" in capsys.readouterr().err


def test_a_stream_of_rows_is_joined_with_its_eos(tmp_path: Path, source: str) -> None:
    lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=utf8, layout="documents", shuffle=False, **OPTIONS)
    first = ids_of(tmp_path / "o.lance")[0]
    ids = LanceDataset(tmp_path / "o.lance", block_size=256)[0]["input_ids"].tolist()
    assert ids[: len(first) + 1] == [*first, 0]


def test_verify_needs_the_function_to_compare_with_the_source(tmp_path: Path, source: str, capsys: Any) -> None:
    out = tmp_path / "o.lance"
    lance_prep.build(source, output=out, tokenizer=utf8, block_size=64, **OPTIONS)
    assert lance_prep.verify(out).ok
    found = lance_prep.verify(out, against=SourceCheck(tokenizer=utf8))
    assert found.ok
    assert found.checks["texts encoded with the function"] == 533
    (problem,) = lance_prep.verify(out, against=SourceCheck()).problems
    assert "no row can be compared with the source: a Python function made the ids" in problem
    assert run(["verify", str(out), "--against-source"]) == 1
    assert "SourceCheck(tokenizer=function)" in capsys.readouterr().out
    (problem,) = lance_prep.verify(out, against=SourceCheck(tokenizer=lambda text: [7])).problems
    assert "the function given is not python:" in problem
    # A function that gives other ids of the source's texts, and the same of the probes.
    lied = lance_prep.verify(
        out, against=SourceCheck(tokenizer=lambda text: utf8(text.replace("row 5 says", "row 6 says")))
    )
    assert any("input_ids has" in problem for problem in lied.problems)


def test_other_ids_or_another_name_are_another_tokenizer(tmp_path: Path, source: str) -> None:
    out = tmp_path / "o.lance"
    options = {**OPTIONS, "layout": "lines"}
    lance_prep.build(source, output=out, tokenizer=lambda text: [1], tokenizer_name="a", **options)
    with pytest.raises(OutputExists, match=r"was built with tokenizer python:a .*, which is now"):
        lance_prep.build(source, output=out, tokenizer=lambda text: [2], tokenizer_name="a", **options)
    with pytest.raises(OutputExists, match="tokenizer was 'python:a', now 'python:b'"):
        lance_prep.build(source, output=out, tokenizer=lambda text: [1], tokenizer_name="b", **options)
    again = lance_prep.build(source, output=out, tokenizer=lambda text: [1], tokenizer_name="a", **options)
    assert again.status == "unchanged"


def fails_at(text: str, result: Any) -> Any:
    return result if text.startswith("row 100 ") else [1, 2]


def raise_key_error(text: str) -> list[int]:
    return [{"a": 1}[text]] if text.startswith("row 100 ") else []


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda text: fails_at(text, [1.5]), r"returned \[1.5\], not a list of ints"),
        (lambda text: fails_at(text, ["a"]), r"returned \['a'\], not a list of ints"),
        (lambda text: fails_at(text, [[1], [2]]), r"returned \[\[1\], \[2\]\], not a list of ints"),
        (lambda text: fails_at(text, None), "returned None, not a list of ints"),
        (lambda text: fails_at(text, 7), "returned 7, not a list of ints"),
        (lambda text: fails_at(text, [[1], [2, 3]]), "raised ValueError"),
        (lambda text: fails_at(text, [True]), r"returned \[True\], not a list of ints"),
        (lambda text: fails_at(text, [3, 65536]), "returned the id 65536, which dtype uint16 cannot hold"),
        (lambda text: fails_at(text, [3, -1]), "returned the id -1, which dtype uint16 cannot hold"),
        (raise_key_error, "raised KeyError: 'row 100"),
    ],
)
@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_what_is_no_id_is_refused_with_its_row(
    tmp_path: Path, source: str, function: Any, said: str, layout: Any
) -> None:
    with pytest.raises(TokenizerError, match=rf"shard 0, source row 100: python:f {said}.*'row 100 says"):
        lance_prep.build(
            source, output=tmp_path / "o.lance", tokenizer=function, tokenizer_name="f", layout=layout, **OPTIONS
        )


def test_a_text_without_ids_is_an_empty_row(tmp_path: Path, source: str) -> None:
    report = lance_prep.build(
        source, output=tmp_path / "o.lance", tokenizer=lambda text: [5] if "row 7" in text else [], tokenizer_name="f",
        layout="documents",
    )  # fmt: skip
    assert report.rows == report.ledger.rows_used == 10
    assert report.ledger.empty == 590
    assert lance.dataset(str(tmp_path / "o.lance")).schema.field("input_ids").type.value_type.bit_width == 32


class Callable_:  # noqa: N801
    def __call__(self, text: str) -> list[int]:
        return [1]

    def encode(self, text: str) -> list[int]:
        return [1]


def drifting(start: list[int]) -> Any:
    def encode(text: str) -> list[int]:
        start[0] += 1
        return [start[0]]

    return encode


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tokenizer": lambda text: [1], "layout": "lines"}, UsageError, "cannot be named by its module"),
        ({"tokenizer": Callable_(), "layout": "lines"}, UsageError, "cannot be named by its module"),
        ({"tokenizer": Callable_().encode, "layout": "lines"}, UsageError, "cannot be named by its module"),
        ({"tokenizer": drifting([0]), "tokenizer_name": "f", "layout": "lines"}, TokenizerError, "returns other ids"),
        ({"tokenizer": utf8}, UsageError, "eos_id is missing"),
        ({"tokenizer": utf8, "eos_id": 1 << 16, "dtype": "uint16"}, UsageError, "65536 is not an id of dtype uint16"),
        ({"tokenizer": utf8, "eos_id": 1, "dtype": "int64"}, UsageError, "dtype: invalid value 'int64'"),
        ({"tokenizer": utf8, "eos_id": 1, "special_tokens": "parse"}, UsageError, "special_tokens has no effect"),
        ({"tokenizer": utf8, "eos_id": 1, "eos_token": "<eos>"}, UsageError, "eos_token has no effect"),
        ({"tokenizer": utf8, "layout": "raw"}, UsageError, "tokenizer has no effect with layout='raw'"),
        ({"eos_id": 1}, UsageError, "eos_id can only be given with a function as tokenizer"),
        ({"tokenizer": "python:a.b"}, TokenizerError, "cannot be found by its name"),
    ],
)
def test_wrong_arguments(tmp_path: Path, source: str, options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        lance_prep.build(source, output=tmp_path / "o.lance", **options)
    assert not (tmp_path / "o.lance").exists()


SCRIPT = """
import os, signal, sys
import lance_prep

source, out, die_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0

def encode(text):
    global calls
    calls += 1
    if calls == die_after:
        os.kill(os.getpid(), signal.SIGKILL)
    return list(text.encode())

report = lance_prep.build(
    source, output=out, tokenizer=encode, tokenizer_name="utf8", eos_id=0, dtype="uint16", block_size=32,
    shard_size=5000, workers=1,
)
print(report.status, report.shards_resumed, report.content_hash)
"""


def test_a_killed_build_continues(tmp_path: Path, source: str) -> None:
    def build(out: Path, die_after: int) -> tuple[int, list[str]]:
        arguments = [sys.executable, "-c", SCRIPT, source, str(out), str(die_after)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        return done.returncode, done.stdout.split()

    _, (status, _, expected) = build(tmp_path / "whole.lance", 0)
    assert status == "built"
    for die_after in (250, 150):
        code, _ = build(tmp_path / "o.lance", die_after)
        assert code == -signal.SIGKILL
    code, (status, resumed, found) = build(tmp_path / "o.lance", 0)
    assert (code, status, found) == (0, "resumed", expected)
    assert int(resumed) > 0
    check_whole(tmp_path / "o.lance")
