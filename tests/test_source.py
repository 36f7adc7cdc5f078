"""Source stage: every format gives its rows, in order, whole; what cannot be used is counted and handed back."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import itertools
import json
import lzma
import operator
import random
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.errors import BadFile, LancePrepError, RowRejected, SourceChanged, UsageError
from lance_prep.formats import PartJob, format_named, row_chunk
from lance_prep.formats import text as text_format
from lance_prep.ledger import Rejected, Tally
from lance_prep.model import Part, Plan, Shard
from lance_prep.recipe import Recipe
from lance_prep.source import read_shard
from lance_prep.source.cutter import Cutter
from lance_prep.transport import Transport
from tests.sources import parquet_bytes, plan_of, read, read_plan, rows_of

TEXTS = ["", "plain", "two\nlines", "日本語 🙂", "x" * 5000, "nul\0byte", *(f"row {i}" for i in range(300))]

PACK = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the command line tool does
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def jsonl(texts: list[Any]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


def csv_bytes(texts: list[str]) -> bytes:
    quoted = (text.replace('"', '""') for text in texts)
    return b"id,text\n" + b"".join(f'{i},"{text}"\n'.encode() for i, text in enumerate(quoted))


def write_arrow(path: Path, table: pa.Table, *, stream: bool) -> None:
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_line_formats_give_every_row(tmp_path: Path, kind: str, compression: str) -> None:
    pack = {
        "": bytes,
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        # two frames, as parallel compressors write them
        ".zst": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    }[compression]
    path = tmp_path / f"x{kind}{compression}"
    path.write_bytes(pack(csv_bytes(TEXTS) if kind == ".csv" else jsonl(TEXTS)))
    texts, tally, rejected = read(path)
    assert texts == TEXTS
    assert tally.ledger.rows_in == len(TEXTS)
    assert not rejected


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_string_type_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(TEXTS).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(TEXTS).cast(kind)
    table = pa.table({"text": column})
    write_arrow(tmp_path / "x.arrow", table, stream=False)
    assert read(tmp_path / "x.arrow")[0] == TEXTS
    write_arrow(tmp_path / "y.arrow", table, stream=True)
    assert read(tmp_path / "y.arrow")[0] == TEXTS
    if not pa.types.is_string_view(kind):
        pq.write_table(table, tmp_path / "x.parquet")
        assert read(tmp_path / "x.parquet")[0] == TEXTS


UTC = pa.timestamp("us", "UTC")
WIDENED = [
    (pa.int32(), 1, pa.int64(), 2),
    (pa.float64(), 1.5, pa.float32(), 0.5),
    (pa.float32(), 0.5, pa.float64(), float("nan")),
    (pa.int64(), 1, pa.float64(), 2.0),
    (pa.timestamp("us"), 1_000_000, pa.timestamp("s"), 2),
    (pa.string(), "a", pa.null(), None),
    (pa.list_(pa.float64()), [1.5], pa.list_(pa.int64()), [2, None]),
    (pa.struct({"a": pa.int64(), "b": pa.string()}), {"a": 1, "b": "x"}, pa.struct({"a": pa.int32()}), {"a": 2}),
]
LOST = [
    (pa.float32(), 0.5, pa.float64(), 0.1),
    (pa.float16(), 0.5, pa.float32(), 1e6),
    (pa.bool_(), True, pa.int64(), 5),
    (pa.int64(), 1, pa.bool_(), True),
    (pa.int64(), 1, pa.string(), "05"),
    (pa.string(), "05", pa.int64(), 5),
    (pa.int64(), 1, pa.float64(), 1.5),
    (pa.timestamp("us"), 1, UTC, 1),
    (UTC, 1, pa.timestamp("us"), 1),
    (pa.timestamp("us"), 1, pa.int64(), 5),
    (pa.list_(pa.float32()), [0.5], pa.list_(pa.float64()), [0.1]),
    (pa.struct({"a": pa.int64()}), {"a": 1}, pa.struct({"a": pa.int64(), "b": pa.int64()}), {"a": 1, "b": 2}),
    (pa.struct({"a": pa.int64()}), {"a": 1}, pa.struct({"b": pa.int64()}), {"b": 2}),
]


def write_two_types(folder: Path, first: pa.DataType, one: Any, second: pa.DataType, two: Any) -> None:
    pq.write_table(pa.table({"text": ["a"], "v": pa.array([one], first)}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "v": pa.array([two], second)}), folder / "b.parquet")


@pytest.mark.parametrize(("first", "one", "second", "two"), WIDENED, ids=str)
def test_a_later_file_may_have_a_type_whose_values_fit(
    tmp_path: Path, first: pa.DataType, one: Any, second: pa.DataType, two: Any
) -> None:
    write_two_types(tmp_path, first, one, second, two)
    (_, row), rejected = rows_of(plan_of(tmp_path, keep_columns=["v"]))
    assert repr([row["v"]]) == repr(pa.array([two], second).cast(first).to_pylist())
    assert not rejected


@pytest.mark.parametrize(("first", "one", "second", "two"), LOST, ids=str)
def test_a_later_file_whose_values_would_change_is_refused(
    tmp_path: Path, first: pa.DataType, one: Any, second: pa.DataType, two: Any
) -> None:
    write_two_types(tmp_path, first, one, second, two)
    for fields in ({"keep_columns": ["v"]}, {"template": "{{ text }} {{ v }}"}, {"layout": "raw"}):
        with pytest.raises(BadFile, match=r"b.parquet: column 'v' is .* planned as"):
            rows_of(plan_of(tmp_path, **fields))


def test_a_text_column_of_numbers_in_a_later_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [5]}), tmp_path / "b.parquet")
    with pytest.raises(BadFile, match=r"b.parquet: column 'text' is int64, and was planned as string"):
        read(tmp_path)


def test_a_row_of_a_text_file_can_be_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n\ntwo\rthree\n  four")
    assert read(tmp_path / "x.txt", text_unit="line")[0] == ["one", "", "", "two\rthree", "  four"]


def test_what_a_row_of_a_text_file_is(tmp_path: Path) -> None:
    book = "\ufeffTitle\n\nFirst line\nsecond line\r\n \t\n\n\nLast\n"
    (tmp_path / "a.md").write_text(book, newline="")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"\n\nother"))
    whole = [book.removeprefix("\ufeff"), "", "\n\nother"]
    paragraphs = ["Title", "First line\nsecond line", "Last", "other"]
    lines = ["Title", "", "First line", "second line", " \t", "", "", "Last", "", "", "other"]
    for layout, default in (("documents", whole), ("blocks", whole), ("lines", lines), ("raw", lines)):
        assert read(tmp_path, layout=layout)[0] == default
        assert read(tmp_path, layout=layout, text_unit="file")[0] == whole
        assert read(tmp_path, layout=layout, text_unit="paragraph")[0] == paragraphs
        assert read(tmp_path, layout=layout, text_unit="line")[0] == lines
    plan = plan_of(tmp_path)
    assert (plan.recipe.text_unit, plan.rows) == ("file", 3)


def test_a_large_text_file_asks_what_a_row_is(tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("wb") as file:
        file.write(b"a\n\nb\n")
        file.truncate((64 << 20) + 1)
    with pytest.raises(UsageError, match=r"x\.txt has 64 MiB") as caught:
        plan_of(tmp_path / "x.txt")
    assert all(unit in caught.value.advice for unit in ("file", "paragraph", "line"))
    assert len(plan_of(tmp_path / "x.txt", text_unit="file").shards) == 1
    assert len(plan_of(tmp_path / "x.txt", text_unit="paragraph").shards) > 1
    assert len(plan_of(tmp_path / "x.txt", layout="lines").shards) > 1


def test_text_units_are_for_text_files(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match="no text files"):
        plan_of(tmp_path / "x.jsonl", text_unit="line")
    assert plan_of(tmp_path / "x.jsonl").recipe.text_unit is None


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["a", "", "longer line", "\r", " \t", "b\r", "\u00a0"]), max_size=25),
    last=st.sampled_from(["", "\n"]),
    edges=st.lists(st.integers(0, 120), max_size=5),
    block=st.integers(1, 40),
    beyond=st.integers(1, 40),
)
def test_paragraphs_are_the_same_for_any_cut(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], last: str, edges: list[int], block: int, beyond: int
) -> None:
    data = ("\n".join(lines) + last).encode() or b"\n"
    path = tmp_path_factory.mktemp("paragraphs") / "x.txt"
    path.write_bytes(data)
    expected, positions, open_lines, at = [], [], [], 0
    for line in [*data.split(b"\n"), b""]:
        if line.strip():
            positions += [] if open_lines else [at]
            open_lines.append(line)
        elif open_lines:
            expected.append(b"\n".join(open_lines).removesuffix(b"\r").decode())
            open_lines = []
        at += len(line) + 1
    plan = plan_of(path, text_unit="paragraph")
    cuts = sorted({0, len(data), *(min(edge, len(data)) for edge in edges)})
    parts = [Part(0, a, b) for a, b in itertools.pairwise(cuts)]
    with (
        mock.patch.object(text_format, "BLOCK_BYTES", block),
        mock.patch.object(text_format, "_BEYOND", beyond),
    ):
        file, schema = plan.files[0], plan.schema
        jobs = [PartJob(file, part, 0, plan.recipe, schema, schema, None, Transport()) for part in parts]
        chunks = [chunk for job in jobs for chunk in format_named("text").read(job)]
    assert [text for chunk in chunks for text in chunk.columns.column("text").to_pylist()] == expected
    assert [int(position) for chunk in chunks for position in chunk.positions] == positions


def test_json_array_and_spread_objects(tmp_path: Path) -> None:
    records = [{"text": text, "n": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "b.json").write_text("\n".join(json.dumps(record, indent=1) for record in records))
    assert read(tmp_path / "a.json")[0] == TEXTS
    assert read(tmp_path / "b.json")[0] == TEXTS


def test_json_array_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}])[:-3])
    with pytest.raises(BadFile, match=r"a\.json"):
        read(tmp_path / "a.json")


def test_a_lance_source_is_pinned_to_its_version(tmp_path: Path) -> None:
    import lance

    lance.write_dataset(pa.table({"n": range(len(TEXTS)), "text": TEXTS}), tmp_path / "x.lance")
    plan = plan_of(tmp_path / "x.lance", filter="n >= 10")
    lance.write_dataset(pa.table({"n": [1], "text": ["later"]}), tmp_path / "x.lance", mode="append")
    batches, tally, _ = read_plan(plan)
    assert [t for b in batches for t in b.columns.column(0).to_pylist()] == TEXTS[10:]
    assert tally.ledger.filtered == 10


def test_a_lance_source_is_read_at_its_planned_version(tmp_path: Path) -> None:
    import lance

    path = tmp_path / "x.lance"
    lance.write_dataset(pa.table({"text": ["first"]}), path)
    plan = plan_of(path)
    lance.write_dataset(pa.table({"other": [1]}), path, mode="overwrite")
    assert format_named("lance").peek(plan.files, plan.recipe, Transport()).names == ["text"]
    assert [t for b in read_plan(plan)[0] for t in b.columns.column(0).to_pylist()] == ["first"]
    shutil.rmtree(path)
    with pytest.raises(SourceChanged, match="version 1, which was planned, is gone"):
        read_plan(plan)
    lance.write_dataset(pa.table({"text": ["anew"]}), path)
    with pytest.raises(SourceChanged, match="version 1 is another one"):
        read_plan(plan)


def test_null_texts_are_kept_and_missing_ones_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": null}\n{"id": 3}\n{"text": "a"}\n')
    texts, _, rejected = read(tmp_path / "x.jsonl")
    assert texts == [None, "a"]
    assert [(r.reason, r.position, r.data) for r in rejected] == [("no column text", 15, b'{"id": 3}')]
    (tmp_path / "x.parquet").write_bytes(parquet_bytes({"text": [None, "a", None]}))
    assert read(tmp_path / "x.parquet")[0] == [None, "a", None]


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_bad_json_lines_are_rejected(tmp_path: Path, compression: str) -> None:
    lines = [b'{"text": "a"}', b"nonsense", b"", b'{"text": 5}', b"null", b"[1]", b'{"text": "\xff"}', b'{"text": "b"}']
    # pyarrow's parser crashes on such nulls; and this one is only text
    lines += [b'{"text": "c"} null', b'{"text": "} null"}']
    data = b"\n".join(lines) + b"\n"
    path = tmp_path / f"x.jsonl{compression}"
    path.write_bytes(gzip.compress(data) if compression else data)
    texts, tally, rejected = read(path)
    assert texts == ["a", "b", "} null"]
    assert tally.ledger.rows_in == 9
    reasons = ["invalid JSON", "column text is not string", "not a JSON object", "not a JSON object", "invalid UTF-8"]
    assert [r.reason for r in rejected] == [*reasons, "invalid JSON"]
    assert all(data[r.position :].startswith(r.data) and r.unit == "byte" for r in rejected)


def test_bad_csv_rows_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,text\n1,a\n2,b,c\n3\n4,"d\ne"\n5\n')
    batches, tally, rejected = read_plan(plan_of(tmp_path / "x.csv"))
    assert [t for b in batches for t in b.columns.column(0).to_pylist()] == ["a", "d\ne"]
    assert [int(row) for b in batches for row in b.rows] == [0, 3]
    assert [(r.position, r.reason) for r in rejected] == [
        (1, "too many fields"),
        (2, "too few fields"),
        (4, "too few fields"),
    ]
    assert tally.ledger.rows_in == 5


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("x.csv", "id,text", ","),
        ("x.csv", "id;text", ";"),
        ("x.csv", "id\ttext", "\t"),
        ("x.csv", "id|text", "|"),
        ("x.csv", '"a;b;c",text', ","),
        ("x.csv", '"a\nb,c,d";text', ";"),
        ("x.csv", "text", ","),
        ("x.tsv", "id\ttext", "\t"),
        ("x.tsv.gz", "text", "\t"),
    ],
)
def test_a_delimiter_is_found_in_the_header(tmp_path: Path, name: str, header: str, delimiter: str) -> None:
    first = f"1{delimiter}" if header != "text" else ""
    data = f'{header}\n{first}"a,;|\tb"\n{first}c\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    plan = plan_of(tmp_path / name)
    assert plan.recipe.delimiter == delimiter
    assert [t for b in read_plan(plan)[0] for t in b.columns.column(0).to_pylist()] == ["a,;|\tb", "c"]


def test_a_delimiter_is_given(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a:b,c\n1:x,y\n")
    assert read(tmp_path / "x.csv", delimiter=":", text_column="b,c")[0] == ["x,y"]
    (tmp_path / "y.csv").write_text("a,b\tc\n1,2\tx\n")
    assert read(tmp_path / "y.csv", delimiter="tab", text_column="c")[0] == ["x"]
    assert plan_of(tmp_path / "y.csv", delimiter="\\t", text_column="c").recipe.delimiter == "\t"
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match="no CSV files"):
        plan_of(tmp_path / "x.jsonl", delimiter=";")
    for bad in ("", "ab", '"', "\n", "\u00e9"):
        with pytest.raises(ValueError, match="not a delimiter"):
            Recipe(source="x.csv", delimiter=bad)


def test_a_later_file_with_another_delimiter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;x\n")
    (tmp_path / "b.csv").write_text("id,text\n2,y\n")
    with pytest.raises(UsageError, match=r"different delimiters: ';' in .*a\.csv and ',' in .*b\.csv"):
        plan_of(tmp_path)
    (tmp_path / "a.csv").write_text("text\n1;x\n")  # one column: no delimiter to be seen
    assert read(tmp_path)[0] == ["1;x", "y"]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('id,text\n1,a\n2,"b\n3,c\n', 2),  # the last column
        ('text,id\na,1\n"b,2\nc,3\n', 2),  # one before the last: too few fields
        ('id,text,z\n1,a,"\n2,b,c', 1),  # a column that is not read, and no line end
        ('id,text\n1\n2,"b ""quoted""\n', 2),  # after a bad row
        ('text\n"a\n', 1),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_quote_that_is_never_closed_is_an_error(tmp_path: Path, text: str, row: int, packed: bool) -> None:
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(BadFile, match=f"a quote in data row {row} is not closed before the end of the file"):
        read(path, text_column="text")


@given(st.lists(st.tuples(st.text('a"\n,\r ;', max_size=6), st.text('b"\n', max_size=4)), min_size=1, max_size=20))
def test_csv_with_quotes_and_line_ends_is_read_as_by_python(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "other"), *rows])
        for data in (path.read_bytes(), path.read_bytes().removesuffix(b"\r\n")):
            path.write_bytes(data)
            assert read(path)[0] == [text for text, _ in rows]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.txt", "x.md.gz"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    data = '\ufeff{"text": "a"}\n{"text": "b"}\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for fields in ({}, {"text_unit": "line"}) if name in ("x.txt", "x.md.gz") else ({},):
        with pytest.raises(BadFile, match="is UTF-16") as caught:
            read(tmp_path / name, **fields)
        assert "iconv" in caught.value.advice


def bad_utf8(rows: dict[int, bytes], count: int) -> pa.Array:
    return pa.array([rows.get(i, f"row {i}".encode()) for i in range(count)], pa.binary()).view(pa.string())


def test_invalid_utf8_rows_are_rejected(tmp_path: Path) -> None:
    # the two halves of one character, in neighbouring rows: together they are UTF-8, alone they are not
    rows = {7: b"\xff", 500: b"a\xe2", 501: b"\x82\xac"}
    pq.write_table(pa.table({"text": bad_utf8(rows, 1000)}), tmp_path / "x.parquet", row_group_size=300)
    texts, tally, rejected = read(tmp_path / "x.parquet", shuffle_batch_size=64)
    assert len(texts) == 997
    assert [(r.position, r.data) for r in rejected] == list(rows.items())
    assert tally.ledger.reasons == {"invalid UTF-8": 3}
    (tmp_path / "x.txt").write_bytes(b"good\nb\xffd\ngood\n")
    texts, _, rejected = read(tmp_path / "x.txt", text_unit="line")
    assert texts == ["good", "good"]
    assert [(r.position, r.unit, r.data) for r in rejected] == [(5, "byte", b"b\xffd")]


def test_strict_stops_at_the_first_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\nbad\n')
    plan = plan_of(tmp_path / "x.jsonl")

    def refuse(rejected: Rejected) -> None:
        raise RowRejected(rejected.reason)

    with pytest.raises(RowRejected):
        list(read_shard(plan, plan.shards[0], Tally(on_reject=refuse)))


def test_thousands_of_rejected_rows_are_all_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n' + b"bad\n" * 5000)
    texts, tally, rejected = read(tmp_path / "x.jsonl")
    assert texts == ["a"]
    assert tally.ledger.rejected == len(rejected) == 5000


def test_very_long_lines_are_read(tmp_path: Path) -> None:
    long = "x" * (30 << 20)
    (tmp_path / "x.jsonl").write_bytes(jsonl(["a", long, "b"]))
    assert read(tmp_path / "x.jsonl")[0] == ["a", long, "b"]
    (tmp_path / "x.csv").write_bytes(csv_bytes(["a", long, "b"]))
    assert read(tmp_path / "x.csv")[0] == ["a", long, "b"]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from([b"a", b"", b"longer line", b"\r"]), max_size=20),
    last=st.sampled_from([b"", b"\n"]),
    edges=st.lists(st.integers(0, 120), max_size=4),
)
def test_byte_ranges_split_lines_once(
    tmp_path_factory: pytest.TempPathFactory, lines: Any, last: bytes, edges: Any
) -> None:
    data = b"\n".join(lines) + last
    path = tmp_path_factory.mktemp("lines") / "x.txt"
    path.write_bytes(data or b"\n")
    plan = plan_of(path, text_unit="line")
    whole = [t for b in read_plan(plan)[0] for t in b.columns.column(0).to_pylist()]
    size = len(data or b"\n")
    cuts = sorted({0, size, *(min(edge, size) for edge in edges)})
    shards = [Shard(i, (Part(0, a, b),), b - a) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    cut = Plan(plan.recipe, plan.source, plan.files, tuple(shards), plan.schema, plan.read_schema)
    assert [t for b in read_plan(cut)[0] for t in b.columns.column(0).to_pylist()] == whole


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=20)), min_size=1, max_size=120),
    row_group_size=st.integers(1, 50),
    batch_size=st.integers(1, 40),
    threshold=st.integers(0, 120),
)
def test_batches_do_not_depend_on_row_groups(
    tmp_path_factory: pytest.TempPathFactory, texts: Any, row_group_size: int, batch_size: int, threshold: int
) -> None:
    path = tmp_path_factory.mktemp("groups") / "x.parquet"
    columns = {"text": pa.array(texts, pa.string()), "n": list(range(len(texts)))}
    path.write_bytes(parquet_bytes(columns, row_group_size=row_group_size))
    batches, tally, _ = read_plan(
        plan_of(path, shuffle_batch_size=batch_size, keep_columns=("n",), filter=f"n >= {threshold}")
    )
    kept = list(range(min(threshold, len(texts)), len(texts)))
    expected = [kept[at : at + batch_size] for at in range(0, len(kept), batch_size)]
    assert [batch.rows.tolist() for batch in batches] == expected
    assert [batch.columns.column("n").to_pylist() for batch in batches] == expected
    assert [t for b in batches for t in b.columns.column("text").to_pylist()] == texts[threshold:]
    assert tally.ledger.filtered == min(threshold, len(texts))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_batches_close_at_their_bytes(sizes: list[int], cuts: list[int]) -> None:
    """The same batches as a loop over the rows makes, however the rows come in."""
    expected: list[int] = []
    rows = held = 0
    for size in sizes:
        rows, held = rows + 1, held + size
        if rows == 7 or held >= 64:
            expected.append(rows)
            rows = held = 0
    column = pa.array(["x" * size for size in sizes], pa.large_string())
    whole = pa.RecordBatch.from_arrays([column], ["text"])
    cutter = Cutter(7, 64)
    edges = sorted({0, len(sizes), *(min(cut, len(sizes)) for cut in cuts)})
    deliveries = []
    for start, stop in itertools.pairwise(edges):
        deliveries += cutter.add(row_chunk(whole.slice(start, stop - start), start, start))
    deliveries += cutter.finish()
    assert [len(d.batch.rows) for d in deliveries if d.batch] == expected + ([rows] if rows else [])


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("n = 3", lambda n, s: n == 3),
        ("n != 3", lambda n, s: n is not None and n != 3),
        ("not (n < 3 or n > 5)", lambda n, s: n is not None and 3 <= n <= 5),
        ("n in (1, 2, 99)", lambda n, s: n in (1, 2)),
        ("n not in (1, 2)", lambda n, s: n is not None and n not in (1, 2)),
        ("n between 2 and 4", lambda n, s: n is not None and 2 <= n <= 4),
        ("n not between 2 and 4", lambda n, s: n is not None and not 2 <= n <= 4),
        ("n is null", lambda n, s: n is None),
        ("n is not null and s.lang = 'en'", lambda n, s: n is not None and s == "en"),
        ("s.lang like 'd%'", lambda n, s: s == "de"),
        ("s.lang not like 'd%'", lambda n, s: s == "en"),
        ("n > 2.5", lambda n, s: n is not None and n > 2.5),
        ("5 >= n", lambda n, s: n is not None and n <= 5),
        ("n = -1 or s.lang = 'en' and n < 4", lambda n, s: n is not None and s == "en" and n < 4),
    ],
)
def test_filters_follow_sql(tmp_path: Path, where: str, keep: Any) -> None:
    numbers = [None if i % 10 == 9 else i % 10 for i in range(40)]
    langs = [{"lang": "en" if i % 3 else "de"} for i in range(40)]
    columns = {"text": [str(i) for i in range(40)], "n": numbers, "s": langs}
    (tmp_path / "x.parquet").write_bytes(parquet_bytes(columns, row_group_size=5))
    texts, tally, _ = read(tmp_path / "x.parquet", filter=where)
    assert texts == [str(i) for i in range(40) if keep(numbers[i], langs[i]["lang"])]
    assert tally.ledger.rows_in == 40
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pa.table(columns).to_pylist()))
    assert read(tmp_path / "x.jsonl", filter=where)[0] == texts


def test_a_template_makes_the_text_of_several_columns(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "why", "a": "so", "n": 0}\n{"q": null, "a": "x", "n": 1}\n')
    texts, _, rejected = read(
        tmp_path / "x.jsonl", template="{{ q }}: {{ a }}{{ 1 / (1 - n) if n else '' }}", keep_columns=("n",)
    )
    assert texts == ["why: so"]
    assert [r.reason for r in rejected] == ["the template fails: ZeroDivisionError"]


Rows = list[dict[str, Any]]
Condition = tuple[str, Callable[[dict[str, Any]], bool | None]]
NAN = float("nan")
COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
LITERALS: dict[str, list[Any]] = {
    "n": [-1, 0, 2, 2.5, 5],
    "f": [0, -0.0, 1.5, -1, 1e300],
    "g": [0, -0.0, 1.5, -1, 1e300],
    "s": ["", "a", "ab", "it's", "b\\\\"],
}
PATTERNS = ["a%", "%b", "_", "%", "", "b\\%", "%'_", "%\n%"]


def known(column: str, test: Callable[[Any], bool]) -> Callable[[dict[str, Any]], bool | None]:
    return lambda row: None if row[column] is None else test(row[column])


def written(value: Any) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


@st.composite
def comparisons(draw: st.DrawFn) -> Condition:
    """One comparison in SQL, and as a function of a row."""
    column = draw(st.sampled_from(["n", "f", "g", "s"]))
    low, high, *_ = values = draw(st.lists(st.sampled_from(LITERALS[column]), min_size=2, max_size=4))
    flip = "NOT " if draw(st.booleans()) else ""
    kind = draw(st.sampled_from(["compare", "flipped", "in", "between", "null", "bool", *(["like"] * (column == "s"))]))
    if kind == "null":
        return f"{column} IS {flip}NULL", lambda row: (row[column] is None) != bool(flip)
    if kind == "bool":
        return "b", known("b", bool)
    if kind in ("compare", "flipped"):
        op = draw(st.sampled_from(list(COMPARE)))
        sides = (column, written(low)) if kind == "compare" else (written(low), column)
        test = (lambda x: COMPARE[op](x, low)) if kind == "compare" else (lambda x: COMPARE[op](low, x))
        return f"{sides[0]} {op} {sides[1]}", known(column, test)
    if kind == "in":
        sql, test = f"IN ({', '.join(map(written, values))})", lambda x: any(x == value for value in values)
    elif kind == "between":
        sql, test = f"BETWEEN {written(low)} AND {written(high)}", lambda x: low <= x <= high
    else:
        pattern = draw(st.sampled_from(PATTERNS))
        expression = re.compile(re.escape(pattern).replace("%", ".*").replace("_", "."), re.DOTALL)
        sql, test = f"LIKE {written(pattern)}", lambda x: bool(expression.fullmatch(x))
    return f"{column} {flip}{sql}", known(column, (lambda x: not test(x)) if flip else test)


def negated(condition: Condition) -> Condition:
    def test(row: dict[str, Any]) -> bool | None:
        found = condition[1](row)
        return None if found is None else not found

    return f"NOT ({condition[0]})", test


def combined(op: str, left: Condition, right: Condition) -> Condition:
    decides = op == "OR"  # one side that is true decides OR, one that is false decides AND

    def test(row: dict[str, Any]) -> bool | None:
        sides = {left[1](row), right[1](row)}
        return decides if decides in sides else None if None in sides else not decides

    return f"({left[0]}) {op} ({right[0]})", test


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(inner.map(negated), st.builds(combined, st.sampled_from(["AND", "OR"]), inner, inner)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, sqlite3.Connection]:
    """Rows with nulls, both zeros and NaN (in column g), as Parquet in small row groups and as a table of SQLite."""
    draw = random.Random(7)
    values: dict[str, list[Any]] = {
        "n": [None, -1, 0, 1, 2, 3, 5],
        "f": [None, -0.0, 0.0, -1.0, 1.5, 1e300, float("inf"), float("-inf")],
        "g": [None, NAN, NAN, -0.0, 0.0, -1.0, 1.5, float("-inf")],
        "s": [None, "", "a", "ab", "it's", "b\\", "b\\x", "x\ny"],
        "b": [None, True, False],
    }
    rows = [{name: draw.choice(choice) for name, choice in values.items()} for _ in range(240)]
    rows.sort(key=lambda row: (row["g"] is None, str(row["g"]), row["f"] or 0, row["n"] or 0))
    rows = [{"text": str(i), **row} for i, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("filters") / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA case_sensitive_like = ON")
    database.execute("CREATE TABLE t (text TEXT, n INTEGER, f REAL, g REAL, s TEXT, b INTEGER)")
    # SQLite has no NaN
    some = [tuple(row.values()) for row in rows if row["g"] is None or row["g"] == row["g"]]
    database.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", some)
    return path, rows, database


@settings(max_examples=250, deadline=None)
@given(condition=CONDITIONS)
def test_filters_against_sqlite_and_ieee(filtered: tuple[Path, Rows, sqlite3.Connection], condition: Condition) -> None:
    path, rows, database = filtered
    sql, test = condition
    kept = [row["text"] for row in rows if test(row)]
    assert read(path, filter=sql)[0] == kept
    without_nan = {row["text"] for row in rows if row["g"] is None or row["g"] == row["g"]}
    found = {text for (text,) in database.execute(f"SELECT text FROM t WHERE {sql}")}
    assert found == without_nan & set(kept)


def test_nan_is_no_literal_of_a_filter(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_bytes({"text": ["a", "b", "c"], "f": [NAN, 1.0, None]}))
    with pytest.raises(UsageError, match="NaN is not equal to") as caught:
        plan_of(tmp_path / "x.parquet", filter="f = 'nan'")
    assert read(tmp_path / "x.parquet", filter=caught.value.advice.removeprefix("to keep NaN, write "))[0] == ["a"]


def test_a_filter_of_a_thousand_conditions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_bytes({"text": ["a"], "n": [1]}))
    with pytest.raises(UsageError, match="nests too many conditions"):
        plan_of(tmp_path / "x.parquet", filter=" OR ".join(["n = 1"] * 3000))


def rendered(tmp_path: Path, template: str) -> tuple[list[str], list[str]]:
    """The texts that a template makes of three columns, and the reasons for which rows are rejected."""
    columns = {
        "text": ["a <b at 0xFFFF12> c"],
        "tags": [["x", "y"]],
        "s": [{"k": 1, "a": None}],
        "when": [datetime.datetime(2024, 1, 31, 12)],
        "blob": [b"raw"],
        "range": [0.5],
    }
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(columns))
    texts, _, rejected = read(tmp_path / "t.parquet", template=template)
    return texts, [row.reason for row in rejected]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ text }}", "a <b at 0xFFFF12> c"),
        ("{{ text.upper() }}", "A <B AT 0XFFFF12> C"),
        ("{{ text[:1] }} <f at 0x7fff>", "a <f at 0x7fff>"),
        ("{{ tags | join(', ') }}/{{ tags | tojson }}/{{ tags | map('upper') | join }}", 'x, y/["x", "y"]/XY'),
        ("{{ s | tojson }} {{ s.k }} {{ s.a }}.", '{"a": null, "k": 1} 1 .'),
        ("{{ s | pprint }}", "{'a': None, 'k': 1}"),
        ("{{ when }} {{ when.year }}", "2024-01-31 12:00:00 2024"),
        ("{{ tags | length == 2 }} {{ range * 2 }}", "True 1.0"),
        ("{% for i in tags %}{{ loop.index }}{{ i }}{% endfor %}", "1x2y"),
    ],
)
def test_templates_print_values_as_text(tmp_path: Path, template: str, text: str) -> None:
    assert rendered(tmp_path, template) == ([text], [])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ tags }}", "prints a list; write {{ x | join"),
        ("{{ s }}", "prints a dict"),
        ("{{ blob }}", "prints a bytes"),
        ("{{ tags.index }}", "prints a method"),
        ("{{ (text | lower).upper }}", "prints a method"),
        ("{{ text | map('upper') }}", "prints a generator"),
        ("{{ text.upper | string }}", "prints an object with its address"),
        ("{{ text.upper | upper }}", "prints an object with its address"),
        ("{{ text.upper ~ '' }}", "prints an object with its address"),
        ("{{ text | map('upper') | string }}", "prints an object with its address"),
        ("{{ [text.upper] | string }}", "prints an object with its address"),
        ("{{ '{}'.format(text.upper) }}", "prints an object with its address"),
        ("{{ text | select | pprint }}", "prints an object with its address"),
        ("{{ text }}{{ when.now() }}", "SecurityError"),
        ("{{ text }}{{ when.today() }}", "SecurityError"),
        ("{{ text }}{{ tags.append('z') }}", "SecurityError"),
    ],
)
def test_rows_whose_template_prints_an_object_are_rejected(tmp_path: Path, template: str, reason: str) -> None:
    texts, reasons = rendered(tmp_path, template)
    assert not texts
    assert reason in reasons[0]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ text }}{{ range(9) | random }}", "differs between runs"),
        ("{% if text == 'x' %}{{ tags | random }}{% endif %}", "differs between runs"),
        ("{{ text }}{{ lipsum() }}", "unknown column, 'lipsum'"),
        ("{% set c = cycler(1, 2) %}{{ text }}", "unknown column, 'cycler'"),
        ("{{ text }}{{ joiner() }}", "unknown column, 'joiner'"),
        ("{% set n = namespace(a=1) %}{{ text }}", "unknown column, 'namespace'"),
        ("{{ text.upper }}", "prints the method text.upper"),
        ("{% if text == 'x' %}{{ tags | shout }}{% endif %}", "unknown filter 'shout'"),
    ],
)
def test_templates_that_differ_between_runs_are_refused(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(LancePrepError, match=said):
        rendered(tmp_path, template)


def test_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    plan = plan_of(path)
    path.write_bytes(b'{"text": "longer"}\n')
    with pytest.raises(SourceChanged, match=r"19 bytes.*14 bytes"):
        read_plan(plan)
    path.unlink()
    with pytest.raises(SourceChanged, match="gone"):
        read_plan(plan)


@pytest.mark.parametrize("compression", PACK)
def test_compressed_file_cut_short(tmp_path: Path, compression: str) -> None:
    data = PACK[compression](jsonl([str(i) * 7 for i in range(30_000)]))
    path = tmp_path / f"x.jsonl{compression}"
    path.write_bytes(data[:-20])
    with pytest.raises(BadFile):
        read(path)


@pytest.mark.parametrize("compression", PACK)
def test_streams_in_one_file_are_all_read(tmp_path: Path, compression: str) -> None:
    pack = PACK[compression]
    parts = [jsonl([f"{name} {i}" for i in range(1000)]) for name in "ab"]
    path = tmp_path / f"x.jsonl{compression}"
    path.write_bytes(pack(parts[0]) + b"\0" * 8 + pack(b"") + pack(parts[1]) + b"\0" * 4)
    assert read(path)[0] == [f"{name} {i}" for name in "ab" for i in range(1000)]


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("damage", ["header of a later stream", "body of a later stream", "appended", "cut short"])
def test_damage_after_the_first_stream_is_an_error(tmp_path: Path, compression: str, damage: str) -> None:
    pack = PACK[compression]
    first, second, third = (bytearray(pack(jsonl([f"{name} {i}" for i in range(1000)]))) for name in "abc")
    if damage == "header of a later stream":
        second[1] ^= 1
    elif damage == "body of a later stream":
        second[len(second) // 2] ^= 1
    elif damage == "cut short":
        third = third[:-1]
    path = tmp_path / f"x.jsonl{compression}"
    path.write_bytes(first + second + third + (b"more text\n" if damage == "appended" else b""))
    with pytest.raises(BadFile, match=r"x\.jsonl") as caught:
        read(path)
    assert caught.value.advice


@pytest.mark.parametrize("kind", ["v1", "v2", "dictionary"])
def test_parquet_checksums_are_verified(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"text": [f"the quick brown fox {i}" for i in range(5000)]})
    version = "2.0" if kind == "v2" else "1.0"
    options = {"use_dictionary": kind == "dictionary", "data_page_version": version, "compression": "none"}
    pq.write_table(table, path, write_page_checksum=True, **options)
    assert read(path)[0] == table.column("text").to_pylist()
    data = bytearray(path.read_bytes())
    data[data.find(b" brown ", len(data) // 2) + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadFile, match=r"x\.parquet.*damaged"):
        read(path)


def test_closing_ends_the_thread(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(jsonl(TEXTS * 50))
    plan = plan_of(tmp_path / "x.jsonl", shuffle_batch_size=16)
    tally = Tally()
    reader = read_shard(plan, plan.shards[0], tally)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert tally.ledger.rows_in == 16
    assert not [thread for thread in threading.enumerate() if thread.name == "lance-prep-read"]


def json_file(path: Path, records: list[str], kind: str) -> Path:
    """The records as lines, or as an array."""
    path = path / f"x.{kind}"
    path.write_text("\n".join(records) + "\n" if kind == "jsonl" else "[" + ",".join(records) + "]")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_late_keys_are_not_lost_in_silence(tmp_path: Path, kind: str) -> None:
    # the head that is looked at is 1 MiB of lines, or 1000 elements
    records = ['{"text": "%s", "s": {"a": 1}, "l": [{"b": 1}]}' % ("x" * 1200)] * 1001
    late = ['"new": 1', '"new": null', '"s": {"a": 2, "z": 1}', '"s": {"a": 3, "z": null}', '"l": [{"b": 2, "c": 0}]']
    path = json_file(tmp_path, [*records, *(f'{{"text": "t", {more}}}' for more in late)], kind)
    lost = [f"column {name} has a key that is not among its planned fields" for name in "sl"]
    key = "key 'new' is not among the planned columns"
    rows, reasons = rows_of(plan_of(path, layout="raw"))
    assert reasons == [key, *lost]
    assert rows[1001:] == [{"text": "t", "s": None, "l": None}, {"text": "t", "s": {"a": 3}, "l": None}]
    # where columns are chosen, the others are left out on purpose, but not parts of those
    for fields in ({"layout": "raw", "keep_columns": ("s", "text")}, {"keep_columns": ("s",)}):
        rows, reasons = rows_of(plan_of(path, **fields))
        assert reasons == lost[:1]
        assert len(rows) == 1005
    assert rows_of(plan_of(path))[1] == []


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_columns_of_several_types_hold_json_text(tmp_path: Path, kind: str) -> None:
    ids = ['"x"', "1", "true", "null", '{"a": [1, "\u00e9"]}', "[]", "18446744073709551616"]
    path = json_file(tmp_path, [f'{{"text": "t", "id": {value}, "e": {{}}}}' for value in ids], kind)
    expected = ["x", "1", "true", None, '{"a": [1, "\u00e9"]}', "[]", "18446744073709551616"]
    rows, reasons = rows_of(plan_of(path, keep_columns=("id", "e")))
    assert [row["id"] for row in rows] == expected
    assert {row["e"] for row in rows} == {"{}"}
    assert not reasons
    assert rows_of(plan_of(path, layout="raw")) == (rows, [])


def test_numbers_stand_in_text_as_they_were_written(tmp_path: Path) -> None:
    path = json_file(tmp_path, ['{"text": "t", "version": 1.10}', '{"text": "t", "version": "1.x"}'], "jsonl")
    assert [row["version"] for row in rows_of(plan_of(path, keep_columns=("version",)))[0]] == ["1.10", "1.x"]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("numbers", [[1, 2**64 - 1], [2**63], [-1, 2**63], [2**64]])
def test_large_integers_keep_their_digits(tmp_path: Path, kind: str, numbers: list[int]) -> None:
    path = json_file(tmp_path, [f'{{"text": "t", "n": {n}}}' for n in numbers], kind)
    plan = plan_of(path, keep_columns=("n",))
    fit = min(numbers) >= 0 and max(numbers) < 2**64
    assert plan.schema.field("n").type == (pa.uint64() if fit else pa.string())
    rows, reasons = rows_of(plan)
    assert [int(row["n"]) for row in rows] == numbers
    assert not reasons


def test_reasons_say_what_is_wrong(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "n": 1}',
        '{"text": "\\ud800", "n": 1}',
        '{"text": "b", "text": "c", "n": 1}',
        '{"text": "d", "n": "x"}',
        '{"text": "e", "o": 1, "o": 2}',
        '{"text": "f", "text": "g", "n": "x", "m": 5}',
    ]
    path = json_file(tmp_path, [*lines, '{"text": "h", "m": "x"}'], "jsonl")
    texts, _, rejected = read(path, filter="n is null or n = '1'", keep_columns=("m",))
    assert texts == ["a", "e", "h"]
    assert [r.reason for r in rejected] == ["lone surrogate", "duplicate key", "duplicate key"]
    path = json_file(tmp_path, ['{"text": "a"}', '{"text": "\\ud800"}', '{"text": 1}', '{"\\ud800": 1}'], "json")
    texts, _, rejected = read(path)
    assert texts == ["a"]
    assert [r.reason for r in rejected] == ["lone surrogate", "column text is not string", "no column text"]
