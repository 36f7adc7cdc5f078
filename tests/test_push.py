"""`push`: what goes to the Hub, what opens there, and what a kill, a lost reply or another commit does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import lance
import mlcroissant
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import tag as tag_version
from lance_prep.errors import BranchMoved, DatasetError, LancePrepError, UsageError
from lance_prep.hub import PushOptions, pull, push
from lance_prep.hub.card import code, size_category
from lance_prep.train import LanceDataset, Mixture
from tests import tokenizers_made as made
from tests.helpers import check_whole, ids_of, rows_of
from tests.loopback_hub import READ_TOKEN, TOKEN, LoopbackHub
from tests.s3_server import S3

REPO = "owner/tokens"
HF = f"hf://datasets/{REPO}"
PUT, COMMIT = r"PUT /_lfs/", r"POST .*/commit/"
ROWS = [{"text": f"row {i} of some words that are long enough", "n": i} for i in range(400)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with datasets; no test changes them."""
    folder = tmp_path_factory.mktemp("built")
    made.save(folder / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:50]) + "no json\n")
    options: dict[str, Any] = {"tokenizer": str(folder / "tokenizer"), "block_size": 64}
    lance_prep.build(folder / "a.jsonl", output=folder / "x.lance", val_fraction=0.2, **options)
    lance_prep.build(folder / "a.jsonl", output=folder / "y.lance", **options)
    lance_prep.build(folder / "b.jsonl", output=folder / "y.lance", overwrite=True, **options)
    tag_version(folder / "y.lance", "first", 1)
    lance_prep.build(folder / "a.jsonl", output=folder / "raw.lance", layout="raw")
    (folder / "more").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "more" / name).write_bytes((folder / name).read_bytes())
        lance_prep.build(folder / "more", output=folder / "more.lance", append=name == "b.jsonl", **options)
    return folder


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def fetched(hub: LoopbackHub, folder: Path, path: str = "data/train.lance", revision: str = "main") -> Path:
    """Write a folder of the repository to disk, and return it."""
    for name, data in hub.files(REPO, revision).items():
        if name.startswith(f"{path}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder / path


def uploads(hub: LoopbackHub) -> list[str]:
    """Return the hashes of LFS files that arrived whole, in order."""
    return [entry["path"].rpartition("/")[2] for entry in hub.requests(PUT) if entry["status"] == 200]


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_what_is_pushed_opens_with_lance_train_and_datasets(
    built: Path, hub: LoopbackHub, tmp_path: Path, capsys: Any
) -> None:
    assert run(["push", str(built / "x.lance"), REPO]) == 0
    out, err = capsys.readouterr()
    assert f'LanceDataset("{HF}/data/train.lance")' in out
    assert err == ""
    for split, name in (("train", "x.lance"), ("validation", "x.val.lance")):
        rows = rows_of(built / name)
        assert lance.dataset(f"{HF}/data/{split}.lance").to_table().to_pylist() == rows
        ours, local = LanceDataset(f"{HF}/data/{split}.lance"), LanceDataset(built / name)
        assert len(ours) == len(local)
        assert [ours[i]["input_ids"].tolist() for i in range(3)] == [local[i]["input_ids"].tolist() for i in range(3)]
        assert ours.text(0) == local.text(0)
        assert datasets.load_dataset(REPO, split=split, cache_dir=str(tmp_path)).to_list() == rows
        check_whole(fetched(hub, tmp_path, f"data/{split}.lance"))


def test_the_snippets_of_the_card_run(built: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for name, number in (("x.lance", 4), ("raw.lance", 3)):
        push(built / name, REPO)
        found = snippets(hub.files(REPO)["README.md"].decode())
        assert len(found) == number
        for text in found:
            exec(text, {})


def test_only_the_files_of_the_version_are_pushed(built: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    first = push(built / "y.lance", REPO, PushOptions(version="first"))
    assert first.datasets[0].version == 1
    opened = lance.dataset(f"{HF}/data/train.lance")
    assert [version["version"] for version in opened.versions()] == [1]
    assert opened.to_table().to_pylist() == rows_of(built / "y.lance", 1)
    check_whole(fetched(hub, tmp_path / "1"))
    names = {path.partition("/")[0] for path in hub.files(REPO)}
    assert names == {".gitattributes", "README.md", "croissant.json", "data"}
    sidecar = {path.split("/")[3] for path in hub.files(REPO) if "/.lance_prep/" in path}
    assert sidecar == {"builds", "lists", "seals", "tokenizers"}
    latest = push(built / "y.lance", REPO)
    assert latest.commit.removed > 0
    assert latest.commit.unchanged > 0  # the tokenizer
    assert [version["version"] for version in lance.dataset(f"{HF}/data/train.lance").versions()] == [2]
    check_whole(fetched(hub, tmp_path / "2"))
    assert json.loads(json.dumps(latest.as_json()))["commit"]["removed"] == latest.commit.removed
    old = lance.dataset(f"{HF}/data/train.lance", storage_options={"hf_revision": first.commit.commit})
    assert old.count_rows() == first.datasets[0].rows


def test_what_was_not_built_stays_here(built: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    home = fetched_copy(built / "y.lance", tmp_path)
    for name in ("data/extra.lance", "secret.txt", ".lance_prep/notes.txt", ".lance_prep/builds/0123456789abcdef/x"):
        (home / name).parent.mkdir(exist_ok=True, parents=True)
        (home / name).write_text("mine")
    push(home, REPO)
    assert b"mine" not in hub.files(REPO).values()


def fetched_copy(dataset: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(dataset, folder / dataset.name))


@pytest.mark.parametrize("name", ["data", ".lance_prep/tokenizers", ".lance_prep/builds"])
def test_a_link_is_never_followed(built: Path, hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    home = fetched_copy(built / "y.lance", tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("private")
    victims = [path for path in (home / name).rglob("*") if path.is_file()]
    for path in victims:
        secret.write_bytes(path.read_bytes())  # so that nothing but the link is wrong
        path.unlink()
        path.symlink_to(secret)
    with pytest.raises(DatasetError, match="symbolic link"):
        push(home, REPO)
    assert not hub.repos


def test_again_is_up_to_date_and_sends_nothing(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    first = push(built / "x.lance", REPO)
    assert not first.up_to_date
    hub.log.clear()
    assert run(["push", str(built / "x.lance"), REPO]) == 0
    assert "up to date" in capsys.readouterr().out
    assert not hub.requests(f"{PUT}|{COMMIT}")
    assert push(built / "x.lance", REPO).commit.commit == first.commit.commit


def started(built: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lance_prep", "push", str(built / "x.lance"), REPO]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("match", "fault"),
    [(PUT, {"stall": True}), (COMMIT, {"stall": True}), (COMMIT, {"stall_reply": True})],
    ids=["uploading", "before the commit", "after the commit"],
)
def test_a_killed_push_continues_and_sends_nothing_twice(
    built: Path, hub: LoopbackHub, match: str, fault: dict[str, Any]
) -> None:
    stalled = hub.fault(match, **fault)
    child = started(built)
    assert stalled.reached.wait(60), child.communicate()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    hub.release()
    done = "stall_reply" in fault
    assert ("README.md" in hub.files(REPO)) == done  # nothing, or everything
    again = started(built)
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert ("up to date" in out) == done
    arrived = uploads(hub)
    assert len(arrived) == len(set(arrived))
    assert [message.title for _, message in hub.history(REPO)][1:] == ["initial commit"]
    assert ids_of(f"{HF}/data/train.lance") == ids_of(built / "x.lance")


def test_a_push_by_xet_continues_too(built: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    hub.xet = tmp_path
    stalled = hub.fault(COMMIT, stall=True)
    child = started(built, HF_HUB_DISABLE_XET="0")
    assert stalled.reached.wait(60), child.communicate()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    hub.release()
    assert "README.md" not in hub.files(REPO)
    for said in ("new (", "up to date"):
        again = started(built, HF_HUB_DISABLE_XET="0")
        out, err = again.communicate(timeout=100)
        assert again.returncode == 0, err
        assert said in out
    assert not hub.requests(PUT)
    assert len(hub.requests("xet-write-token")) == 2  # none if there is nothing to send
    assert rows_of(f"{HF}/data/validation.lance") == rows_of(built / "x.val.lance")


def test_a_stopped_push_says_how_to_continue(built: Path, hub: LoopbackHub) -> None:
    stalled = hub.fault(PUT, stall=True)
    child = started(built)
    assert stalled.reached.wait(60)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    hub.release()
    assert child.returncode == 1
    assert "run the same command again" in err


def test_a_lost_reply_is_one_commit(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    hub.fault(COMMIT, lose_reply=True)
    assert run(["push", str(built / "x.lance"), REPO, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["commit"]["commit"] == hub.history(REPO)[0][0]
    assert len(hub.history(REPO)) == 2


def test_another_commit_meanwhile_is_reported_with_both(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    before = push(built / "raw.lance", REPO).commit.commit

    class Stranger:
        def planned(self, files: int, bytes: int) -> None:
            hub.add_dataset(REPO, {"other": b"1"})

        def advanced(self, bytes: int) -> None:
            pass

    with pytest.raises(BranchMoved) as caught:
        push(built / "x.lance", REPO, progress=Stranger())
    now = hub.history(REPO)[0][0]
    assert before in str(caught.value)
    assert now in str(caught.value)
    assert "run the same command again" in caught.value.advice
    hub.log.clear()
    assert push(built / "x.lance", REPO).commit.made
    assert not hub.requests(PUT)
    assert hub.files(REPO)["other"] == b"1"


@pytest.mark.parametrize(
    ("token", "said"), [("", "no token for the Hub"), (READ_TOKEN, "HTTP 403"), ("hf_wrong", "HTTP 401")]
)
def test_a_token_that_may_not_write(
    built: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: Any, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert run(["push", str(built / "x.lance"), REPO]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert "token" in err.splitlines()[1]
    assert not token or token not in err
    assert not hub.repos


def test_private_branch_tag_and_path(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    options = ["--private", "--revision", "dev", "--tag", "v1", "--path-in-repo", "sets/web.lance"]
    assert run(["push", str(built / "x.lance"), REPO, *options]) == 0
    out = capsys.readouterr().out
    assert "new" in out
    assert "v1" in out
    repo = hub.repos[f"datasets/{REPO}"]
    assert repo.private
    assert repo.tags["v1"] == repo.branches["dev"] != repo.branches["main"]
    assert hub.files(REPO).keys() == {".gitattributes"}
    uri = f"{HF}@v1/sets/web.lance"
    assert LanceDataset(uri)[0]["input_ids"].tolist() == LanceDataset(built / "x.lance")[0]["input_ids"].tolist()
    assert f"{HF}@dev/sets/web.lance" in out
    configs = yaml.safe_load(hub.files(REPO, "dev")["README.md"].decode().split("---")[1])["configs"]
    assert [config["config_name"] for config in configs] == ["web"]
    assert [file["split"] for file in configs[0]["data_files"]] == ["train", "validation"]
    assert run(["push", str(built / "x.lance"), REPO, *options]) == 0
    hub.log.clear()
    assert run(["push", str(built / "raw.lance"), REPO, "--revision", "dev", "--tag", "v1"]) == 2
    assert "the tag v1" in capsys.readouterr().err
    assert not hub.requests(f"{PUT}|{COMMIT}")


def test_a_pull_request_leaves_main_as_it_is(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    before = push(built / "raw.lance", REPO).commit.commit
    assert run(["push", str(built / "x.lance"), REPO, "--create-pr"]) == 0
    out = capsys.readouterr().out
    assert f"/datasets/{REPO}/discussions/1" in out
    named = re.findall(r'LanceDataset\("(.*)"\)', out)
    assert named == [f"{HF}@refs/pr/1/data/train.lance"]
    assert len(LanceDataset(named[0])) == len(LanceDataset(built / "x.lance"))
    assert hub.history(REPO)[0][0] == before
    uri = f"{HF}@refs%2Fpr%2F1/data/train.lance"
    assert len(LanceDataset(uri)) == len(LanceDataset(built / "x.lance"))
    assert not push(built / "x.lance", REPO, PushOptions(create_pr=True)).commit.made
    push(built / "y.lance", REPO, PushOptions(revision="refs/pr/1"))
    assert len(LanceDataset(uri)) == len(LanceDataset(built / "y.lance"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--create-pr", "--tag", "v1"], "create-pr"),
        (["--create-pr", "--revision", "dev"], "--create-pr proposes a change of main, so --revision"),
        (["--path-in-repo", "../x.lance"], "--path-in-repo"),
        (["--path-in-repo", "data/x"], "does not end in .lance"),
        (["--version", "9"], "no version 9"),
        (["--revision", "refs/pr/9"], "has no refs/pr/9"),
    ],
)
def test_wrong_options(built: Path, hub: LoopbackHub, capsys: Any, options: list[str], said: str) -> None:
    assert run(["push", str(built / "x.lance"), REPO, *options]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not hub.repos


def test_a_public_repository_is_not_taken_for_a_private_one(built: Path, hub: LoopbackHub, capsys: Any) -> None:
    hub.add_dataset(REPO, {"README.md": b"mine"})
    assert run(["push", str(built / "x.lance"), REPO, "--private"]) == 2
    assert "is public" in capsys.readouterr().err
    assert hub.files(REPO) == {"README.md": b"mine"}


CARD = b"""---
# my comment
license: mit
tags:
- mine   # kept
size_categories: [n>1T]
configs:
- config_name: other
  data_files: other/*.parquet
pretty_name: "Mine"   # as I like it
---
# My dataset

Words of mine.
"""


def test_of_an_existing_card_only_the_generated_part_changes(built: Path, hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"README.md": CARD})
    push(built / "x.lance", REPO)
    card = hub.files(REPO)["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["mine", "lance", "lance-prep"]
    assert front["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in front["configs"]] == ["other", "default"]
    for kept in ("# my comment\nlicense: mit\n", 'pretty_name: "Mine"   # as I like it\n', "\nWords of mine.\n"):
        assert kept in card
    changed = card.replace("Words of mine.", "Other words.") + "\nAfter it.\n"
    hub.add_dataset(REPO, {"README.md": changed.encode()})
    push(built / "y.lance", REPO)
    again = hub.files(REPO)["README.md"].decode()
    assert "Other words." in again
    assert again.endswith("\nAfter it.\n")
    assert again.count("<!-- lance-prep: begin") == 1
    hashes = [lance_prep.info(built / name).metadata.content_hash for name in ("x.lance", "y.lance")]
    assert hashes[0] not in again
    assert hashes[1] in again
    hub.add_dataset(REPO, {"README.md": again.replace("<!-- lance-prep: end data/train.lance -->", "").encode()})
    with pytest.raises(UsageError, match="only one of the markers"):
        push(built / "x.lance", REPO)


FRONTS = {
    "a pattern": "data_files: mine/*.parquet",
    "splits": "data_files:\n  - {split: train, path: mine/*.parquet}",
    "a split that this push would drop": "data_files:\n  - {split: extra, path: mine/*.parquet}",
    "a folder": "data_dir: mine",
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_a_config_with_files_of_the_user_is_not_taken_over(
    built: Path, hub: LoopbackHub, capsys: Any, front: str
) -> None:
    card = f"---\nconfigs:\n- config_name: default\n  {front}\n---\nwords\n".encode()
    hub.add_dataset(REPO, {"README.md": card, "mine/a.parquet": b"rows"})
    assert run(["push", str(built / "x.lance"), REPO]) == 2
    err = capsys.readouterr().err
    assert "'default'" in err
    assert "mine" in err
    assert "rename that config" in err
    assert "--path-in-repo" in err
    assert not hub.requests(f"{PUT}|{COMMIT}")
    assert run(["push", str(built / "x.lance"), REPO, "--path-in-repo", "data/web.lance"]) == 0
    front_now = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])
    assert [config["config_name"] for config in front_now["configs"]] == ["default", "web"]
    assert front_now["configs"][0] == yaml.safe_load(card.decode().split("---")[1])["configs"][0]


def test_a_validation_set_joins_a_training_split_of_the_user(built: Path, hub: LoopbackHub) -> None:
    mine = {"split": "train", "path": "mine/*.parquet"}
    card = f"---\nconfigs:\n- config_name: default\n  data_files: [{json.dumps(mine)}]\n---\n"
    hub.add_dataset(REPO, {"README.md": card.encode()})
    push(built / "x.val.lance", REPO)
    entries = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])["configs"][0]["data_files"]
    assert entries[0] == mine
    assert entries[1]["split"] == "validation"


@pytest.mark.parametrize("name", ["data/train.lance/notes.txt", "data/validation.lance/a.parquet"])
def test_files_of_no_dataset_are_not_removed(built: Path, hub: LoopbackHub, capsys: Any, name: str) -> None:
    push(built / "y.lance", REPO)
    hub.add_dataset(REPO, {name: b"mine"})
    hub.log.clear()
    assert run(["push", str(built / "x.lance"), REPO]) == 2
    err = capsys.readouterr().err
    folder, _, file = name.rpartition("/")
    assert folder in err
    assert file in err
    assert "another folder" in err
    assert not hub.requests(f"{PUT}|{COMMIT}")
    assert hub.files(REPO)[name] == b"mine"


def test_the_summary_says_which_dataset_was_replaced(
    built: Path, hub: LoopbackHub, tmp_path: Path, capsys: Any
) -> None:
    first = push(built / "y.lance", REPO, PushOptions(version="first")).commit.commit
    assert run(["push", str(built / "raw.lance"), REPO]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+ files of the version pushed before removed", out)
    assert "data/train.lance replaces another build" in out
    assert first in out
    home = built / "more.lance"
    for said in (True, False):  # unrelated, then a version that adds to the one before
        report = push(home, REPO, PushOptions(version=1 if said else None))
        assert report.commit.removed
        assert any("replaces" in note for note in report.notes) == said
    lance.write_dataset([{"a": 1}], str(tmp_path / "data" / "other.lance"))
    other = tmp_path / "data" / "other.lance"
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    hub.add_dataset(REPO, files)
    report = push(home, REPO, PushOptions(path_in_repo="data/other.lance"))
    assert [note for note in report.notes if "a dataset that lance-prep did not build" in note]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["CRLF", "CRLF and a byte order mark"])
def test_a_card_written_on_windows_keeps_its_metadata(built: Path, hub: LoopbackHub, mark: bytes) -> None:
    hub.add_dataset(REPO, {"README.md": mark + CARD.replace(b"\n", b"\r\n")})
    push(built / "x.lance", REPO)
    card = hub.files(REPO)["README.md"]
    front = yaml.safe_load(card.decode().split("---")[1])
    assert front["license"] == "mit"
    assert front["tags"] == ["mine", "lance", "lance-prep"]
    for kept in (b"---\r\n# my comment\r\nlicense: mit\r\n", b"---\r\n# My dataset\r\n\r\nWords of mine."):
        assert kept in card
    assert card.startswith(b"---")
    assert not push(built / "x.lance", REPO).commit.made


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))


BAD_FRONTS = (BOMB, "[1, 2]", "a: [", "{tags: [a]}", "a: 1\n...\nb: 2", "configs: {default: x}", "configs: [a]")


@pytest.mark.parametrize("front", [*BAD_FRONTS, '"configs" : []\n"tags": [b]'])
def test_yaml_that_cannot_be_edited_is_refused_or_right(built: Path, hub: LoopbackHub, front: str) -> None:
    hub.add_dataset(REPO, {"README.md": f"---\n{front}\n---\nwords\n".encode()})
    if front in BAD_FRONTS:
        with pytest.raises(UsageError, match=r"README\.md"):
            push(built / "x.lance", REPO)
        assert len(hub.history(REPO)) == 1
        return
    push(built / "x.lance", REPO)
    card = hub.files(REPO)["README.md"].decode()
    found = yaml.safe_load(card.split("---")[1])
    assert found["tags"][-2:] == ["lance", "lance-prep"]
    assert card.count("configs") == 1


def test_the_card_says_how_it_was_built(built: Path, hub: LoopbackHub) -> None:
    push(built / "y.lance", REPO)
    data = lance_prep.info(built / "y.lance").metadata
    card = hub.files(REPO)["README.md"].decode()
    said = [data.content_hash, data.tokenizer.sha256, "`b.jsonl`", "block_size: 64", "| rejected | 1 |"]
    for text in [*said, f"| source rows | {data.ledger.rows_in} |", f"{data.tokens:,}"]:
        assert text in card


def test_the_license_of_a_source_on_the_hub_is_named(built: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS[:20]).encode()
    commit = hub.add_dataset("team/source", {"README.md": b"---\nlicense: odc-by\n---\n", "a.jsonl": text})
    hub.add_dataset("team/silent", {"a.jsonl": text})
    for name, said in (("source", "`odc-by`, as its card says"), ("silent", "states no license")):
        lance_prep.build(f"team/{name}", output=tmp_path / f"{name}.lance", tokenizer=str(built / "tokenizer"))
        push(tmp_path / f"{name}.lance", REPO)
        card = hub.files(REPO)["README.md"].decode()
        assert said in card
        assert f"`team/{name}` on the Hub at commit" in card
    assert commit not in card  # that of the other source


@pytest.mark.parametrize("name", ["x.lance", "raw.lance"])
def test_the_croissant_file_is_valid(built: Path, hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    push(built / name, REPO)
    (tmp_path / "croissant.json").write_bytes(hub.files(REPO)["croissant.json"])
    found = mlcroissant.Dataset(str(tmp_path / "croissant.json")).metadata
    assert not found.issues.errors
    columns = lance.dataset(str(built / name)).schema.names
    assert [field.name.rpartition("/")[2] for field in found.record_sets[0].fields] == columns


def test_no_secret_and_no_path_of_this_machine_is_shown(
    built: Path, hub: LoopbackHub, capsys: Any, tmp_path: Path
) -> None:
    assert run(["push", str(built / "x.lance"), REPO, "--json"]) == 0
    out, err = capsys.readouterr()
    files = hub.files(REPO)
    for said in (out, err, *(files[name].decode() for name in ("README.md", "croissant.json"))):
        assert TOKEN not in said
        assert str(built) not in said
    assert not [name for name, data in files.items() if TOKEN.encode() in data]
    assert str(built) not in str(hub.history(REPO))


def test_what_was_found_in_texts_comes_back_for_appends(
    built: Path, hub: LoopbackHub, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "private").mkdir()
    bench, source = tmp_path / "private" / "bench.jsonl", tmp_path / "a.jsonl"
    question = " ".join(f"word{i}" for i in range(20))
    bench.write_text(json.dumps({"question": question}) + "\n")
    rows = [json.dumps({"text": text}) for text in ("one two", "one two", f"Here: {question}", "three")]
    source.write_text("\n".join([*rows, "no json"]) + "\n")
    options: dict[str, Any] = {"tokenizer": str(built / "tokenizer"), "layout": "documents", "dedup": "exact"}
    options |= {"decontaminate": str(bench)}
    lance_prep.build(source, output=tmp_path / "x.lance", **options)
    assert run(["push", str(tmp_path / "x.lance"), REPO]) == 0
    said = capsys.readouterr().out
    assert "the text of 1 rejected source row and 1 contaminated source row is pushed too" in said
    assert "private/" not in hub.files(REPO)["README.md"].decode()
    assert "bench.jsonl" in hub.files(REPO)["README.md"].decode()
    pull(REPO, tmp_path / "pulled.lance")
    assert run(["verify", str(tmp_path / "pulled.lance")]) == 0
    again = lance_prep.build(source, output=tmp_path / "pulled.lance", **options)
    assert again.status == "unchanged"
    assert again.contaminated_file == str(tmp_path / "pulled.contaminated.jsonl")
    assert Path(again.contaminated_file).read_bytes() == (tmp_path / "x.contaminated.jsonl").read_bytes()
    more = tmp_path / "b.jsonl"
    more.write_text(json.dumps({"text": "one two"}) + "\n" + json.dumps({"text": "four"}) + "\n")
    report = lance_prep.build([str(source), str(more)], output=tmp_path / "pulled.lance", append=True, **options)
    assert report.ledger.dropped_for == {"duplicate": 2}
    hits = next((tmp_path / "pulled.lance").rglob("hits-*.jsonl"))
    hits.unlink()
    (tmp_path / "pulled.contaminated.jsonl").unlink()
    (tmp_path / "pulled.lance" / ".lance_prep" / "contaminated.json").unlink()
    with pytest.raises(DatasetError, match="1 source rows share text with the benchmark, and the file"):
        lance_prep.build([str(source), str(more)], output=tmp_path / "pulled.lance", append=True, **options)


def test_a_collection_is_pushed_whole(built: Path, hub: LoopbackHub, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text").mkdir()
    for name in ("code", "web"):
        rows = [{"text": f"{name} {row['text']}"} for row in ROWS[:100]]
        (tmp_path / "text" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"tokenizer": str(built / "tokenizer"), "block_size": 64, "val_fraction": 0.2}
    lance_prep.build_collection(str(tmp_path / "text"), output=tmp_path / "out", **options)
    assert run(["push", str(tmp_path / "out"), REPO]) == 0
    out = capsys.readouterr().out
    assert "data/code.lance" in out
    for name in ("code", "web"):
        rows = rows_of(tmp_path / "out" / f"{name}.val.lance")
        found = datasets.load_dataset(REPO, name, split="validation", cache_dir=str(tmp_path / "cache"))
        assert found.to_list() == rows
        for kind in (".lance", ".val.lance"):
            check_whole(fetched(hub, tmp_path, f"data/{name}{kind}"))
    (tmp_path / "data" / "manifest.json").write_bytes(hub.files(REPO)["data/manifest.json"])
    mixed = [Mixture.from_manifest(tmp_path / name, weights="tokens") for name in ("data", "out")]
    assert mixed[0][0]["input_ids"].tolist() == mixed[1][0]["input_ids"].tolist()
    assert str(tmp_path) not in hub.files(REPO)["data/manifest.json"].decode()
    for text in snippets(hub.files(REPO)["README.md"].decode()):
        exec(text, {})
    (tmp_path / "croissant.json").write_bytes(hub.files(REPO)["croissant.json"])
    assert not mlcroissant.Dataset(str(tmp_path / "croissant.json")).metadata.issues.errors
    hub.log.clear()
    assert not push(tmp_path / "out", REPO).commit.made
    (tmp_path / "out" / "web.lance").rename(tmp_path / "web.lance")
    (tmp_path / "out" / "web.lance").symlink_to(tmp_path / "web.lance")
    with pytest.raises(DatasetError, match="link"):
        push(tmp_path / "out", REPO)


def test_a_training_set_replaces_the_validation_set_too(
    built: Path, hub: LoopbackHub, tmp_path: Path, capsys: Any
) -> None:
    push(built / "y.lance", REPO)
    push(built / "x.val.lance", REPO)
    for split, name in (("train", "y.lance"), ("validation", "x.val.lance")):
        found = datasets.load_dataset(REPO, split=split, cache_dir=str(tmp_path))
        assert found.to_list() == rows_of(built / name)
    assert run(["push", str(built / "raw.lance"), REPO]) == 0
    assert "without the split validation of an earlier push" in capsys.readouterr().out
    assert set(datasets.load_dataset(REPO, cache_dir=str(tmp_path))) == {"train"}
    assert not [path for path in hub.files(REPO) if path.startswith("data/validation.lance")]


def test_two_datasets_in_one_repository(built: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    push(built / "x.lance", REPO, PushOptions(path_in_repo="data/web.lance"))
    push(built / "y.lance", REPO, PushOptions(path_in_repo="data/code.lance"))
    card = hub.files(REPO)["README.md"].decode()
    assert card.count("<!-- lance-prep: begin") == 2
    for config, name in (("web", "x.lance"), ("code", "y.lance")):
        found = datasets.load_dataset(REPO, config, split="train", cache_dir=str(tmp_path))
        assert found.to_list() == rows_of(built / name)


def test_a_dataset_in_an_object_store_is_pushed(
    built: Path, hub: LoopbackHub, s3: S3, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["lance_prep.hub.push"], "CHUNK_BYTES", 10_000)  # several parts
    secret = "loopback-secret-key"
    given = {**s3.options, "aws_secret_access_key": secret}
    uri, fields = "s3://bucket/x.lance", {"tokenizer": str(built / "tokenizer"), "block_size": 64}
    lance_prep.build(built / "a.jsonl", output=uri, storage_options=given, **fields)  # type: ignore[arg-type]
    options = [part for pair in given.items() for part in ("--storage-option", "=".join(pair))]
    assert run(["push", uri, REPO, *options]) == 0
    said = capsys.readouterr()
    assert rows_of(f"{HF}/data/train.lance") == rows_of(built / "y.lance", 1)
    check_whole(fetched(hub, tmp_path))
    hub.log.clear()
    assert run(["push", uri, REPO, *options]) == 0
    assert "up to date" in capsys.readouterr().out
    assert not hub.requests(PUT)
    assert secret not in said.out + said.err
    assert not [name for name, data in hub.files(REPO).items() if secret.encode() in data]


def test_something_else_is_refused(hub: LoopbackHub, tmp_path: Path, capsys: Any) -> None:
    lance.write_dataset([{"a": 1}], str(tmp_path / "other.lance"))
    for name, said in (("other.lance", "did not build"), ("none.lance", "there is no dataset")):
        assert run(["push", str(tmp_path / name), REPO]) == 1
        assert said in capsys.readouterr().err
    assert run(["push", str(tmp_path / "other.lance"), "no-owner"]) == 2
    assert "owner/name" in capsys.readouterr().err
    with pytest.raises(LancePrepError):
        push(tmp_path / "none.lance", REPO)


@given(st.integers(0, 10**15))
def test_size_categories(rows: int) -> None:
    name = size_category(rows)
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    bounds = [int(number) * units[unit] for number, unit in re.findall(r"(\d+)([KMBT]?)", name)]
    low, high = (0, bounds[0]) if name == "n<1K" else (bounds[0], 10**16) if name == "n>1T" else bounds
    assert low <= rows < high


@given(st.text())
def test_a_strangers_text_stays_in_its_code_span(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    inside = shown[len(fence[0]) : -len(fence[0])]
    assert shown.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inside)
    assert "\n" not in shown
    assert "<!--" not in shown


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (409, "another change of the repository", "wait a minute"),
        (413, "so much in one request", "fewer files"),
        (422, "refuses the commit (HTTP 422): a bad name", "change what it names"),
        (429, "refuses requests for now", "wait five minutes"),
    ],
)
def test_a_refused_commit_says_what_to_do(
    built: Path, hub: LoopbackHub, capsys: Any, status: int, said: str, advice: str
) -> None:
    # A wait that the Hub asks for keeps the test short: without one, five attempts wait for 23 s.
    headers = {"X-Error-Message": "a bad name", "Retry-After": "0"}
    hub.fault(r"POST .*/commit/", times=100, status=status, headers=headers)
    assert run(["push", str(built / "x.lance"), REPO]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert advice in err


@pytest.mark.parametrize(
    "option", ["--tag=", "--tag=a b", "--revision=", "--revision=a..b", "--path-in-repo=", "--message="]
)
def test_invalid_names_are_refused_before_the_hub_is_asked(
    built: Path, hub: LoopbackHub, capsys: Any, option: str
) -> None:
    assert run(["push", str(built / "x.lance"), REPO, option]) == 2
    assert "  try: " in capsys.readouterr().err
    assert hub.log == []
