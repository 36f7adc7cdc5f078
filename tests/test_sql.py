"""`lance-prep sql`: results against pyarrow, output formats, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_prep.cli.main import run
from lance_prep.dataset import query
from lance_prep.errors import UsageError
from tests.loopback_hub import LoopbackHub

SOURCES = ["web", "books", "web", "code", "web", "books", "web"]
EVIL = "\x1b[31mred\u202e\nline"
BY_SOURCE = "select source, count(*) as n from dataset group by source order by n desc, source"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A folder with one dataset per layout, of the same 210 records."""
    home = tmp_path_factory.mktemp("sql")
    rows = [{"text": f"record {i} " * (i % 7 + 1), "source": SOURCES[i % 7], "n": i} for i in range(210)]
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build = ["build", str(home / "a.jsonl"), "--no-shuffle", "--tokenizer", tokenizer]
    kept = ["--keep-columns", "source,n"]
    assert run([*build, "--layout", "documents", *kept, "-o", str(home / "documents.lance")]) == 0
    assert run([*build, "--layout", "blocks", "--block-size", "16", "-o", str(home / "blocks.lance")]) == 0
    raw = ["build", str(home / "a.jsonl"), "--no-shuffle", "--layout", "raw", "-o", str(home / "raw.lance")]
    assert run(raw) == 0
    return home


def records(capsys: Any, dataset: Path | str, sql: str, *more: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["sql", str(dataset), sql, "--json", *more]) == 0, capsys.readouterr().err
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: Any, *arguments: str) -> str:
    capsys.readouterr()
    assert run(["sql", *arguments]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line for line in captured.err.splitlines() if line.startswith("  try: ")]
    assert "Traceback" not in captured.err
    return str(captured.err)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("layout", ["raw", "documents"])
def test_groups_are_those_of_arrow(built: Path, capsys: Any, layout: str) -> None:
    table = lance.dataset(str(built / f"{layout}.lance")).to_table()
    grouped = table.group_by("source").aggregate([("n", "count")]).to_pylist()
    expected = sorted(((row["source"], row["n_count"]) for row in grouped), key=lambda row: (-row[1], row[0]))
    found = records(capsys, built / f"{layout}.lance", BY_SOURCE)
    assert [(row["source"], row["n"]) for row in found] == expected == [("web", 120), ("books", 60), ("code", 30)]


@pytest.mark.parametrize("layout", ["raw", "documents", "blocks"])
def test_all_rows_and_columns(built: Path, capsys: Any, layout: str) -> None:
    path = built / f"{layout}.lance"
    expected = json.loads(json.dumps(lance.dataset(str(path)).to_table().to_pylist(), default=str))
    assert len(expected) > 100
    assert records(capsys, path, "select * from dataset") == expected
    assert records(capsys, path, "select * from dataset", "--limit", "3") == expected[:3]


def test_tokens_and_a_with_query(built: Path, capsys: Any) -> None:
    lengths = lance.dataset(str(built / "documents.lance")).to_table()["num_tokens"].to_pylist()
    sql = (
        "with long as (select num_tokens, array_length(input_ids) as k from dataset where num_tokens > 5) "
        "select count(*) as n, sum(num_tokens) as t, sum(k) as k from long"
    )
    longer = [length for length in lengths if length > 5]
    [row] = records(capsys, built / "documents.lance", sql)
    assert row == {"n": len(longer), "t": sum(longer), "k": sum(longer)}


