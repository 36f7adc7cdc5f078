"""A Spark context for the `spark` engine, and what Spark and Java say as errors of ours."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lance_prep.errors import EngineError, UsageError, one_line
from lance_prep.process import install_advice

JAVA_ADVICE = "install Java 17 or later (such as openjdk-17-jre-headless), and set JAVA_HOME if it is not on the PATH"
#: Attempts of a task on a local master, which Spark does not try again by default: a killed Python worker is replaced.
LOCAL_ATTEMPTS = 4
#: A host that drops packets would take minutes to fail.
CONNECT_SECONDS = 5.0

_lock = threading.Lock()


def check_installed() -> None:
    """Refuse to go on without pyspark or Java, before anything is planned.

    Raises:
        EngineError: says what is missing and how to install it.
    """
    try:
        import pyspark  # noqa: F401
    except ModuleNotFoundError as error:
        said = f"the spark engine needs {error.name}, which is not installed"
        raise EngineError(said, install_advice("spark")) from error
    home = os.environ.get("JAVA_HOME")
    if home and not (Path(home) / "bin" / "java").exists():
        raise EngineError(f"Spark needs Java, and JAVA_HOME={home} has no bin/java", JAVA_ADVICE)
    if not home and shutil.which("java") is None:
        raise EngineError("Spark needs Java, and there is no `java` on the PATH", JAVA_ADVICE)


def spark_context(master: str | None, conf: Mapping[str, str], workers: int | None) -> Any:
    """Return the Spark context of this process; start one if there is none. It ends with the process.

    Args:
        master: URL of the master; by default `local[workers]`, with all cores if `workers` is None.
        conf: settings that take precedence over those made here.

    Raises:
        UsageError: the process has a context with another master or other settings.
        EngineError: Spark does not start.
    """
    check_installed()
    from pyspark import SparkContext

    with _lock:
        active = SparkContext._active_spark_context
        if active is not None:
            _check_same(active, master, conf)
            return active
        return _start(master or f"local[{workers or '*'}]", conf)


def _check_same(context: Any, master: str | None, conf: Mapping[str, str]) -> None:
    """Refuse what a running context can no longer be given."""
    there = context.getConf()
    wanted = {**({"spark.master": _retrying(master)} if master else {}), **conf}
    for name, value in wanted.items():
        if there.get(name) not in (value, master if name == "spark.master" else value):
            said = f"this process runs Spark with {name}={there.get(name)}, and {value} is asked for"
            raise UsageError(said, "stop that session first: spark.stop(); or leave the setting out")


def _start(master: str, conf: Mapping[str, str]) -> Any:
    import pyspark
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    launch: Any = launch_gateway  # has no types
    _check_reachable(master)
    settings = {**_settings(master), **conf}
    os.environ.setdefault("PYSPARK_PYTHON", settings.get("spark.pyspark.python", sys.executable))
    # `local-cluster` starts its executors with the scripts in there.
    os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))
    made = SparkConf().setAll(list(settings.items()))
    on_interrupt = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the version of pandas, which is not used here
        # Java and Spark print a dozen lines while they start. A user who sets the log level wants to see them.
        quiet = {} if "spark.log.level" in conf else {"stderr": log, "stdout": log}
        try:
            gateway = SparkContext._gateway or launch(made, quiet)
            return SparkContext(conf=made, gateway=gateway)
        except Exception as error:  # py4j raises many kinds; each means that Spark did not start
            log.seek(0)
            raise _not_started(master, error, log.read().decode(errors="replace")) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)  # Spark sets its own, without asking


def _settings(master: str) -> dict[str, str]:
    here = re.match(r"local|spark://(localhost|127\.0\.0\.1)[:,]", master)
    return {
        "spark.master": _retrying(master),
        "spark.app.name": "lance-prep",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        # glibc keeps the memory of ended threads, and mimalloc that of freed buffers: see `process.trim`.
        "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
        "spark.executorEnv.LANCE_LOG": "error",
        # Otherwise Spark takes the first address of the machine, which may not be reachable from itself.
        **({"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"} if here else {}),
    }


def _retrying(master: str) -> str:
    """Return a local master that tries failed tasks again, as all others do."""
    return re.sub(r"^local(\[([^,\]]+)\])?$", lambda at: f"local[{at[2] or 1},{LOCAL_ATTEMPTS}]", master)


def _check_reachable(master: str) -> None:
    """Refuse a `spark://` master that does not answer. Spark itself would try for a minute."""
    if not master.startswith("spark://"):
        return
    said = ""
    for place in master.removeprefix("spark://").split(","):
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            return
        except (OSError, ValueError) as error:
            said = one_line(error)
    raise EngineError(f"no Spark master answers at {master}: {said}", "start it, or check its URL")


def _not_started(master: str, error: Exception, log: str) -> EngineError:
    if "JAVA_GATEWAY_EXITED" in str(error):
        lines = [line.strip() for line in log.splitlines() if re.search("error|exception|unrecognized", line, re.I)]
        return EngineError(f"Java did not start: {lines[0] if lines else 'it said nothing'}", JAVA_ADVICE)
    said = java_message(error)
    advice = "check the master's URL, and that this version of Spark matches the cluster's"
    return EngineError(f"Spark did not start on {master}: {said}", advice)


def java_message(error: BaseException) -> str:
    """Return what is wrong, in one line: of a Java exception, without its stack; of a Python one in it, the last line.

    A task's Python traceback is in the middle of the Java stack of the job.
    """
    java = getattr(error, "java_exception", None)
    text = str(java.toString()) if java is not None else str(error)
    if "PythonException" in text:
        lines = text.partition("Traceback (most recent call last)")[2].split("\n\tat ")[0].split("\n")
        found = [line.strip() for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)?: ", line)]
        if found:
            return found[-1][:300]
    reason = re.search(r"most recent failure: Lost task [^:]*: (.*)", text) or re.search(r"failure: (.*)", text)
    return (reason[1] if reason else text.split("\n")[0]).strip()[:300]


@contextmanager
def reported() -> Iterator[None]:
    """Raise what the Spark job in the block fails with as an error of ours, in one line.

    Raises:
        EngineError: see `failure`.
    """
    try:
        yield
    except Exception as error:  # all but those of Spark are raised as they are
        if type(error).__module__.split(".")[0] not in ("py4j", "pyspark"):
            raise
        raise failure(error) from error


def failure(error: BaseException) -> EngineError:
    """Return the error of a Spark job as one that says what failed."""
    said = java_message(error)
    if "No module named 'lance_prep'" in said:
        return EngineError(
            "lance-prep is not installed on the Spark executors",
            "install the same version there, or set PYSPARK_PYTHON to a Python that has it",
        )
    advice = "the same command continues; to see Spark's log, set spark.log.level=WARN"
    if "crashed" in said or "exit" in said.lower():
        advice = "if memory ran out, set spark.executor.memoryOverhead or use fewer cores an executor; " + advice
    return EngineError(f"a Spark task failed: {said}", advice)
