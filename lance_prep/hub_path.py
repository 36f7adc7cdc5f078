"""Places on the Hub: parses URLs, pins them at a commit, and lists the files of a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lance_prep.errors import BadFile, HubUnreachable, SourceNotFound, UsageError, one_line, translate, translating
from lance_prep.hub_session import LIBRARY, guard_session, limited
from lance_prep.transport import FIRST_ATTEMPTS, Retries, Transport

#: The name of a commit.
COMMIT = re.compile("[0-9a-f]{40}")
#: Paths in one request to the Hub, whose limit is 1,000.
_ASK_PATHS = 500
_LONGEST_PATH = 4096
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubPath:
    """The parts of `hf://datasets/owner/name@revision/path`. `revision` and `path` may be empty."""

    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        from urllib.parse import quote

        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://datasets/{self.repo}{at}" + (f"/{self.path}" if self.path else "")


def parse_hub_url(url: str) -> HubPath:
    """Parse an `hf://datasets/...` URL.

    Raises:
        SourceNotFound: it is not such a URL.
    """
    from urllib.parse import unquote

    rest = url.removeprefix("hf://")
    kind, _, rest = rest.partition("/")
    owner, _, rest = rest.partition("/")
    name, _, path = rest.partition("/")
    name, _, revision = name.partition("@")
    if revision == "refs":  # refs/convert/parquet and refs/pr/7 may be unquoted
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


@dataclass(frozen=True)
class HubEntry:
    """A file of a repository at a commit, as the Hub describes it.

    Attributes:
        path: in the repository.
        size: in bytes.
        digest: its sha256 if it is stored by LFS, else its git blob id (a sha1). 64 or 40 hex digits.
    """

    path: str
    size: int
    digest: str

    @property
    def is_lfs(self) -> bool:
        return len(self.digest) == 64


def list_tree(
    repo: str, commit: str, folder: str, retries: Retries, *, token: str | None = None, doing: str = ""
) -> list[HubEntry] | None:
    """Return all files in a folder of a dataset and below it, sorted by path; None if there is no such folder.

    Args:
        folder: empty for the whole repository.
        token: by default that of the environment or of `hf auth login`.
        doing: what is being done, for errors (see `translate`).

    Raises:
        BadFile: the Hub sends an invalid path, size or hash.
        HubUnreachable: it sends an invalid answer, or one that exceeds a limit.
    """
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    def ask() -> list[HubEntry]:
        entries = hub_api().list_repo_tree(
            repo, folder or None, recursive=True, revision=commit, repo_type="dataset", token=token
        )
        return [_described(entry) for entry in entries if isinstance(entry, RepoFile)]

    doing = doing or f"dataset {repo}"
    with reading_answer(doing):
        try:
            return sorted(retries.call(ask, doing=doing), key=lambda entry: entry.path)
        except EntryNotFoundError:
            return None


def list_paths(repo: str, commit: str, paths: Sequence[str], retries: Retries, *, doing: str = "") -> list[HubEntry]:
    """Return those of the paths that are files of a dataset.

    Raises:
        BadFile, HubUnreachable: as `list_tree`.
    """
    from huggingface_hub.hf_api import RepoFile

    api, found = hub_api(), []
    for at in range(0, len(paths), _ASK_PATHS):
        some = list(paths[at : at + _ASK_PATHS])

        def ask(some: list[str] = some) -> list[Any]:
            return list(api.get_paths_info(repo, some, revision=commit, repo_type="dataset"))

        with reading_answer(doing or f"dataset {repo}"):
            entries = retries.call(ask, doing=doing or f"dataset {repo}")
            found += [_described(entry) for entry in entries if isinstance(entry, RepoFile)]
    return found


def _described(entry: Any) -> HubEntry:
    """Return a file as huggingface_hub describes it.

    Raises:
        BadFile: the Hub sends an invalid path, size or hash.
    """
    path, number = str(entry.path), entry.size
    if len(path) > _LONGEST_PATH:
        raise BadFile(
            f"the Hub lists a file whose path has {len(path):,} characters, {path[:80]!r}...", "use another Hub"
        )
    digest = str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
    wrong = None
    if type(number) is not int or not 0 <= number < 1 << 63:
        wrong = f"size {str(number)[:40]!r}"
    elif not _DIGEST.fullmatch(digest):
        wrong = f"hash {digest[:80]!r}"
    if wrong is not None:
        raise BadFile(f"the Hub sends an invalid answer: {wrong} for the file {path[:200]!r}", "use another Hub")
    return HubEntry(path, number, digest)


@contextmanager
def reading_answer(doing: str) -> Iterator[None]:
    """Do the same as `checking_answer`, and also translate all other errors of its client to ours."""
    with checking_answer(doing), translating(doing):
        yield


@contextmanager
def checking_answer(doing: str) -> Iterator[None]:
    """Limit what the block requests from the Hub, and translate its client's errors about invalid answers to ours.

    Raises:
        HubUnreachable: the answer is invalid, such as a page instead of JSON, or it exceeds a limit of `limited`.
    """
    try:
        with limited(doing):
            yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if translate(error, doing) is not None:
            raise
        raise HubUnreachable(
            f"{doing}: the Hub sends an invalid answer ({one_line(error)})",
            "check HF_ENDPOINT and the network: a proxy or a login page may have answered instead",
        ) from error


def hub_info(repo: str, revision: str, retries: Retries, token: str | None = None) -> Any:
    """Return the Hub's answer about a dataset at a revision; None in offline mode.

    Args:
        token: by default that of the environment or of `hf auth login`.

    Raises:
        SourceNotFound: no such repository, or no such revision; lists the existing revisions.
        AccessDenied, HubUnreachable: the Hub refuses, or does not answer.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    api = hub_api()
    with reading_answer(f"dataset {repo}"):
        try:
            info = retries.call(lambda: api.dataset_info(repo, revision=revision, token=token), doing=f"dataset {repo}")
            if not COMMIT.fullmatch(info.sha):  # folders are named after it
                raise ValueError(f"the commit {info.sha[:80]!r}")
            return info
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
    """Return an `hf://` URL with the commit that its revision names now. Return any other URI or path unchanged.

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
        raise UsageError(f"{uri} and hf_revision={asked!r} name two revisions", "remove one of them")
    revision = at.revision or asked or "main"
    if COMMIT.fullmatch(revision):
        return replace(at, revision=revision).url
    token = transport.storage_options.get("hf_token")
    info = hub_info(at.repo, revision, Retries(attempts=FIRST_ATTEMPTS), token)
    if info is None:
        raise HubUnreachable(
            f"{uri}: HF_HUB_OFFLINE is set, so the Hub cannot be asked for the commit",
            "unset it, or name a commit in the URL",
        )
    return replace(at, revision=str(info.sha)).url


def lance_place(uri: str, transport: Transport) -> tuple[str, dict[str, str] | None]:
    """Return a URI and storage options as Lance takes them: the revision of an `hf://` URL becomes an option."""
    if not uri.startswith("hf://") or not (at := parse_hub_url(uri)).revision:
        return uri, transport.for_lance
    return replace(at, revision="").url, {**transport.storage_options, "hf_revision": at.revision}


def hub_api() -> Any:
    """Return a `huggingface_hub.HfApi` for the endpoint and token of the environment."""
    from huggingface_hub import HfApi

    guard_session()
    return HfApi(library_name=LIBRARY)
