"""What the tests of Spark share. The session itself is the fixture `spark`."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

import psutil
import pytest

MASTER = "local[2]"


def needs_spark() -> None:
    """Skip a test, or at the top of a module all its tests, on a machine without Spark or Java."""
    pytest.importorskip("pyspark", reason="NOT TESTED: Spark. pyspark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("NOT TESTED: Spark. There is no Java on this machine", allow_module_level=True)


def kill_workers() -> list[int]:
    """Kill the Python workers of this process's Spark with SIGKILL. Return their ids."""

    def is_of_spark(process: psutil.Process | None) -> bool:
        return process is not None and "pyspark.daemon" in " ".join(process.cmdline())

    killed = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # some end meanwhile
            if is_of_spark(process) and is_of_spark(process.parent()):  # the parent is the daemon that forks them
                process.kill()
                killed.append(process.pid)
    return killed
