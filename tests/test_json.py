"""JSON sources: each record becomes a row or is rejected with its place and reason, whatever the records around it."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.errors import BadFile, ColumnNotFound
from lance_prep.formats import json_blocks
from lance_prep.formats.json_records import Planned, Row
from lance_prep.model import Plan
from tests import tokenizers_made as made
from tests.sources import plan_of, read, read_plan, rows_of

PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# What records look like at the head of a file, which fixes the columns' types.
HEAD = [
    {"text": "a", "id": "x", "n": 1, "d": 1.5, "b": True, "s": {"k": "v", "m": 1}, "l": [{"z": 1}], "o": 1},
    {"text": "b", "id": 7, "n": None, "d": 2, "b": False, "s": None, "l": [], "o": "x"},
]
PIECES = [
    *['"text": "t"', '"text": null', '"text": 5', '"t\\u0065xt": null', '"text": "\\ud800"', '"x\\"text": null'],
    *['"text": "\u00e9 \\u00e9 } null {"', '"text": "he said \\"id\\": 5, and"', '"text": "a\\ud83d\\ude00"'],
    *['"id": 1', '"id": 1.10', '"id": -0', '"id": true', '"id": [1, {"a": 2}]', '"id": "1"', '"id" : 1e5', '"id": NaN'],
    *['"n": 1', '"n": 1.0', '"n": "1"', '"n": 99999999999999999999', '"n": true', '"n": null'],
    *['"d": 1', '"d": 1e999', '"d": NaN', '"d": "1"', '"d": -0.0'],
    *['"b": true', '"b": 0', '"s": {"k": "v"}', '"s": {"k": 1}', '"s": {"id": 5}', '"s": {"id": null}', '"s": []'],
    *['"s": {"k": "v", "k": "w"}', '"l": [{"z": 1, "y": null}]', '"l": [{"y": 1}]', '"l": [null, {}]', '"l": {}'],
    *['"o": 1', '"o": "s"', '"o": {"text": null}', '"o": 1, "o": 2', '"new": 1', '"new": null', '"a": {"text": "x"}'],
]
LINES = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=5).map(lambda pieces: "{" + ", ".join(pieces) + "}"),
    st.sampled_from(['{"text": "good"}', '{"text": "good", "n": 3, "id": "i"}']),
    st.sampled_from(["", "  ", "\r", "\x0c", "null", "{} null", '{"text": "a"} null {"text": "b"}', "[]", "5", '"s"']),
    st.sampled_from(['{"text": "a"} {"text": "b"}', '{"text": "a"', '"n": 1}', '{"text":', "{", "}", "\0", "{}\0{}"]),
    st.sampled_from([' {"text": "a"} ', '\t{"text": "a"}\r', '{"text": "a"}\x0c', '{"text": "a"}]', "\ufeff{}"]),
    st.sampled_from(['{"text": "a\udcff"}', '{"o": "\udcff", "text": "a"}', '{"text": "tab\t"}', '{"text": "a",}']),
    st.sampled_from(['{"text": "a", "o": ' + "[" * 150 + "]" * 150 + "}", '{"text": "a", "o": ' + "1" * 5000 + "}"]),
)
PLANS: list[dict[str, Any]] = [
    {},
    {"keep_columns": ("id", "n")},
    {"keep_columns": ("id", "n", "d", "b", "s", "l")},
    {"layout": "raw"},
    {"layout": "raw", "keep_columns": ("s", "id", "text")},
    {"template": "{{ text }}{{ id }}", "keep_columns": ("l",)},
]


def same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals itself, and -0.0 is not 0.0."""
    return repr(one) == repr(other)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, max_size=40),
    plan_number=st.integers(0, len(PLANS) - 1),
    repeat=st.sampled_from([1, 1, 300]),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2),
)
@pytest.mark.parametrize("sparse", [64 << 10, 100])
def test_any_lines_become_what_they_become_one_by_one(
    tmp_path: Path,
    monkeypatch: Any,
    sparse: int,
    lines: list[str],
    plan_number: int,
    repeat: int,
    flips: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(json_blocks, "_SPARSE_BYTES", sparse)
    monkeypatch.setattr(json_blocks, "_CHECKED_BYTES", 4 * sparse)
    head = "".join(json.dumps(record) + "\n" for record in HEAD).encode()
    body = bytearray(
        "\n".join(line + ('\n{"text": "g"}' * (repeat - 1)) for line in lines).encode(errors="surrogateescape")
    )
    for at, value in flips:
        if body:
            body[at % len(body)] = value
    path = tmp_path / "x.jsonl"
    path.write_bytes(head * 40)
    fields = {"layout": "documents", **PLANS[plan_number]}
    types = plan_of(path, **fields)
    path.write_bytes(head + bytes(body))
    now = plan_of(path, **fields)
    plan = Plan(now.recipe, now.source, now.files, now.shards, types.schema, types.read_schema)
    planned = Planned(plan.recipe, plan.schema, plan.read_schema)
    rows: list[tuple[int, Any]] = []
    rejects: list[tuple[int, str]] = []
    position, number = 0, 0
    for line in (head + bytes(body)).split(b"\n"):
        if line.strip():
            made = planned.row(line)
            if isinstance(made, Row) and not made.missing:
                rows.append((number, dict(zip(plan.read_schema.names, made.values, strict=True))))
            else:
                rejects.append((position, made if isinstance(made, str) else "no column text"))
            number += 1
        position += len(line) + 1
    batches, tally, rejected = read_plan(plan)
    found = [row for b in batches for row in zip(b.rows.tolist(), b.columns.to_pylist(), strict=True)]
    assert tally.ledger.rows_in == number
    assert [(r.position, r.reason) for r in rejected] == rejects
    if "template" in fields:
        assert [row for row, _ in found] == [row for row, _ in rows]
        return
    names = plan.schema.names
    typed = pa.RecordBatch.from_pylist([row for _, row in rows], plan.read_schema).select(names).to_pylist()
    assert same(found, [(at, row) for (at, _), row in zip(rows, typed, strict=True)])


@pytest.mark.parametrize("name", ["text", "na\u00efve \U0001f600", 'q"\\/\n'])
def test_a_missing_text_column_is_not_a_null(tmp_path: Path, name: str) -> None:
    key = json.dumps(name)
    keys = [
        key,
        json.dumps(name, ensure_ascii=False),
        '"' + "".join(f"\\u{ord(c):04X}" if ord(c) < 65536 else json.dumps(c)[1:-1] for c in name) + '"',
    ]
    lines = [
        *(f'{{"n": {{}}, {spelled} : null}}' for spelled in keys),
        f'{{"s": {{{key}: null}}}}',
        "{}",
        f'{{{key}: "a"}}',
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines) + "\n")
    texts, _, rejected = read(path, text_column=name)
    assert texts == [None, None, None, "a"]
    assert [(r.reason, r.data.decode()) for r in rejected] == [(f"no column {name}", line) for line in lines[3:5]]


