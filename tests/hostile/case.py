"""What a hostile input is, what must hold of the command that meets it, and the process that checks it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests import tokenizers_made as made

#: The content of a file, or a function that makes the file or folder at a path.
Content = str | bytes | Callable[[Path], object]

#: What a file of one word costs: the libraries alone take 250 MiB.
MIB = 700
#: A command takes 1 to 2 s on two free cores.
SECONDS = 30.0
#: The address space of a command, so that a case that fails does not take the machine's memory.
_SPACE = 20 << 30


@dataclass(frozen=True)
class Case:
    """A command in a folder with hostile files.

    Attributes:
        name: says what is hostile, and identifies the case within its theme.
        command: words after `lance-prep`.
        message: pattern that the output must match: stderr if the command fails, else stdout.
        files: path in the folder -> content. `s.jsonl`, a source of two rows, and `t`, a tokenizer, are there already.
        dataset: whether `d.lance` is there too, a dataset of two versions that was built from `s.jsonl`.
        code: exit code.
        seconds: most time it may take.
        mib: most memory it may take, in MiB.
        on: stream that `message` is searched in: stdout, stderr or both.
        prepare: changes the folder before the command, after the files were written.
        environment: variables of the command.
        quick: whether `make test` runs it.
        panics: whether a library written in Rust may print its own lines about a panic before the error.
        streams: number of a standard stream -> file that it is connected to. An empty name closes it.
    """

    name: str
    command: tuple[str, ...]
    message: str
    files: Mapping[str, Content] = field(default_factory=dict)
    dataset: bool = False
    code: int = 1
    seconds: float = SECONDS
    mib: int = MIB
    on: str = ""
    prepare: Callable[[Path], object] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    panics: bool = False
    streams: Mapping[int, str] = field(default_factory=dict)

    @property
    def stream(self) -> str:
        return self.on or ("stderr" if self.code else "stdout")


@dataclass(frozen=True)
class Theme:
    """Cases that attack the same thing.

    Attributes:
        title: what is attacked.
        holds: what holds of every case, for the table in the documentation.
    """

    title: str
    holds: str
    cases: tuple[Case, ...]


def build(source: str = "s.jsonl", *more: str, layout: str = "documents") -> tuple[str, ...]:
    """Return a build of a source into `x.lance`."""
    layouts = ("--layout", layout) if layout else ()
    return ("build", source, "--tokenizer", "t", *layouts, "-o", "x.lance", "--workers", "1", *more)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float
    mib: int


# The command is the child of a small process, whose own memory does not count: ru_maxrss of a child starts with what
# its parent held at the fork. A command that is aborted is measured too.
_WRAPPER = """
import json, os, resource, sys
space = int(sys.argv[1])
child = os.fork()
if not child:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (space, hard))
    for number, name in json.loads(sys.argv[3]).items():
        if name:
            os.dup2(os.open(name, os.O_RDWR), int(number))
        else:
            os.close(int(number))
    os.execv(sys.argv[4], sys.argv[4:])
_, status, used = os.wait4(child, 0)
scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
with open(sys.argv[2], "w") as file:
    file.write(f"{os.waitstatus_to_exitcode(status)} {used.ru_maxrss // scale}")
"""


def run_process(command: tuple[str, ...], folder: Path, case: Case, aside: Path) -> Outcome:
    """Run a command in a process of its own, and end it and its children at the deadline."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "LANG": "C.UTF-8",
        "HOME": str(aside / "home"),
        "TMPDIR": str(aside / "tmp"),
        "HF_HOME": str(aside / "home" / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens
        "RAYON_NUM_THREADS": "2",
        **case.environment,
    }
    result = aside / "result"
    wrapped = [sys.executable, "-S", "-c", _WRAPPER, str(_SPACE), str(result), json.dumps(case.streams)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*wrapped, sys.executable, "-m", "lance_prep", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=case.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        raise AssertionError(f"no end after {case.seconds:g} s: {err[-500:]!r}") from None
    took = time.monotonic() - began
    code, mib = map(int, result.read_text().split())
    return Outcome(code, out.decode(errors="replace"), err.decode(errors="replace"), took, mib)


def write_files(folder: Path, files: Mapping[str, Content]) -> None:
    """Write the files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


def write_common(folder: Path) -> None:
    """Write what every case's folder contains: a source and a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "s.jsonl").write_text('{"text": "one word", "n": 1}\n{"text": "two words", "n": 2}\n')
    made.save(folder / "t", made.byte_level(), eos_token="<|endoftext|>")


def check(case: Case, home: Path, dataset: Path) -> Outcome:
    """Run a case in `home`, an empty folder, and check all that must hold of it.

    Args:
        dataset: the dataset that is copied to `d.lance` if the case has one.
    """
    folder, aside, victim = home / "work", home / "aside", home / "victim"
    for path in (aside / "home", aside / "tmp", victim):
        path.mkdir(parents=True)
    (victim / "thesis.tex").write_text("must survive")
    write_common(folder)
    if case.dataset:
        shutil.copytree(dataset, folder / "d.lance")
    write_files(folder, case.files)
    if case.prepare is not None:
        case.prepare(folder)
    had_output = (folder / "x.lance").exists()
    outcome = run_process(case.command, folder, case, aside)
    _check_outcome(case, outcome)
    assert {path.name for path in home.iterdir()} == {"work", "aside", "victim"}, "files outside the folder"
    assert {path.name: path.read_text() for path in victim.rglob("*")} == {"thesis.tex": "must survive"}
    assert list((aside / "tmp").iterdir()) == [], "temporary files are left"
    if case.command[0] == "build" and not had_output:
        _check_output(folder / "x.lance", outcome)
    return outcome


def _check_outcome(case: Case, outcome: Outcome) -> None:
    said = f"{outcome.out[-1500:]}\n{outcome.err[-3000:]}"
    assert outcome.code == case.code, said
    for word in ("Traceback", "defect of lance-prep", "Exception ignored"):
        assert word not in outcome.err, said
    assert case.panics or "panicked at" not in outcome.err, said
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (1 if case.code and case.stream == "stderr" else 0) or case.stream == "both", said
    assert len(outcome.err) < 3000, said
    text = {"stderr": outcome.err, "stdout": outcome.out, "both": outcome.out + outcome.err}[case.stream]
    assert re.search(case.message, text), said
    assert outcome.mib <= case.mib, f"took {outcome.mib} MiB, at most {case.mib} are allowed"


def _check_output(output: Path, outcome: Outcome) -> None:
    """A build that failed made no version; one that went well made a whole one."""
    import lance_prep

    if outcome.code:
        assert not (output / "_versions").exists(), "a build that failed made a version"
    elif output.exists():
        assert lance_prep.verify(output).problems == []
