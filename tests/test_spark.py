"""The `spark` engine on a real local Spark: the rows, ledger and files of the local engine, whatever is killed."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.engine import Arrivals, Built, Hooks, Schedule, Silent, SparkEngine, keep_shard, make_shard
from lance_prep.engine.executor import Result
from lance_prep.engine.spark import read_result
from lance_prep.errors import EngineError, OutputError, RowRejected, UsageError
from lance_prep.store import Receipt
from tests.helpers import check_whole
from tests.processes import finish, start, wait_for, write_texts
from tests.spark import MASTER, kill_workers, needs_spark

needs_spark()
pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six files in some ten shards, with three lines that are not JSON."""
    folder = Path(write_texts(tmp_path_factory.mktemp("spark") / "texts", files=6, rows=300))
    for number in (0, 3, 5):
        with (folder / f"{number}.jsonl").open("a") as file:
            file.write("\nnot JSON")
    return str(folder)


def build(source: object, output: Path, tokenizer: str, **options: Any) -> lance_prep.BuildReport:
    if options.get("layout") != "raw":
        options = {"tokenizer": tokenizer, **options}
    return lance_prep.build(str(source), output=output, shard_size="50kB", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "lines", "max_tokens": 20_000},
        {"layout": "documents", "keep_columns": ("text",)},
        {"layout": "blocks", "block_size": 128, "val_fraction": 0.1},
        {"layout": "raw"},
        {"layout": "documents", "dedup": "minhash", "minhash_ngram": 1, "minhash_rows": 2, "val_fraction": 0.2},
        pytest.param({"layout": "lines"}, marks=pytest.mark.torture),
        pytest.param({"layout": "blocks", "block_size": 128, "max_rows": 333}, marks=pytest.mark.torture),
        pytest.param({"layout": "documents", "max_source_rows": 777}, marks=pytest.mark.torture),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_rows_are_those_of_the_local_engine(
    source: str, tokenizer: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    local = build(source, tmp_path / "local.lance", tokenizer, **options)
    spark = build(source, tmp_path / "spark.lance", tokenizer, engine=SparkEngine(MASTER), **options)
    assert spark.content_hash == local.content_hash
    assert spark.ledger == local.ledger
    assert (spark.shards, spark.text_bytes, spark.lengths) == (local.shards, local.text_bytes, local.lengths)
    assert (spark.validation and spark.validation.content_hash) == (local.validation and local.validation.content_hash)
    if local.rejected_file is not None:
        assert Path(str(spark.rejected_file)).read_bytes() == Path(local.rejected_file).read_bytes()
    check_whole(tmp_path / "spark.lance")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "which the driver does not see"),
        pytest.param(_cut, "bytes, but it has", marks=pytest.mark.torture),
        (_flip, "its content is not what was written"),
        ({"shard": 1}, "returned the receipt of shard 1"),
        ({"fragment": {"files": [{"path": "../../x"}]}}, "returned an invalid receipt"),
        pytest.param(
            {"quarantine_hash": "0"}, "other rejected rows than its receipt states", marks=pytest.mark.torture
        ),
        (b"garbage", "7 bytes that cannot be read"),
        pytest.param(pickle.dumps("done"), "sent a str that is not the result of a shard", marks=pytest.mark.torture),
    ],
    ids=["missing", "cut", "damaged", "another shard", "a path", "rejected rows", "garbage", "another object"],
)
def test_an_executor_that_lies_is_named(
    source: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str
) -> None:
    """The result of one shard, or its file, is changed on its way to the driver. Then the build goes on."""
    output, real = tmp_path / "x.lance", read_result

    def lie(arrived: bytes) -> Result:
        result = real(damage if isinstance(damage, bytes) else arrived)
        if result.shard == 2 and result.built is not None:
            if isinstance(damage, dict):
                return replace(result, built=replace(result.built, receipt=replace(result.built.receipt, **damage)))
            damage(output / "data" / result.built.receipt.data_files()[0])
        return result

    with monkeypatch.context() as patch:
        patch.setattr("lance_prep.engine.spark.read_result", lie)
        with pytest.raises(EngineError, match=said) as failed:
            build(source, output, tokenizer, engine=SparkEngine(MASTER))
    if not isinstance(damage, bytes):
        assert str(failed.value).startswith("the executor of shard 2 returned")
    assert not (output / "_versions").exists()
    assert not list(output.glob(".lance_prep/builds/*/shard-000002*"))
    if damage is _cut:
        assert build(source, output, tokenizer, engine=SparkEngine(MASTER)).status in ("built", "resumed")
        check_whole(output)