def test_rows_without_the_text_column_are_rejected(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level())
    (tmp_path / "src").mkdir()
    write_lines(tmp_path / "src" / "a.jsonl", *[{"text": f"t {i}"} for i in range(10)])
    write_lines(tmp_path / "src" / "b.jsonl", *[{"content": f"c {i}"} for i in range(90)])
    asked = ["build", "src", "--text-column", "text", "--tokenizer", tokenizer, "--layout", "documents"]
    assert run([*asked, "-o", "o.lance"]) == 0
    out = capsys.readouterr().out
    assert "100 = 10 used + 0 empty + 0 filtered + 90 rejected" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("warning: 90.0% of the source rows were rejected")
    quarantined = [json.loads(line) for line in Path("o.rejected.jsonl").read_text().splitlines()]
    assert len(quarantined) == 90
    assert quarantined[1] == {
        "file": str(tmp_path / "src" / "b.jsonl"),
        "byte": len('{"content": "c 0"}\n'),
        "reason": "no column text",
        "text": '{"content": "c 1"}',
    }
    assert run([*asked, "-o", "strict.lance", "--strict"]) == 1
    assert "no column text" in capsys.readouterr().err
    # What the filter drops is not asked for a text.
    assert run([*asked, "-o", "f.lance", "--strict", "--filter", "content is null"]) == 0
    assert "100 = 10 used + 0 empty + 90 filtered + 0 rejected" in capsys.readouterr().out


