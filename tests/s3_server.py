"""An S3 server on loopback (moto), and a proxy before it that misbehaves."""

from __future__ import annotations

import http.server
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class S3:
    """The server, and a file system on it to look and to put with."""

    def __init__(self, url: str) -> None:
        import s3fs

        self.url = url
        self.files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=url, use_listings_cache=False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def options(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.environment.items()}

    def names(self, folder: str) -> list[str]:
        return sorted(self.files.find(folder))

    def through(self, proxy: Flaky) -> dict[str, str]:
        """The options of a client that reaches the server through a proxy."""
        return {**self.options, "aws_endpoint_url": proxy.url}


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run the server while the block runs."""
    from moto import server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.setdefault("MOTO_ALLOW_NONEXISTENT_REGION", "true")
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield S3(f"http://{host}:{port}")
    moto.stop()


class Flaky:
    """A proxy before the store that answers some requests by itself.

    Attributes:
        faults: what `METHOD path` must match, the status and the code that it is answered with, once each.
        lost: what `METHOD path` must match for the store to get the request, but the client an error, once each.
        before: what `METHOD path` must match, and what is done before the store gets the request, once each.
        heeds_conditions: pass `If-None-Match` on.
    """

    def __init__(self, store: str) -> None:
        proxy = self
        self.faults: list[tuple[str, int, str]] = []
        self.lost: list[str] = []
        self.before: list[tuple[str, Callable[[], object]]] = []
        self.heeds_conditions = True

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                asked = f"{self.command} {self.path}"
                fault = next((each for each in proxy.faults if re.search(each[0], asked)), None)
                if fault is not None:
                    proxy.faults.remove(fault)
                    text = f"<Error><Code>{fault[2]}</Code><Message>Please reduce your request rate.</Message></Error>"
                    self.answer(fault[1], {}, text.encode())
                    return
                act = next((each for each in proxy.before if re.search(each[0], asked)), None)
                if act is not None:
                    proxy.before.remove(act)
                    act[1]()
                headers = {"Content-Type": "binary/octet-stream", **self.headers}  # or urllib says that it is a form
                if not proxy.heeds_conditions:
                    headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
                request = urllib.request.Request(store + self.path, body, headers, method=self.command)
                try:
                    with urllib.request.urlopen(request) as response:
                        lost = next((each for each in proxy.lost if re.search(each, asked)), None)
                        if lost is not None:
                            proxy.lost.remove(lost)
                            self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
                            return
                        self.answer(response.status, dict(response.headers), response.read())
                except urllib.error.HTTPError as error:
                    self.answer(error.code, dict(error.headers), error.read())

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                headers = {name.lower(): value for name, value in headers.items()}
                if self.command != "HEAD" or "content-length" not in headers:
                    headers["content-length"] = str(0 if self.command == "HEAD" else len(body))
                for name, value in headers.items():
                    if name not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
