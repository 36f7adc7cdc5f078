"""Injected faults: each ends in the right rows, or in a clear error with nothing committed and nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pytest

import lance_prep
from lance_prep import transport
from lance_prep.engine import BuildReport, Silent
from lance_prep.errors import (
    AccessDenied,
    BadFile,
    DiskFull,
    HubUnreachable,
    LancePrepError,
    OutputError,
    SourceChanged,
)
from lance_prep.model import Plan
from lance_prep.store.journal import Receipt
from tests.helpers import check_whole
from tests.loopback_hub import LoopbackHub
from tests.processes import finish, report_of, start, write_texts
from tests.sources import parquet_bytes

REPO = "owner/name"
LFS = r"GET /_lfs/"
FILES = 3


class Meddler(Silent):
    """Does something, once, when the plan is made or when so many shards are done."""

    def __init__(self, act: Callable[[], object], after: int = 0) -> None:
        self._act = act
        self._left = after
        self._lock = threading.Lock()
        self.acted = False

    def planned(self, plan: Plan, done: int) -> None:
        self._step()

    def finished(self, receipt: Receipt) -> None:
        self._step()

    def _step(self) -> None:
        with self._lock:
            if self._left == 0 and not self.acted:
                self.acted = True
                self._act()
            self._left -= 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries that do not wait, and a stall that is noticed at once."""
    from huggingface_hub import constants

    monkeypatch.setattr(transport, "BASE_SECONDS", 0.001)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_texts(tmp_path / "source", files=4, rows=300)


@pytest.fixture
def hub_source(hub: LoopbackHub) -> Callable[[str], bytes]:
    """A Hub dataset of three files, larger than what comes along with a footer; returns a maker of other content."""

    def content(salt: str) -> bytes:
        texts = [f"{salt} {i} " + bytes((i * k) % 251 for k in range(1, 100)).hex() for i in range(600)]
        return parquet_bytes({"text": texts}, compression="none")

    hub.add_dataset(REPO, {f"train-{i}.parquet": content(f"file {i}") for i in range(FILES)})
    return content


class Builder:
    """Builds into one output, over a version that was there before."""

    def __init__(self, source: str, folder: Path, tokenizer: str) -> None:
        self.output = folder / "o.lance"
        self._source = source
        self._fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "shard_size": 20_000}
        lance_prep.build("sample", output=self.output, max_rows=100)
        self._before = lance.dataset(str(self.output)).to_table()
        unharmed = self._build(folder / "unharmed.lance")
        self.content_hash, self.shards = unharmed.content_hash, unharmed.shards

    def _build(self, output: Path, **options: Any) -> BuildReport:
        return lance_prep.build(self._source, output=output, overwrite=True, workers=2, **self._fields, **options)

    def ends_well(self, **options: Any) -> BuildReport:
        """The build gives the right rows."""
        report = self._build(self.output, **options)
        assert report.content_hash == self.content_hash
        check_whole(self.output)
        return report

    def fails(self, error: type[LancePrepError], match: str, **options: Any) -> LancePrepError:
        """The build fails with this error and some advice, and what was there is as it was."""
        with pytest.raises(error, match=match) as caught:
            self._build(self.output, **options)
        assert caught.value.advice
        dataset = lance.dataset(str(self.output))
        assert dataset.version == 1
        assert dataset.to_table() == self._before
        return caught.value


@pytest.fixture
def hub_builder(hub: LoopbackHub, hub_source: object, tmp_path: Path, tokenizer: str, quick: None) -> Builder:
    return Builder(REPO, tmp_path, tokenizer)


@pytest.fixture
def builder(source: str, tmp_path: Path, tokenizer: str) -> Builder:
    return Builder(source, tmp_path, tokenizer)


