"""Sources on a web server: byte ranges, pinned by size and ETag."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lance_prep import transport
from lance_prep.cli.main import run
from lance_prep.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound, StoreUnreachable, UsageError
from lance_prep.recipe import Recipe
from tests import tokenizers_made as made
from tests.loopback_hub import LoopbackHub
from tests.processes import finish, start
from tests.sources import parquet_bytes, plan_of, read, read_plan

TEXTS = [f"text {i}" for i in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


class Server:
    """A web server on loopback.

    Attributes:
        files: path -> content and ETag.
        faults: answers to give before any other: a status, or "cut" for a connection cut in the middle.
        ranges: whether it answers byte ranges.
        needs: what the path or the Authorization header must contain.
        asked: the Range header of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.faults: list[int | str] = []
        self.ranges = True
        self.needs = ""
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.headers.get("Range", ""))
                fault = server.faults.pop(0) if server.faults else None
                if server.needs not in self.path + self.headers.get("Authorization", ""):
                    fault = 403
                if isinstance(fault, int) or self.path not in server.files:
                    self.send_response(fault if isinstance(fault, int) else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data, tag = server.files[self.path]
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
                start, stop = (int(found[1]), min(int(found[2]) + 1, len(data))) if found else (0, len(data))
                self.send_response(206 if found else 200)
                if found:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
                self.send_header("ETag", f'"{tag}"')
                self.send_header("Content-Length", str(stop - start))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(data[start : (start + stop) // 2])
                    self.close_connection = True
                else:
                    with suppress(ConnectionError):  # the reader has what it wanted
                        self.wfile.write(data[start:stop])

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transport, "BASE_SECONDS", 0.001)
    server = Server()
    yield server
    server.close()


def test_files_on_a_web_server_are_read_by_ranges(server: Server) -> None:
    server.files["/data/x.jsonl"] = LINES, "a"
    server.files["/data/x.parquet"] = parquet_bytes({"text": TEXTS, "other": ["x" * 100] * 3000}), "b"
    plan = plan_of(f"{server.url}/data/x.jsonl")
    (file,) = plan.files
    assert (file.url, file.size, file.identity) == (f"{server.url}/data/x.jsonl", len(LINES), "a")
    assert read(f"{server.url}/data/x.jsonl")[0] == TEXTS
    assert read(f"{server.url}/data/x.parquet")[0] == TEXTS
    assert all(server.asked)


def test_a_cut_or_failed_answer_is_asked_for_again(server: Server) -> None:
    server.files["/x.jsonl"] = LINES, "a"
    plan = plan_of(f"{server.url}/x.jsonl")
    server.faults = [503, "cut", "cut", 429]
    batches, tally, _ = read_plan(plan)
    assert [text for batch in batches for text in batch.columns.column(0).to_pylist()] == TEXTS
    assert tally.retries >= 2
    server.faults = [503] * 100
    with pytest.raises(StoreUnreachable, match="tried 3 times"):
        plan_of(f"{server.url}/x.jsonl")


def test_a_file_that_changed_on_the_server_is_refused(server: Server) -> None:
    server.files["/x.jsonl"] = LINES, "a"
    plan = plan_of(f"{server.url}/x.jsonl")
    server.files["/x.jsonl"] = LINES.replace(b"text 1", b"text 2"), "b"
    with pytest.raises(SourceChanged, match=r"x\.jsonl"):
        read_plan(plan)


def test_a_server_without_ranges(server: Server) -> None:
    server.ranges = False
    server.files["/x.jsonl"] = LINES, "a"
    assert read(f"{server.url}/x.jsonl")[0] == TEXTS
    server.files["/x.jsonl"] = LINES * 200, "a"
    with pytest.raises(SourceError, match="no byte ranges") as caught:
        plan_of(f"{server.url}/x.jsonl")
    assert "download it" in caught.value.advice


def test_what_a_web_server_cannot_give_is_refused(server: Server) -> None:
    with pytest.raises(SourceNotFound, match="no such file"):
        plan_of(f"{server.url}/x.jsonl")
    server.faults = [403]
    with pytest.raises(AccessDenied, match="refuses access"):
        plan_of(f"{server.url}/x.jsonl")
    for source, said in (
        (f"{server.url}/*.jsonl", "names several files"),
        (f"{server.url}/x.lance", "names several files"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            plan_of(source)
        assert caught.value.advice


def test_the_address_of_a_dataset_on_the_hub_is_that_dataset(hub: LoopbackHub) -> None:
    hub.add_dataset("owner/name", {"data/a.jsonl": LINES})
    for address in ("", "/tree/main/data", "/resolve/main/data/a.jsonl", "/blob/main/data/a.jsonl?download=true"):
        plan = plan_of(f"{hub.url}/datasets/owner/name{address}")
        assert plan.source.repo == "owner/name"
        assert plan.files[0].url.startswith("hf://datasets/owner/name@")
        assert sum(shard.bytes for shard in plan.shards) == len(LINES)


def test_credentials_in_a_url_are_used_but_neither_stored_nor_shown(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signed URL and one with a password. Another signature of the same file is the same source."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([*map(str, arguments)])
        return code, *capfd.readouterr()

    tokenizer = made.save(tmp_path / "t", made.byte_level())
    for name, source, clean in (
        ("signed", f"{server.url}/x.jsonl?sig=hidden", f"{server.url}/x.jsonl"),
        ("password", server.url.replace("//", "//me:hidden@") + "/y.jsonl", f"{server.url}/y.jsonl"),
    ):
        server.needs = "sig=hidden" if name == "signed" else "Basic " + base64.b64encode(b"me:hidden").decode()
        for path in ("/x.jsonl?sig=hidden", "/x.jsonl?sig=hidden2", "/y.jsonl"):
            server.files[path] = LINES, "a"
        output = tmp_path / f"{name}.lance"
        arguments = ["--tokenizer", tokenizer, "-o", output]
        code, out, err = finish(start("build", source, *arguments))  # a process, whose libraries may log too
        assert code == 0, err
        said = out + err + call("build", source, *arguments)[1] + call("info", output)[1]
        said += call("build", source, "--dry-run", "--tokenizer", tokenizer)[1]
        assert clean in said
        assert "hidden" not in said
        assert not [path for path in output.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
        assert repr(Recipe(source=source)).count("hidden") == 0
    server.needs, arguments = "sig=hidden2", ["--tokenizer", tokenizer, "-o", tmp_path / "signed.lance"]
    again = call("build", f"{server.url}/x.jsonl?sig=hidden2", *arguments)
    assert "up to date" in again[1], again
    server.needs = "other"
    code, _, err = call("build", f"{server.url}/x.jsonl?sig=hidden", *arguments)
    assert code == 1
    assert "refuses access" in err
    assert "hidden" not in err
