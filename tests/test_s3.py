"""Object stores: an S3 server on loopback, as output and as source, with what the usual variables say."""

from __future__ import annotations

import http.server
import json
import os
import random
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import pytest

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

import lance_prep  # noqa: E402
from lance_prep.cli.main import run  # noqa: E402
from lance_prep.dataset import open_version, verify  # noqa: E402
from lance_prep.engine import RunOptions, Silent, run_build  # noqa: E402
from lance_prep.errors import (  # noqa: E402
    AccessDenied,
    LancePrepError,
    OutputError,
    OutputLocked,
    SourceChanged,
    SourceNotFound,
    UsageError,
)
from lance_prep.recipe import load_recipe  # noqa: E402
from tests.processes import finish, report_of, start, wait_for, write_texts  # noqa: E402
from tests.sources import parquet_bytes  # noqa: E402

SEED = 77


class S3:
    """The server, and a file system on it to look and to put with."""

    def __init__(self, url: str) -> None:
        import s3fs

        self.url = url
        self.files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=url, use_listings_cache=False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def options(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.environment.items()}

    def names(self, folder: str) -> list[str]:
        return sorted(self.files.find(folder))


@pytest.fixture(scope="module")
def running() -> Iterator[S3]:
    os.environ.setdefault("MOTO_ALLOW_NONEXISTENT_REGION", "true")
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield S3(f"http://{host}:{port}")
    moto.stop()


@pytest.fixture
def s3(running: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket `bucket`, and nothing in the environment that says where it is."""
    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    urllib.request.urlopen(urllib.request.Request(f"{running.url}/moto-api/reset", method="POST"))
    running.files.invalidate_cache()
    running.files.mkdir("bucket")
    return running


@pytest.fixture
def by_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("s") / "texts", files=2, rows=600)


URI = "s3://bucket/folder/x.lance"
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


def test_a_build_takes_storage_options(s3: S3, texts: str, tokenizer: str, tmp_path: Path) -> None:
    s3.files.put(f"{texts}/0.jsonl", "bucket/in/0.jsonl")
    options = [part for pair in s3.options.items() for part in ("--storage-option", "=".join(pair))]
    report = report_of(start("build", "s3://bucket/in", "-o", URI, "--tokenizer", tokenizer, "--json", *options))
    local = lance_prep.build(f"{texts}/0.jsonl", output=tmp_path / "x.lance", tokenizer=tokenizer)
    assert report["content_hash"] == local.content_hash
    code, out, err = finish(start("verify", URI, *options))
    assert (code, err) == (0, "")
    assert out.startswith("whole")
    assert finish(start("info", URI, *options))[0] == 0
    assert finish(start("show", URI, "--limit", "2", *options))[0] == 0


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


def test_a_dataset_as_a_source(by_environment: S3, tmp_path: Path, texts: str, tokenizer: str) -> None:
    lance_prep.build(texts, output=URI, layout="raw", shuffle=False)
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "shard_size": 10**9}
    report = lance_prep.build(URI, output=tmp_path / "x.lance", **fields)
    assert report.content_hash == lance_prep.build(texts, output=tmp_path / "y.lance", **fields).content_hash


def test_killed_and_run_again(by_environment: S3, texts: str, tokenizer: str, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    arguments = ["build", texts, "-o", URI, "--overwrite", "--tokenizer", tokenizer, *SHARDS, "--json"]
    lance_prep.build("sample", output=URI, max_rows=50)
    before = lance.dataset(URI, version=1).to_table()
    whole = report_of(start("build", texts, "-o", tmp_path / "x.lance", "--tokenizer", tokenizer, *SHARDS, "--json"))
    resumed = 0
    for number in range(3):
        done = len(by_environment.names("bucket/folder/x.lance/.lance_prep"))
        process = start(*arguments, "--seed", number)
        count = draw.randint(2, whole["shards"] + 2)
        wait_for(
            lambda done=done, count=count: (
                len(by_environment.names("bucket/folder/x.lance/.lance_prep")) >= done + count
            ),
            process,
        )
        end = time.perf_counter() + draw.uniform(0, 0.05)
        wait_for(lambda end=end: time.perf_counter() >= end, process)
        process.kill()
        finish(process)
        where = f"seed {SEED}, round {number}, killed after {count} objects"
        assert lance.dataset(URI, version=1).to_table() == before, where
        report = report_of(start(*arguments, "--seed", number))
        assert report["version"] == number + 2, where
        unharmed = lance_prep.build(
            texts,
            output=tmp_path / "u.lance",
            overwrite=True,
            tokenizer=tokenizer,
            shard_size=40_000,
            block_size=64,
            seed=number,
        )
        assert report["content_hash"] == unharmed.content_hash, where
        assert verify(URI).problems == [], where
        resumed += report["status"] == "resumed"
    assert resumed


class Waiting(Silent):
    """Lets another build commit before this one does."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def planned(self, plan: object, done: int) -> None:
        self._other()


def test_two_at_once_are_resolved_by_the_commit(by_environment: S3, texts: str, tokenizer: str) -> None:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "shard_size": 40_000, "block_size": 64}
    other = Waiting(lambda: lance_prep.build(texts, output=URI, overwrite=True, **fields))
    recipe = load_recipe(texts, {**fields, "seed": 9})
    with pytest.raises(OutputLocked, match="since version 0") as caught:
        run_build(recipe, RunOptions(URI, progress=other), uri=URI)
    assert "same command" in caught.value.advice
    assert [entry["version"] for entry in lance.dataset(URI).versions()] == [1]
    assert open_version(URI).metadata.seed == 1337
    assert verify(URI).problems == []


