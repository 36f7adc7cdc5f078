"""A Hub on loopback, for tests: datasets and models seeded from Python, a request log, faults on demand.

Speaks what huggingface_hub, `datasets` and lance-prep ask for when they read: repository info, refs, trees, paths-info,
resolve (LFS files by a redirect to another host name, as the real one does) and byte ranges.

    with LoopbackHub() as hub:
        hub.add_dataset("owner/name", {"data/train.parquet": data})
        hub.fault(match=r"GET /_lfs/", status=503)
        ...
        assert hub.bytes_sent("/_lfs/") < len(data)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

LFS_SUFFIXES = (".parquet", ".arrow", ".bin", ".gz", ".zst")
TOKEN = "hf_loopback"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` matches.

    Attributes:
        status: answer this, with `headers`.
        cut_after: send so many bytes of the body, then cut the connection.
        stall: send nothing until the hub is reset.
        shorten: leave out so many bytes at the end of the body, and give the length of what is left.
        extra: headers of an answer that is otherwise right.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall: bool = False
    shorten: int = 0
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    """Commits (sha -> path -> content) and what points to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def sha(self, revision: str) -> str | None:
        name = revision.removeprefix("refs/heads/")
        return revision if revision in self.commits else self.branches.get(name)


class LoopbackHub:
    """The server. Threads serve; `repos`, `faults` and `log` may be read and written at any time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._serial = itertools.count()
        self.released = threading.Event()
        self.reset()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Forget repositories, faults and requests, and let go of what stalls."""
        self.released.set()
        self.released = threading.Event()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_dataset(self, name: str, files: dict[str, bytes], *, branch: str = "main", **access: bool) -> str:
        """Commit files to a dataset (made where there is none); returns the commit."""
        return self._commit(f"datasets/{name}", files, branch, access)

    def add_model(self, name: str, files: dict[str, bytes], *, branch: str = "main", **access: bool) -> str:
        """Commit files to a model (made where there is none); returns the commit."""
        return self._commit(f"models/{name}", files, branch, access)

    def _commit(self, key: str, files: dict[str, bytes], branch: str, access: dict[str, bool]) -> str:
        repo = self.repos.setdefault(key, Repo(**access))
        before = repo.commits.get(repo.branches.get(branch, ""), {})
        sha = hashlib.sha1(f"{key} {branch} {next(self._serial)}".encode()).hexdigest()
        repo.commits[sha] = {**before, **files}
        repo.branches[branch] = sha
        self.blobs.update((hashlib.sha256(data).hexdigest(), data) for data in files.values())
        return sha

    def fault(self, match: str, **what: Any) -> None:
        """Let matching requests fail. See `Fault`."""
        self.faults.append(Fault(match, **what))

    def requests(self, match: str) -> list[dict[str, Any]]:
        """Logged requests whose `METHOD /path` matches."""
        return [entry for entry in self.log if re.search(match, f"{entry['method']} {entry['path']}")]

    def bytes_sent(self, match: str) -> int:
        return sum(entry["sent"] for entry in self.requests(match))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        entry = {"method": self.command, "path": self.path, "range": self.headers.get("Range"), "status": 0, "sent": 0}
        entry["authorization"] = self.headers.get("Authorization")
        self.entry = entry
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        with self.hub.lock:
            self.hub.log.append(entry)
            matching = (f for f in self.hub.faults if f.times and re.search(f.match, f"{self.command} {self.path}"))
            self.failing = next(matching, None)
            if self.failing:
                self.failing.times -= 1
        try:
            if self.failing and self.failing.stall:
                self.hub.released.wait(60)
                self.close_connection = True
            elif self.failing and self.failing.status:
                self.answer(self.failing.status, b"injected", self.failing.headers)
            else:
                self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = serve  # noqa: N815

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.failing and self.failing.shorten:
            data = data[: -self.failing.shorten]
        self.entry["status"] = status
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        extra = self.failing.extra if self.failing else {}
        for name, value in {**(headers or {}), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.failing.cut_after if self.failing else None
        self.wfile.write(data[:cut])
        self.entry["sent"] = len(data[:cut])
        if cut is not None:
            self.close_connection = True

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def route(self) -> None:
        parts = urlsplit(self.path)
        if found := re.fullmatch(r"/_lfs/([0-9a-f]{64})", parts.path):
            self.content(self.hub.blobs[found[1]], found[1], {})
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            self.resolve(f"{found[1] or 'models/'}{found[2]}", unquote(found[3]), unquote(found[4]))
        elif found := re.fullmatch(
            r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", parts.path
        ):
            query = dict(parse_qsl(parts.query))
            self.api(found[1], found[2] or "revision", unquote(found[3] or "main"), unquote(found[4] or ""), query)
        else:
            self.error(404, "", "no such route")

    def open(self, key: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and the commit, or None when the error is answered."""
        repo = self.hub.repos.get(key)
        if repo is None or (repo.private and not self.logged_in()):
            self.error(401, "RepoNotFound", "Invalid username or password.")
            return None
        sha = repo.sha(revision)
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, sha

    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def api(self, key: str, verb: str, revision: str, path: str, query: dict[str, str]) -> None:
        opened = self.open(key, "main" if verb == "refs" else revision)
        if opened is None:
            return
        repo, sha = opened
        files = repo.commits[sha]
        if verb == "revision":
            name = key.split("/", 1)[1]
            siblings = [{"rfilename": path} for path in sorted(files)]
            gated = "manual" if repo.gated else False
            self.answer(200, {"_id": "0" * 24, "id": name, "sha": sha, "siblings": siblings, "gated": gated})
        elif verb == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            self.answer(200, {"branches": branches, "tags": [], "converts": []})
        elif verb == "tree":
            entries = _tree(files, path.strip("/"), query.get("recursive", "").lower() in ("1", "true"))
            if entries or not path:
                self.answer(200, entries)
            else:
                self.error(404, "EntryNotFound", f"{path} does not exist")
        elif verb == "paths-info":
            text = self.body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            infos = [_entry(path, files[path]) for path in asked if path in files]
            folders = [path for path in asked if any(name.startswith(f"{path}/") for name in files)]
            self.answer(200, infos + [_folder(path) for path in folders])
        else:
            self.error(404, "", "no such route")

    def resolve(self, key: str, revision: str, path: str) -> None:
        opened = self.open(key, revision)
        if opened is None:
            return
        repo, sha = opened
        if repo.gated and not self.logged_in() and path != "README.md":
            self.error(403, "GatedRepo", "Access to this dataset is restricted.")
            return
        data = repo.commits[sha].get(path)
        if data is None:
            self.error(404, "EntryNotFound", "Entry not found")
            return
        entry = _entry(path, data)
        headers = {"X-Repo-Commit": sha}
        if "lfs" in entry:
            digest = entry["lfs"]["oid"]
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            self.answer(302, b"", {**headers, "Location": f"http://localhost:{self.hub.port}/_lfs/{digest}"})
        else:
            self.content(data, entry["oid"], headers)

    def content(self, data: bytes, etag: str, headers: dict[str, str]) -> None:
        headers = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, data, headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _tree(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{under}/" if under else ""
    inside = [path for path in sorted(files) if path.startswith(prefix)]
    entries = [_entry(path, files[path]) for path in inside if recursive or "/" not in path[len(prefix) :]]
    parents = {p for path in inside for p in itertools.accumulate(path[len(prefix) :].split("/")[:-1], "{}/{}".format)}
    return entries + [_folder(prefix + path) for path in sorted(parents) if recursive or "/" not in path]
