"""Upload files to the Hub and make one commit of them.

The content of large files goes up first, in parallel, and is part of nothing. Then one commit names all of it, on top
of the parent that was looked at, so nobody sees a part of a push. `upload_folder` cannot be used for that: it commits
in parts.

A file that the Hub has is not sent again: it is in the parent commit with the same hash, or an earlier run, which was
killed, uploaded it. A commit is tried again only after the branch was asked whether the last attempt arrived, and only
on the same parent: of two attempts that both arrive, the Hub refuses the second.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lance_prep.errors import BranchMoved
from lance_prep.hub.repo import HubRepo, asking, branch_head, check_token, list_files, status_of, writing
from lance_prep.hub.upload import HubFile, UploadedFile, UploadProgress, operation_of, upload_files
from lance_prep.hub_path import HubEntry, hub_api, list_paths
from lance_prep.transport import Retries, is_transient

#: Open pull requests that are searched for one that an earlier run made.
_RECENT_PRS = 20
#: Commits of a branch that are searched for one whose reply was lost.
_RECENT_COMMITS = 50


@dataclass(frozen=True)
class HubCommit:
    """What became of the files.

    Attributes:
        commit: the commit that has them.
        made: whether it is new. If not, the branch or a pull request had the same files.
        parent: the commit before it; `commit` itself if the branch had the files.
        url: page of the commit, or of the pull request.
        files, bytes: that the commit adds or changes.
        unchanged: files that the parent had.
        removed: files that the commit removes.
    """

    commit: str
    made: bool
    parent: str
    url: str
    files: int = 0
    bytes: int = 0
    unchanged: int = 0
    removed: int = 0


def commit_files(
    repo: HubRepo,
    files: Sequence[HubFile | UploadedFile],
    message: str,
    *,
    description: str = "",
    parent: str | None = None,
    replaces: Sequence[str] = (),
    removes: Sequence[str] = (),
    create_pr: bool = False,
    progress: UploadProgress | None = None,
    before: Callable[[], None] | None = None,
) -> HubCommit:
    """Upload files and make one commit that adds or changes exactly these. Make none if the branch has them.

    Args:
        repo: an existing repository and branch; see `ensure_repo`.
        files: with different paths.
        message: title of the commit.
        description: text of the commit.
        parent: the commit that the branch must be at; by default, where it is now.
        replaces: folders of the repository. Files in them that are not among `files` are removed.
        removes: files that are removed, if they are there.
        create_pr: propose the commit as a pull request instead of adding it to the branch.
        progress: told what is sent.
        before: called before anything is sent, unless the branch has the files. It may raise an error.

    Raises:
        BranchMoved: the branch is at another commit than `parent`.
        AccessDenied: no token is set, or it has no write access to the repository.
        HubUnreachable: the same call continues later.
        OutputError: the repository's `.gitignore` excludes one of the files.
    """
    check_token()
    head = branch_head(repo)
    if parent is not None and parent != head:
        raise _moved(repo, parent, head)
    with writing(repo):
        there = _files_at(repo, head, [*(file.path for file in files), *removes], replaces)
        new, unchanged = _changes(files, there)
        gone = _inside(there, replaces) | {path for path in removes if path in there}
        removed = sorted(gone - {file.path for file in files})
        if not new and not removed:
            return HubCommit(head, False, head, _page(repo, head), unchanged=unchanged)
        if before is not None:
            before()
        uploaded = upload_files(repo, new, progress=progress, create_pr=create_pr)
        attempt = _Attempt(repo, head, message, description, create_pr, uploaded, removed)
        commit, url, made = attempt.commit()
    return HubCommit(
        commit, made, head, url, len(uploaded), sum(file.size for file in uploaded), unchanged, len(removed)
    )


def _files_at(repo: HubRepo, commit: str, paths: Sequence[str], folders: Sequence[str]) -> dict[str, HubEntry]:
    """Return path -> file of these files, and of all in these folders."""
    found: dict[str, HubEntry] = {}
    for folder in folders:
        found |= list_files(repo, commit, folder)
    others = [path for path in paths if not any(path.startswith(f"{folder}/") for folder in folders)]
    entries = list_paths(repo.name, commit, others, Retries(), doing=f"pushing to {repo}")
    return found | {entry.path: entry for entry in entries}


def _inside(there: dict[str, HubEntry], folders: Sequence[str]) -> set[str]:
    return {path for path in there if any(path.startswith(f"{folder}/") for folder in folders)}


def _changes(
    files: Sequence[HubFile | UploadedFile], there: dict[str, HubEntry]
) -> tuple[list[HubFile | UploadedFile], int]:
    """Return the files that the Hub has not, or has with another content, and the number of the others."""
    with ThreadPoolExecutor(os.cpu_count(), "lance-prep-hash") as pool:
        same = list(pool.map(lambda file: _is_same(file, there.get(file.path)), files))
    return [file for file, known in zip(files, same, strict=True) if not known], sum(same)


def _is_same(file: HubFile | UploadedFile, there: HubEntry | None) -> bool:
    if there is None or there.size != file.size:
        return False
    if isinstance(file, UploadedFile):
        if there.is_lfs or file.content is None:
            return there.digest == file.sha256
        file = HubFile(file.path, file.content)
    return there.digest == (file.sha256() if there.is_lfs else file.git_hash())


@dataclass(frozen=True)
class _Attempt:
    """One commit, made once, however often it is tried."""

    repo: HubRepo
    parent: str
    message: str
    description: str
    create_pr: bool
    files: Sequence[UploadedFile]
    removed: Sequence[str]

    @property
    def mark(self) -> str:
        """What the commit is recognised by: a hash of its parent and its changes."""
        lines = [self.repo.name, self.repo.branch, self.parent, *(f"+{file.path} {file.sha256}" for file in self.files)]
        lines += [f"-{path}" for path in self.removed]
        return "lance-prep-commit: " + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def commit(self) -> tuple[str, str, bool]:
        """Make the commit, or find the one that an earlier attempt made.

        Returns:
            The commit, the URL of its page, and whether this call made it.
        """
        retries, failed = Retries(), 0
        if self.create_pr and (found := self._find()) is not None:
            return *found, False
        while True:
            try:
                info = self._send()
                return info.oid, info.pr_url or info.commit_url, True
            except Exception as error:  # raised again, unless the commit is there or may be tried again
                if not is_transient(error) and status_of(error) != 412:
                    raise
                if (found := self._find()) is not None:
                    return *found, True
                head = branch_head(self.repo)
                if status_of(error) == 412 or (head != self.parent and not self.create_pr):
                    raise _moved(self.repo, self.parent, head) from error
                if self.create_pr:  # the Hub would take a late one as a second pull request
                    raise
                failed += 1
                retries.wait(error, failed, doing=f"pushing to {self.repo}")

    def _send(self) -> Any:
        from huggingface_hub import CommitOperationDelete

        return hub_api().create_commit(
            self.repo.name,
            [*map(operation_of, self.files), *(CommitOperationDelete(path, is_folder=False) for path in self.removed)],
            commit_message=self.message,
            commit_description=f"{self.description}\n\n{self.mark}".strip(),
            repo_type="dataset",
            revision=self.repo.branch,
            parent_commit=self.parent,
            create_pr=self.create_pr,
        )

    def _find(self) -> tuple[str, str] | None:
        """Return the commit and its page if the Hub has it: on the branch, or in a recent pull request."""
        if not self.create_pr:
            commit = self._commit_in(self.repo.branch)
            return (commit, _page(self.repo, commit)) if commit else None
        api = hub_api()
        refs = asking(
            lambda: api.list_repo_refs(self.repo.name, repo_type="dataset", include_pull_requests=True), self.repo
        )
        numbers = sorted((int(ref.ref.rpartition("/")[2]) for ref in refs.pull_requests or ()), reverse=True)
        for number in numbers[:_RECENT_PRS]:
            if commit := self._commit_in(f"refs/pr/{number}"):
                return commit, f"{api.endpoint}/datasets/{self.repo.name}/discussions/{number}"
        return None

    def _commit_in(self, revision: str) -> str | None:
        """Return this commit if a revision has it, on top of the parent or with others on top of it."""
        from urllib.parse import quote

        from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

        api = hub_api()
        url = f"{api.endpoint}/api/datasets/{self.repo.name}/commits/{quote(revision, safe='')}"

        def recent() -> list[Any]:
            # `list_repo_commits` would fetch the whole history. A new generator for each try: one that raised is empty.
            pages = paginate(url, {}, build_hf_headers(library_name=api.library_name))
            return list(islice(pages, _RECENT_COMMITS))

        for commit in asking(recent, self.repo):
            if commit["id"] == self.parent:
                break
            if self.mark in commit.get("message", ""):
                return str(commit["id"])
        return None


def _page(repo: HubRepo, commit: str) -> str:
    return f"{hub_api().endpoint}/datasets/{repo.name}/commit/{commit}"


def _moved(repo: HubRepo, parent: str, head: str) -> BranchMoved:
    return BranchMoved(
        f"{repo.name}: {repo.branch} was at commit {parent} when this push looked, and is at {head} now",
        "see what the other commit changed, then run the same command again: what has arrived is not sent again",
    )
