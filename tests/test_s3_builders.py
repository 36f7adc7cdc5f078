"""Several builders of one output in an object store, killed builders, and stores that lose commits."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import compact, list_versions, prune, tag, verify
from lance_prep.errors import Interrupted, OutputError, OutputLocked
from lance_prep.store import lease
from lance_prep.store.sidecar import ObjectFiles
from lance_prep.transport import Transport
from tests.processes import finish, report_of, start, wait_for, write_texts
from tests.s3_server import S3, Flaky

URI = "s3://bucket/folder/x.lance"
LEASES = "bucket/folder/x.lance/.lance_prep/leases"
FIELDS: dict[str, Any] = {"shard_size": 12_000, "block_size": 64}
SHARDS = ["--shard-size", "12000", "--block-size", "64"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("s") / "texts", files=2, rows=240)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one of another machine, which cannot see the processes of this one, and impatient."""
    monkeypatch.setattr(lease, "_machine", lambda: "")
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)  # of a holder in this process, which must look suspended
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.1)


def data_files(s3: S3) -> set[str]:
    return {name.rpartition("/")[2] for name in s3.names("bucket/folder/x.lance/data")}


def receipts(s3: S3) -> list[str]:
    return [name for name in s3.names("bucket/folder/x.lance/.lance_prep/builds") if "/shard-" in name]


def named_files(options: Mapping[str, str]) -> set[str]:
    """The data files that any version names."""
    dataset = lance.dataset(URI, storage_options=dict(options))
    paths = dataset.tracked_files().read_all()["path"].to_pylist()
    return {path.removeprefix("data/") for path in paths if path.startswith("data/")}


def check_whole(s3: S3) -> None:
    assert verify(URI, storage_options=s3.options).problems == []
    assert data_files(s3) == named_files(s3.options)


def test_a_second_builder_is_told_who_builds(by_environment: S3, texts: str, tokenizer: str) -> None:
    first = start("build", texts, "-o", URI, "--tokenizer", tokenizer, *SHARDS, "--json")
    assert wait_for(lambda: bool(by_environment.names(LEASES)), first)
    first.send_signal(signal.SIGSTOP)  # it is alive, however long it takes
    with pytest.raises(OutputLocked, match=f"{URI} is being built by process {first.pid} on .* since 20") as caught:
        lance_prep.build(texts, output=URI, tokenizer=tokenizer, **FIELDS)
    assert caught.value.advice == "wait for it, or end it"
    first.send_signal(signal.SIGCONT)
    assert report_of(first)["version"] == 1
    assert lance_prep.build(texts, output=URI, tokenizer=tokenizer, **FIELDS).status == "unchanged"
    assert len(by_environment.names(LEASES)) == 1
    check_whole(by_environment)