PASSING = [
    {"status": 429, "headers": {"Retry-After": "0"}},
    {"status": 500},
    {"status": 503},
    {"cut_after": 1000},
    {"stall": True},
    {"shorten": 1000},
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_fault_that_passes(hub: LoopbackHub, hub_builder: Builder, fault: dict[str, Any]) -> None:
    hub.fault(LFS, times=3, **fault)
    report = hub_builder.ends_well()
    assert all(left.times == 0 for left in hub.faults)
    if "shorten" not in fault:  # a short answer is no failure: the rest is asked for
        assert report.retries == 3


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_fault_that_stays_until_the_next_run(
    hub: LoopbackHub, hub_builder: Builder, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ATTEMPTS", 3)
    fault = {**fault, "cut_after": 0} if "cut_after" in fault else fault
    act = lambda: hub.fault(LFS, times=10_000, **fault)  # noqa: E731
    meddler = Meddler(act, after=1)
    error, match = (BadFile, "ends before") if "shorten" in fault else (HubUnreachable, "tried 3 times")
    hub_builder.fails(error, match, progress=meddler)
    assert meddler.acted
    hub.faults.clear()
    hub.released.set()
    assert hub_builder.ends_well().status == "resumed"


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_in_the_middle(hub: LoopbackHub, hub_builder: Builder, status: int) -> None:
    act = lambda: hub.fault(r"/resolve/", times=10_000, status=status)  # noqa: E731
    error = hub_builder.fails(AccessDenied, rf"HTTP {status}", progress=Meddler(act, after=1))
    assert "HF_TOKEN" in error.advice
    hub.faults.clear()
    assert hub_builder.ends_well().status == "resumed"


def test_a_new_commit_between_plan_and_read_is_not_seen(
    hub: LoopbackHub, hub_builder: Builder, hub_source: Callable[[str], bytes]
) -> None:
    act = lambda: hub.add_dataset(REPO, {"train-1.parquet": hub_source("other")})  # noqa: E731
    hub_builder.ends_well(progress=Meddler(act))


def test_another_file_at_the_same_commit(
    hub: LoopbackHub, hub_builder: Builder, hub_source: Callable[[str], bytes]
) -> None:
    repo = hub.repos[f"datasets/{REPO}"]
    files = repo.commits[repo.branches["main"]]
    kept, other = dict(files), hub_source("file 7")
    assert len(other) == len(files["train-2.parquet"])

    def act() -> None:
        files["train-2.parquet"] = other
        hub.add_dataset("owner/other", {"x.parquet": other})

    hub_builder.fails(SourceChanged, "train-2.parquet: blob .* when it was planned", progress=Meddler(act))
    files.update(kept)
    hub_builder.ends_well()


@pytest.mark.parametrize("change", ["content", "longer", "gone"])
def test_a_local_file_that_changes_after_the_plan(builder: Builder, source: str, change: str) -> None:
    file = Path(source) / "3.jsonl"
    kept, time = file.read_bytes(), file.stat().st_mtime_ns

    def act() -> None:
        if change == "gone":
            file.unlink()
        else:
            file.write_bytes(kept.replace(b"a", b"b") if change == "content" else kept + b'\n{"text": "more"}')

    builder.fails(SourceChanged, "3.jsonl", progress=Meddler(act))
    file.write_bytes(kept)
    os.utime(file, ns=(time, time))
    builder.ends_well()


@pytest.mark.parametrize("part", ["", "data", ".lance_prep"])
@pytest.mark.parametrize("after", [1, 4])
def test_the_output_is_removed_under_the_build(
    source: str, tmp_path: Path, tokenizer: str, part: str, after: int
) -> None:
    output = tmp_path / "o.lance"
    fields: dict[str, Any] = {"output": output, "tokenizer": tokenizer, "shard_size": 20_000}
    whole = lance_prep.build(source, **{**fields, "output": tmp_path / "whole.lance"})
    meddler = Meddler(lambda: shutil.rmtree(output / part, ignore_errors=True), after=after)
    with pytest.raises(OutputError, match=r"o\.lance.* removed (or cut )?while it was being built") as caught:
        lance_prep.build(source, progress=meddler, **fields)
    assert "same command again" in caught.value.advice
    assert not (output / "_versions").exists()
    report = lance_prep.build(source, **fields)
    assert report.content_hash == whole.content_hash
    check_whole(output)


def used(disk: Path) -> tuple[int, int]:
    """Blocks of 4 KiB and files in use."""
    stat = os.statvfs(disk)
    return stat.f_blocks - stat.f_bfree, stat.f_files - stat.f_ffree


@pytest.mark.parametrize("of", ["blocks", "files"])
def test_the_disk_is_full_at_any_file(
    tmp_path: Path, tokenizer: str, small_disk: Callable[[str], None], of: str
) -> None:
    """One more block (or file) free at each try, until there is enough: so each write is the one that fails."""
    source = write_texts(tmp_path / "source", files=2, rows=25)
    disk = tmp_path / "disk"
    made_before = Builder(source, disk, tokenizer)
    shutil.rmtree(disk / "unharmed.lance")
    shutil.copytree(disk / "o.lance", tmp_path / "before.lance")
    blocks, files = used(disk)
    failures = set()
    for free in range(1, 200):
        small_disk(f"size={(blocks + free) * 4}k,nr_inodes=0" if of == "blocks" else f"nr_inodes={files + free}")
        try:
            made_before.ends_well()
            break
        except DiskFull:
            failures.add(how_far(disk / "o.lance", made_before.shards))
        small_disk("size=50%,nr_inodes=0" if of == "blocks" else "nr_inodes=100000")
        made_before.ends_well()
        shutil.rmtree(disk / "o.lance")
        shutil.copytree(tmp_path / "before.lance", disk / "o.lance")
    else:
        pytest.fail("it never had enough")
    assert failures >= {"before a fragment", "before its receipt", "before the commit"}


def how_far(output: Path, shards: int) -> str:
    """How far a failed build over one version of one fragment came."""
    if len(lance.dataset(str(output)).versions()) > 1:
        return "after the commit"
    builds = (output / ".lance_prep" / "builds").glob("*")
    receipts = [p for build in builds if not (build / "committed.json").exists() for p in build.glob("shard-*")]
    if len(receipts) == shards:
        return "before the commit"
    fragments = len(list((output / "data").iterdir())) - 1
    return "before its receipt" if fragments > len(receipts) else "before a fragment"


BACKWARDS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int (*next)(clockid_t, struct timespec *);
static long calls;
int clock_gettime(clockid_t id, struct timespec *t) {
    if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = next(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec -= 60 * ++calls;
    return answer;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_clock_that_goes_backwards(builder: Builder, source: str, tmp_path: Path, tokenizer: str) -> None:
    """A minute at each look, also for Rust and for C: nothing may depend on it but the times that are shown."""
    (tmp_path / "clock.c").write_text(BACKWARDS)
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    backwards = {"LD_PRELOAD": str(library)}
    arguments = ["build", source, "-o", builder.output, "--overwrite", "--tokenizer", tokenizer, "--json"]
    fields = ["--layout", "documents", "--shard-size", "20000"]
    report = report_of(start(*arguments, *fields, environment=backwards))
    assert (report["content_hash"], report["version"]) == (builder.content_hash, 2)
    assert report["seconds"] >= 0
    assert lance.dataset(str(builder.output)).version == 2
    check_whole(builder.output)
    again = report_of(start(*arguments, *fields, environment=backwards))
    assert (again["status"], again["version"]) == ("unchanged", 2)
    assert finish(start("verify", builder.output, environment=backwards))[0] == 0