def test_a_file_that_is_damaged_after_its_receipt_is_not_committed(source: str, tokenizer: str, tmp_path: Path) -> None:
    output = tmp_path / "x.lance"

    class Damage(Silent):
        def finished(self, receipt: Receipt) -> None:
            if receipt.shard in (1, 3):
                _cut(output / "data" / receipt.data_files()[0])

    for engine in (SparkEngine(MASTER), "local"):
        with pytest.raises(OutputError, match=r"removed or cut while it was being built: those of shard 1, 3\n"):
            build(source, output, tokenizer, engine=engine, progress=Damage())
        assert not (output / "_versions").exists()
    assert build(source, output, tokenizer).status == "resumed"
    check_whole(output)


def test_a_shard_that_arrives_twice_counts_once(
    source: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = build(source, tmp_path / "local.lance", tokenizer)
    real = Arrivals.addInPlace
    monkeypatch.setattr(Arrivals, "addInPlace", lambda self, there, more: real(self, there, [*more, *more]))
    spark = build(source, tmp_path / "spark.lance", tokenizer, engine=SparkEngine(MASTER))
    assert (spark.content_hash, spark.ledger) == (local.content_hash, local.ledger)
    check_whole(tmp_path / "spark.lance")


def test_an_append_and_a_collection(source: str, tokenizer: str, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "texts")
    late = (folder / "5.jsonl").rename(tmp_path / "5.jsonl")
    engine = SparkEngine(MASTER)
    build(folder, tmp_path / "local.lance", tokenizer)
    build(folder, tmp_path / "spark.lance", tokenizer, engine=engine)
    late.rename(folder / "5.jsonl")
    local = build(folder, tmp_path / "local.lance", tokenizer, append=True)
    spark = build(folder, tmp_path / "spark.lance", tokenizer, append=True, engine=engine)
    assert (spark.content_hash, spark.version) == (local.content_hash, 2)
    check_whole(tmp_path / "spark.lance")

    common = ["build", str(folder), "--recursive", "--tokenizer", tokenizer, "--block-size", "64"]
    assert run([*common, "-o", str(tmp_path / "local")]) == 0
    assert run([*common, "-o", str(tmp_path / "spark"), "--engine", "spark", "--spark-master", MASTER]) == 0
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("local", "spark")]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    assert len(manifests[1]["splits"]) == 6


