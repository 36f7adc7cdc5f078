"""`export`: every row of the files against `LanceDataset`, real readers, kills, and folders that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_prep.cli.main import run
from lance_prep.train import LanceDataset
from tests.train.made import make_tokens

COLUMNS = ["input_ids", "attention_mask", "labels"]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard_*"))


def exported(folder: Path) -> dict[str, np.ndarray]:
    """Every row of a folder of shards, as pyarrow reads it."""
    table = pa.concat_tables([pq.read_table(path) for path in shards(folder)])
    table.validate(full=True)
    return {name: np.array(table[name].to_pylist(), np.int64) for name in COLUMNS}


def expected(dataset: LanceDataset) -> dict[str, np.ndarray]:
    batch = dataset.take(np.arange(len(dataset)))
    return {name: batch[name].numpy() for name in COLUMNS}


def check_same(folder: Path, path: Path, **options: Any) -> None:
    found = exported(folder)
    for name, values in expected(LanceDataset(path, labels="shifted", attention_mask=True, **options)).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_blocks_become_parquet(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, "blocks", [40, 1, 23], block_size=100, dtype=dtype)
    assert run(["export", str(source), "-o", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sources"][0]["rows"] == 64
    folder = tmp_path / "out" / "web"
    check_same(folder, source)
    table = pq.read_table(shards(folder)[0])
    assert table.schema.types == [pa.list_(pa.int32(), 100)] * 3
    assert len(table["input_ids"][0].as_py()) == 100
    assert pq.ParquetFile(shards(folder)[0]).metadata.row_group(0).column(0).compression == "SNAPPY"
    loaded = datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 64
    assert loaded["train"][63]["labels"] == table["labels"][63].as_py()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("layout", "size"), [("lines", 64), ("documents", 7), ("lines", 1), ("documents", 5000)])
def test_rows_of_different_lengths_are_joined(tmp_path: Path, layout: str, size: int, mask: bool) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, layout, [50, 3, 1, 47], longest=100)
    arguments = ["export", str(source), "-o", str(tmp_path / "out"), "--max-seq-length", str(size)]
    assert run([*arguments, *(["--mask-boundaries"] if mask else [])]) == 0
    check_same(tmp_path / "out" / "web", source, block_size=size, mask_boundaries=mask)


def test_labels_stop_at_the_end_of_documents(tmp_path: Path) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, "blocks", [40, 1, 23], block_size=100)
    assert run(["export", str(source), "-o", str(tmp_path / "out"), "--mask-boundaries"]) == 0
    check_same(tmp_path / "out" / "web", source, mask_boundaries=True)