def test_the_table_stops_at_the_limit_and_says_so(built: Path, capsys: Any) -> None:
    arguments = ["sql", str(built / "raw.lance"), "select n, text from dataset order by n"]
    capsys.readouterr()
    assert run(arguments) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines] == ["n", *map(str, range(100))]
    assert "110 more rows; print them with --limit all" in captured.err
    assert run([*arguments, "--limit", "all"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 211
    assert captured.err == ""


def test_files_hold_every_row(built: Path, tmp_path: Path, capsys: Any) -> None:
    path, sql = built / "documents.lance", "select n, source, input_ids from dataset order by n"
    expected = records(capsys, path, sql)
    for suffix in ("parquet", "json", "csv"):
        assert run(["sql", str(path), sql, "-o", str(tmp_path / f"o.{suffix}")]) == 0
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == expected
    assert json.loads((tmp_path / "o.json").read_text()) == expected
    read = list(csv.DictReader((tmp_path / "o.csv").open(newline="")))
    assert [{**row, "n": int(row["n"]), "input_ids": json.loads(row["input_ids"])} for row in read] == expected
    capsys.readouterr()
    assert run(["sql", str(path), sql, "--csv"]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == read
    assert sorted(file.name for file in tmp_path.iterdir()) == ["o.csv", "o.json", "o.parquet"]
    before = (tmp_path / "o.csv").read_bytes()
    assert "exists already" in refusal(capsys, str(path), sql, "-o", str(tmp_path / "o.csv"))
    assert (tmp_path / "o.csv").read_bytes() == before


def test_a_query_that_fails_midway_leaves_no_file(built: Path, tmp_path: Path, capsys: Any) -> None:
    for suffix in ("parquet", "json", "csv"):
        output = str(tmp_path / f"o.{suffix}")
        said = refusal(capsys, str(built / "raw.lance"), "select 1 / (n - 7) as x from dataset", "-o", output)
        assert "Divide by zero" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_another_program_and_its_versions(tmp_path: Path, capsys: Any) -> None:
    path = str(tmp_path / "x.lance")
    rows = {"Name": [EVIL, None], "b": [b"\x00\xff", None], "f": [float("nan"), 1.5]}
    lance.write_dataset(pa.table(rows), path)
    lance.write_dataset(pa.table({name: values[:1] for name, values in rows.items()}), path, mode="append")
    lance.dataset(path).tags.create("first", 1)
    for version, count in (("1", 2), ("first", 2), ("2", 3)):
        assert records(capsys, Path(path), "select count(*) as n from dataset", "--version", version) == [{"n": count}]
    assert "no version 9" in refusal(capsys, path, "select 1 from dataset", "--version", "9")
    first, second = records(capsys, Path(path), "select * from dataset", "--version", "1")
    assert first == {"Name": EVIL, "b": "00ff", "f": "nan"}
    assert second == {"Name": None, "b": None, "f": 1.5}
    assert run(["sql", path, 'select "Name", b from dataset']) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["\\x1b[31mred\\u202e\\nline", "00ff"]
    assert not set(out) & set("\x1b\u202e")


def test_a_terminal_shows_a_table_with_long_values_cut(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"t": ["x" * 500], "e": [EVIL]}), str(tmp_path / "x.lance"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lance_prep", "sql", str(tmp_path / "x.lance"), "select * from dataset"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "120"})
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0, done.stderr
    assert "x" * 20 in shown
    assert "x" * 61 not in shown
    assert "…" in shown
    assert "\x1b[31mred" not in shown
    assert "\\x1b[31mred" in shown


HOSTILE = [
    "create table t as select * from dataset",
    "create external table t stored as csv location '/etc/passwd'",
    "copy dataset to '{tmp}/out.parquet'",
    "copy (select * from dataset) to '{tmp}/out.csv' stored as csv",
    "insert into dataset select * from dataset",
    "delete from dataset",
    "update dataset set n = 1",
    "drop table dataset",
    "set datafusion.execution.batch_size = 1",
    "explain analyze select * from dataset",
    "select 1 from dataset; drop table dataset",
    "select 1 from dataset; copy dataset to '{tmp}/out.parquet'",
    "with t as (insert into dataset select * from dataset) select * from t",
    "with t as (select 1) insert into dataset select * from dataset",
    "select * into other from dataset",
    "/* select */ create table t as select 1",
    "-- select\ncreate table t as select 1",
    "select * from '/etc/passwd'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_parquet('{tmp}/x.parquet')",
    "select n from dataset where n in (select n from other)",
    "select * from information_schema.tables",
    "attach '{tmp}/x.db' as x",
    "install httpfs",
    "pragma database_list",
    "call load_extension('x')",
    "select * from read_text('/etc/passwd')",
    "select * from glob('/etc/*')",
    "select * from parquet_metadata('{tmp}/x.parquet')",
    "with t as (select * from '/etc/passwd') select * from t",
    "select (select count(*) from read_csv('/etc/passwd')) as n from dataset",
    "",
    ";",
]


def test_hostile_statements_are_refused_and_change_nothing(built: Path, tmp_path: Path, capsys: Any) -> None:
    before = digest(built)
    for statement in HOSTILE:
        refusal(capsys, str(built / "raw.lance"), statement.format(tmp=tmp_path))
    refusal(capsys, str(built / "raw.lance"), BY_SOURCE, "-o", str(built / "raw.lance" / "o.csv"))
    assert records(capsys, built / "raw.lance", BY_SOURCE)
    assert digest(built) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select sourc from dataset", ["unknown column 'sourc'", "did you mean source?", "n (int64)"]),
        ("select d.sourc from dataset d", ["unknown column 'd.sourc'", "did you mean source?"]),
        ("select n from dataset where", ["line 1, column 23, near 'where'"]),
        ("select n\nfrom dataset where n = 1 and x y", ["line 2"]),
        ("select n from datase", ["unknown table 'datase'", "FROM dataset"]),
        ("select nosuch(n) from dataset", ["Invalid function 'nosuch'"]),
        ("select cast(source as int) as x from dataset", ["Cannot cast string 'web'"]),
        ("select a.n, b.n from dataset a join dataset b on a.n = b.n", ["two columns named 'n'", "AS"]),
    ],
)
def test_errors_name_the_place_and_the_columns(built: Path, capsys: Any, sql: str, said: list[str]) -> None:
    text = refusal(capsys, str(built / "raw.lance"), sql)
    assert all(part in text for part in said), text
    assert ".rs:" not in text


def test_wrong_arguments(built: Path, tmp_path: Path, capsys: Any) -> None:
    path = str(built / "raw.lance")
    assert "there is no dataset" in refusal(capsys, str(tmp_path), BY_SOURCE)
    assert "cannot be combined" in refusal_of_usage(capsys, path, BY_SOURCE, "--json", "--csv")
    assert "not a number of rows" in refusal_of_usage(capsys, path, BY_SOURCE, "--limit", "-1")
    assert ".parquet, .csv or .json" in refusal(capsys, path, BY_SOURCE, "-o", str(tmp_path / "o.txt"))


def refusal_of_usage(capsys: Any, *arguments: str) -> str:
    assert run(["sql", *arguments]) == 2
    return str(capsys.readouterr().err)


def test_the_library_streams(built: Path) -> None:
    reader = query(built / "blocks.lance", "select num_tokens from dataset where num_tokens < 0")
    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.schema.names == ["num_tokens"]
    assert reader.read_all().num_rows == 0
    table = query(built / "raw.lance", "select substr(source, 1, 1) as s from dataset").read_all()
    assert table.schema.field("s").type == pa.string()
    assert table.num_rows == 210


def test_a_query_that_would_overflow_the_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nested more than 1,000 deep"):
        query(tmp_path, "select 1" + " + 1" * 20_000 + " from dataset")


def test_a_dataset_on_the_hub_is_read_at_one_commit_and_in_part(hub: LoopbackHub, tmp_path: Path, capsys: Any) -> None:
    path, n = tmp_path / "x.lance", 20_000
    texts = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)]
    lance.write_dataset(pa.table({"text": texts, "n": range(n), "source": [SOURCES[i % 7] for i in range(n)]}), path)
    first = hub.add_dataset("owner/name", uploaded(path))
    url = "hf://datasets/owner/name/data/train.lance"
    sql = "select source, count(*) as n from dataset where n < 700 group by source order by n desc"
    hub.log.clear()
    expected = [{"source": "web", "n": 400}, {"source": "books", "n": 200}, {"source": "code", "n": 100}]
    assert records(capsys, url, sql) == expected
    assert {request["method"] for request in hub.log} <= {"GET", "HEAD"}
    assert hub.requests("/resolve/") == hub.requests(f"/resolve/{first}/")
    asked = hub.bytes_sent("/data/")
    assert asked < 0.3 * sum(file.stat().st_size for file in (path / "data").iterdir())
    hub.log.clear()
    assert len(records(capsys, url, "select text from dataset where n = 5")) == 1
    assert hub.bytes_sent("/data/") < 0.3 * sum(file.stat().st_size for file in (path / "data").iterdir())
    lance.write_dataset(pa.table({"text": ["new"], "n": [0], "source": ["new"]}), path, mode="overwrite")
    hub.add_dataset("owner/name", uploaded(path))
    assert records(capsys, url, sql) == [{"source": "new", "n": 1}]
    assert records(capsys, url.replace("/data/", f"@{first}/data/"), sql) == expected
    assert "no revision 'nosuch'" in refusal(capsys, url.replace("/data/", "@nosuch/data/"), sql)
    assert "there is no dataset" in refusal(capsys, url.replace("train", "test"), sql)


