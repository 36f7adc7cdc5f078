"""`val_fraction`: a document is on one side, by the hash of its text, whatever is added, moved or limited."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck
from lance_prep.engine import BuildReport
from lance_prep.errors import LancePrepError, UsageError
from lance_prep.recipe import Recipe
from lance_prep.source.prepare import text_hashes
from tests.helpers import check_whole, rows_of


def write(path: Path, texts: list[str | None]) -> None:
    path.write_text("\n".join(json.dumps({"text": text, "name": text}) for text in texts))


def is_validation(text: str | None, fraction: float) -> bool:
    """The rule, as the recipe states it."""
    return xxhash.xxh3_64_intdigest((text or "").encode()) / 2**64 < fraction


def names(uri: object) -> list[str]:
    return [row["name"] for row in rows_of(uri)]


def build(source: Path, output: Path, **fields: Any) -> tuple[BuildReport, BuildReport]:
    options = {"layout": "documents", "keep_columns": ("name",), "tokenizer": "lance-prep:sample", **fields}
    report = lance_prep.build(source, output=output, **options)
    assert report.validation is not None
    return report, report.validation


@given(st.lists(st.one_of(st.none(), st.text(max_size=300)), max_size=20), st.integers(0, 5))
def test_hashes_are_those_of_xxhash(texts: list[str | None], offset: int) -> None:
    array = pa.array(texts, pa.large_string()).slice(offset)
    assert text_hashes(array).tolist() == [xxhash.xxh3_64_intdigest((t or "").encode()) for t in texts[offset:]]


TEXTS = [f"document {i}, which says {'a lot ' * (i % 9)}" for i in range(500)]


def test_the_sides_hold_all_documents_between_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*TEXTS, None, "  ", ""])
    train, validation = build(tmp_path / "a.jsonl", tmp_path / "o.lance", val_fraction=0.1)
    assert validation.uri == str(tmp_path / "o.val.lance")
    assert names(validation.uri) != names(train.uri)
    assert Counter(names(validation.uri)) == Counter(t for t in TEXTS if is_validation(t, 0.1))
    assert Counter(names(train.uri)) == Counter(t for t in TEXTS if not is_validation(t, 0.1))
    assert train.ledger.held_out == validation.ledger.rows_used + validation.ledger.empty
    assert validation.ledger.held_out == train.ledger.rows_used + train.ledger.empty
    for report in (train, validation):
        check_whole(report.uri)
        assert lance_prep.verify(report.uri, against=SourceCheck(rows=None)).problems == []
        assert report.ledger.rows_in == 503
        assert report.ledger.imbalance() == []


def test_rows_that_cannot_be_used_are_on_both_sides(tmp_path: Path) -> None:
    """They were never a document, so no side can be chosen."""
    lines = [json.dumps({"text": text, "name": text, "n": i}) for i, text in enumerate(TEXTS)]
    lines[250:250] = ["{broken", json.dumps({"name": "no text", "n": 1})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for report in build(tmp_path / "a.jsonl", tmp_path / "o.lance", val_fraction=0.3, filter="n < 450"):
        ledger = report.ledger
        assert (ledger.rows_in, ledger.rejected, ledger.filtered) == (502, 2, 50)
        assert ledger.rows_used + ledger.held_out == 450
        check_whole(report.uri)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_document_never_changes_sides(tmp_path: Path, data: Any) -> None:
    """Not when files are appended, nor in a new build with other order, shards, workers, column and template."""
    draw = data.draw
    texts = draw(st.lists(st.text("abc \n", min_size=1, max_size=20).filter(str.strip), min_size=2, max_size=40))
    fraction = draw(st.floats(0.01, 0.99))
    parts = sorted(draw(st.lists(st.integers(1, len(texts)), min_size=1, max_size=3)))
    want = Counter(t for t in texts if is_validation(t, fraction))
    with TemporaryDirectory(dir=tmp_path) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        sides: dict[str, bool] = {}
        for i, (start, stop) in enumerate(zip([0, *parts], [*parts, len(texts)], strict=True)):
            if start == stop:
                continue
            write(source / f"{i}.jsonl", list(texts[start:stop]))
            for report in build(source, Path(folder) / "o.lance", val_fraction=fraction, append=True):
                held = report.uri.endswith(".val.lance")
                assert all(sides.setdefault(name, held) == held for name in names(report.uri))
        assert Counter(names(f"{folder}/o.val.lance")) == want
        assert Counter(names(f"{folder}/o.lance")) == Counter(texts) - want
        check_whole(f"{folder}/o.val.lance")
        other = Path(folder) / "other"
        other.mkdir()
        table = pa.table({"body": draw(st.permutations(texts)), "name": texts})
        pq.write_table(table, other / "x.parquet", row_group_size=len(texts) // 2)
        options = {"shard_size": 1, "workers": 3, "shuffle_batch_size": draw(st.integers(1, 9))}
        for report in build(
            other, Path(folder) / "p.lance", val_fraction=fraction, template="{{ body }}", keep_columns=(), **options
        ):
            held = sum(want.values())
            assert report.rows == (held if report.uri.endswith(".val.lance") else len(texts) - held)


@pytest.mark.parametrize("limit", ["max_rows", "max_source_rows", "max_tokens"])
def test_the_sides_share_a_limit(tmp_path: Path, limit: str) -> None:
    write(tmp_path / "a.jsonl", TEXTS)
    most = 1000 if limit == "max_tokens" else 100
    for fraction in (0.001, 0.2, 0.5):
        train, validation = build(
            tmp_path / "a.jsonl", tmp_path / f"{fraction}.lance", val_fraction=fraction, **{limit: most}
        )
        if limit == "max_tokens":
            assert most <= train.tokens + validation.tokens < most + 200
            assert abs(validation.tokens - max(1, most * fraction)) < 100
        else:
            assert validation.rows == min(max(1, most * fraction), sum(is_validation(t, fraction) for t in TEXTS))
            assert train.rows == most - max(1, most * fraction)
        for report in (train, validation):
            check_whole(report.uri)
            assert lance_prep.verify(report.uri, against=SourceCheck()).ok


def test_one_side_can_be_built_by_itself(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", TEXTS)
    _, both = build(tmp_path / "a.jsonl", tmp_path / "o.lance", val_fraction=0.1)
    fields = {"val_fraction": 0.1, "side": "validation", "keep_columns": ("name",), "layout": "documents"}
    fields["tokenizer"] = "lance-prep:sample"
    alone = lance_prep.build(tmp_path / "a.jsonl", output=tmp_path / "v.lance", **fields)  # type: ignore[arg-type]
    assert alone.content_hash == both.content_hash
    assert alone.validation is None
    rows = lance_prep.stream(tmp_path / "a.jsonl", **fields).read_all()  # type: ignore[arg-type]
    assert rows["name"].to_pylist() == names(alone.uri)
    with pytest.raises(UsageError, match="one side") as caught:
        lance_prep.stream(tmp_path / "a.jsonl", val_fraction=0.1)
    assert "side='train'" in caught.value.advice


def test_a_split_through_the_command_line(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "a.jsonl", TEXTS)
    flags = ["--tokenizer", "lance-prep:sample", "--val-fraction", "0.1", "-o", str(tmp_path / "o.lance")]
    command = ["build", str(tmp_path / "a.jsonl"), *flags, "--block-size", "32"]
    assert run([*command, "--dry-run"]) == 0
    planned = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["validation", f"build: a new dataset at {tmp_path}/o.val.lance"] in planned
    assert run(command) == 0
    said = capsys.readouterr().out
    held = sum(is_validation(t, 0.1) for t in TEXTS)
    assert f"+ {held} held out + 0 over limit" in said
    assert f"+ {500 - held} held out + 0 over limit" in said
    assert "train; 0.1 of the documents are for validation" in said
    assert "validation; 0.1 of the documents are for validation" in said
    assert run(command) == 0
    assert capsys.readouterr().out.count("is up to date") == 2
    assert run(["verify", str(tmp_path / "o.val.lance"), "--against-source"]) == 0
    assert run([*command[:-3], str(tmp_path / "o.lance"), "--block-size", "32", "--val-fraction", "0.2"]) == 1
    assert "val_fraction was 0.1, now 0.2" in capsys.readouterr().err.replace("--val-fraction", "val_fraction")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, "x"])
def test_an_invalid_fraction_is_refused(fraction: Any) -> None:
    with pytest.raises(LancePrepError, match="val_fraction"):
        lance_prep.build("sample", val_fraction=fraction)


def test_options_that_need_each_other(tmp_path: Path) -> None:
    with pytest.raises(LancePrepError, match="side needs val_fraction"):
        lance_prep.build("sample", side="validation")
    with pytest.raises(LancePrepError, match="val_fraction has no effect with layout='raw'"):
        lance_prep.build("sample", layout="raw", val_fraction=0.1)
    assert not Recipe(source="x").has_two_sides


def test_tokens_set_aside_become_a_fraction_once(tmp_path: Path, capsys: Any) -> None:
    """The fraction stays when the source grows, when the build is run again, and for one side alone."""
    source = tmp_path / "source"
    source.mkdir()
    write(source / "a.jsonl", TEXTS)
    train, validation = build(source, tmp_path / "o.lance", val_tokens=1_500)
    fraction = train.recipe["val_fraction"]
    assert fraction == validation.recipe["val_fraction"]
    assert fraction == float(f"{1_500 / (train.tokens + validation.tokens):.4g}")  # so small a source is counted
    assert 0.7 * 1_500 < validation.tokens < 1.3 * 1_500
    assert train.recipe["val_tokens"] == 1_500
    again = build(source, tmp_path / "o.lance", val_tokens=1_500)
    assert [report.status for report in again] == ["unchanged", "unchanged"]

    before = names(train.uri), names(validation.uri)
    write(source / "b.jsonl", [f"more of it: {text}" for text in TEXTS])
    appended = build(source, tmp_path / "o.lance", val_tokens=1_500, append=True)
    assert [report.recipe["val_fraction"] for report in appended] == [fraction, fraction]
    for report, old in zip(appended, before, strict=True):
        assert names(report.uri)[: len(old)] == old
        check_whole(report.uri)
    fresh, _ = build(source, tmp_path / "p.lance", val_tokens=1_500)
    assert fresh.recipe["val_fraction"] < 0.6 * fraction

    with pytest.raises(LancePrepError, match="val_tokens was 1500, now 2000"):
        build(source, tmp_path / "o.lance", val_tokens=2_000, append=True)
    with pytest.raises(UsageError, match=r"val_tokens is 10,000,000, and the source has about \d\d,\d\d\d tokens"):
        build(source, tmp_path / "q.lance", val_tokens=10_000_000)
    with pytest.raises(UsageError, match="val_fraction and val_tokens exclude each other"):
        build(source, tmp_path / "q.lance", val_tokens=1_000, val_fraction=0.1)

    # What `info --recipe` prints builds the same rows.
    assert run(["info", str(tmp_path / "p.val.lance"), "--recipe"]) == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    copy = lance_prep.build(tmp_path / "recipe.yaml", output=tmp_path / "copy.lance")
    assert names(copy.uri) == names(tmp_path / "p.val.lance")


def test_an_interrupted_build_keeps_its_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the source has grown since: it is built anew, with the same sides."""
    source = tmp_path / "source"
    source.mkdir()
    write(source / "a.jsonl", TEXTS)
    with monkeypatch.context() as killed:
        killed.setattr("lance_prep.engine.run.commit_build", lambda *_, **__: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "o.lance", val_tokens=1_500)
    write(source / "b.jsonl", [f"more of it: {text}" for text in TEXTS])
    train, validation = build(source, tmp_path / "o.lance", val_tokens=1_500)
    assert train.recipe["val_fraction"] == validation.recipe["val_fraction"]
    assert validation.tokens > 2_000
