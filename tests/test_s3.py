"""Object stores: an S3 server on loopback, as output and as source, with what the usual variables say."""

from __future__ import annotations

import json
import random
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import lance
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import verify
from lance_prep.engine import Silent
from lance_prep.errors import (
    AccessDenied,
    LancePrepError,
    OutputError,
    SourceChanged,
    SourceNotFound,
    StoreUnreachable,
    UsageError,
)
from tests.documents import DOCS, given_to
from tests.processes import finish, report_of, start, wait_for, write_texts
from tests.s3_server import S3, Flaky
from tests.sources import parquet_bytes

SEED = 77


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("s") / "texts", files=2, rows=600)


URI = "s3://bucket/folder/x.lance"
FOLDER = "bucket/folder/x.lance"
SHARDS = ["--shard-size", "40000", "--block-size", "64"]


def test_a_build_takes_options_from_the_environment(
    by_environment: S3, texts: str, tokenizer: str, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "shard_size": 40_000, "block_size": 64}
    local = lance_prep.build(texts, output=tmp_path / "x.lance", **fields)
    report = lance_prep.build(texts, output=URI, **fields)
    assert (report.status, report.version, report.uri) == ("built", 1, URI)
    assert report.content_hash == local.content_hash
    assert verify(URI).problems == []
    assert lance.dataset(URI).to_table() == lance.dataset(local.uri).to_table()
    assert lance_prep.build(texts, output=URI, **fields).status == "unchanged"
    second = lance_prep.build(texts, output=URI, overwrite=True, **{**fields, "seed": 2})
    assert second.version == 2
    assert verify(URI, version=1).problems == []


def test_a_build_takes_storage_options(s3: S3, texts: str, tokenizer: str, tmp_path: Path, capsys: Any) -> None:
    s3.files.put(f"{texts}/0.jsonl", "bucket/in/0.jsonl")
    options = [part for pair in s3.options.items() for part in ("--storage-option", "=".join(pair))]
    report = report_of(start("build", "s3://bucket/in", "-o", URI, "--tokenizer", tokenizer, "--json", *options))
    local = lance_prep.build(f"{texts}/0.jsonl", output=tmp_path / "x.lance", tokenizer=tokenizer)
    assert report["content_hash"] == local.content_hash
    for command in (["verify", URI], ["info", URI], ["show", URI, "--limit", "2"]):
        assert run([*command, *options]) == 0
    assert capsys.readouterr().out.startswith("whole")


def test_source_and_output_may_have_stores_of_their_own(
    s3: S3, texts: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.files.put(f"{texts}/0.jsonl", "bucket/own/0.jsonl")
    wrong = {**s3.options, "aws_endpoint_url": "http://127.0.0.1:9"}
    given: dict[str, Any] = {"tokenizer": tokenizer, "output": "s3://bucket/own.lance"}
    with pytest.raises(LancePrepError, match="does not answer"):
        lance_prep.build("s3://bucket/own", storage_options=s3.options, source_storage_options=wrong, **given)
    built = lance_prep.build(f"{texts}/0.jsonl", storage_options=s3.options, **given)
    given["output"] = tmp_path / "o.lance"
    copy = lance_prep.build("s3://bucket/own", source_storage_options=s3.options, **given)
    assert copy.content_hash == built.content_hash
    with pytest.raises(UsageError, match=r"^storage_options has no effect: not in an object store: .*o\.lance"):
        lance_prep.build("s3://bucket/own", storage_options=s3.options, source_storage_options=s3.options, **given)
    with pytest.raises(UsageError, match=r"^source_storage_options has no effect"):
        lance_prep.build(f"{texts}/0.jsonl", source_storage_options=s3.options, **given)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_an_object_is_read_as_a_source(by_environment: S3, tmp_path: Path, tokenizer: str, name: str) -> None:
    import gzip

    rows = [f"row {i} of some text" for i in range(3000)]
    lines = "\n".join(json.dumps({"text": row}) for row in rows).encode()
    data = {"a.parquet": parquet_bytes({"text": rows}), "a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines)}[name]
    by_environment.files.pipe(f"bucket/in/{name}", data)
    (tmp_path / name).write_bytes(data)
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents"}
    local = lance_prep.build(tmp_path / name, output=tmp_path / "l.lance", **fields)
    for source in (f"s3://bucket/in/{name}", "s3://bucket/in", "s3://bucket/in/*"):
        remote = lance_prep.build(source, output=tmp_path / "r.lance", overwrite=True, **fields)
        assert remote.content_hash == local.content_hash


def test_what_was_compared_is_found_again_by_an_append(by_environment: S3, tmp_path: Path, tokenizer: str) -> None:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "dedup": "exact"}
    hashes: dict[str, list[str]] = {}
    for piece in range(2):
        rows = [f"row {i % 40} of some text" for i in range(30 * piece, 30 * piece + 60)]
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{piece}.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
        for output in ("s3://bucket/compared.lance", str(tmp_path / "compared.lance")):
            report = lance_prep.build(tmp_path / "in", output=output, append=piece > 0, **fields)
            hashes.setdefault(output, []).append(report.content_hash)
            assert report.rows == 40
    assert len(set(map(tuple, hashes.values()))) == 1
    assert lance_prep.verify("s3://bucket/compared.lance").problems == []


def test_a_dataset_as_a_source(by_environment: S3, tmp_path: Path, texts: str, tokenizer: str) -> None:
    lance_prep.build(texts, output=URI, layout="raw", shuffle=False)
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "shard_size": 10**9}
    report = lance_prep.build(URI, output=tmp_path / "x.lance", **fields)
    assert report.content_hash == lance_prep.build(texts, output=tmp_path / "y.lance", **fields).content_hash


