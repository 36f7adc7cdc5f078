"""`lance_prep.spark` on a real local Spark: DataFrames to datasets and back."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lance_prep
from lance_prep.dataset.check_source import SourceCheck
from lance_prep.errors import ColumnNotFound, LancePrepError, OutputExists, UsageError
from lance_prep.spark import read_lance, write_lance
from tests.helpers import check_whole, rows_of
from tests.spark import needs_spark

needs_spark()

COLUMNS = {
    "text": [f"Document {number} says {'so ' * (number % 40)}and ends." for number in range(2_000)],
    "n": list(range(2_000)),
}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("frame") / "a.parquet"
    pq.write_table(pa.table(COLUMNS), path)
    return str(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"layout": "documents", "keep_columns": ["n"], "filter": "n BETWEEN 100 AND 1500"},
        {"layout": "blocks", "block_size": 128, "val_fraction": 0.2, "side": "train"},
        {"layout": "blocks", "block_size": 64, "template": "{{ n }}: {{ text }}", "packing": "best-fit"},
        {"layout": "raw", "filter": "n < 1500"},
    ],
    ids=lambda fields: fields["layout"],
)
def test_one_partition_gives_the_rows_of_one_file(
    spark: Any, parquet: str, tokenizer: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    if fields["layout"] != "raw":
        fields = {"tokenizer": tokenizer, **fields}
    file = lance_prep.build(parquet, output=tmp_path / "file.lance", **fields)
    frame = write_lance(spark.read.parquet(parquet).coalesce(1), tmp_path / "frame.lance", **fields)
    assert frame.content_hash == file.content_hash
    assert frame.ledger == file.ledger
    check_whole(tmp_path / "frame.lance")


def test_partitions_are_shards_and_each_mode_makes_a_whole_version(
    spark: Any, parquet: str, tokenizer: str, tmp_path: Path
) -> None:
    df, output = spark.read.parquet(parquet).repartition(3, "n").sortWithinPartitions("n"), tmp_path / "a.lance"
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "keep_columns": ["n"]}
    first = write_lance(df, output, **fields)
    assert (first.status, first.version, first.shards) == ("built", 1, 3)
    assert write_lance(df, tmp_path / "b.lance", **fields).content_hash == first.content_hash
    version = lance_prep.info(output)
    assert version.metadata.source.asked == "DataFrame"
    assert version.metadata.ledger.rows_used == 2_000

    with pytest.raises(OutputExists, match="exists"):
        write_lance(df, output, **fields)
    assert write_lance(df, output, mode="overwrite", **fields).status == "unchanged"
    other = write_lance(df.where("n < 10"), output, mode="overwrite", **fields)
    assert (other.version, other.rows) == (2, 10)
    again = write_lance(df, output, mode="overwrite", **fields)
    assert (again.version, again.content_hash) == (3, first.content_hash)
    more = write_lance(df.where("n >= 1990"), output, mode="append", **fields)
    assert (more.version, more.rows) == (4, 2_010)
    with pytest.raises(OutputExists, match="another recipe: layout"):
        write_lance(df, output, mode="append", tokenizer=tokenizer, layout="lines", keep_columns=["n"])
    for number in (1, 2, 3, 4):
        check_whole(output, number)
    assert len({row["doc_id"] for row in rows_of(output)}) == 2_010

    problems = lance_prep.verify(output, against=SourceCheck()).problems
    assert problems == [
        "the rows cannot be compared with their source, a DataFrame, which is not kept; "
        "write it again, and compare the content hashes"
    ]


def test_empty_dataframes_and_empty_partitions(spark: Any, tokenizer: str, tmp_path: Path) -> None:
    empty = spark.createDataFrame([], "text string")
    assert write_lance(empty, tmp_path / "empty.lance", tokenizer=tokenizer).rows == 0
    few = spark.createDataFrame([("one",), ("two",)], "text string").repartition(7)
    report = write_lance(few, tmp_path / "few.lance", tokenizer=tokenizer, layout="documents")
    assert report.rows == 2
    check_whole(tmp_path / "few.lance")


def test_a_function_as_tokenizer(spark: Any, parquet: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "tokenizer": lambda text: list(text.encode()),
        "layout": "documents",
        "eos_id": 0,
        "tokenizer_name": "bytes",
    }
    file = lance_prep.build(parquet, output=tmp_path / "file.lance", **fields)
    frame = write_lance(spark.read.parquet(parquet).coalesce(1), tmp_path / "frame.lance", **fields)
    assert frame.content_hash == file.content_hash


def test_an_error_in_an_executor_arrives_as_that_error(spark: Any, tokenizer: str, tmp_path: Path) -> None:
    df = spark.createDataFrame([("fine",), ("not <|endoftext|> fine",)], "text string")
    with pytest.raises(LancePrepError, match=r"special token <\|endoftext\|> in a text") as raised:
        write_lance(df, tmp_path / "a.lance", tokenizer=tokenizer, special_tokens="error")
    assert "special_tokens='text'" in raised.value.advice


# Spark runs a task that fails four times, each time in a new worker.
@pytest.mark.torture
def test_errors_of_spark_itself(spark: Any, tokenizer: str, tmp_path: Path) -> None:
    df = spark.createDataFrame([("fine",)], "text string")
    with pytest.raises(LancePrepError, match="DIVIDE_BY_ZERO"):
        write_lance(df.selectExpr("string(1 / (length(text) - 4)) as text"), tmp_path / "b.lance", tokenizer=tokenizer)


def test_what_has_no_meaning_for_a_dataframe_is_refused(spark: Any, tmp_path: Path, tokenizer: str) -> None:
    df = spark.createDataFrame([("a", "b")], "first string, second string")
    with pytest.raises(UsageError, match="max_rows has no effect on a DataFrame") as raised:
        write_lance(df, tmp_path / "a.lance", max_rows=5)
    assert raised.value.advice == "remove it; use df.limit(n)"
    with pytest.raises(UsageError, match="unknown mode"):
        write_lance(df, tmp_path / "a.lance", mode="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one side at a time"):
        write_lance(df, tmp_path / "a.lance", text_column="first", val_fraction=0.1)
    with pytest.raises(ColumnNotFound, match="several columns hold text"):
        write_lance(df, tmp_path / "a.lance", tokenizer=tokenizer)
    assert not (tmp_path / "a.lance").exists()


def test_a_dataset_comes_back_as_a_dataframe(spark: Any, parquet: str, tokenizer: str, tmp_path: Path) -> None:
    output = tmp_path / "a.lance"
    report = lance_prep.build(parquet, output=output, tokenizer=tokenizer, block_size=64, shard_size="20kB")
    lance_prep.build(parquet, output=output, tokenizer=tokenizer, block_size=32, overwrite=True)
    df = read_lance(spark, output, version=1)
    assert df.count() == report.rows
    assert [(field.name, field.dataType.simpleString()) for field in df.schema] == [
        ("input_ids", "array<int>"),
        ("num_tokens", "bigint"),
        ("seq_lengths", "array<bigint>"),
        ("doc_ids", "array<bigint>"),
    ]
    assert [row.asDict() for row in df.collect()] == rows_of(output, 1)
    short = read_lance(spark, output, columns=["num_tokens"], filter="num_tokens < 64", version=1)
    assert short.columns == ["num_tokens"]
    assert [row[0] for row in short.collect()] == [r["num_tokens"] for r in rows_of(output, 1) if r["num_tokens"] < 64]
    df.createOrReplaceTempView("blocks")
    assert spark.sql("select sum(num_tokens) from blocks").first()[0] == report.tokens

    with pytest.raises(ColumnNotFound, match="has no column 'words'"):
        read_lance(spark, output, columns=["words"])
    with pytest.raises(UsageError, match="invalid filter"):
        read_lance(spark, output, filter="words < 3")
    with pytest.raises(LancePrepError, match="version 9"):
        read_lance(spark, output, version=9)


def test_values_of_all_types_come_back(spark: Any, tmp_path: Path) -> None:
    now = datetime.datetime(2024, 5, 17, 12, 30, 1, 123456)
    rows = pa.table(
        {
            "text": pa.array(["a", None, "ü"], pa.large_string()),
            "bytes": pa.array([b"a", b"\x00\xff", None], pa.large_binary()),
            "u8": pa.array([0, 255, None], pa.uint8()),
            "u32": pa.array([0, (1 << 32) - 1, 1], pa.uint32()),
            "u64": pa.array([0, (1 << 63) - 1, 1], pa.uint64()),
            "f16": pa.array([0.5, None, 2.0], pa.float16()),
            "day": pa.array([now.date()] * 3),
            "at": pa.array([now, now, None], pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("2.50")], pa.decimal128(9, 2)),
            "word": pa.array(["x", "y", "x"]).dictionary_encode(),
            "tree": pa.array([{"a": [1, 2]}, {"a": []}, None], pa.struct([("a", pa.large_list(pa.uint16()))])),
        }
    )
    pq.write_table(rows, tmp_path / "a.parquet")
    lance_prep.build(tmp_path / "a.parquet", output=tmp_path / "a.lance", layout="raw", shuffle=False)
    df = read_lance(spark, tmp_path / "a.lance")
    assert [row.asDict(recursive=True) for row in df.collect()] == rows.to_pylist()


@pytest.mark.torture
def test_a_number_that_spark_cannot_hold_is_an_error(spark: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([1 << 63], pa.uint64())}), tmp_path / "a.parquet")
    lance_prep.build(tmp_path / "a.parquet", output=tmp_path / "a.lance", layout="raw")
    with pytest.raises(Exception, match="`n` has a value that Spark cannot hold"):
        read_lance(spark, tmp_path / "a.lance").collect()