@pytest.mark.usefixtures("elsewhere")
def test_a_builder_that_was_suspended_loses_the_output(by_environment: S3, texts: str, tokenizer: str) -> None:
    """It ran on another machine, so the second builder waits for a sign of life."""
    texts = f"{texts}/0.jsonl"
    first = start("build", texts, "-o", URI, "--tokenizer", tokenizer, *SHARDS)
    assert wait_for(lambda: bool(data_files(by_environment)), first)
    first.send_signal(signal.SIGSTOP)
    built = lance_prep.build(texts, output=URI, tokenizer=tokenizer, **FIELDS)
    assert built.version == 1
    first.send_signal(signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 1
    assert re.search("another process has (taken over|written|removed)", err)
    assert [entry.number for entry in list_versions(URI)] == [1]
    assert verify(URI).problems == []
    # What the first one wrote afterwards stays until the next commit, or until it is removed on purpose.
    assert lance_prep.build(texts, output=URI, tokenizer=tokenizer, **FIELDS).status == "unchanged"
    prune(URI, timedelta(0))
    check_whole(by_environment)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("append", [False, True])
def test_a_commit_that_is_late_is_refused(s3: S3, flaky: Flaky, texts: str, tokenizer: str, append: bool) -> None:
    """Between the last check of its lease and its commit, another builder takes over, commits and removes leftovers."""
    options = s3.options
    source = [f"{texts}/0.jsonl"]
    if append:
        lance_prep.build(source, output=URI, tokenizer=tokenizer, storage_options=options, **FIELDS)
        source.append(f"{texts}/1.jsonl")
    fields = {**FIELDS, "tokenizer": tokenizer, "append": append}
    made: list[Any] = []

    def overtake() -> None:
        made.append(lance_prep.build(source, output=URI, storage_options=options, **fields))

    flaky.before = [(r"PUT .*/_versions/\d+\.manifest", overtake)]
    with pytest.raises(OutputLocked, match="another process has written to") as caught:
        lance_prep.build(source, output=URI, storage_options=s3.through(flaky), **fields)
    assert "same command" in caught.value.advice
    assert made[0].version == (2 if append else 1)
    assert not flaky.before
    assert lance_prep.build(source, output=URI, storage_options=options, **fields).status == "unchanged"
    check_whole(s3)


def test_the_reply_to_a_commit_is_lost(s3: S3, flaky: Flaky, texts: str, tokenizer: str) -> None:
    flaky.lost = [r"PUT .*/_versions/\d+\.manifest", r"PUT .*/leases/00000001.json"]
    fields = {**FIELDS, "tokenizer": tokenizer, "storage_options": s3.through(flaky)}
    assert lance_prep.build(f"{texts}/0.jsonl", output=URI, **fields).version == 1
    assert not flaky.lost
    flaky.lost = [r"PUT .*/_versions/\d+\.manifest"]
    assert lance_prep.build(texts, output=URI, append=True, **fields).version == 2
    assert not flaky.lost
    assert lance_prep.build(texts, output=URI, **fields).status == "unchanged"
    check_whole(s3)


def test_a_store_that_ignores_conditions_is_refused(s3: S3, flaky: Flaky, texts: str, tokenizer: str) -> None:
    lance_prep.build(f"{texts}/0.jsonl", output=URI, tokenizer=tokenizer, storage_options=s3.options, **FIELDS)
    before = s3.names("bucket")
    flaky.heeds_conditions = False
    options = s3.through(flaky)
    for act in (
        lambda: lance_prep.build(texts, output=URI, tokenizer=tokenizer, append=True, storage_options=options),
        lambda: lance_prep.build(texts, output="s3://bucket/new.lance", tokenizer=tokenizer, storage_options=options),
        lambda: tag(URI, "t", storage_options=options),
        lambda: compact(URI, storage_options=options),
    ):
        with pytest.raises(OutputError, match="does not refuse to replace an object") as caught:
            act()
        assert "build into a local folder" in caught.value.advice
    assert s3.names("bucket") == before
    assert verify(URI, storage_options=options).problems == []  # reading is safe


@pytest.mark.parametrize("append", [False, True])
def test_leftovers_of_a_killed_builder_are_removed(
    by_environment: S3, texts: str, tokenizer: str, tmp_path: Path, append: bool
) -> None:
    fields = {**FIELDS, "tokenizer": tokenizer}
    source = texts if append else f"{texts}/0.jsonl"
    for output in (tmp_path / "x.lance", URI) if append else ():
        lance_prep.build(f"{texts}/0.jsonl", output=output, **fields)
    whole = lance_prep.build(source, output=tmp_path / "x.lance", append=append, **fields)
    there = len(receipts(by_environment))
    arguments = [source, "-o", URI, "--tokenizer", tokenizer, *SHARDS, *(["--append"] if append else [])]
    process = start("build", *arguments)
    assert wait_for(lambda: len(receipts(by_environment)) >= there + 2, process)
    process.kill()
    finish(process)
    # Of a shard that was written and has no receipt. Which of them a kill leaves is chance.
    by_environment.files.pipe(f"bucket/folder/x.lance/data/{'01' * 12}{'ab' * 13}.lance", b"cut short")
    store, parts = by_environment.files, {"Bucket": "bucket"}
    for key in ("folder/x.lance/data/large.lance", "folder/x.lance.data/other"):
        store.call_s3("create_multipart_upload", Key=key, **parts)
    again = lance_prep.build(source, output=URI, append=append, **fields)
    assert (again.status, again.content_hash) == ("resumed", whole.content_hash)
    check_whole(by_environment)
    left = store.call_s3("list_multipart_uploads", **parts)["Uploads"]
    assert [upload["Key"] for upload in left] == ["folder/x.lance.data/other"]
    assert json.loads(by_environment.files.cat(by_environment.names(LEASES)[0]))["state"] == "released"


def test_prune_removes_versions_and_leaves_unfinished_shards(by_environment: S3, texts: str, tokenizer: str) -> None:
    fields = {**FIELDS, "tokenizer": tokenizer, "output": URI, "overwrite": True}
    for seed in (1, 2):
        lance_prep.build(f"{texts}/0.jsonl", seed=seed, **fields)
    process = start(
        "build", f"{texts}/0.jsonl", "-o", URI, "--tokenizer", tokenizer, *SHARDS, "--overwrite", "--seed", 3
    )
    before = len(receipts(by_environment))
    assert wait_for(lambda: len(receipts(by_environment)) >= before + 2, process)
    process.kill()
    finish(process)
    assert prune(URI, timedelta(0)).removed == (1,)
    assert lance_prep.build(f"{texts}/0.jsonl", seed=3, **fields).status == "resumed"
    check_whole(by_environment)


def test_threads_of_one_process_take_turns(by_environment: S3, texts: str, tokenizer: str) -> None:
    ends: list[str] = []

    def build() -> None:
        try:
            ends.append(lance_prep.build(texts, output=URI, tokenizer=tokenizer, **FIELDS).status)
        except OutputLocked:
            ends.append("locked")

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.count("built") == 1
    assert set(ends) <= {"built", "unchanged", "locked"}
    assert [entry.number for entry in list_versions(URI)] == [1]
    check_whole(by_environment)


def test_verify_deep_hashes_the_objects(by_environment: S3, texts: str, tokenizer: str, capsys: Any) -> None:
    """A byte of a data file that holds no row, such as padding, is found by the file's hash alone."""
    lance_prep.build(f"{texts}/0.jsonl", output=URI, tokenizer=tokenizer, **FIELDS)
    files = by_environment.files
    compact(URI, target_bytes=30_000)
    names = data_files(by_environment)
    assert run(["verify", URI, "--deep"]) == 0
    number = len(lance.dataset(URI).get_fragments())
    assert f"{number} data files, {number} data files by hash" in capsys.readouterr().out
    found = verify(URI, version=1, deep=True)
    assert found.ok
    assert found.checks["data files by hash"] == found.checks["data files"]
    dataset = lance.dataset(URI)
    path = f"bucket/folder/x.lance/data/{dataset.get_fragments()[0].data_files()[0].path}"
    data = bytearray(files.cat(path))
    data[data.index(b"H" * 16)] ^= 1  # Lance fills up to the next multiple of 64 bytes with the letter H
    files.pipe(path, bytes(data))
    assert names == data_files(by_environment)
    assert verify(URI).ok
    problems = verify(URI, deep=True).problems
    assert len(problems) == 1
    assert re.search(r"data/\w+\.lance \(rows 0 to \d+\) has changed since it was written: its xxh3 is", problems[0])
    files.rm(path)
    assert any("is missing" in problem for problem in verify(URI, deep=True).problems)


@pytest.mark.parametrize("when", ["at its end", "at its beginning"])
def test_a_lease_that_this_process_could_not_end_is_taken_over(
    s3: S3, flaky: Flaky, texts: str, tokenizer: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails at the lease's last write, or after it was created: the process lives, the lease does not."""
    options, fields = s3.through(flaky), {**FIELDS, "tokenizer": tokenizer}
    files = ObjectFiles(URI, Transport.of(options))
    write, listed = files.write, files.list

    def refuse(path: str, data: bytes) -> None:
        if b'"held"' not in data:
            raise OSError("the store is away")
        write(path, data)

    def refuse_the_last(folder: str) -> list[str]:
        found = listed(folder)
        if found:
            raise OSError("the store is away")
        return found

    if when == "at its end":
        monkeypatch.setattr(files, "write", refuse)
        with lease.lease(files, URI, "built"):
            pass
    else:
        monkeypatch.setattr(files, "list", refuse_the_last)
        with pytest.raises(OSError, match="away"), lease.lease(files, URI, "built"):
            pass
    assert json.loads(s3.files.cat(s3.names(LEASES)[0]))["state"] == "held"
    assert lance_prep.build(f"{texts}/0.jsonl", output=URI, storage_options=options, **fields).version == 1
    check_whole(s3)


def test_a_lease_that_is_held_is_not_taken_over_by_its_own_process(s3: S3) -> None:
    files = ObjectFiles(URI, Transport.of(s3.options))
    with (
        lease.lease(files, URI, "built"),
        pytest.raises(OutputLocked, match="is being built by process"),
        lease.lease(files, URI, "built"),
    ):
        pass


def test_an_object_that_is_deleted_while_it_is_read_is_gone(s3: S3, flaky: Flaky) -> None:
    files = ObjectFiles(URI, Transport.of(s3.through(flaky)))
    files.write("a.json", b"{}")
    assert files.read("a.json") == b"{}"
    flaky.before = [(r"GET .*/a\.json", lambda: s3.files.rm("bucket/folder/x.lance/a.json"))]
    assert files.read("a.json") is None
    assert not flaky.before


def test_a_conditional_write_in_conflict_is_tried_again(s3: S3, flaky: Flaky) -> None:
    files = ObjectFiles(URI, Transport.of(s3.through(flaky)))
    flaky.faults = [(r"PUT .*/a\.json", 409, "ConditionalRequestConflict")]
    assert files.create("a.json", b"1")
    assert not flaky.faults
    assert not files.create("a.json", b"2")
    assert files.read("a.json") == b"1"


def test_leases_that_are_removed_while_one_is_taken(s3: S3, flaky: Flaky) -> None:
    files = ObjectFiles(URI, Transport.of(s3.through(flaky)))
    create, removed = files.create, list[str]()

    def create_and_remove(path: str, data: bytes) -> bool:
        made = create(path, data)
        if not made and not removed:  # the second attempt, which the store must refuse
            removed.append(path)
            s3.files.rm(f"bucket/folder/x.lance/{path}")
        return made

    files.create = create_and_remove  # type: ignore[method-assign]
    with lease.lease(files, URI, "built") as held:
        held.check()
    assert removed


def test_receipts_that_are_named_by_their_shard_are_read(
    by_environment: S3, texts: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions named them in an object store too: a dataset, and an unfinished append to it."""

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped", "")

    fields = {**FIELDS, "tokenizer": tokenizer}
    for piece in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        bad = b"\xff\n" if piece else b""  # a rejected row
        (tmp_path / "in" / f"{piece}.jsonl").write_bytes(Path(f"{texts}/{piece}.jsonl").read_bytes() + bad)
        whole = lance_prep.build(tmp_path / "in", output=tmp_path / "x.lance", append=piece > 0, **fields)
        if not piece:
            monkeypatch.setattr(ObjectFiles, "shared", False)
            lance_prep.build(tmp_path / "in", output=URI, **fields)
            assert verify(URI).problems == []
            old = receipts(by_environment)
            assert old[0].endswith("/shard-000000.json")
    with monkeypatch.context() as patch:
        patch.setattr("lance_prep.engine.run.commit_build", stopped)
        with pytest.raises(Interrupted):
            lance_prep.build(tmp_path / "in", output=URI, append=True, **fields)
    monkeypatch.setattr(ObjectFiles, "shared", True)
    report = lance_prep.build(tmp_path / "in", output=URI, append=True, **fields)
    assert (report.status, report.content_hash) == ("resumed", whole.content_hash)
    assert report.ledger.rejected == 1
    assert verify(URI).problems == []
    new = [name for name in receipts(by_environment) if name not in old]
    assert new
    assert all(re.search(r"/shard-\d{6}-[0-9a-f]{16}\.json$", name) for name in new)
    # What was built in an object store is whole on a disk too.
    by_environment.files.get("bucket/folder/x.lance", str(tmp_path / "copy.lance"), recursive=True)
    assert verify(tmp_path / "copy.lance").problems == []