def test_columns_of_later_files_exist(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a"})
    write_lines(tmp_path / "b.jsonl", {"content": "b", "lang": "en", "n": 2})
    plan = plan_of(tmp_path, template="{{ text or content }}", keep_columns=("lang", "n"), filter="n is null or n = 2")
    assert rows_of(plan)[0] == [{"text": "a", "lang": None, "n": None}, {"text": "b", "lang": "en", "n": 2}]
    assert read(tmp_path, text_column="content")[0] == ["b"]
    with pytest.raises(ColumnNotFound, match="nothing"):
        plan_of(tmp_path, text_column="nothing")


def test_columns_whose_type_varies_between_files_are_widened(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a", "score": 1, "id": 1, "m": {"k": 1}, "later": None})
    write_lines(tmp_path / "b.jsonl", {"text": "b", "score": 0.5, "id": "x", "m": {"k": 2, "j": "x"}, "later": 3})
    (tmp_path / "c.json").write_text(
        json.dumps([{"text": "c", "score": 2, "id": [1], "m": None, "later": 4}], indent=1)
    )
    plan = plan_of(tmp_path, keep_columns=("score", "id", "m", "later"))
    assert plan.schema.field("score").type == pa.float64()
    assert plan.schema.field("later").type == pa.int64()
    found = rows_of(plan)[0]
    assert [row["score"] for row in found] == [1.0, 0.5, 2.0]
    assert [row["id"] for row in found] == ["1", "x", "[1]"]
    assert [row["m"] for row in found] == [{"k": 1, "j": None}, {"k": 2, "j": "x"}, None]
    assert [row["later"] for row in found] == [None, 3, 4]


def test_a_column_that_is_null_in_the_sample_is_text(tmp_path: Path) -> None:
    early = [{"text": "t" * 100, "n": None}] * 12_000  # more than the first MiB
    write_lines(tmp_path / "a.jsonl", *early, {"text": "late", "n": 7}, {"text": "later", "n": "x"})
    plan = plan_of(tmp_path / "a.jsonl", layout="raw")
    assert plan.schema.field("n").type == pa.string()
    assert [row["n"] for row in rows_of(plan)[0]][-3:] == [None, "7", "x"]


def test_a_first_file_without_records_does_not_stop_a_build(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    write_lines(tmp_path / "c.jsonl", {"text": "c"})
    assert read(tmp_path)[0] == ["c"]


@pytest.mark.parametrize("compression", PACKERS)
def test_all_values_of_a_json_file_are_read(tmp_path: Path, compression: str) -> None:
    kinds = {
        "arrays": '[{"text": "a"}][{"text": "b"},\n{"text": "c"}]\n',
        "mixed": '\ufeff[{"text": "a"}, ]\n{"text": "b"}\n\n[]{\n"text": "c"}',
        "objects": '{"text": "a"} {"text": "b"}{"text": "c"}',
        "commas": '{"text": "a"},\n{"text": "b"},\n{"text":\n"c"}\n',
        "lines": '\ufeff\n{"text": "a"}\n\n{"text": "b"}\r\n{"text": "c"}',
        "pretty": "\n".join(json.dumps({"text": t, "n": [1, {}]}, indent=2) for t in "abc"),
    }
    for name, data in kinds.items():
        path = tmp_path / f"{name}.json{compression}"
        path.write_bytes(PACKERS[compression](data.encode()))
        assert read(path)[0] == ["a", "b", "c"], name


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ('[{"text": "a"}] trailing', 16),
        ('[{"text": "a"} {"text": "b"}]', 15),
        ('[{"text": "a"},, {"text": "b"}]', 15),
        ('[{"text": "a"}]]', 15),
        ('{"text":\n"a"}\n{"text": oops}\n' + '{"text": "b"}' * 50, 23),
        ('{"text":\n"a"}\n{"text": "b"', 26),
        ('{"text":\n"a", "n": ' + "[" * 100_000, 0),
    ],
)
def test_damage_in_a_json_file_is_an_error(tmp_path: Path, data: str, place: int) -> None:
    (tmp_path / "x.json").write_text(data)
    with pytest.raises(BadFile, match=rf"x\.json.* at character {place}:"):
        read(tmp_path / "x.json", text_column="text")


def test_the_outermost_object_of_a_pretty_file_is_the_record(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{\n"text": "outer", "inner":\n{"text": "inner", "n": 1}\n}\n')
    plan = plan_of(tmp_path / "x.json", layout="raw")
    assert rows_of(plan)[0] == [{"text": "outer", "inner": {"text": "inner", "n": 1}}]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("compression", PACKERS)
def test_rejected_rows_say_where_they_are(tmp_path: Path, kind: str, compression: str) -> None:
    odd = [
        '{"text": "a", "text": "b"}',
        '{"text": "\\ud800"}',
        "[1]",
        '{"id": 1}',
        '{"text": "\u00e9", "id": {"a": 1, "a": 2}}',
    ]
    odd.append('{"text": "template fails", "id": null, "n": 0}')
    reasons = ["duplicate key", "lone surrogate", "not a JSON object", "the template fails: ZeroDivisionError"]
    records = [json.dumps({"text": f"t {i}", "id": i, "n": 1}) for i in range(1000)]
    for i, record in enumerate(odd):
        records.insert(150 * i + 1, record)
    texts = "\n\n".join(records) if kind == "jsonl" else "[" + " ,\n".join(records) + "]"
    path = tmp_path / f"x.{kind}{compression}"
    path.write_bytes(PACKERS[compression](texts.encode()))
    batches, _, rejected = read_plan(plan_of(path, template="{{ text }}{{ 1 // (n or 0) }}", keep_columns=("id",)))
    want = {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 3}
    assert [r.reason for r in rejected] == [reasons[want[i]] for i in range(6)]
    places = [records.index(record) for record in odd]
    data = texts.encode()
    assert [r.position for r in rejected] == (
        [data.index(record.encode()) for record in odd] if kind == "jsonl" else places
    )
    assert [r.data.decode() for r in rejected] == odd
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert rows == [i for i in range(1006) if i not in places]


def test_an_odd_line_does_not_hide_what_another_would_lose(tmp_path: Path) -> None:
    lines = ['{"text": "a", "n": 1, "s": {"k": 1}}'] * 30_000  # longer than what is sampled
    lines += ['{"text": "b"} {"text": "c"}', '{"text": "d", "new": 1}', '{"text": "e", "s": {"z": 1}}', '{"n": 1.5}']
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, *lines[:100]]))
    batches, _, rejected = read_plan(plan_of(tmp_path / "x.jsonl", layout="raw"))
    assert sum(len(batch.columns) for batch in batches) == 30_100
    reasons = ["invalid JSON", "key 'new' is not among the planned columns"]
    reasons += ["column s has a key that is not among its planned fields", "column n is not int64"]
    assert [r.reason for r in rejected] == reasons


