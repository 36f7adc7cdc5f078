"""The Hub: names to URLs, and byte ranges of files at a pinned commit.

The requests are those of `HfFileSystem` (same URLs, headers, session and redirects, so `HF_ENDPOINT`, `HF_TOKEN` and
proxies work alike). Its file object is not used: it reads in blocks of 5 MiB whatever is asked for, and starts a range
over when the connection is cut in the middle. Here a range is fetched exactly, and a cut one continues where it was.

A Hub need not be trusted. `guard_session` keeps the token from other hosts, and refuses names that huggingface_hub
would use as paths in its cache although they are not paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lance_prep.errors import BadFile, SourceChanged, SourceNotFound
from lance_prep.fetch.web import HttpRanges
from lance_prep.model import SourceFile
from lance_prep.transport import Transport

LIBRARY = "lance-prep"
_CACHE_NAME = re.compile(r"[0-9A-Za-z._:+=-]{1,200}")
_BLOB_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubPath:
    """`hf://datasets/owner/name@revision/path`, taken apart; `revision` and `path` may be empty."""

    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        from urllib.parse import quote

        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://datasets/{self.repo}{at}" + (f"/{self.path}" if self.path else "")


def parse_hub_url(url: str) -> HubPath:
    """Take an `hf://datasets/...` URL apart.

    Raises:
        SourceNotFound: it is not such a URL.
    """
    from urllib.parse import unquote

    rest = url.removeprefix("hf://")
    kind, _, rest = rest.partition("/")
    owner, _, rest = rest.partition("/")
    name, _, path = rest.partition("/")
    name, _, revision = name.partition("@")
    if revision == "refs":  # refs/convert/parquet and refs/pr/7 may stand unquoted
        first, second, *others = [*path.split("/", 2), "", ""]
        revision, path = f"refs/{first}/{second}", others[0]
    if kind != "datasets" or not owner or not name:
        raise SourceNotFound(f"{url} is not a dataset on the Hub", "write hf://datasets/owner/name@revision/path")
    return HubPath(f"{owner}/{name}", unquote(revision), path)


def hub_url_of(url: str) -> str | None:
    """Return the `hf://` URL of a page or file of a dataset on the Hub; None for any other `https://` URL."""
    from urllib.parse import unquote, urlsplit

    from huggingface_hub import constants

    at = urlsplit(url)
    if at.netloc not in ("huggingface.co", urlsplit(constants.ENDPOINT).netloc):
        return None
    match = re.fullmatch(r"/datasets/([^/]+/[^/]+)(?:/(?:resolve|blob|raw|tree)/([^/]+)(?:/(.*))?)?/?", at.path)
    return HubPath(match[1], unquote(match[2] or ""), unquote(match[3] or "")).url if match else None


def hub_api() -> Any:
    """Return a `huggingface_hub.HfApi` for the endpoint and token of the environment."""
    from huggingface_hub import HfApi

    guard_session()
    return HfApi(library_name=LIBRARY)


def guard_session() -> None:
    """Check what huggingface_hub asks and is answered, from now on.

    Call it before each use of the Hub: huggingface_hub replaces its session after some errors.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = get_session().event_hooks
    if _keep_token not in hooks["request"]:
        get_session().event_hooks = {
            "request": [*hooks["request"], _keep_token],
            "response": [*hooks["response"], _check_names],
        }


def _keep_token(request: Any) -> None:
    """Take the token out of a request to another host than the Hub's, such as the next page of a listing."""
    from huggingface_hub import constants

    # The session is shared with the rest of the process, whose requests to other Hubs are not ours to change.
    ours = any(name in request.headers.get("user-agent", "") for name in (f"{LIBRARY}/", "datasets/"))
    if ours and _origin(str(request.url)) != _origin(constants.ENDPOINT):
        request.headers.pop("authorization", None)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _check_names(response: Any) -> None:
    """Refuse an ETag or commit that would lead out of the cache: huggingface_hub names files after them."""
    if "/resolve/" not in response.request.url.path:
        return
    for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
        value = response.headers.get(header, "").removeprefix("W/").strip('"')
        if value and (not _CACHE_NAME.fullmatch(value) or value.strip(".") == ""):
            raise BadFile(
                f"{response.request.url}: the Hub sends an invalid {header}, {value[:80]!r}", "use another Hub"
            )


class HubRanges(HttpRanges):
    """Byte ranges of one file on the Hub. Threads may share it."""

    def __init__(self, file: SourceFile, transport: Transport) -> None:
        from huggingface_hub import hf_hub_url

        guard_session()
        at = parse_hub_url(file.url)
        address = hf_hub_url(at.repo, at.path, repo_type="dataset", revision=at.revision)
        super().__init__(file, transport, address)

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        return {**build_hf_headers(library_name=LIBRARY), **super()._headers()}

    def _check(self, response: Any) -> None:
        """Refuse another blob than the planned one.

        The Hub's ETags are blob ids, as in the plan. Those of a mirror may be anything and prove nothing.
        """
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        first = response.history[0] if response.history else response
        tag = first.headers.get("X-Linked-ETag") or ("" if response.history else response.headers.get("ETag", ""))
        tag = tag.removeprefix("W/").strip('"')
        if len(tag) == len(self._identity) and _BLOB_ID.fullmatch(tag) and tag != self._identity:
            raise SourceChanged(
                f"{self._name}: blob {tag[:12]} now, {self._identity[:12]} when it was planned",
                "run the same command again",
            )
