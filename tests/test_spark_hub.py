"""Spark and the Hub: DataFrames from a dataset's columns and row groups, and DataFrames pushed in one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_prep.dataset import show_rows
from lance_prep.spark import write_lance
from lance_prep.store import open_version
from tests.helpers import check_whole
from tests.loopback_hub import LoopbackHub
from tests.spark import needs_spark

needs_spark()

#: What `HfFileSystem` reads ahead, whatever is asked for.
READ_AHEAD = 5 << 20
#: Rows of a row group, and bytes of the column that nothing asks for in each.
ROWS, BALLAST = 500, 8 << 20


def wide_parquet(first: int) -> bytes:
    """Two row groups of texts, each with more of another column than is read ahead."""
    numbers = range(first, first + 2 * ROWS)
    draw = np.random.default_rng(first)
    columns = {
        "text": [f"Document {number} says so." for number in numbers],
        "n": list(numbers),
        "image": [draw.bytes(BALLAST // ROWS) for _ in numbers],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=ROWS)
    return sink.getvalue().to_pybytes()


def test_only_the_columns_and_row_groups_that_are_asked_for_are_read(
    spark: Any, hub: LoopbackHub, tokenizer: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyspark_huggingface")
    files = {f"data/train-0000{i}-of-00002.parquet": wide_parquet(i * 2 * ROWS) for i in range(2)}
    hub.add_dataset("owner/name", files)
    reader = spark.read.format("huggingface").option("columns", '["text", "n"]').option("filters", '[("n", "<", 400)]')
    reader.load("owner/name").createOrReplaceTempView("pages")
    df = spark.sql("SELECT upper(text) AS text, n FROM pages WHERE n % 2 = 0")
    report = write_lance(df, tmp_path / "a.lance", tokenizer=tokenizer, layout="documents", keep_columns=["n"])
    assert report.rows == 200
    shown = show_rows(open_version(tmp_path / "a.lance"), range(200))
    assert {row.columns["n"]: row.text for row in shown} == {n: f"DOCUMENT {n} SAYS SO." for n in range(0, 400, 2)}
    check_whole(tmp_path / "a.lance")

    footer, data = pq.ParquetFile(pa.BufferReader(files["data/train-00000-of-00002.parquet"])).metadata, []
    for request in hub.requests("GET /_lfs/"):
        start, _ = map(int, re.findall(r"\d+", request["range"]))
        if start < BALLAST * 2 - READ_AHEAD:  # not a footer
            data.append((start, request["sent"]))
    columns = [footer.row_group(0).column(i) for i in (0, 1)]
    assert {start for start, _ in data} <= {
        column.dictionary_page_offset or column.data_page_offset for column in columns
    }
    assert sum(sent for _, sent in data) <= 2 * READ_AHEAD
    assert hub.bytes_sent("GET /_lfs/") < 0.4 * 4 * BALLAST
