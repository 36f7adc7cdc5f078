"""A dataset repository on the Hub: its branches and tags, and errors of writing to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lance_prep.errors import (
    AccessDenied,
    BranchMoved,
    HubUnreachable,
    LancePrepError,
    OutputError,
    SourceNotFound,
    UsageError,
    one_line,
    translate,
)
from lance_prep.hub_path import HubEntry, checking_answer, hub_api, list_tree, parse_hub_url
from lance_prep.transport import FIRST_ATTEMPTS, Retries

TOKEN_ADVICE = "log in with `hf auth login`, or set HF_TOKEN to a token with write access (see https://huggingface.co/settings/tokens)"
_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_CONTINUES = "run the same command again: what has arrived is not sent again"
_AGAIN = f"check the network, then {_CONTINUES}"
#: What git allows in the name of a branch or tag.
_REF = re.compile(r"(?!-|/|.*(?:\.\.|//|/\.|\.lock(?:/|$)|@\{|/$|\.$))[^\s\x00-\x20\x7f~^:?*\[\\]{1,250}")
#: HTTP status -> error, text and advice, for answers whose text would not help who pushes.
_REFUSALS: dict[int, tuple[type[LancePrepError], str, str]] = {
    409: (
        BranchMoved,
        "another change of the repository is being made (HTTP 409)",
        f"wait a minute, then {_CONTINUES}",
    ),
    413: (
        OutputError,
        "the Hub refuses so much in one request (HTTP 413)",
        "build with a larger shard_size, or compact the dataset, so that it has fewer files; then push again",
    ),
}
_KIND = "dataset"


@dataclass(frozen=True)
class HubRepo:
    """A dataset repository on the Hub, and one of its branches.

    Attributes:
        name: `owner/name`.
        branch: may also be the ref of a pull request, such as `refs/pr/3`.
    """

    name: str
    branch: str = "main"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is not a dataset on the Hub", "name it owner/name")
        check_ref("branch", self.branch)

    @classmethod
    def parse(cls, text: str, branch: str | None = None) -> HubRepo:
        """Return the repository that `owner/name` or `hf://datasets/owner/name[@branch]` names.

        Raises:
            UsageError: it names none, a path inside one, or two branches.
        """
        if not text.startswith("hf://"):
            return cls(text, "main" if branch is None else branch)
        try:
            at = parse_hub_url(text)
        except SourceNotFound as error:
            raise UsageError(str(error), "name the repository owner/name") from error
        if at.path:
            raise UsageError(f"{text} names a path in a repository", "name only the repository; give path_in_repo")
        if branch is not None:
            check_ref("branch", branch)
        if branch and at.revision and branch != at.revision:
            raise UsageError(f"two branches: {at.revision} in {text}, and {branch}", "name one of them")
        return cls(at.repo, branch or at.revision or "main")

    @property
    def ref(self) -> str:
        """The branch's full name."""
        return self.branch if self.branch.startswith("refs/") else f"refs/heads/{self.branch}"

    def __str__(self) -> str:
        return self.name if self.branch == "main" else f"{self.name} ({self.branch})"


def check_ref(kind: str, name: str) -> None:
    """Check the name of a branch, tag or other revision before the Hub is asked for it.

    Raises:
        UsageError: git does not allow it.
    """
    if not _REF.fullmatch(name):
        raise UsageError(
            f"invalid {kind} name {name[:80]!r}", "use a name without spaces or any of ~^:?*[\\, such as v1"
        )


def check_token() -> None:
    """Check that there is a token for the Hub.

    Raises:
        AccessDenied: no token is set.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise AccessDenied("no token for the Hub, and writing to it needs one", TOKEN_ADVICE)


def ensure_repo(repo: HubRepo, *, private: bool = False) -> bool:
    """Make the repository and the branch if they are missing. Return whether the repository was made.

    Args:
        private: make a new repository private.

    Raises:
        UsageError: `private` is asked of a repository that is public, or the branch is a tag.
        AccessDenied: there is no token, or it may not write there.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    check_token()
    api = hub_api()
    made = False
    with writing(repo):
        try:
            first = Retries(attempts=FIRST_ATTEMPTS)  # a missing network is reported at once
            is_private = asking(lambda: api.repo_info(repo.name, repo_type=_KIND), repo, first).private
        except RepositoryNotFoundError:
            if repo.branch.startswith("refs/"):
                raise _no_ref(repo) from None
            asking(lambda: api.create_repo(repo.name, repo_type=_KIND, private=private or None, exist_ok=True), repo)
            made = True
        else:
            if private and not is_private:
                raise UsageError(
                    f"{repo.name} exists and is public, so `private` has no effect",
                    f"make it private in its settings on the Hub, or push to another name than {repo.name}",
                )
        refs = _refs(repo)
        if repo.ref not in refs:
            _make_branch(api, repo, refs)
    return made