def test_racing_processes_make_one_version(by_environment: S3, texts: str, tokenizer: str) -> None:
    arguments = ["build", texts, "-o", URI, "--tokenizer", tokenizer, *SHARDS, "--json"]
    processes: list[subprocess.Popen[str]] = [start(*arguments) for _ in range(3)]
    ends = [finish(process) for process in processes]
    assert any(code == 0 for code, _, _ in ends)
    for code, _, err in ends:
        assert code == 0 or "another process has written" in err
    assert [entry["version"] for entry in lance.dataset(URI).versions()] == [1]
    assert verify(URI).problems == []


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


class Flaky:
    """A proxy before the store that answers some requests by itself."""

    def __init__(self, store: str) -> None:
        proxy = self
        self.faults: list[tuple[str, int, str]] = []  # what `METHOD path` must match, the status, the code

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                asked = f"{self.command} {self.path}"
                fault = next((each for each in proxy.faults if re.search(each[0], asked)), None)
                if fault is not None:
                    proxy.faults.remove(fault)
                    text = f"<Error><Code>{fault[2]}</Code><Message>Please reduce your request rate.</Message></Error>"
                    self.answer(fault[1], {}, text.encode())
                    return
                request = urllib.request.Request(store + self.path, body, dict(self.headers), method=self.command)
                try:
                    with urllib.request.urlopen(request) as response:
                        self.answer(response.status, dict(response.headers), response.read())
                except urllib.error.HTTPError as error:
                    self.answer(error.code, dict(error.headers), error.read())

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                headers = {name.lower(): value for name, value in headers.items()}
                if self.command != "HEAD" or "content-length" not in headers:
                    headers["content-length"] = str(0 if self.command == "HEAD" else len(body))
                for name, value in headers.items():
                    if name not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def flaky(s3: S3) -> Iterator[Flaky]:
    proxy = Flaky(s3.url)
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


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


def test_a_store_that_does_not_answer_is_not_the_hub(s3: S3, flaky: Flaky, tmp_path: Path, tokenizer: str) -> None:
    options = {**s3.options, "aws_endpoint_url": flaky.url}
    flaky.faults = [("bucket", 503, "SlowDown")] * 50
    arguments = ["build", "s3://bucket/in", "-o", tmp_path / "x.lance", "--tokenizer", tokenizer]
    for endpoint in (flaky.url, "http://127.0.0.1:9"):
        pairs = {**options, "aws_endpoint_url": endpoint}.items()
        code, _, err = finish(
            start(*arguments, *(part for pair in pairs for part in ("--storage-option", "=".join(pair))))
        )
        assert code == 1
        assert "error: listing s3://bucket/in: the object store does not answer as it should" in err
        assert "tried 3 times" in err
        assert "check the bucket, the region and the endpoint" in err
        assert "HF_ENDPOINT" not in err


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
