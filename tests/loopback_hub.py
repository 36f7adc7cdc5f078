"""A Hub on loopback, for tests: datasets and models seeded from Python, a request log, faults on demand.

Speaks what huggingface_hub, `datasets` and lance-prep ask for when they read: repository info, refs, trees, paths-info,
resolve (LFS files by a redirect to another host name, as the real one does) and byte ranges. And what they ask for when
they write: a new repository, the kind of each file, LFS uploads in one part, commits (with a check of the parent),
pull requests, branches and tags. Writing needs `TOKEN`, and a namespace of `USER`.

    with LoopbackHub() as hub:
        hub.add_dataset("owner/name", {"data/train.parquet": data})
        hub.fault(match=r"GET /_lfs/", status=503)
        ...
        assert hub.bytes_sent("/_lfs/") < len(data)
        hub.fault(match=r"POST .*/commit/", lose_reply=True)    # commits, and says nothing
        ...
        assert hub.bytes_received("PUT /_lfs/") == len(data)
        assert hub.files("owner/name") == {"data/train.parquet": data}

With `hub.xet` set to a folder, clients that have hf_xet upload there (each write token has a folder of its own, since
hf_xet locks it), and a commit takes the files from there. Nothing is offered for reading by Xet.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import yaml

from tests.xet_store import read_file

LFS_SUFFIXES = (".parquet", ".arrow", ".bin", ".gz", ".zst")
#: Files of at least this size are uploaded by LFS, as on the real Hub; and those whose first bytes are not text.
LFS_SIZE = 10 << 20
TOKEN = "hf_loopback"
#: May read private repositories, and write nothing.
READ_TOKEN = "hf_loopback_read"
USER = "owner"
#: Namespaces in which `USER` may create repositories.
NAMESPACES = (USER, "team")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` matches.

    Attributes:
        status: answer this, with `headers` and `body`.
        cut_after: send so many bytes of the body, then cut the connection.
        drip: send one byte at a time, and wait this many seconds before each.
        stall: send nothing until the hub is reset.
        garble: change the first byte of the body.
        shorten: leave out so many bytes at the end of the body, and give the length of what is left.
        extra: headers of an answer that is otherwise right.
        cut_upload: read so many bytes of what is sent, then cut the connection.
        lose_reply: do what is asked, then cut the connection without an answer.
        stall_reply: do what is asked, and send nothing until the hub is reset.
        reached: set when a request was met; with `stall` and `stall_reply`, when it waits.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = b"injected"
    drip: float | None = None
    cut_after: int | None = None
    stall: bool = False
    garble: bool = False
    shorten: int = 0
    extra: dict[str, str] = field(default_factory=dict)
    cut_upload: int | None = None
    lose_reply: bool = False
    stall_reply: bool = False
    reached: threading.Event = field(default_factory=threading.Event)


class LfsBytes(bytes):
    """The content of a file that was uploaded by LFS, whatever its name is.

    Attributes:
        oid: its sha256.
    """

    oid: str

    @classmethod
    def of(cls, data: bytes, oid: str) -> LfsBytes:
        made = cls(data)
        made.oid = oid
        return made


@dataclass(frozen=True)
class Message:
    """What a commit says of itself."""

    title: str
    text: str
    parent: str | None


@dataclass
class Repo:
    """Commits (sha -> path -> content) and what points to them.

    Attributes:
        branches: pull requests (`refs/pr/1`) and converted branches (`refs/convert/parquet`) too.
        uploads: sha256 of the files that were uploaded or committed.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: dict[str, Message] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)
    gated: bool = False
    private: bool = False

    def sha(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        for prefix, names in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            if (found := names.get(revision.removeprefix(prefix))) is not None:
                return found
        shortened = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return shortened[0] if shortened else None

    def history(self, sha: str | None) -> list[tuple[str, Message]]:
        """Return a commit and those before it."""
        found = []
        while sha is not None:
            message = self.messages[sha]
            found.append((sha, message))
            sha = message.parent
        return found


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
        self.xet: Path | None = None

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_dataset(self, name: str, files: dict[str, bytes], *, branch: str = "main", **access: bool) -> str:
        """Commit files to a dataset (made where there is none); returns the commit."""
        return self._add(f"datasets/{name}", files, branch, access)

    def add_model(self, name: str, files: dict[str, bytes], *, branch: str = "main", **access: bool) -> str:
        """Commit files to a model (made where there is none); returns the commit."""
        return self._add(f"models/{name}", files, branch, access)

    def _add(self, key: str, files: dict[str, bytes], branch: str, access: dict[str, bool]) -> str:
        repo = self.repos.setdefault(key, Repo(**access))
        before = repo.branches.get(branch)
        return self.commit(repo, {**repo.commits.get(before or "", {}), **files}, Message("add", "", before), branch)

    def commit(self, repo: Repo, files: dict[str, bytes], message: Message, branch: str) -> str:
        """Make a commit that has exactly these files, and let the branch point to it."""
        sha = hashlib.sha1(f"{branch} {next(self._serial)}".encode()).hexdigest()
        before = repo.commits.get(message.parent or "", {})
        repo.commits[sha], repo.messages[sha] = files, message
        repo.branches[branch] = sha
        new = {_sha256(data): data for path, data in files.items() if before.get(path) is not data}
        self.blobs.update(new)
        repo.uploads.update(new)
        return sha

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a dataset at a revision, by path."""
        repo = self.repos[f"datasets/{name}"]
        return dict(repo.commits[repo.sha(revision) or ""])

    def history(self, name: str, revision: str = "main") -> list[tuple[str, Message]]:
        """Return the commits of a dataset, the newest first."""
        repo = self.repos[f"datasets/{name}"]
        return repo.history(repo.sha(revision))

    def fault(self, match: str, **what: Any) -> Fault:
        """Let matching requests fail. See `Fault`."""
        self.faults.append(Fault(match, **what))
        return self.faults[-1]

    def release(self) -> None:
        """Let go of what stalls, and forget faults."""
        self.faults = []
        self.released.set()
        self.released = threading.Event()

    def requests(self, match: str) -> list[dict[str, Any]]:
        """Logged requests whose `METHOD /path` matches."""
        return [entry for entry in self.log if re.search(match, f"{entry['method']} {entry['path']}")]

    def bytes_sent(self, match: str) -> int:
        return sum(entry["sent"] for entry in self.requests(match))

    def bytes_received(self, match: str) -> int:
        return sum(entry["received"] for entry in self.requests(match))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the client to acknowledge its headers
    hub: LoopbackHub

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        entry = {"method": self.command, "path": self.path, "range": self.headers.get("Range"), "status": 0, "sent": 0}
        entry["received"] = 0
        entry["authorization"] = self.headers.get("Authorization")
        self.entry = entry
        with self.hub.lock:
            self.hub.log.append(entry)
            matching = (f for f in self.hub.faults if f.times and re.search(f.match, f"{self.command} {self.path}"))
            self.failing = next(matching, None)
            if self.failing:
                self.failing.times -= 1
        try:
            if not self.receive():
                self.close_connection = True
            elif self.failing and self.failing.stall:
                self.wait()
            elif self.failing and self.failing.status:
                self.answer(self.failing.status, self.failing.body, self.failing.headers)
            else:
                self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            if self.failing:
                self.failing.reached.set()

    def wait(self) -> None:
        """Send nothing until the hub lets go."""
        released = self.hub.released
        if self.failing:
            self.failing.reached.set()
        released.wait(60)
        self.close_connection = True

    def receive(self) -> bool:
        """Read the body of the request. Return whether all of it came."""
        cut = self.failing.cut_upload if self.failing else None
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body, length = b"".join(parts), sum(map(len, parts))
        else:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length if cut is None else min(cut, length))
        self.entry["received"] = len(self.body)
        return cut is None and len(self.body) == length

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.failing and self.failing.garble and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        if self.failing and self.failing.shorten:
            data = data[: -self.failing.shorten]
        self.entry["status"] = status
        if self.failing and self.failing.stall_reply:
            self.wait()
            return
        if self.failing and self.failing.lose_reply:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        extra = self.failing.extra if self.failing else {}
        for name, value in {**(headers or {}), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.failing.cut_after if self.failing else None
        if self.failing and self.failing.drip is not None:
            for at in range(len(data)):
                if self.hub.released.wait(self.failing.drip):
                    self.close_connection = True
                    return
                self.wfile.write(data[at : at + 1])
            return
        self.wfile.write(data[:cut])
        self.entry["sent"] = len(data[:cut])
        if cut is not None:
            self.close_connection = True

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def route(self) -> None:
        parts = urlsplit(self.path)
        if found := re.fullmatch(r"/_lfs/(?:[^/]+/[^/]+/[^/]+/)?([0-9a-f]{64})", parts.path):
            if self.command == "PUT":
                self.upload(parts.path.split("/", 2)[2].rsplit("/", 1)[0], found[1])
            else:
                self.content(self.hub.blobs[found[1]], found[1], {})
        elif parts.path == "/api/whoami-v2":
            self.whoami()
        elif parts.path == "/api/validate-yaml":
            self.validate_yaml()
        elif parts.path == "/api/repos/create":
            self.create()
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", parts.path):
            self.lfs(f"{found[1] or 'models/'}{found[2]}", found[3])
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
        return self.headers.get("Authorization") in (f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}")

    def may_write(self, namespace: str | None = None) -> bool:
        """Return whether the request may write; if it may not, the error is answered."""
        if not self.logged_in():
            self.error(401, "", "Invalid username or password.")
            return False
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" or namespace not in (None, *NAMESPACES):
            self.error(403, "", f"You don't have the rights to create a dataset under the namespace {namespace!r}")
            return False
        return True

    def api(self, key: str, verb: str, revision: str, path: str, query: dict[str, str]) -> None:
        opened = self.open(key, "main" if verb in ("refs", "branch") else revision)
        if opened is None:
            return
        repo, sha = opened
        files = repo.commits[sha]
        if verb == "revision":
            name = key.split("/", 1)[1]
            siblings = [{"rfilename": path} for path in sorted(files)]
            text = files.get("README.md", b"").decode(errors="replace")
            card = {} if _card_problem(text) else _card(text)
            access: dict[str, Any] = {"cardData": {name: card[name] for name in ("license",) if name in card}}
            access |= {"gated": "manual" if repo.gated else False, "private": repo.private}
            self.answer(200, {"_id": "0" * 24, "id": name, "sha": sha, "siblings": siblings, **access})
        elif verb == "refs":
            self.answer(200, _refs(repo, "include_prs" in query))
        elif verb == "commits":
            self.answer(200, [_commit(*found) for found in repo.history(sha)])
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
        elif verb in ("preupload", "commit", "branch", "tag", "xet-write-token"):
            if self.may_write():
                self.write(key, repo, verb, revision, sha, query)
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

    # What writes.

    def whoami(self) -> None:
        if not self.logged_in():
            self.error(401, "", "Invalid username or password.")
            return
        token = {"displayName": "loopback", "role": "write" if self.may_write() else "read"}
        orgs = [{"name": name, "type": "org"} for name in NAMESPACES[1:]]
        self.answer(200, {"type": "user", "name": USER, "orgs": orgs, "auth": {"accessToken": token}})

    def validate_yaml(self) -> None:
        problem = _card_problem(json.loads(self.body)["content"])
        errors = [{"message": problem}] if problem else []
        self.answer(400 if problem else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        namespace = asked.get("organization") or USER
        if not self.may_write(namespace):
            return
        key = f"{asked.get('type', 'model')}s/{namespace}/{asked['name']}"
        url = f"{self.hub.url}/{key.removeprefix('models/')}"
        with self.hub.lock:
            if key in self.hub.repos:
                self.answer(409, {"error": "You already created this repo", "url": url})
                return
            repo = self.hub.repos[key] = Repo(private=asked.get("visibility") == "private")
            self.hub.commit(repo, {".gitattributes": ATTRIBUTES}, Message("initial commit", "", None), "main")
        self.answer(200, {"url": url, "name": f"{namespace}/{asked['name']}"})

    def lfs(self, key: str, verb: str) -> None:
        """Say which files are to be uploaded and where, or that one has come."""
        repo = self.hub.repos.get(key)
        if repo is None or not self.may_write():
            return self.error(404, "RepoNotFound", "Repository not found") if repo is None else None
        asked = json.loads(self.body)
        if verb == "verify":
            return self.answer(200, {}) if asked["oid"] in repo.uploads else self.error(422, "", "not uploaded")
        answers = []
        for item in asked["objects"]:
            answers.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in repo.uploads:
                verify = f"{self.hub.url}/{key.removeprefix('models/')}.git/info/lfs/objects/verify"
                upload = f"http://localhost:{self.hub.port}/_lfs/{key}/{item['oid']}"
                answers[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return self.answer(200, {"transfer": "basic", "objects": answers})

    def upload(self, key: str, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.error(400, "", "the content has another hash")
            return
        with self.hub.lock:
            self.hub.blobs[oid] = LfsBytes.of(self.body, oid)
            self.hub.repos[key].uploads.add(oid)
        self.answer(200)

    def write(self, key: str, repo: Repo, verb: str, revision: str, sha: str, query: dict[str, str]) -> None:
        if verb == "preupload":
            files = repo.commits[sha]
            self.answer(200, {"files": [_upload_mode(files, asked) for asked in json.loads(self.body)["files"]]})
        elif verb == "xet-write-token":
            self.xet_token()
        elif verb == "commit":
            with self.hub.lock:
                status, answer = self.make_commit(key, repo, revision, sha, "create_pr" in query)
            self.answer(status, answer, {} if status == 200 else {"X-Error-Message": answer["error"]})
        else:
            self.write_ref(repo, verb, revision, sha)

    def xet_token(self) -> None:
        if self.hub.xet is None:
            self.error(404, "", "Xet is not enabled")
            return
        with self.hub.lock:
            place = self.hub.xet / str(len(list(self.hub.xet.iterdir())))
            place.mkdir()
        url, end = f"local://{place}", str(2**40)
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": end}
        self.answer(200, {"casUrl": url, "accessToken": "xet", "exp": int(end)}, headers)

    def make_commit(self, key: str, repo: Repo, branch: str, sha: str, is_pr: bool) -> tuple[int, dict[str, Any]]:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        sha = repo.branches.get(branch, sha)  # again, now that no other commit is being made
        parent = header.get("parentCommit")
        if parent is not None and (parent not in repo.commits if is_pr else parent != sha):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        if branch not in repo.branches:
            return 400, {"error": f"{branch} is not a branch"}
        base = parent if is_pr and parent else sha
        files = dict(repo.commits[base])
        for line in lines[1:]:
            problem = self.operate(repo, files, line["key"], line["value"])
            if problem:
                return 422, {"error": problem}
        prs = sum(name.startswith("refs/pr/") for name in repo.branches)
        branch = f"refs/pr/{prs + 1}" if is_pr else branch
        message = Message(header["summary"], header.get("description", ""), base)
        oid = self.hub.commit(repo, files, message, branch)
        page = f"{self.hub.url}/{key.removeprefix('models/')}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"}
        return 200, answer | ({"pullRequestUrl": f"{page}/discussions/{prs + 1}"} if is_pr else {})

    def operate(self, repo: Repo, files: dict[str, bytes], what: str, value: dict[str, Any]) -> str | None:
        """Apply one line of a commit to `files`. Return what is wrong with it, if anything."""
        path = value["path"]
        if what == "file":
            files[path] = base64.b64decode(value["content"])
        elif what == "lfsFile":
            if value["oid"] not in self.hub.blobs and self.hub.xet is not None:
                data = read_file(self.hub.xet, value["oid"])
                self.hub.blobs |= {value["oid"]: LfsBytes.of(data, value["oid"])} if data is not None else {}
            if value["oid"] not in self.hub.blobs:
                return f"LFS pointer pointed to a file that does not exist: {path}"
            data = self.hub.blobs[value["oid"]]
            files[path] = data if isinstance(data, LfsBytes) else LfsBytes.of(data, value["oid"])
        elif what == "deletedFile":
            if files.pop(path, None) is None:
                return f"A file with this name doesn't exist: {path}"
        elif what == "deletedFolder":
            for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
                del files[name]
        return None

    def write_ref(self, repo: Repo, verb: str, revision: str, sha: str) -> None:
        asked = json.loads(self.body or b"{}")
        names = repo.branches if verb == "branch" else repo.tags
        name = revision if verb == "branch" or self.command == "DELETE" else asked["tag"]
        if self.command == "DELETE":
            names.pop(name, None)
            self.answer(200)
        elif name in names:
            self.error(409, "", f"Reference {name} already exists")
        elif (target := repo.sha(asked.get("startingPoint") or "main") if verb == "branch" else sha) is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {asked['startingPoint']}")
        else:
            names[name] = target
            self.answer(200)


def _upload_mode(files: dict[str, bytes], asked: dict[str, Any]) -> dict[str, Any]:
    """Say how a file is to be uploaded, and which content has its path now."""
    path, sample = asked["path"], base64.b64decode(asked["sample"])
    attributes = files.get(".gitattributes", ATTRIBUTES).decode()
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    named = any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in patterns)
    lfs = named or asked["size"] >= LFS_SIZE or b"\0" in sample
    ignored = [line for line in files.get(".gitignore", b"").decode().splitlines() if path.startswith(line)]
    answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": bool(ignored)}
    if path in files:
        entry = _entry(path, files[path])
        answer["oid"] = entry.get("lfs", entry)["oid"]
    return answer


def _card(text: str) -> Any:
    """Return the YAML of a dataset card."""
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


def _card_problem(text: str) -> str | None:
    """Return what the Hub would refuse in the YAML of a dataset card."""
    try:
        card = _card(text)
    except yaml.YAMLError as error:
        return f"invalid YAML: {error}"
    if not isinstance(card, dict):
        return "the metadata is not an object"
    for name in ("tags", "size_categories", "configs", "language"):
        if not isinstance(card.get(name, []), list):
            return f'"{name}" must be an array'
    if any(not isinstance(tag, str) for name in ("tags", "size_categories") for tag in card.get(name, [])):
        return "tags and size categories must be strings"
    if any(not isinstance(config, dict) or "config_name" not in config for config in card.get("configs", [])):
        return '"configs" must have a "config_name" each'
    return None


def _refs(repo: Repo, prs: bool) -> dict[str, Any]:
    refs = [
        {"name": n, "ref": n if n[:5] == "refs/" else f"refs/heads/{n}", "targetCommit": c}
        for n, c in repo.branches.items()
    ]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
    found = {"branches": "refs/heads/", "converts": "refs/convert/"} | ({"pullRequests": "refs/pr/"} if prs else {})
    lists = {name: [ref for ref in refs if ref["ref"].startswith(prefix)] for name, prefix in found.items()}
    return {**lists, "tags": tags}


def _commit(sha: str, message: Message) -> dict[str, Any]:
    said = {"title": message.title, "message": message.text, "authors": [{"user": USER}]}
    return {"id": sha, "date": "2026-01-01T00:00:00.000Z", **said}


def _sha256(data: bytes) -> str:
    return data.oid if isinstance(data, LfsBytes) else hashlib.sha256(data).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if not path.endswith(LFS_SUFFIXES) and not isinstance(data, LfsBytes):
        return {**entry, "oid": _git_hash(data)}
    digest = _sha256(data)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
    return {
        **entry,
        "oid": _git_hash(pointer),
        "lfs": {"oid": digest, "size": len(data), "pointerSize": len(pointer)},
    }


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _tree(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{under}/" if under else ""
    inside = [path for path in sorted(files) if path.startswith(prefix)]
    entries = [_entry(path, files[path]) for path in inside if recursive or "/" not in path[len(prefix) :]]
    parents = {p for path in inside for p in itertools.accumulate(path[len(prefix) :].split("/")[:-1], "{}/{}".format)}
    return entries + [_folder(prefix + path) for path in sorted(parents) if recursive or "/" not in path]
