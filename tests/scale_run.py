"""A build of many shards, from plan to commit, without its text: run by `tests/test_scale.py` in a process of its own.

The plan, the journal, the schedule, the decision and the commit are the real ones. Shards give stated receipts, with
lengths of documents as ordinary text has them. The store keeps small files in one large file, so that memory is what a
build needs. It prints JSON: seconds of CPU by phase, the peak of memory, and what came of it.

    python -m tests.scale_run SHARDS
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.engine import BuildJob, Built, Hooks, RunOptions, Schedule
from lance_prep.engine.run import make_job, run_job
from lance_prep.engine.shard import keep_shard
from lance_prep.errors import Interrupted
from lance_prep.ledger import Ledger, LengthRecord
from lance_prep.model import PinnedSource, Plan, SourceFile
from lance_prep.plan import restrict
from lance_prep.recipe import Recipe
from lance_prep.store import Files, Output, OutputLock, Receipt
from lance_prep.store.stores import register_store
from lance_prep.train.order import Order, OrderOptions, Place
from lance_prep.transport import Transport
from tests.simulated_store import Manifest, Table

URI = "scale://bucket/web.lance"
SCHEMA = pa.schema([pa.field("text", pa.large_string())])
SHARD_BYTES, SHARDS_IN_A_FILE, SHARD_ROWS = 128 << 20, 100, 30_000
ROWS, BATCH = 10**12, 4096


class Spool(Files):
    """Small files in one temporary file. Data files have names only."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        self._places: dict[str, tuple[int, int]] = {}
        self.data: set[str] = set()

    def read(self, path: str) -> bytes | None:
        if path not in self._places:
            return None
        start, size = self._places[path]
        self._file.seek(start)
        return self._file.read(size)

    def write(self, path: str, data: bytes) -> None:
        start = self._file.seek(0, 2)
        self._file.write(data)
        self._places[path] = start, len(data)

    def list(self, folder: str) -> list[str]:
        return sorted(path for path in [*self._places, *self.data] if path.startswith(f"{folder}/"))

    def delete(self, path: str) -> None:
        self._places.pop(path, None)

    def sync(self, path: str) -> None: ...


class ScaleStore:
    """Files in a spool, and one version.

    Attributes:
        fragments: of the version.
    """

    def __init__(self) -> None:
        self.fragments = 0
        self.spool = Spool()
        self.committed: Manifest | None = None

    def files(self, uri: str, transport: Transport) -> Files:
        return self.spool

    def lock(self, uri: str, transport: Transport, doing: str) -> AbstractContextManager[OutputLock]:
        return nullcontext(OutputLock())

    def open(self, uri: str, version: int | str | None, transport: Transport) -> Any | None:
        return Table(self.committed) if self.committed else None

    def write(self, uri: str, rows: pa.RecordBatchReader, file_version: str, transport: Transport) -> list[Any]:
        raise NotImplementedError("shards are stated")

    def commit(self, uri: str, transaction: Any, transport: Transport, *, retries: int) -> Any:
        self.fragments = len(transaction.operation.fragments)
        schema, why = transaction.operation.new_schema, transaction.transaction_properties
        self.committed = Manifest(1, schema, [], why, "")
        return Table(self.committed)


STORE = ScaleStore()
register_store("scale", STORE)


class StatedShards:
    """An engine that states what shards hold, and may be interrupted after some of them."""

    def __init__(self, most: int | None = None) -> None:
        self._left, self._draw = most, random.Random(most)

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        while not schedule.done:
            if self._left == 0:
                raise Interrupted("stopped", "run the same command again")
            job = schedule.next()
            assert job is not None
            task, limit = job
            receipt = self._receipt(task.shard.index, limit)
            STORE.spool.data |= {f"data/{name}" for name in receipt.data_files()}
            schedule.add(keep_shard(task, Built(receipt, b"")))
            self._left = self._left - 1 if self._left is not None else None

    def _receipt(self, shard: int, limit: Any) -> Receipt:
        name = f"{self._draw.getrandbits(24):024b}{self._draw.getrandbits(104):026x}.lance"
        file = {"path": name, "fields": [0, 1, 2, 3], "column_indices": [0, 1, 2, 3], "base_id": None}
        file |= {"file_major_version": 2, "file_minor_version": 0, "file_size_bytes": 3 * SHARD_BYTES}
        lengths = array("Q", range(200, 500, 2))
        fragment = {"id": 0, "files": [file], "deletion_file": None, "row_id_meta": None, "physical_rows": SHARD_ROWS}
        return Receipt(
            shard=shard,
            limit=limit,
            rows=SHARD_ROWS,
            tokens=0,
            ledger=Ledger(rows_in=SHARD_ROWS, rows_used=SHARD_ROWS),
            content_hash=f"{self._draw.getrandbits(128):032x}",
            text_bytes=SHARD_BYTES,
            fragment=fragment,
            backend=None,
            lengths=LengthRecord(lengths, lengths, 1000, shard << 40),
        )


def planned(shards: int) -> BuildJob:
    sha = "0123456789" * 4
    files = tuple(
        SourceFile(f"hf://datasets/owner/web@{sha}/{i:05}.jsonl", "jsonl", SHARD_BYTES * SHARDS_IN_A_FILE, f"{i:040x}")
        for i in range(-(-shards // SHARDS_IN_A_FILE))
    )
    recipe = Recipe(source="owner/web", layout="raw", shuffle=False)
    plan = Plan(recipe, PinnedSource("owner/web", "owner/web", None, "train", "main", sha), files, (), SCHEMA, SCHEMA)
    return make_job(restrict(plan, files, Transport(), first_shard=0), Output(URI), Transport())


def interrupted(job: BuildJob, shards: int) -> None:
    try:
        run_job(job, StatedShards(shards), RunOptions(URI), time.monotonic())
    except Interrupted:
        return
    raise AssertionError("it was not interrupted")


def ordered() -> int:
    """Return how many different rows 100 steps in the middle of an epoch have."""
    order = Order(ROWS, OrderOptions(BATCH))
    rows = order.indices(3, order.steps // 2, 100, Place(0, 1).share(BATCH))
    assert rows.min() >= 0
    assert rows.max() < ROWS
    return len(np.unique(rows))


def main(shards: int) -> None:
    seconds: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        start = time.process_time()
        done = do()
        seconds[name] = round(time.process_time() - start, 2)
        return done

    def build() -> Any:
        return run_job(job, StatedShards(), RunOptions(URI), time.monotonic())

    job = timed("plan", lambda: planned(shards))
    timed("first half", lambda: interrupted(job, shards // 2))
    report = timed("second half and commit", build)
    again = timed("again", build)
    different = timed("order", ordered)
    # Not ru_maxrss, which counts what the process of the tests held when it forked.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    peak = int(found[1]) / 1024
    made = {
        "shards": report.shards,
        "fragments": STORE.fragments,
        "rows": report.rows,
        "resumed": report.shards_resumed,
        "again": again.status,
    }
    print(json.dumps({"seconds": seconds, "mebibytes": round(peak), "different": different, **made}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
