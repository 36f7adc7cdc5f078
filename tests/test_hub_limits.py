"""A Hub that is hostile or broken: each command ends soon, with one clear line, and leaves nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from lance_prep import hub_session, transport
from lance_prep.cli.main import run
from lance_prep.fetch import web
from tests.loopback_hub import TOKEN, LoopbackHub

REPO = "owner/name"
INFO = r"GET /api/datasets/owner/name(/revision/[^/]+)?$"
TREE = r"GET /api/datasets/owner/name/tree/"
DATA = r"GET /datasets/owner/name/resolve/.*\.lance"
ENTRY = {"type": "file", "path": "data/x.jsonl", "size": 3, "oid": "a" * 40}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a repository with a Lance dataset and a text."""
    home = tmp_path_factory.mktemp("made") / "x.lance"
    lance.write_dataset(pa.table({"text": ["a", "b" * 1000]}), str(home))
    found = {f"x.lance/{p.relative_to(home).as_posix()}": p.read_bytes() for p in home.rglob("*") if p.is_file()}
    return {**found, "data/x.jsonl": b'{"text": "a"}\n'}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A dataset that can be pushed."""
    home = tmp_path_factory.mktemp("pushed")
    (home / "a.jsonl").write_text('{"text": "some text"}\n')
    arguments = ["build", str(home / "a.jsonl"), "--tokenizer", tokenizer, "--layout", "documents"]
    assert run([*arguments, "-o", str(home / "pushed.lance")]) == 0
    return home / "pushed.lance"


@pytest.fixture
def there(hub: LoopbackHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A Hub with the repository; seconds of limits are hundredths."""
    hub.add_dataset(REPO, files)
    for module, name in (
        (hub_session, "ANSWER_SECONDS"),
        (hub_session, "CALL_SECONDS"),
        (web, "SLOW_SECONDS"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / 100)
    monkeypatch.setattr(transport, "BASE_SECONDS", 0.001)
    return hub


def failure(capsys: Any, tmp_path: Path, command: str) -> str:
    """Return the one line that a command prints; it must fail, within seconds, and leave nothing."""
    home = tmp_path / "target"
    home.mkdir(exist_ok=True)
    arguments = {
        "pull": ["pull", REPO, "-o", str(home / "x.lance")],
        "build": ["build", f"hf://datasets/{REPO}/data/*.jsonl", "--layout", "raw", "-o", str(home / "x.lance")],
        "push": ["push", str(tmp_path / "pushed.lance"), REPO],
    }[command]
    capsys.readouterr()
    began = time.monotonic()
    assert run(arguments) == 1
    assert time.monotonic() - began < 20
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert "\n  try: " in captured.err
    assert "defect" not in captured.err
    assert not list(home.iterdir())
    assert captured.out == ""
    return errors[0]


@pytest.mark.parametrize("command", ["pull", "build"])
@pytest.mark.parametrize(
    ("match", "fault", "said"),
    [
        (TREE, {"drip": 0.2}, "too slow"),
        (TREE, {"status": 200, "body": b"<html>log in</html>"}, "invalid answer"),
        (TREE, {"status": 200, "body": {"a": 1}}, "invalid answer"),
        (TREE, {"status": 200, "body": [1]}, "invalid answer"),
        (TREE, {"status": 200, "body": [{**ENTRY, "size": "abc"}]}, "invalid answer: size"),
        (TREE, {"status": 200, "body": [{**ENTRY, "size": -1}]}, "invalid answer: size"),
        (TREE, {"status": 200, "body": [{**ENTRY, "size": 10**30}]}, "invalid answer: size"),
        (TREE, {"status": 200, "body": [{**ENTRY, "oid": "../../x"}]}, "invalid answer: hash"),
        (TREE, {"status": 200, "body": [{**ENTRY, "path": "a/" * 5000}]}, "10,000 characters"),
        (TREE, {"status": 200, "body": b"\0" * 1000, "headers": {"Content-Encoding": "br"}}, "not asked for"),
        (TREE, {"status": 200, "body": b"\0" * 1000, "headers": {"Content-Encoding": "gzip"}}, "damaged answer"),
        (TREE, {"status": 429, "headers": {"Retry-After": "1000000"}}, "asks to wait 1,000,000 s"),
        (TREE, {"status": 429, "headers": {"RateLimit": '"api";r=0;t=90000'}}, "asks to wait 90,001 s"),
        (TREE, {"status": 503, "headers": {"Retry-After": "inf"}}, "does not answer as it should"),
        (INFO, {"status": 200, "body": b"<html>log in</html>"}, "invalid answer"),
        (INFO, {"status": 200, "body": []}, "invalid answer"),
        (INFO, {"status": 200, "body": {"id": REPO, "sha": "../../../x"}}, "invalid answer"),
        (INFO, {"status": 302, "headers": {"Location": "/api/datasets/owner/name"}}, "redirects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_answer_is_one_error(
    there: LoopbackHub,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    match: str,
    fault: dict[str, Any],
    said: str,
) -> None:
    if "drip" in fault:
        monkeypatch.setattr(hub_session, "ANSWER_SECONDS", 0.2)
    there.fault(match, times=1000, **fault)
    assert said in failure(capsys, tmp_path, command)


@pytest.mark.parametrize("command", ["pull", "build"])
@pytest.mark.parametrize("body", [[], [ENTRY] * 1000], ids=["empty", "full"])
def test_pages_without_end_end(
    there: LoopbackHub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, command: str, body: Any
) -> None:
    monkeypatch.setattr(hub_session, "CALL_REQUESTS", 10)
    link = f'<{there.url}/api/datasets/{REPO}/tree/main?recursive=true&cursor=x>; rel="next"'
    there.fault(TREE, times=100_000, status=200, body=body, headers={"Link": link})
    assert "does not end: 11 requests" in failure(capsys, tmp_path, command)
    assert len(there.requests(TREE)) <= 10


def test_a_bomb_is_not_inflated(
    there: LoopbackHub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_session, "ANSWER_BYTES", 4 << 20)
    bomb = gzip.compress(b"[" + b" " * (5 << 20), 1)
    there.fault(TREE, times=9, status=200, body=bomb, headers={"Content-Encoding": "gzip"})
    assert "has more than 4.19 MB" in failure(capsys, tmp_path, "pull")


def test_a_compressed_listing_is_read(there: LoopbackHub, tmp_path: Path, capsys: Any) -> None:
    listing = json.dumps([{**ENTRY, "path": f"data/{i}.txt"} for i in range(10_000)]).encode()
    there.fault(TREE, status=200, body=gzip.compress(listing), headers={"Content-Encoding": "gzip"})
    assert "no Lance dataset" in failure(capsys, tmp_path, "pull")


def test_a_file_that_comes_too_slowly_is_given_up(
    there: LoopbackHub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "SLOW_SECONDS", 0.05)
    there.fault(DATA, times=1000, drip=0.05)
    there.fault(r"/_lfs/", times=1000, drip=0.05)
    home = tmp_path / "x.lance"
    assert run(["pull", REPO, "-o", str(home), "--workers", "1"]) == 1
    err = capsys.readouterr().err
    assert "no answer in time" in err
    assert "tried 7 times" in err
    assert not home.exists()


def test_a_server_that_sends_a_byte_at_a_time_is_not_asked_without_end(
    there: LoopbackHub, tmp_path: Path, capsys: Any
) -> None:
    there.fault(DATA, times=1000, cut_after=1)
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance"), "--workers", "1"]) == 1
    assert "tried 7 times" in capsys.readouterr().err
    assert len(there.requests(DATA)) < 20


def test_a_wait_is_shown(there: LoopbackHub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "NOTICED_WAIT", 0.0)
    monkeypatch.setattr(transport, "_last_notice", 0.0)
    there.fault(TREE, status=429, headers={"Retry-After": "0.6"})
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance")]) == 0
    err = capsys.readouterr().err
    assert "dataset owner/name: the server refuses requests for now (HTTP 429); waiting 1 s" in err


@pytest.mark.parametrize(
    ("match", "fault", "said"),
    [
        (r"GET .*/refs", {"status": 200, "body": []}, "invalid answer"),
        (r"GET .*/refs", {"status": 200, "body": b"<html>"}, "not JSON"),
        (r"GET .*/refs", {"drip": 0.2}, "too slow"),
        (r"POST .*/preupload/", {"status": 429, "headers": {"Retry-After": "1000000"}}, "asks to wait 1,000,000 s"),
        (r"PUT /_lfs/", {"status": 503, "headers": {"Retry-After": "1000000"}}, "asks to wait 1,000,000 s"),
        (r"POST .*/commit/", {"status": 429, "headers": {"Retry-After": "1000000"}}, "asks to wait 1,000,000 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_push_to_a_hostile_hub_is_one_error(
    there: LoopbackHub,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    tokens: Path,
    match: str,
    fault: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(tokens, tmp_path / "pushed.lance")
    before = there.history(REPO)
    if "drip" in fault:
        monkeypatch.setattr(hub_session, "ANSWER_SECONDS", 0.2)
    there.fault(match, times=1000, **fault)
    assert said in failure(capsys, tmp_path, "push")
    assert there.history(REPO) == before