@pytest.mark.parametrize("ending", ["\n", "\n\n", "\n  \n\n"])
def test_two_objects_on_a_line_are_no_row(tmp_path: Path, ending: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b"} {"text": "c"}' + ending + '{"text": "d"}\n')
    texts, _, rejected = read(tmp_path / "x.jsonl")
    assert texts == ["a", "d"]
    assert [(r.position, r.reason) for r in rejected] == [(14, "invalid JSON")]


def test_the_quarantine_says_how_long_a_record_was(tmp_path: Path) -> None:
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level())
    lines = ['{"text": "a"}', '{"texts": "' + "\u00e9" * 5000 + '"}', '{"texts": "short"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    report = lance_prep.build(
        tmp_path / "x.jsonl", output=tmp_path / "o.lance", tokenizer=tokenizer, text_column="text"
    )
    assert report.rejected_file is not None
    long, short = [json.loads(line) for line in Path(report.rejected_file).read_text().splitlines()]
    assert long["bytes"] == len(lines[1].encode())
    assert 4000 < len(long["text"].encode()) <= 4096
    assert lines[1].startswith(long["text"])
    assert "bytes" not in short


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_nan_as_python_writes_it(tmp_path: Path, kind: str) -> None:
    records = ['{"text": "a", "d": 0.5}', '{"text": "b", "d": NaN}', '{"text": "c", "d": -Infinity, "o": NaN}']
    path = tmp_path / f"x.{kind}"
    path.write_text("\n".join(records) if kind == "jsonl" else "[" + ",".join(records) + "]")
    first, second, third = (row["d"] for row in rows_of(plan_of(path, keep_columns=("d",)))[0])
    assert (first, third) == (0.5, -math.inf)
    assert math.isnan(second)
