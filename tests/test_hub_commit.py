"""One commit on the Hub: what is sent, and what a lost reply, another commit or a missing token does."""

from __future__ import annotations

import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import _pagination

from lance_prep.errors import AccessDenied, BranchMoved, HubUnreachable, LancePrepError, OutputError, UsageError
from lance_prep.hub import HubFile, HubRepo, branch_head, commit_files, ensure_repo, set_tag, upload_files
from tests.loopback_hub import READ_TOKEN, TOKEN, LoopbackHub

REPO = HubRepo("owner/tokens")
COMMIT = r"POST .*/commit/"
PUT = r"PUT /_lfs/"


@pytest.fixture
def there(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """An empty dataset on the Hub, and a token that may write to it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert ensure_repo(REPO)
    return hub


@pytest.fixture
def large(tmp_path: Path) -> HubFile:
    (tmp_path / "a.lance").write_bytes(b"\0" + np.random.default_rng(0).bytes(300_000))
    return HubFile("data/x/a.lance", str(tmp_path / "a.lance"))


SMALL = HubFile("data/x/note.txt", b"a note")


class Heard:
    """Adds up what an upload says."""

    def __init__(self) -> None:
        self.files = self.planned_bytes = self.bytes = 0

    def planned(self, files: int, bytes: int) -> None:
        self.files, self.planned_bytes = files, bytes

    def advanced(self, bytes: int) -> None:
        self.bytes += bytes


def test_a_commit_has_all_files_and_the_same_files_make_none(there: LoopbackHub, large: HubFile) -> None:
    heard = Heard()
    made = commit_files(REPO, [large, SMALL], "title", description="text", progress=heard)
    assert (made.made, made.files, made.bytes, made.unchanged) == (True, 2, large.size + SMALL.size, 0)
    assert (heard.files, heard.planned_bytes, heard.bytes) == (2, made.bytes, made.bytes)
    files = there.files(REPO.name)
    assert files.keys() == {".gitattributes", large.path, SMALL.path}
    assert files[large.path] == Path(str(large.content)).read_bytes()
    newest, message = there.history(REPO.name)[0]
    assert (newest, message.title, message.parent) == (made.commit, "title", made.parent)
    assert message.text.startswith("text\n")
    there.log.clear()
    again = commit_files(REPO, [large, SMALL], "title")
    assert (again.made, again.commit, again.unchanged) == (False, made.commit, 2)
    assert not there.requests(f"PUT|{COMMIT}")


def test_files_in_a_replaced_folder_are_removed(there: LoopbackHub, large: HubFile) -> None:
    commit_files(REPO, [large, SMALL, HubFile("data/xy/other", b"1"), HubFile("README.md", b"mine")], "one")
    made = commit_files(REPO, [HubFile("data/x/new", b"2"), SMALL], "two", replaces=["data/x"])
    assert (made.files, made.unchanged, made.removed) == (1, 1, 1)
    assert there.files(REPO.name).keys() == {
        ".gitattributes", "README.md", "data/x/new", SMALL.path, "data/xy/other"
    }  # fmt: skip


@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.parametrize("fault", [{"lose_reply": True}, {"cut_after": 0}, {"cut_after": 5}], ids=str)
def test_a_lost_reply_is_not_a_second_commit(
    there: LoopbackHub, large: HubFile, create_pr: bool, fault: dict[str, Any]
) -> None:
    start = len(there.repos[f"datasets/{REPO.name}"].commits)
    there.fault(COMMIT, **fault)
    made = commit_files(REPO, [large], "title", create_pr=create_pr)
    assert made.made
    assert len(there.repos[f"datasets/{REPO.name}"].commits) == start + 1
    assert there.history(REPO.name, made.commit)[0][1].title == "title"
    again = commit_files(REPO, [large], "title", create_pr=create_pr)
    assert (again.made, again.commit) == (False, made.commit)


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_lost_reply_is_looked_for_again_after_a_fault(
    there: LoopbackHub, large: HubFile, create_pr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub itself tries five times more, over 23 s: only a longer fault reaches us.
    monkeypatch.setattr(_pagination, "http_backoff", partial(_pagination.http_backoff, max_retries=0))
    start = len(there.repos[f"datasets/{REPO.name}"].commits)
    there.fault(COMMIT, lose_reply=True)
    there.fault("GET .*/commits/", status=503, headers={"Retry-After": "0"})
    made = commit_files(REPO, [large], "title", create_pr=create_pr)
    assert [entry["status"] for entry in there.requests("GET .*/commits/")][:2] == [503, 200]
    assert there.history(REPO.name, made.commit)[0][1].title == "title"
    assert len(there.repos[f"datasets/{REPO.name}"].commits) == start + 1


def test_a_lost_commit_is_found_below_a_later_one(there: LoopbackHub, large: HubFile) -> None:
    fault = there.fault(COMMIT, stall_reply=True)

    def later() -> None:
        assert fault.reached.wait(30)
        there.add_dataset(REPO.name, {"later": b"1"})
        there.release()

    thread = threading.Thread(target=later)
    thread.start()
    made = commit_files(REPO, [large], "title")
    thread.join()
    assert [message.title for _, message in there.history(REPO.name)][:2] == ["add", "title"]
    assert there.history(REPO.name)[1][0] == made.commit


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_commit_that_did_not_arrive_is_sent_again(there: LoopbackHub, large: HubFile, status: int) -> None:
    there.fault(COMMIT, status=status, headers={"Retry-After": "0"}, times=2)
    made = commit_files(REPO, [large], "title")
    assert [sha for sha, _ in there.history(REPO.name)][:2] == [made.commit, made.parent]
    assert len(there.requests(PUT)) == 1


def test_uploads_go_on_after_faults(there: LoopbackHub, large: HubFile) -> None:
    heard = Heard()
    there.fault(PUT, cut_upload=1000)
    there.fault("POST .*/preupload", status=503)
    there.fault("POST .*/objects/batch", lose_reply=True)
    commit_files(REPO, [large], "title", progress=heard)
    assert heard.bytes == large.size
    assert large.path in there.files(REPO.name)


def test_nothing_is_visible_before_the_commit(there: LoopbackHub, large: HubFile) -> None:
    before = there.history(REPO.name)
    (uploaded,) = upload_files(REPO, [large])
    assert there.history(REPO.name) == before
    travelled = pickle.loads(pickle.dumps(uploaded))
    there.log.clear()
    commit_files(REPO, [travelled], "title")
    assert there.files(REPO.name)[large.path] == Path(str(large.content)).read_bytes()
    assert not there.requests("PUT")
    assert not commit_files(REPO, [travelled], "title").made


def test_another_commit_in_between_is_reported_with_both(there: LoopbackHub, large: HubFile) -> None:
    start = branch_head(REPO)

    class Stranger(Heard):
        def advanced(self, bytes: int) -> None:
            if len(there.history(REPO.name)) == 1:
                there.add_dataset(REPO.name, {"other": b"1"})

    with pytest.raises(BranchMoved) as caught:
        commit_files(REPO, [large], "title", progress=Stranger())
    head = branch_head(REPO)
    assert start in str(caught.value)
    assert head in str(caught.value)
    assert large.path not in there.files(REPO.name)
    with pytest.raises(BranchMoved, match=start):
        commit_files(REPO, [large], "title", parent=start)
    there.log.clear()
    assert commit_files(REPO, [large], "title", parent=head).made
    assert not there.requests("PUT")


@pytest.mark.parametrize(
    ("token", "said", "advice"),
    [
        ("", "no token", "HF_TOKEN"),
        (READ_TOKEN, "403", "write access to owner"),
        ("hf_wrong", "401", "HF_TOKEN"),
    ],
)
def test_a_token_that_may_not_write_is_reported(
    there: LoopbackHub, large: HubFile, monkeypatch: pytest.MonkeyPatch, token: str, said: str, advice: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessDenied, match=said) as caught:
        commit_files(REPO, [large], "title")
    assert advice in caught.value.advice
    assert not token or token not in str(caught.value)


def test_a_hub_that_is_away_is_reported(there: LoopbackHub, large: HubFile) -> None:
    there.fault("POST .*/commit/", status=503, times=100, headers={"Retry-After": "0"})
    with pytest.raises(HubUnreachable, match="503") as caught:
        commit_files(REPO, [large], "title")
    assert "run the same command again" in caught.value.advice


def test_a_file_that_the_repository_ignores_is_refused(there: LoopbackHub, large: HubFile) -> None:
    there.add_dataset(REPO.name, {".gitignore": b"data/\n"})
    with pytest.raises(OutputError, match=r"\.gitignore excludes data/x/a\.lance"):
        commit_files(REPO, [large], "title")


def test_repositories_branches_and_tags(there: LoopbackHub) -> None:
    assert not ensure_repo(REPO)
    with pytest.raises(UsageError, match="public"):
        ensure_repo(REPO, private=True)
    assert ensure_repo(HubRepo("team/secret"), private=True)
    assert there.repos["datasets/team/secret"].private
    head = branch_head(REPO)
    ensure_repo(HubRepo(REPO.name, "dev"))
    assert branch_head(HubRepo(REPO.name, "dev")) == head
    assert set_tag(REPO, "v1", head)
    assert not set_tag(REPO, "v1", head)
    newer = commit_files(REPO, [SMALL], "title").commit
    with pytest.raises(UsageError, match=f"v1.*{head}.*{newer}"):
        set_tag(REPO, "v1", newer)
    with pytest.raises(UsageError, match="is a tag"):
        ensure_repo(HubRepo(REPO.name, "v1"))
    with pytest.raises(AccessDenied, match="403"):
        ensure_repo(HubRepo("else/name"))


@pytest.mark.parametrize("name", ["tokens", "a/b/c", "../x", "hf://datasets/owner/x/y", "owner/na me", ""])
def test_names_that_are_no_repository_are_refused(name: str) -> None:
    with pytest.raises(LancePrepError):
        HubRepo.parse(name)


def test_names_of_repositories() -> None:
    assert HubRepo.parse("hf://datasets/owner/x@dev") == HubRepo.parse("owner/x", "dev") == HubRepo("owner/x", "dev")
    with pytest.raises(UsageError, match="two branches"):
        HubRepo.parse("hf://datasets/owner/x@dev", "main")