@pytest.mark.torture
def test_killed_and_run_again(by_environment: S3, texts: str, tokenizer: str, tmp_path: Path) -> None:
    """At random moments, 20 times. `test_s3_builders` kills a build and an append at chosen ones."""
    draw = random.Random(SEED)
    fields: dict[str, Any] = {"tokenizer": tokenizer, "shard_size": 40_000, "block_size": 64, "overwrite": True}
    arguments = ["build", texts, "-o", URI, "--overwrite", "--tokenizer", tokenizer, *SHARDS]
    lance_prep.build("sample", output=URI, max_rows=50)
    before = lance.dataset(URI, version=1).to_table()
    resumed = 0
    for number in range(20):
        whole = lance_prep.build(texts, output=tmp_path / "x.lance", seed=number, **fields)
        done = len(by_environment.names(f"{FOLDER}/.lance_prep"))
        process = start(*arguments, "--seed", number)
        count = draw.randint(2, whole.shards + 4)
        wait_for(
            lambda done=done, count=count: len(by_environment.names(f"{FOLDER}/.lance_prep")) >= done + count, process
        )
        end = time.perf_counter() + draw.uniform(0, 0.05)
        wait_for(lambda end=end: time.perf_counter() >= end, process)
        process.kill()
        finish(process)
        where = f"seed {SEED}, round {number}, killed after {count} objects"
        assert lance.dataset(URI, version=1).to_table() == before, where
        report = lance_prep.build(texts, output=URI, seed=number, **fields)
        assert report.version == number + 2, where
        assert report.content_hash == whole.content_hash, where
        assert verify(URI).problems == [], where
        tracked = lance.dataset(URI).tracked_files().read_all()["path"].to_pylist()
        data = {name.removeprefix(f"{FOLDER}/") for name in by_environment.names(f"{FOLDER}/data")}
        assert data == {path for path in tracked if path.startswith("data/")}, where
        resumed += report.status == "resumed"
    assert resumed


class Waiting(Silent):
    """Lets another build commit before this one does."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def planned(self, plan: object, done: int) -> None:
        self._other()


def test_an_object_that_changes_after_the_plan(by_environment: S3, texts: str, tokenizer: str, tmp_path: Path) -> None:
    by_environment.files.put(f"{texts}/0.jsonl", "bucket/in/0.jsonl")
    data = Path(texts, "0.jsonl").read_bytes()
    act = Waiting(lambda: by_environment.files.pipe("bucket/in/0.jsonl", data.replace(b"a", b"b")))
    with pytest.raises(SourceChanged, match="as planned"):
        lance_prep.build("s3://bucket/in", output=tmp_path / "x.lance", tokenizer=tokenizer, progress=act)
    assert not (tmp_path / "x.lance" / "_versions").exists()


def test_a_missing_bucket_or_object_is_named(
    by_environment: S3, texts: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceNotFound, match="bucket"):
        lance_prep.build("s3://nobucket/in", output=URI)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(OutputError, match="no such bucket"):
        lance_prep.build(texts, output="s3://nobucket/x.lance", tokenizer=tokenizer)
    by_environment.files.pipe("bucket/in/a.bin", b"x")
    with pytest.raises(LancePrepError, match="no data file"):
        lance_prep.build("s3://bucket/in", output=URI)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")])
def test_answers_that_pass_are_waited_for(
    s3: S3, flaky: Flaky, tmp_path: Path, tokenizer: str, status: int, code: str
) -> None:
    """While listing, looking up and reading, with options under Lance's names."""
    lines = "\n".join(json.dumps({"text": f"row {i}"}) for i in range(100)).encode()
    s3.files.pipe("bucket/in/a.jsonl", lines)
    options = {**s3.options, "aws_endpoint_url": flaky.url}
    flaky.faults = [
        ("GET /bucket/?[?]", status, code),
        ("HEAD /bucket/in/a.jsonl", status, code),
        ("GET /bucket/in/a.jsonl", status, code),
        ("GET /bucket/in/a.jsonl", status, code),
    ]
    fields: dict[str, Any] = {"tokenizer": tokenizer, "storage_options": options, "layout": "documents"}
    assert lance_prep.build("s3://bucket/in", output=tmp_path / "x.lance", **fields).rows == 100
    assert not flaky.faults


