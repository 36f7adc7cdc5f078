"""Spark with executors in processes of their own, which are killed: only with `make torture`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import lance_prep
from tests.helpers import check_whole
from tests.processes import report_of, start, wait_for, write_texts

pyspark = pytest.importorskip("pyspark", reason="NOT TESTED: Spark. pyspark is not installed")
pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(shutil.which("java") is None, reason="NOT TESTED: Spark. There is no Java on this machine"),
]
HOME = Path(pyspark.__file__).parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("cluster") / "texts", files=12, rows=4_000)


@pytest.fixture(scope="module")
def local(source: str, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> lance_prep.BuildReport:
    return lance_prep.build(source, output=tmp_path_factory.mktemp("local") / "a.lance", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def standalone() -> Iterator[str]:
    """The URL of a standalone master with two workers of one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    master = [f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
    worker = [
        f"{deploy}.worker.Worker",
        "--host",
        "127.0.0.1",
        "--cores",
        "1",
        "--memory",
        "1g",
        "--webui-port",
        "0",
        url,
    ]
    environment = {**os.environ, "SPARK_HOME": str(HOME), "SPARK_NO_DAEMONIZE": "1"}
    processes = []
    for command in (master, worker, worker):
        processes.append(
            subprocess.Popen(
                [HOME / "bin" / "spark-class", *command],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

        def answers() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            except OSError:
                return False

        assert wait_for(answers, processes[0])
    yield url
    for process in processes:
        process.terminate()
        process.wait(30)


def executors(of: list[int]) -> list[psutil.Process]:
    """Return the executors among the descendants of processes."""
    found = []
    for pid in of:
        for process in psutil.Process(pid).children(recursive=True):
            try:
                if any("CoarseGrainedExecutorBackend" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
    return found


@pytest.mark.parametrize("master", ["local-cluster[2,1,1024]", "standalone"])
def test_a_killed_executor_changes_nothing(
    source: str, local: Any, tokenizer: str, tmp_path: Path, master: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("standalone") if master == "standalone" else master
    output = tmp_path / "a.lance"
    common = ["build", source, "-o", output, "--tokenizer", tokenizer, "--json"]
    process = start(*common, "--engine", "spark", "--spark-master", url)
    receipts = output / ".lance_prep" / "builds"
    assert wait_for(lambda: any(receipts.rglob("shard-*.json")), process), process.communicate()
    victims = executors([os.getpid()])
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    report = report_of(process)
    assert report["content_hash"] == local.content_hash
    assert report["ledger"] == local.as_json()["ledger"]
    check_whole(output)


@pytest.mark.parametrize("seed", range(5))
def test_a_driver_killed_at_any_instant_is_run_again(
    source: str, local: Any, tokenizer: str, tmp_path: Path, standalone: str, seed: int
) -> None:
    draw, output = random.Random(seed), tmp_path / "a.lance"
    common = ["build", source, "-o", output, "--tokenizer", tokenizer, "--json"]
    for _ in range(3):
        process = start(*common, "--engine", "spark", "--spark-master", standalone)
        wait_for((output / "data").is_dir, process)
        time.sleep(draw.uniform(0, 3))
        process.kill()
        process.communicate()
    report = report_of(start(*common, "--engine", "spark", "--spark-master", standalone))
    assert report["content_hash"] == local.content_hash
    check_whole(output)