def test_the_command_line_prints_what_it_prints_for_the_local_engine(
    source: str, tokenizer: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["build", source, "-o", str(tmp_path / "a.lance"), "--tokenizer", tokenizer, "--shard-size", "50kB"]
    spark = ["--engine", "spark", "--spark-master", MASTER]
    assert run([*common, *spark, "--json"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["status"] == "built"
    assert report["ledger"]["rejected"] == 3
    assert "6 files in" in err
    assert "Traceback" not in err
    assert run(common) == 0  # the local engine finds the same dataset up to date
    assert "up to date" in capfd.readouterr().out


def test_an_error_of_a_shard_arrives_as_that_error(
    source: str, tokenizer: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RowRejected) as raised:
        build(source, tmp_path / "a.lance", tokenizer, engine=SparkEngine(MASTER), strict=True)
    assert "jsonl" in str(raised.value)
    assert raised.value.advice
    common = ["build", source, "-o", str(tmp_path / "b.lance"), "--tokenizer", tokenizer, "--strict"]
    assert run([*common, "--engine", "spark", "--spark-master", MASTER]) == 1
    err = capfd.readouterr().err
    assert "error: " in err
    assert "try: fix the row, or remove --strict" in err
    assert "py4j" not in err


# In a session that is warm, the shards may be finished before the kill: the test then fails, and is run alone.
@pytest.mark.torture
def test_a_killed_python_worker_changes_nothing(source: str, tokenizer: str, tmp_path: Path) -> None:
    local = build(source, tmp_path / "local.lance", tokenizer, layout="lines")
    data, killed = tmp_path / "spark.lance" / "data", []

    def kill() -> None:
        """Kill each Python worker once files of shards appear."""
        if not wait_for(data.is_dir):
            return
        killed.extend(kill_workers())

    thread = threading.Thread(target=kill)
    thread.start()
    spark = build(source, tmp_path / "spark.lance", tokenizer, layout="lines", engine=SparkEngine(MASTER))
    thread.join()
    assert killed
    assert spark.content_hash == local.content_hash
    check_whole(tmp_path / "spark.lance")


@pytest.mark.torture
def test_a_driver_that_is_killed_is_run_again_and_continues(source: str, tokenizer: str, tmp_path: Path) -> None:
    common = ["build", source, "-o", str(tmp_path / "a.lance"), "--tokenizer", tokenizer, "--shard-size", "50kB"]
    process = start(*common, "--engine", "spark", "--spark-master", MASTER)
    receipts = tmp_path / "a.lance" / ".lance_prep" / "builds"
    assert wait_for(lambda: any(receipts.rglob("shard-*.json")), process), finish(process)
    process.kill()
    finish(process)
    again = build(source, tmp_path / "a.lance", tokenizer, layout="blocks", engine=SparkEngine(MASTER))
    local = build(source, tmp_path / "local.lance", tokenizer, layout="blocks")
    assert again.status == "resumed"
    assert 0 < again.shards_resumed < again.shards
    assert again.content_hash == local.content_hash
    check_whole(tmp_path / "a.lance")


class Twice:
    """Makes each shard twice at the same time, as Spark does when it speculates, and keeps either."""

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        while (job := schedule.next()) is not None:
            with ThreadPoolExecutor(2) as pool:
                copies = [pool.submit(make_shard, *job, Hooks()) for _ in range(2)]
            kept: Built = copies[job[0].shard.index % 2].result()
            schedule.add(keep_shard(job[0], kept))


def test_a_shard_that_is_made_twice_counts_once(source: str, tokenizer: str, tmp_path: Path) -> None:
    local = build(source, tmp_path / "local.lance", tokenizer)
    twice = build(source, tmp_path / "twice.lance", tokenizer, engine=Twice())
    assert twice.content_hash == local.content_hash
    assert Path(str(twice.rejected_file)).read_bytes() == Path(str(local.rejected_file)).read_bytes()
    check_whole(tmp_path / "twice.lance")


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "pyspark", None)
        with pytest.raises(EngineError, match="needs pyspark, which is not installed"):
            SparkEngine()
    with monkeypatch.context() as changed:
        changed.delenv("JAVA_HOME", raising=False)
        changed.setenv("PATH", "")
        with pytest.raises(EngineError, match="no `java` on the PATH"):
            SparkEngine()
        changed.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(EngineError, match=r"has no bin/java"):
            SparkEngine()
    with pytest.raises(UsageError, match="workers has no effect"):
        SparkEngine("spark://host:7077", workers=2)
    assert run(["build", "sample", "--spark-conf", "a=b"]) == 2
    assert "--spark-conf has no effect without --engine spark" in capfd.readouterr().err
    assert run(["build", "sample", "--engine", "spark", "--spark-conf", "a"]) == 2


def test_a_master_that_does_not_answer(tmp_path: Path) -> None:
    spark = ["--engine", "spark", "--spark-master", "spark://127.0.0.1:1"]
    code, out, err = finish(start("build", "sample", "-o", tmp_path / "a.lance", *spark))
    assert (code, out) == (1, "")
    assert "error: no Spark master answers at spark://127.0.0.1:1" in err
    assert "Traceback" not in err


def test_java_that_does_not_start(tmp_path: Path) -> None:
    environment = {"JDK_JAVA_OPTIONS": "-XX:+NoSuchOption"}
    process = start("build", "sample", "-o", tmp_path / "a.lance", "--engine", "spark", environment=environment)
    code, out, err = finish(process)
    assert (code, out) == (1, "")
    assert "error: Java did not start: Unrecognized VM option" in err


def test_settings_that_a_running_session_does_not_have_are_refused(tmp_path: Path, tokenizer: str) -> None:
    build(write_texts(tmp_path / "texts", files=1, rows=5), tmp_path / "a", tokenizer, engine=SparkEngine(MASTER))
    for engine in (SparkEngine("local[1]"), SparkEngine(MASTER, {"spark.executor.memory": "7g"})):
        with pytest.raises(UsageError, match="this process runs Spark with"):
            build(tmp_path / "texts", tmp_path / "b", tokenizer, engine=engine)


def test_source_and_output_in_an_object_store(source: str, tokenizer: str, tmp_path: Path) -> None:
    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=url)
        files.mkdir("spark")
        files.put(source, "spark/texts", recursive=True)
        options = {"endpoint_url": url, "access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
        options = {f"aws_{name}": value for name, value in options.items()} | {"aws_allow_http": "true"}
        local = build(source, tmp_path / "local.lance", tokenizer)
        spark = lance_prep.build(
            "s3://spark/texts/*.jsonl",
            output="s3://spark/a.lance",
            tokenizer=tokenizer,
            shard_size="50kB",
            storage_options=options,
            engine=SparkEngine(MASTER),
        )
        assert spark.content_hash == local.content_hash
        assert spark.ledger == local.ledger
    finally:
        server.stop()


class Stops(Silent):
    """Ends the driver as Ctrl-C does, once a shard is finished."""

    def finished(self, receipt: Receipt) -> None:
        raise KeyboardInterrupt


def test_a_driver_that_is_stopped_has_the_finished_shards_and_continues(
    source: str, tokenizer: str, tmp_path: Path
) -> None:
    engine, output = SparkEngine(MASTER), tmp_path / "a.lance"
    with pytest.raises(KeyboardInterrupt):
        build(source, output, tokenizer, engine=engine, progress=Stops())
    again = build(source, output, tokenizer, engine=engine)
    assert again.status == "resumed"
    assert 0 < again.shards_resumed < again.shards
    assert again.content_hash == build(source, tmp_path / "local.lance", tokenizer).content_hash
    check_whole(output)
