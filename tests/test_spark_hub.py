"""Spark and the Hub: DataFrames from a dataset's columns and row groups, and DataFrames pushed in one commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_prep.engine import Silent
from lance_prep.errors import AccessDenied, BranchMoved, OutputExists, UsageError
from lance_prep.spark import push_parquet
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.spark import kill_workers, needs_spark

needs_spark()


@pytest.fixture
def writable(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A Hub, and a token in this process only: Java and the executors started without it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def numbers(hub: LoopbackHub, name: str = "owner/pages") -> dict[str, list[int]]:
    """Return path -> column n of the Parquet files on the Hub."""
    tables = {p: pq.read_table(pa.BufferReader(d)) for p, d in hub.files(name).items() if p.endswith(".parquet")}
    return {path: tables[path]["n"].to_pylist() for path in sorted(tables)}


def test_a_dataframe_is_pushed_in_one_commit_and_opens_with_datasets(
    spark: Any, writable: LoopbackHub, tmp_path: Path
) -> None:
    # Two row groups, and so two files, of the first partition; the second is empty.
    long = spark.range(0, 20_000, 1, 1).selectExpr("id AS n", "repeat('so ', 1200) AS text")
    df = long.union(long.where("n < 0")).union(spark.sql("SELECT 20000L AS n, NULL AS text"))
    pushed = push_parquet(df, "hf://datasets/owner/pages", max_file_bytes=1)
    names = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    there = numbers(writable)
    assert list(there) == names
    assert list(chain(*there.values())) == list(range(20_001))
    assert (pushed.files, pushed.rows, pushed.removed, len(pushed.commits)) == (3, 20_001, 0, 1)
    assert pushed.bytes == sum(len(writable.files("owner/pages")[name]) for name in names)
    assert writable.history("owner/pages")[0][0] == pushed.commits[0]
    commits = len(writable.history("owner/pages"))

    loaded = datasets.load_dataset("owner/pages", split="train", cache_dir=str(tmp_path))
    assert loaded["n"][:] == list(range(20_001))
    assert (loaded[0]["text"], loaded[20_000]["text"]) == ("so " * 1200, None)

    with pytest.raises(OutputExists, match="has 3 files of the split 'train'"):
        push_parquet(df, "hf://datasets/owner/pages")
    writable.log.clear()
    again = push_parquet(df, "hf://datasets/owner/pages", max_file_bytes=1, mode="overwrite")
    assert (again.commits, again.files, again.rows) == ((), 3, 20_001)
    assert not writable.requests("PUT")

    few = spark.range(0, 7, 1, 7).selectExpr("id AS n")
    push_parquet(few, "hf://datasets/owner/pages", split="test")
    with pytest.warns(UserWarning, match="10 files are added or removed in 4 commits, which is not atomic"):
        several = push_parquet(few, "hf://datasets/owner/pages", mode="overwrite", max_operations=3)
    assert (len(several.commits), several.removed) == (4, 3)
    assert len(writable.history("owner/pages")) == commits + 5
    there = numbers(writable)
    assert [there.pop(f"data/train-0000{n}-of-00007.parquet") for n in range(7)] == [[n] for n in range(7)]
    assert list(there) == [f"data/test-0000{n}-of-00007.parquet" for n in range(7)]

    local = Path(spark.sparkContext.getConf().get("spark.local.dir"))
    files = [path for path in local.rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


class AnotherPush(Silent):
    """Pushes files of the same split while the executors upload."""

    def __init__(self, hub: LoopbackHub) -> None:
        self._hub = hub

    def advanced(self, *_: object) -> None:
        self._hub.add_dataset("owner/pages", {"data/train-00000-of-00001.parquet": b"theirs"})


def test_what_a_push_refuses(spark: Any, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    df, uri = spark.createDataFrame([], "n long, text string"), "hf://datasets/owner/pages"
    with pytest.raises(AccessDenied, match="no token for the Hub"):
        push_parquet(df, uri)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for fields, match in (({"split": "a/b"}, "split"), ({"folder": "../x"}, "folder"), ({"mode": "append"}, "mode")):
        with pytest.raises(UsageError, match=match):
            push_parquet(df, uri, **fields)
    with pytest.raises(UsageError, match="names a path"):
        push_parquet(df, f"{uri}/data")
    assert (push_parquet(df, uri, split="empty").files, numbers(hub)) == (1, {"data/empty-00000-of-00001.parquet": []})
    with pytest.raises(BranchMoved, match="files of the split 'train' have changed"):
        push_parquet(spark.range(3).selectExpr("id AS n"), uri, progress=AnotherPush(hub))
    assert hub.files("owner/pages")["data/train-00000-of-00001.parquet"] == b"theirs"


# The last, because new workers take some seconds to start.
def test_a_worker_that_is_killed_after_its_upload_adds_nothing_twice(spark: Any, writable: LoopbackHub) -> None:
    writable.fault("PUT /_lfs/", stall_reply=True)
    arrived = writable.faults[-1].reached

    def kill() -> bool:
        return arrived.wait(60) and len(kill_workers()) > 0

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        df = spark.range(0, 40, 1, 4).selectExpr("id AS n")
        pushed = push_parquet(df, "hf://datasets/owner/pages")
        assert killing.result()
    assert (pushed.files, len(pushed.commits)) == (4, 1)
    assert numbers(writable) == {
        f"data/train-0000{part}-of-00004.parquet": list(range(part * 10, part * 10 + 10)) for part in range(4)
    }