def _make_branch(api: Any, repo: HubRepo, refs: dict[str, str]) -> None:
    if f"refs/tags/{repo.branch}" in refs:
        raise UsageError(f"{repo.branch} is a tag of {repo.name}, and commits go to branches", "name a branch")
    if repo.branch.startswith("refs/"):
        raise _no_ref(repo)
    asking(lambda: api.create_branch(repo.name, branch=repo.branch, repo_type=_KIND, exist_ok=True), repo)


def _no_ref(repo: HubRepo) -> UsageError:
    return UsageError(f"{repo.name} has no {repo.branch}", "name a branch, or the ref of an open pull request")


def branch_head(repo: HubRepo) -> str:
    """Return the newest commit of the branch.

    Raises:
        SourceNotFound: there is no such repository or branch.
    """
    with writing(repo):
        refs = _refs(repo)
    if repo.ref not in refs:
        raise SourceNotFound(f"{repo.name} has no branch {repo.branch}", "name one of its branches")
    return refs[repo.ref]


def list_files(repo: HubRepo, commit: str, folder: str) -> dict[str, HubEntry]:
    """Return path -> file of all files in a folder and below it."""
    with writing(repo):
        entries = list_tree(repo.name, commit, folder, Retries(), doing=_doing(repo))
    return {entry.path: entry for entry in entries or ()}


def set_tag(repo: HubRepo, tag: str, commit: str) -> bool:
    """Name a commit. Return whether the tag is new; a tag of the same commit stays.

    Raises:
        UsageError: the tag names another commit.
    """
    api = hub_api()
    with writing(repo):
        if check_tag(repo, tag, commit) == commit:
            return False
        asking(lambda: api.create_tag(repo.name, tag=tag, revision=commit, repo_type=_KIND, exist_ok=True), repo)
        check_tag(repo, tag, commit)  # another process may have made it meanwhile
    return True


def check_tag(repo: HubRepo, tag: str, commit: str | None = None) -> str | None:
    """Return the commit that a tag names now, or None.

    Raises:
        UsageError: it is not `commit`.
    """
    found = _refs(repo).get(f"refs/tags/{tag}")
    if found is not None and commit is not None and found != commit:
        raise UsageError(
            f"the tag {tag} of {repo.name} names commit {found}, not {commit}",
            f"choose another tag, or remove it with `hf repos tag delete {repo.name} {tag} --type dataset`",
        )
    return found


def _refs(repo: HubRepo) -> dict[str, str]:
    """Return full name -> commit of branches, tags and pull requests."""
    api, prs = hub_api(), repo.branch.startswith("refs/pr/")
    found = asking(lambda: api.list_repo_refs(repo.name, repo_type=_KIND, include_pull_requests=prs), repo)
    return {ref.ref: ref.target_commit for ref in (*found.branches, *found.tags, *(found.pull_requests or ()))}


def asking(function: Any, repo: HubRepo, retries: Retries | None = None) -> Any:
    """Return the function's answer, asking the Hub again after transient errors. It must be safe to ask twice."""
    with checking_answer(_doing(repo)):
        return (retries or Retries()).call(function, doing=_doing(repo))


def _doing(repo: HubRepo) -> str:
    return f"pushing to {repo}"


@contextmanager
def writing(repo: HubRepo) -> Iterator[None]:
    """Raise what huggingface_hub raises in the block as ours, with advice for who writes."""
    try:
        yield
    except Exception as error:  # the table of `translate` decides; what it does not know is raised as it is
        # huggingface_hub wraps what a thread of an upload raised.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        status = status_of(cause)
        doing = _doing(repo)
        if status == 401 and type(cause).__name__ != "RepositoryNotFoundError":
            raise AccessDenied(f"{doing}: the Hub does not accept the token (HTTP 401)", TOKEN_ADVICE) from error
        if status == 403:
            raise AccessDenied(
                f"{doing}: the token may not write there (HTTP 403)",
                f"use a token with write access to {repo.name.split('/')[0]}, or push to a name of your own",
            ) from error
        if status in _REFUSALS and not isinstance(cause, LancePrepError):
            kind, said, advice = _REFUSALS[status]
            raise kind(f"{doing}: {said}", advice) from error
        if status in (400, 422):
            said = str(getattr(cause, "server_message", None) or one_line(cause))
            raise OutputError(
                f"{doing}: the Hub refuses the commit (HTTP {status}): {' '.join(said.split())[:300]}",
                "change what it names, then run the same command again",
            ) from error
        ours = translate(cause, doing)
        # The advice of the table is for who reads.
        if isinstance(ours, HubUnreachable) and "HF_HUB_OFFLINE" not in str(ours) and "build sample" in ours.advice:
            raise HubUnreachable(str(ours), _AGAIN) from error
        if ours is None or ours is error:
            raise
        raise ours from error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of huggingface_hub carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
