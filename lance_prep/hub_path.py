"""Places on the Hub: names to URLs, URLs pinned at a commit, and the session that asks for them.

A Hub need not be trusted. `guard_session` keeps the token from other hosts, and refuses names that huggingface_hub
would use as paths in its cache although they are not paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lance_prep.errors import BadFile, HubUnreachable, SourceNotFound, UsageError, one_line, translating
from lance_prep.transport import FIRST_ATTEMPTS, Retries, Transport

LIBRARY = "lance-prep"
#: The name of a commit.
COMMIT = re.compile("[0-9a-f]{40}")
_CACHE_NAME = re.compile(r"[0-9A-Za-z._:+=-]{1,200}")


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


@contextmanager
def reading_answer(doing: str) -> Iterator[None]:
    """Raise what an invalid answer of the Hub makes its client raise, such as a page instead of JSON, as one of ours.

    Raises:
        HubUnreachable: the answer is invalid.
    """
    try:
        with translating(doing):
            yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HubUnreachable(
            f"{doing}: the Hub sends an invalid answer ({one_line(error)})",
            "check HF_ENDPOINT and the network: a proxy or a login page may have answered instead",
        ) from error


def hub_info(repo: str, revision: str, retries: Retries, token: str | None = None) -> Any:
    """Return the Hub's answer about a dataset at a revision; None in offline mode.

    Args:
        token: by default that of the environment or of `hf auth login`.

    Raises:
        SourceNotFound: no such repository, or no such revision; lists those that there are.
        AccessDenied, HubUnreachable: the Hub refuses, or does not answer.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    api = hub_api()
    with reading_answer(f"dataset {repo}"):
        try:
            return retries.call(lambda: api.dataset_info(repo, revision=revision, token=token), doing=f"dataset {repo}")
        except OfflineModeIsEnabled:
            return None
        except RevisionNotFoundError as error:
            refs = retries.call(
                lambda: api.list_repo_refs(repo, repo_type="dataset", token=token), doing=f"dataset {repo}"
            )
            names = [ref.name for ref in [*refs.branches, *refs.tags]]
            raise SourceNotFound(
                f"dataset {repo} has no revision {revision!r}", f"use a commit hash, or one of: {', '.join(names)}"
            ) from error


def pinned_uri(uri: str, transport: Transport) -> str:
    """Return an `hf://` URL with the commit that its revision names now; any other URI or path as it is.

    Lance asks for each file by the revision's name. Without a commit, a push between two requests would mix two
    versions.

    Args:
        transport: its option `hf_revision` names the revision if the URL does not, and `hf_token` is the token.

    Raises:
        SourceNotFound: no such repository or revision.
        AccessDenied, HubUnreachable: the Hub refuses, or does not answer, or HF_HUB_OFFLINE is set.
    """
    if not uri.startswith("hf://"):
        return uri
    at = parse_hub_url(uri)
    asked = transport.storage_options.get("hf_revision")
    if at.revision and asked not in (None, at.revision):
        raise UsageError(f"{uri} and hf_revision={asked!r} name two revisions", "give one of them")
    revision = at.revision or asked or "main"
    if COMMIT.fullmatch(revision):
        return replace(at, revision=revision).url
    token = transport.storage_options.get("hf_token")
    info = hub_info(at.repo, revision, Retries(attempts=FIRST_ATTEMPTS), token)
    if info is None:
        raise HubUnreachable(f"{uri}: HF_HUB_OFFLINE is set, so the Hub is not asked", "unset it")
    return replace(at, revision=str(info.sha)).url


def lance_place(uri: str, transport: Transport) -> tuple[str, dict[str, str] | None]:
    """Return a URI and storage options as Lance takes them: it has the revision of an `hf://` URL as an option."""
    if not uri.startswith("hf://") or not (at := parse_hub_url(uri)).revision:
        return uri, transport.for_lance
    return replace(at, revision="").url, {**transport.storage_options, "hf_revision": at.revision}


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