def test_a_store_that_does_not_answer_is_not_the_hub(
    s3: S3, flaky: Flaky, tmp_path: Path, tokenizer: str, capsys: Any
) -> None:
    options = {**s3.options, "aws_endpoint_url": flaky.url}
    flaky.faults = [("bucket", 503, "SlowDown")] * 50
    arguments = ["build", "s3://bucket/in", "-o", str(tmp_path / "x.lance"), "--tokenizer", tokenizer]
    for endpoint in (flaky.url, "http://127.0.0.1:9"):
        pairs = {**options, "aws_endpoint_url": endpoint}.items()
        assert run([*arguments, *(part for pair in pairs for part in ("--storage-option", "=".join(pair)))]) == 1
        err = capsys.readouterr().err
        assert "error: listing s3://bucket/in: the object store does not answer as it should" in err
        assert "tried 3 times" in err
        assert "check the bucket, the region and the endpoint" in err
        assert "HF_ENDPOINT" not in err


def test_an_output_that_hangs_or_fails_is_named(
    s3: S3, flaky: Flaky, texts: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lance_prep.transport.NOTICED_WAIT", 0.1)
    answers = threading.Event()
    options = {**s3.through(flaky), "timeout": "300ms"}
    flaky.before = [("bucket", answers.wait)] * 50
    try:
        with pytest.raises(StoreUnreachable, match=r"^reaching s3://bucket/hangs.lance: .*does not answer.* 3 times"):
            lance_prep.build(texts, output="s3://bucket/hangs.lance", tokenizer=tokenizer, storage_options=options)
    finally:
        flaky.before = []
        answers.set()
    assert "waiting for s3://bucket/hangs.lance, 0 s" in caplog.text
    flaky.faults = [("bucket", 503, "SlowDown")] * 50
    with pytest.raises(StoreUnreachable, match=r"^reaching s3://bucket/busy.lance: .*does not answer.* 3 times"):
        lance_prep.build(texts, output="s3://bucket/busy.lance", tokenizer=tokenizer, storage_options=options)


def test_wrong_keys_are_the_stores(s3: S3, flaky: Flaky, tokenizer: str, tmp_path: Path) -> None:
    flaky.faults = [("bucket", 403, "InvalidAccessKeyId")] * 50
    options = {**s3.options, "aws_endpoint_url": flaky.url}
    with pytest.raises(AccessDenied, match="the object store refuses access") as caught:
        lance_prep.build("s3://bucket/in", output=tmp_path / "x.lance", tokenizer=tokenizer, storage_options=options)
    assert "AWS_ACCESS_KEY_ID" in caught.value.advice


def test_an_export_from_an_object_store(s3: S3, texts: str, tokenizer: str, tmp_path: Path, capsys: Any) -> None:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "blocks", "block_size": 64}
    lance_prep.build(texts, output="s3://bucket/web.lance", storage_options=s3.options, **fields)
    local = lance_prep.build(texts, output=tmp_path / "web.lance", **fields)
    options = [f"--storage-option={name}={value}" for name, value in s3.options.items()]
    assert run(["export", "s3://bucket/web.lance", "-o", str(tmp_path / "remote"), *options]) == 0
    assert run(["export", str(local.uri), "-o", str(tmp_path / "local")]) == 0
    remote = {path.name: path.read_bytes() for path in (tmp_path / "remote" / "web").iterdir()}
    assert remote == {path.name: path.read_bytes() for path in (tmp_path / "local" / "web").iterdir()}
    for path in (tmp_path / "remote").rglob("*.json"):
        assert s3.url not in path.read_text()
    assert run(["export", "s3://key:secret@bucket/web.lance", "-o", str(tmp_path / "x"), "--splits", "web"]) == 2
    assert run(["export", str(local.uri), "-o", "s3://key:secret@bucket/out"]) == 2
    said = capsys.readouterr().err
    assert "cannot export to s3://bucket/out" in said
    assert "secret" not in said


def test_sql_and_train_on_an_object_store(s3: S3, texts: str, tokenizer: str, tmp_path: Path, capsys: Any) -> None:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "block_size": 64}
    lance_prep.build(texts, output=URI, storage_options=s3.options, **fields)
    local = lance_prep.build(texts, output=tmp_path / "x.lance", **fields)
    before = s3.names("bucket")
    printed = {}
    options = [f"--storage-option={name}={value}" for name, value in s3.options.items()]
    for place, more in ((URI, options), (local.uri, [])):
        capsys.readouterr()
        assert run(["sql", place, "select sum(num_tokens) as n, count(*) as rows from dataset", "--json", *more]) == 0
        printed[place] = json.loads(capsys.readouterr().out)
    assert printed[URI] == printed[local.uri] == [{"n": local.tokens, "rows": local.rows}]
    assert s3.names("bucket") == before


def test_the_guide_about_object_stores(by_environment: S3, capsys: Any) -> None:
    (block,) = [text for _, text in given_to("test_s3", DOCS / "how-to/object-stores.md")]
    for line in block.splitlines():
        assert run(shlex.split(line, comments=True)[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("content hash") >= 2
