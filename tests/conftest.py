"""The tests need no network: huggingface_hub is pointed to a Hub on loopback before anything imports it.

`huggingface_hub` and `datasets` copy `HF_ENDPOINT` and `HF_HOME` into constants when they are imported, so one server
serves the whole run, and the `hub` fixture empties it for each test.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.loopback_hub import LoopbackHub
from tests.s3_server import S3, Flaky, s3_server

# An example of a property may take any time: the default of 200 ms fails on a machine that is busy with other tests.
hypothesis.settings.register_profile("lance-prep", deadline=None)
hypothesis.settings.load_profile("lance-prep")

_hub = LoopbackHub()
_hub.__enter__()
atexit.register(_hub.__exit__)
_home = tempfile.mkdtemp(prefix="lance-prep-hf-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ.update(
    HF_ENDPOINT=_hub.url,
    HF_HOME=_home,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_UPDATE_DOWNLOAD_COUNTS="0",  # or `datasets` asks a bucket of its own, wherever HF_ENDPOINT points
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)
# Java compiles less of Spark, which halves the CPU time to the end of a first job (8 s instead of 17 s).
os.environ["JDK_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
for name in (
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HUGGING_FACE_HUB_TOKEN",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
):
    os.environ.pop(name, None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test file to one worker, and the files of Spark's tests together, so that they share a session."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope: str = super()._split_scope(nodeid)
            return "spark" if "spark" in Path(scope).name else scope

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Spark session of this process, with two cores. Builds with `SparkEngine(MASTER)` use it too."""
    from tests.spark import MASTER, needs_spark

    needs_spark()
    from pyspark.sql import SparkSession

    from lance_prep.engine.spark_context import spark_context

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("USE_TORCH", "0")  # or `datasets` imports torch in each Python worker
        spark_context(MASTER, {"spark.local.dir": str(tmp_path_factory.mktemp("spark"))}, None)
    session = SparkSession.builder.getOrCreate()
    session.conf.set("spark.sql.shuffle.partitions", "2")
    return session


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty Hub at `HF_ENDPOINT`, for this process and for those that it starts."""
    _hub.reset()
    yield _hub
    _hub.reset()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a byte-level tokenizer with `<|endoftext|>`."""
    from tests import tokenizers_made as made  # imports huggingface_hub, so after the environment is set

    return made.save(tmp_path_factory.mktemp("tokenizer"), made.byte_level(), eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(_s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An S3 server with an empty bucket `bucket`, and nothing in the environment that says where it is."""
    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    urllib.request.urlopen(urllib.request.Request(f"{_s3_server.url}/moto-api/reset", method="POST"))
    _s3_server.files.invalidate_cache()
    _s3_server.files.mkdir("bucket")
    return _s3_server


@pytest.fixture
def by_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The same server, with the usual variables that say where it is."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def flaky(s3: S3) -> Iterator[Flaky]:
    proxy = Flaky(s3.url)
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A file system of its own at `tmp_path/disk`; call it with mount options to change its size.

    If it cannot be mounted, the test fails in CI, and elsewhere says at the end of the run what was not tested.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    for prefix in ([], ["sudo", "-n"]):
        command = [*prefix, "mount", "-t", "tmpfs", "tmpfs", str(disk)]
        if prefix and shutil.which(prefix[0]) is None:
            continue
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
    else:
        why = f"NOT TESTED: a full disk. Mounting is not permitted here ({done.stderr.strip()}); run the tests as root"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)

    def remount(options: str) -> None:
        subprocess.run([*prefix, "mount", "-o", f"remount,{options}", str(disk)], check=True)

    yield remount
    subprocess.run([*prefix, "umount", str(disk)], check=True)