def uploaded(folder: Path) -> dict[str, bytes]:
    return {
        f"data/train.lance/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets with columns of many types; every row of `a` has one in `b`, by `n` modulo 50."""
    home = tmp_path_factory.mktemp("joined")
    n = 5000
    columns = {
        "text": [hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)],
        "n": pa.array(range(n), pa.uint64()),
        "small": pa.array([i % 1000 for i in range(n)], pa.uint16()),
        "f": [i / 3 if i % 100 else float("nan") for i in range(n)],
        "s": [["a", "b", None][i % 3] for i in range(n)],
        "flag": [i % 2 == 0 for i in range(n)],
        "day": pa.array(range(n), pa.date32()),
        "b": [bytes([i % 256]) for i in range(n)],
        "list": [[i, i + 1] for i in range(n)],
        "st": [{"x": i} for i in range(n)],
    }
    lance.write_dataset(pa.table(columns), home / "a.lance", max_rows_per_file=1000)
    lance.dataset(home / "a.lance").delete("n >= 2000 and n < 2100")
    lance.write_dataset(
        pa.table({"n": pa.array(range(50), pa.int64()), "Name": [f"name {i}" for i in range(50)]}), home / "b.lance"
    )
    return home


def test_a_join_equals_that_of_arrow(joined: Path, capsys: Any) -> None:
    sql = (
        'select "Name" as name, count(*) as rows, sum(a.n) as total from dataset a join b on a.n % 50 = b.n '
        "where a.small < 100 group by all order by name"
    )
    found = records(capsys, joined / "a.lance", sql, "--with", f"b={joined / 'b.lance'}")
    expected: dict[str, list[int]] = {}
    for row in lance.dataset(joined / "a.lance").to_table().to_pylist():
        if row["small"] < 100:
            expected.setdefault(f"name {row['n'] % 50}", []).append(row["n"])
    assert found == [{"name": k, "rows": len(v), "total": sum(v)} for k, v in sorted(expected.items())]


