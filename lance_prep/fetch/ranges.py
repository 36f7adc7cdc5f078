"""One way to read byte ranges, whatever the file lies in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import BadFile
from lance_prep.fetch.http import HttpRanges, http_state
from lance_prep.fetch.hub import HubRanges
from lance_prep.fetch.retry import Retries
from lance_prep.process import with_credentials


class Ranges(Protocol):
    """Byte ranges of one file. Threads may share it."""

    size: int

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, all of them, or an error."""


def is_local(url: str) -> bool:
    """True for a path of this machine, False for a URL."""
    return "://" not in url


def is_http(url: str) -> bool:
    """True for a file on a web server."""
    return url.startswith(("http://", "https://"))


class LocalRanges:
    def __init__(self, path: str, size: int) -> None:
        self.size = size
        self._path = path

    def fetch(self, start: int, stop: int) -> bytes:
        with Path(self._path).open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) < stop - start:
            raise BadFile(f"{self._path}: ends at byte {start + len(data)}, before byte {stop}", "get the file again")
        return data


class FsspecRanges:
    def __init__(self, url: str, size: int, options: Mapping[str, str] | None, retries: Retries) -> None:
        self.size = size
        self._url = url
        self._retries = retries
        self._fs, self._path = fsspec_of(url, options)

    def fetch(self, start: int, stop: int) -> bytes:
        doing = f"reading {self._url}"
        data = self._retries.call(lambda: self._fs.cat_file(self._path, start=start, end=stop), doing=doing)
        if len(data) < stop - start:
            raise BadFile(f"{self._url}: ends at byte {start + len(data)}, before byte {stop}", "get the file again")
        return bytes(data)


def fsspec_of(url: str, options: Mapping[str, str] | None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Args:
        options: storage options under the names that object_store and Lance use (`aws_access_key_id`, `aws_endpoint`,
            `region`, ...). They are translated for s3fs, and passed on unchanged to other file systems.
    """
    import fsspec

    options = dict(options or {})
    if not url.startswith(("s3://", "s3a://")):
        fs, path = fsspec.core.url_to_fs(with_credentials(url), **options)
        return fs, path
    lowered = {key.lower().removeprefix("aws_"): value for key, value in options.items()}
    names = {"access_key_id": "key", "secret_access_key": "secret", "session_token": "token"}
    kwargs: dict[str, Any] = {ours: lowered[theirs] for theirs, ours in names.items() if theirs in lowered}
    endpoint = lowered.get("endpoint") or lowered.get("endpoint_url")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    region = lowered.get("region") or lowered.get("default_region")
    if endpoint:
        kwargs["endpoint_url"] = endpoint
    if region:
        kwargs["client_kwargs"] = {"region_name": region}
    if lowered.get("skip_signature", "").lower() in ("true", "1"):
        kwargs["anon"] = True
    # `Retries` alone repeats requests. With the retries of botocore and s3fs inside each of its own, it would take
    # minutes to give a store up, and the report would not count them all.
    kwargs["config_kwargs"] = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
    fs, path = fsspec.core.url_to_fs(url, **kwargs)
    fs.retries = 1
    return fs, path


def identity_of(info: Mapping[str, Any]) -> str:
    """What changes when an object does, from what fsspec says of it: its ETag, else its time."""
    names = ("ETag", "etag", "LastModified", "mtime", "created")
    return str(next((info[name] for name in names if info.get(name)), "")).strip('"')


def state_of(url: str, options: Mapping[str, str] | None) -> tuple[int, str | None]:
    """Size and identity of a file as it is now, as in `SourceFile`. Not for `hf://`.

    The identity is None for an object without an ETag: file systems give its times in more than one form.

    Raises:
        FileNotFoundError: it is gone.
    """
    if is_local(url):
        stat = Path(url).stat()
        return stat.st_size, str(stat.st_mtime_ns)
    if is_http(url):
        size, identity = http_state(url, Retries())
        return size, identity or None
    fs, path = fsspec_of(url, options)
    fs.invalidate_cache(fs._parent(path))
    info = Retries().call(lambda: fs.info(path), doing=f"looking up {url}")
    return int(info["size"]), identity_of(info) if info.get("ETag") or info.get("etag") else None


def open_ranges(
    url: str, size: int, options: Mapping[str, str] | None, retries: Retries, *, identity: str = ""
) -> Ranges:
    """Byte ranges of a file at a local path, an `hf://` URL, or any URL that fsspec knows.

    Args:
        url, size, identity: as in `SourceFile`.
    """
    if is_local(url):
        return LocalRanges(url, size)
    if url.startswith("hf://"):
        return HubRanges(url, size, retries, identity)
    if is_http(url):
        return HttpRanges(url, url, size, retries, identity)
    return FsspecRanges(url, size, options, retries)
