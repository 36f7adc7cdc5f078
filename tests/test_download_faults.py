"""Downloads while the Hub, the disk or the source fails: others go on, and the same command continues."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lance_prep.cli.main import run
from lance_prep.collection import DownloadProgress, download
from lance_prep.errors import DiskFull
from lance_prep.model import Plan, Shard
from tests.collection_sources import add_distillation, texts
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.processes import finish, start, wait_for
from tests.sources import parquet_bytes
from tests.test_download import records, write_recipe

LFS = r"GET /_lfs/"


def text_of(rows: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh ", k=400)) for _ in range(rows)]


def seed(hub: LoopbackHub, *, rows: int = 1000) -> dict[str, Any]:
    """Put a source of about ten shards and a small one on the Hub; returns the recipe."""
    hub.add_dataset("owner/big", {"train.parquet": parquet_bytes({"text": text_of(rows)}, compression="none")})
    hub.add_dataset("owner/small", {"train.parquet": parquet_bytes({"text": ["one", "two"]})})
    sources = {name: {"source": f"owner/{name}"} for name in ("big", "small")}
    return {
        "name": "mine",
        "defaults": {"shard_size": 45_000},
        "categories": {"web": {"share": 1, "sources": sources}},
    }


@dataclass
class Meddler(DownloadProgress):
    """Does something once a number of shards of `web/big` are read."""

    what: Callable[[], object]
    after: int = 5
    shards_done: int = 0  # by earlier runs
    shards_read: int = 0

    def begun(self, name: str, plan: Plan, shards_done: int) -> None:
        if name == "web/big":
            self.shards_done = shards_done

    def shard_read(self, name: str, shard: Shard) -> None:
        self.shards_read += name == "web/big"
        if self.shards_read == self.after:
            self.what()


@pytest.mark.parametrize(
    "fault", [{"cut_after": 0}, {"cut_after": 1000}, {"status": 503}, {"status": 429, "headers": {"Retry-After": "0"}}]
)
def test_a_fault_that_passes_changes_no_byte(hub: LoopbackHub, tmp_path: Path, fault: dict[str, Any]) -> None:
    recipe = seed(hub)
    assert not download(recipe, tmp_path / "whole").failed
    hub.fault(LFS, times=2, **fault)
    assert not download(recipe, tmp_path / "raw").failed
    for name in ("big", "small"):
        path = f"web/{name}.jsonl"
        assert (tmp_path / "raw" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_a_source_refused_in_the_middle_continues_from_its_pinned_commit(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = seed(hub)
    download(recipe, tmp_path / "whole")
    meddler = Meddler(lambda: hub.fault(LFS, times=1000, status=403))
    failed = download(recipe, tmp_path / "raw", workers=1, progress=meddler).failed
    assert [outcome.name for outcome in failed] == ["big"]
    assert "the Hub refuses access (HTTP 403)" in str(failed[0].error)
    hub.faults.clear()
    hub.log.clear()
    # The branch moves on: the download stays with the commit that it began with.
    hub.add_dataset("owner/big", {"train.parquet": parquet_bytes({"text": ["new"]})})
    arguments = ["download", write_recipe(tmp_path, recipe), "-o", str(tmp_path / "raw")]
    assert run([*arguments, "--status-only"]) == 0
    assert "(unfinished)" in capsys.readouterr().out
    assert run([*arguments, "--dry-run"]) == 0
    assert "web/big: would continue with owner/big at " in capsys.readouterr().out
    assert run(arguments) == 0
    assert 5 <= meddler.shards_read < 10  # those that were read ahead too
    said = f"web/big: 1 file in 10 shards, {meddler.shards_read} of them written by an earlier run"
    assert said in capsys.readouterr().err
    whole = (tmp_path / "whole/web/big.jsonl").read_bytes()
    assert (tmp_path / "raw/web/big.jsonl").read_bytes() == whole
    assert hub.bytes_sent(LFS) <= (10 - meddler.shards_read + 1) / 10 * 400 * 1000
    # What is there is not fetched again only because the branch has moved; `--force` does that.
    assert run(arguments) == 0
    assert (tmp_path / "raw/web/big.jsonl").read_bytes() == whole
    assert run([*arguments, "--force"]) == 0
    assert [each["text"] for each in records(tmp_path / "raw/web/big.jsonl")] == ["new"]


@pytest.mark.parametrize("damaged", ["plan", "part"])
def test_force_starts_a_damaged_unfinished_download_again(hub: LoopbackHub, tmp_path: Path, damaged: str) -> None:
    recipe = seed(hub)
    download(recipe, tmp_path / "whole")
    raw = tmp_path / "raw"
    download(recipe, raw, workers=1, progress=Meddler(lambda: hub.fault(LFS, times=1000, status=403)))
    hub.faults.clear()
    if damaged == "plan":
        next(raw.rglob("big.plan.json")).unlink()
    else:
        (raw / "web/big.jsonl.part").write_bytes(b"{}")
    (failed,) = download(recipe, raw).failed
    assert failed.error is not None
    assert "force=True" in failed.error.advice
    assert not download(recipe, raw, force=True).failed
    assert (raw / "web/big.jsonl").read_bytes() == (tmp_path / "whole/web/big.jsonl").read_bytes()


def test_force_starts_again_only_if_the_source_has_changed(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    refuse = Meddler(lambda: hub.fault(LFS, times=1000, status=403))
    download(recipe, tmp_path, workers=1, progress=refuse)
    hub.faults.clear()
    again = Meddler(lambda: hub.fault(LFS, times=1000, status=403), after=1)
    download(recipe, tmp_path, workers=1, progress=again, force=True)
    assert again.shards_done == refuse.shards_read > 0
    hub.faults.clear()
    hub.add_dataset("owner/big", {"train.parquet": parquet_bytes({"text": ["new"]})})
    last = Meddler(lambda: None)
    assert not download(recipe, tmp_path, workers=1, progress=last, force=True).failed
    assert last.shards_done == 0
    assert [each["text"] for each in records(tmp_path / "web/big.jsonl")] == ["new"]


def test_an_entry_that_changes_in_the_middle_starts_again(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = seed(hub)
    download(recipe, tmp_path / "raw", workers=1, progress=Meddler(lambda: hub.fault(LFS, times=1000, status=403)))
    hub.faults.clear()
    recipe["categories"]["web"]["sources"]["big"]["template"] = "= {{ text }}"
    assert run(["download", write_recipe(tmp_path, recipe), "-o", str(tmp_path / "raw")]) == 0
    assert "web/big: its entry has changed, so its unfinished download is discarded" in capsys.readouterr().err
    assert all(each["text"].startswith("= ") for each in records(tmp_path / "raw/web/big.jsonl"))


def test_a_local_source_that_changes_in_the_middle(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe, source = seed(hub), tmp_path / "a.parquet"
    source.write_bytes(parquet_bytes({"text": text_of(1000)}, compression="none"))
    recipe["categories"]["web"]["sources"]["big"]["source"] = str(source)

    def change() -> None:
        (tmp_path / "new").write_bytes(parquet_bytes({"text": ["new"]}))
        (tmp_path / "new").replace(source)

    failed = download(recipe, tmp_path / "raw", workers=1, progress=Meddler(change)).failed
    assert [outcome.name for outcome in failed] == ["big"]
    assert failed[0].error is not None
    assert "as planned" in str(failed[0].error)
    assert "force=True" in failed[0].error.advice
    assert download(recipe, tmp_path / "raw").failed  # it still waits for a decision
    assert not download(recipe, tmp_path / "raw", force=True).failed
    assert [each["text"] for each in records(tmp_path / "raw/web/big.jsonl")] == ["new"]


def test_a_later_file_without_the_column(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = seed(hub)
    hub.add_dataset("owner/big", {"train-2.parquet": parquet_bytes({"body": ["x"]})})
    failed = download(recipe, tmp_path).failed
    assert [outcome.name for outcome in failed] == ["big"]
    assert "train.parquet: no column 'body', which the first file has" in str(failed[0].error)


def test_the_second_of_two_downloads_says_who_is_first(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, seed(hub))
    hub.fault(LFS, times=9, stall=True)
    raw = tmp_path / "raw"
    first = start("download", recipe, "-o", raw)
    assert wait_for(lambda: bool(hub.requests(LFS)), first)
    try:
        code, out, err = finish(start("download", recipe, "-o", raw))
        assert (code, out) == (1, "")
        assert f"{raw} is being downloaded into by process {first.pid} on {socket.gethostname()} since 20" in err
        assert "try: wait for it" in err
        # The first one waits for the Hub, and still stops at once.
        first.send_signal(signal.SIGINT)
        code, _, err = finish(first)
    finally:
        first.kill()
    assert code == 1
    assert "error: stopped\n  try: run the same command again" in err
    assert "Traceback" not in err
    hub.released.set()
    hub.faults.clear()
    assert run(["download", recipe, "-o", str(raw)]) == 0
    assert len(records(raw / "web/big.jsonl")) == 1000


def test_the_disk_is_full_at_any_write(
    hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = seed(hub, rows=200)
    assert not download(recipe, tmp_path / "whole").failed
    disk = tmp_path / "disk"
    (disk / "raw").mkdir()
    outcomes = set()
    for free in range(1, 80, 3):
        stat = os.statvfs(disk)
        small_disk(f"size={(stat.f_blocks - stat.f_bfree + free) * 4}k")
        try:
            failed = download(recipe, disk / "raw", workers=1).failed
            assert all(isinstance(outcome.error, DiskFull) for outcome in failed)
            outcomes.add(tuple(outcome.name for outcome in failed))
        except DiskFull:
            outcomes.add(("all",))
        small_disk("size=50%")
        assert not download(recipe, disk / "raw", workers=1).failed
        for name in ("big", "small"):
            path = f"web/{name}.jsonl"
            assert (disk / "raw" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
        shutil.rmtree(disk / "raw")
    assert outcomes >= {("all",), ()}
    assert any("big" in names for names in outcomes)


def test_all_sources_of_the_built_in_collection(hub: LoopbackHub, tmp_path: Path, monkeypatch: Any) -> None:
    add_distillation(hub, rows=12)
    assert {str(outcome.error).split(": ")[-1] for outcome in download("distillation", tmp_path).failed} != set()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not download("distillation", tmp_path).failed
    for path in sorted(tmp_path.glob("*/*.jsonl")):
        assert [each["text"] for each in records(path)] == [text for text in texts(path.stem, 12) if text], path
    assert len(list(tmp_path.glob("*/*.jsonl"))) == 16
