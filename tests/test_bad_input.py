"""Plain bad input and odd names: one line that says what is wrong, never a traceback or a supposed defect."""

from __future__ import annotations

import http.server
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lance_prep.cli.main import run
from tests import tokenizers_made as made
from tests.helpers import check_whole


@pytest.fixture
def home(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a source of two rows and a link to a tokenizer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n')
    (tmp_path / "tokenizer").symlink_to(tokenizer)
    return tmp_path


def build(output: str, *more: str, source: str = "s.jsonl") -> list[str]:
    return ["build", source, "--tokenizer", "tokenizer", "--layout", "documents", "-o", output, *more]


def error_of(arguments: list[str], code: int, capsys: Any) -> str:
    """Run a command that fails and return its message."""
    capsys.readouterr()
    assert run(arguments) == code
    said = str(capsys.readouterr().err)
    assert "defect" not in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert "check the disk" not in said
    return said


LONG = ["n" * 300, "/".join(["d" * 100] * 42)]


@pytest.mark.parametrize("name", LONG, ids=["300 bytes", "4,241 bytes"])
@pytest.mark.parametrize("command", ["source", "build", "info", "verify", "compact"])
def test_a_name_that_is_too_long(home: Path, name: str, command: str, capsys: Any) -> None:
    line = {
        "source": build("x.lance", source=f"{name}.jsonl"),
        "build": build(f"{name}.lance"),
    }.get(command, [command, f"{name}.lance"])
    said = error_of(line, 1, capsys)
    assert "name too long" in said
    assert "255 bytes" in said
    assert len(said) < 300  # the name is cut


def test_an_output_that_is_not_utf8(home: Path, capsys: Any) -> None:
    assert "not valid UTF-8" in error_of(build(os.fsdecode(b"bad\xff.lance")), 2, capsys)
    assert "not valid UTF-8" in error_of(build(os.fsdecode(b"bad\xff/x.lance")), 2, capsys)
    assert run(build("gr\u00fcn.lance")) == 0


def test_a_source_whose_name_is_not_utf8(home: Path) -> None:
    (home / os.fsdecode(b"in\xff.jsonl")).write_text('{"text": "one"}\n')
    assert run(build("x.lance", source=os.fsdecode(b"in\xff.jsonl"))) == 0
    check_whole(home / "x.lance")


@pytest.mark.parametrize("name", ["a\nb.lance", "a\tb.lance", "a\x1b[2J.lance"])
def test_an_output_with_a_control_character(home: Path, name: str, capsys: Any) -> None:
    assert "control character" in error_of(build(name), 2, capsys)


def test_an_output_under_a_file(home: Path, capsys: Any) -> None:
    said = error_of(build("s.jsonl/deep/x.lance"), 2, capsys)
    assert f"{home / 's.jsonl'} is a file, not a folder" in said


def test_a_locale_without_utf8(home: Path) -> None:
    command = [sys.executable, "-m", "lance_prep", *build("gr\u00fcn.lance")]
    plain = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    strict = {**plain, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    refused = subprocess.run(command, env=strict, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "set LC_ALL=C.UTF-8" in refused.stderr
    assert subprocess.run(command, env=plain, capture_output=True).returncode == 0


@pytest.mark.parametrize("filter", ["", " "])
def test_an_empty_filter_is_refused(home: Path, filter: str, capsys: Any) -> None:
    assert "is empty" in error_of(build("x.lance", "--filter", filter), 2, capsys)


@pytest.mark.parametrize("size", ["1", "64", "512B"])
def test_a_shard_of_a_few_bytes_is_refused(home: Path, size: str, capsys: Any) -> None:
    assert "use at least 1kB" in error_of(build("x.lance", "--shard-size", size), 2, capsys)


def test_the_home_folder_in_an_output(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    user = home / "user"
    user.mkdir()
    monkeypatch.setenv("HOME", str(user))
    assert run(build("~/x.lance")) == 0
    assert run(["info", "~/x.lance"]) == 0
    assert run(["sql", "~/x.lance", "SELECT count(*) AS n FROM dataset", "-o", "~/n.csv"]) == 0
    assert sorted(path.name for path in user.iterdir()) == ["n.csv", "x.lance"]
    assert not (home / "~").exists()
    # No such user: the name is left as it is.
    assert "no such file" in error_of(build("y.lance", source="~nobody-here/s.jsonl"), 1, capsys)


def test_a_library_that_panics(home: Path, capfd: Any) -> None:
    made.save(home / "panics", made.byte_level(), eos_token="<|endoftext|>")
    file = home / "panics" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    file.write_text(json.dumps(data))
    (home / "a.jsonl").write_text(json.dumps({"text": "a" * 40 + "b"}) + "\n")
    assert run(["build", "a.jsonl", "--tokenizer", "panics", "--layout", "documents", "-o", "x.lance"]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "defect" not in said
    assert said.rstrip().splitlines()[-2].startswith("error: ")


class OddHub(http.server.BaseHTTPRequestHandler):
    """A Hub with one file, whose answers to requests that contain `at` are replaced by `answer`."""

    at, answer = "", b""

    def do_GET(self) -> None:
        file = {"type": "file", "oid": "b" * 40, "size": 10, "path": "a.jsonl"}
        data: Any = [file] if "/tree/" in self.path else {"id": "o/n", "sha": "a" * 40, "siblings": []}
        body = json.dumps(data).encode()
        more = "/tree/" in self.path and "cursor" not in self.path
        if self.at in self.path:
            body = self.answer
        self.send_response(200)
        if more and self.at == "cursor":
            self.send_header("Link", f'<http://{self.headers["Host"]}{self.path}&cursor=1>; rel="next"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def odd_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[OddHub]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OddHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # Not the environment, which huggingface_hub has read already.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield OddHub
        server.shutdown()


PAGE = b"<html>log in</html>"
FILE = b'[{"type": "file", "oid": "b", "path": "a.jsonl"%s}]'


@pytest.mark.parametrize("command", ["build", "pull"])
@pytest.mark.parametrize(
    ("at", "answer"),
    [
        ("/api/", PAGE),
        ("/api/", b"[1]"),
        ("/tree/", PAGE),
        ("/tree/", b'{"x": 1}'),
        ("/tree/", FILE % b', "size": "abc"'),
        ("/tree/", FILE % b', "size": null'),
        ("/tree/", FILE % b""),
        ("cursor", PAGE),
    ],
)
def test_an_odd_answer_of_the_hub(
    home: Path, odd_hub: type[OddHub], at: str, answer: bytes, command: str, capsys: Any
) -> None:
    odd_hub.at, odd_hub.answer = at, answer
    line = build("x.lance", source="hf://datasets/o/n") if command == "build" else ["pull", "o/n", "-o", "x.lance"]
    said = error_of(line, 1, capsys)
    assert "the Hub sends an invalid answer" in said
    assert not (home / "x.lance").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
def test_too_little_memory_to_load_lance(home: Path) -> None:
    command = [sys.executable, "-m", "lance_prep", *build("x.lance")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1200 << 20, 1200 << 20))

    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert "defect" not in done.stderr
