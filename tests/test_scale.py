"""A build of 100,000 shards, about 13 TB of text, and the order of 10^12 rows: within a minute and 1 GB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

from tests import scale_run

SHARDS = 100_000


def run(shards: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.scale_run", str(shards)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_hundred_thousand_shards_take_a_minute_and_a_gigabyte() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = run(SHARDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found["shards"] == found["fragments"] == SHARDS
    assert found["resumed"] == SHARDS // 2
    assert found["rows"] == SHARDS * scale_run.SHARD_ROWS
    assert found["again"] == "unchanged"
    assert found["different"] == 100 * scale_run.BATCH
    # CPU seconds, so that other processes of a busy machine do not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 90, (
        found
    )  # an object store takes 60: receipts named by content
    assert found["mebibytes"] < 1024, found


def test_time_grows_with_the_number_of_shards() -> None:
    """Nothing is quadratic: that would make it a hundred times as long for ten times as many shards."""
    small, large = (run(shards)["seconds"] for shards in (2_000, 20_000))
    names = ("plan", "first half", "second half and commit")
    assert sum(large[name] for name in names) < 30 * sum(small[name] for name in names), (small, large)
