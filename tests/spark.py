"""What the tests of Spark share. The session itself is the fixture `spark`."""

from __future__ import annotations

import os
import shutil

import pytest

MASTER = "local[2]"


def needs_spark() -> None:
    """Skip a test, or at the top of a module all its tests, on a machine without Spark or Java."""
    pytest.importorskip("pyspark", reason="NOT TESTED: Spark. pyspark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("NOT TESTED: Spark. There is no Java on this machine", allow_module_level=True)