@pytest.mark.parametrize(
    "where",
    [
        "n < 100",
        "n in (3, 5, 2050)",
        "small >= 990 and s = 'a'",
        "n < 10 or s = 'b'",
        "s is null",
        "s is not null and not flag",
        "f between 10 and 20",
        "day < date '1970-02-01'",
        "b = '\\x05'::blob",
        "st.x < 10",
        "text like 'a%'",
        "n = 4999 and text = 'x'",
        "list[1] = 7",
        "n < 0",
    ],
)
def test_a_filter_keeps_the_rows_that_duckdb_keeps_of_arrow(joined: Path, capsys: Any, where: str) -> None:
    import duckdb

    sql = f"select n, s, flag, st.x as x, list from dataset where {where} order by n"
    with duckdb.connect() as connection:
        connection.register("dataset", lance.dataset(joined / "a.lance").to_table())
        expected = connection.sql(sql).to_arrow_table().to_pylist()
        (count,) = connection.execute(f"select count(*) from dataset where {where}").fetchone() or ()
    assert records(capsys, joined / "a.lance", sql, "--engine", "duckdb") == expected
    assert len(expected) == count
    counting = f"select count(*) as n from dataset where {where}"
    assert records(capsys, joined / "a.lance", counting, "--engine", "duckdb") == [{"n": count}]


def test_a_join_on_the_hub_reads_columns_and_rows_in_part(
    hub: LoopbackHub, joined: Path, tmp_path: Path, capsys: Any
) -> None:
    texts = [hashlib.sha512(str(i).encode()).hexdigest() for i in range(20_000)]
    lance.write_dataset(pa.table({"text": texts, "n": pa.array(range(20_000), pa.uint64())}), tmp_path / "x.lance")
    hub.add_dataset("owner/name", uploaded(tmp_path / "x.lance"))
    url = "hf://datasets/owner/name/data/train.lance"
    whole = sum(file.stat().st_size for file in (tmp_path / "x.lance" / "data").iterdir())
    more = ["--with", f"b={joined / 'b.lance'}"]
    asked = []
    for sql in (
        "select max(text) as text from dataset a join b using (n)",
        "select count(*) as n from dataset a join b using (n)",
        "select count(*) as n from dataset",
        "select text from dataset where n = 77",
    ):
        hub.log.clear()
        assert records(capsys, url, sql, *more)
        asked.append(hub.bytes_sent("/data/") / whole)
    assert asked[0] > 0.8
    assert asked[1] < 0.3
    assert asked[2] < 0.1
    assert asked[3] < 0.5


def test_a_join_can_touch_nothing_but_the_datasets(
    joined: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = digest(joined)
    secret = pa.table({"a": [1]})
    assert len(secret) == 1
    more = ["--with", f"b={joined / 'b.lance'}"]
    hostile = [*HOSTILE, "select * from secret", "attach '/tmp/x.db'", "install httpfs", "pragma database_list"]
    hostile += ["select * from read_text('/etc/passwd')", "select * from glob('/*')", "select * from query('select 1')"]
    hostile += ["from dataset", "select * from __lance_b", "select * from main.b", "select * from duckdb_settings()"]
    for statement in hostile:
        refusal(capsys, str(joined / "a.lance"), statement.format(tmp=tmp_path), *more)
    assert digest(joined) == before
    assert list(tmp_path.iterdir()) == []


def test_duckdb_itself_is_locked(joined: Path) -> None:
    """What the check of the text would let through, duckdb refuses."""
    from lance_prep.dataset.joins import run_join

    datasets = {"dataset": ("a.lance", lance.dataset(joined / "a.lance"))}
    for sql in (
        "select * from read_csv('/etc/passwd')",
        "copy (select 1) to '/tmp/never.csv'",
        "set enable_external_access = true",
        "select * from datasets",
        "install httpfs",
        "load httpfs",
        "attach '/tmp/never.db'",
    ):
        with pytest.raises(UsageError):
            run_join(sql, datasets)
    assert not Path("/tmp/never.csv").exists()


def test_joins_that_are_wrong_are_explained(joined: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = str(joined / "a.lance"), f"b={joined / 'b.lance'}"
    assert "unknown table 'b'" in refusal(capsys, a, "select * from dataset join b using (n)")
    assert "use FROM dataset" in refusal(capsys, a, "select * from c", "--with", b)
    said = refusal(capsys, a, "select nosuch from dataset join b using (n)", "--with", b)
    assert '"nosuch" not found' in said
    assert "b: n (int64), Name (string)" in said
    assert "cannot join" in refusal(capsys, a, "select 1 from dataset", "--with", b, "--engine", "datafusion")
    assert "invalid table name 'b c'" in refusal(capsys, a, "select 1 from dataset", "--with", b.replace("b=", "b c="))
    assert "two datasets are named 'dataset'" in refusal(capsys, a, "select 1 from dataset", "--with", f"Dataset={a}")
    assert "same name" in refusal_of_usage(capsys, a, "select 1 from dataset", "--with", b, "--with", b)
    assert "there is no dataset" in refusal(capsys, a, "select 1 from dataset", "--with", "b=nosuch.lance")
    assert "could not convert" in refusal(capsys, a, "select cast(text as int) from dataset", "--with", b).lower()
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install 'lance-prep[sql]'" in refusal(capsys, a, "select 1 from dataset", "--with", b)


def test_a_damaged_dataset_in_a_join_is_named(joined: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(joined / "b.lance", tmp_path / "b.lance")
    for path in (tmp_path / "b.lance" / "data").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    more = ["--with", f"b={tmp_path / 'b.lance'}"]
    said = refusal(capsys, str(joined / "a.lance"), "select * from dataset join b using (n)", *more)
    assert f"{tmp_path / 'b.lance'} cannot be read" in said
    assert "verify" in said
