"""`lance-prep pull`: datasets and collections from the Hub, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import lance_prep
from lance_prep import verify
from lance_prep.cli.main import run
from lance_prep.errors import BadFile, DamagedDataset, OutputExists, OutputLocked
from lance_prep.hub import pull
from lance_prep.store import output_lock
from tests.helpers import check_whole, rows_of
from tests.loopback_hub import TOKEN, LoopbackHub, Message
from tests.processes import finish, report_of, start, wait_for

REPO = "owner/name"
DATA = "/data/train.lance/data/"
#: Pulls, and kills its process before the Nth rename below the dataset.
KILLED_AT = """
import os, pathlib
from lance_prep.hub import pull
left, rename = {stop}, pathlib.Path.replace

def replace(self, target):
    global left
    if pathlib.Path(target).is_relative_to({target!r}):
        if not left:
            os._exit(9)
        left -= 1
    return rename(self, target)

pathlib.Path.replace = replace
pull("owner/name", {target!r})
"""


def files_of(folder: Path, at: str) -> dict[str, bytes]:
    """Return the files of a dataset, with their paths in a repository."""
    return {f"{at}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_texts(path: Path, rows: int, seed: int = 0) -> str:
    texts = (f"{hashlib.sha512(f'{seed} {i}'.encode()).hexdigest()} {i}" for i in range(rows))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A dataset with two versions, whose second one appended to the first."""
    home = tmp_path_factory.mktemp("built")
    options: dict[str, Any] = {"tokenizer": tokenizer, "block_size": 64, "shard_size": 30_000}
    write_texts(home / "texts-1.jsonl", 600)
    lance_prep.build(str(home / "texts-*.jsonl"), output=home / "x.lance", **options)
    write_texts(home / "texts-2.jsonl", 300, seed=1)
    lance_prep.build(str(home / "texts-*.jsonl"), output=home / "x.lance", append=True, **options)
    return home / "x.lance"


def first_version(built: Path, at: str = "data/train.lance") -> dict[str, bytes]:
    """Return the files of a repository that has the first version alone."""
    first = {
        Path(path).name for path in lance.dataset(str(built), version=1).tracked_files().read_all()["path"].to_pylist()
    }
    later = ("_versions/18446744073709551613.manifest", "seals/2.json")
    files = files_of(built, at)
    hint = {f"{at}/_versions/latest_version_hint.json": b'{"version":1}'}
    return hint | {
        path: data
        for path, data in files.items()
        if "hint" not in path
        and not path.endswith(later)
        and ("/data/" not in path.removeprefix(at) or Path(path).name in first)
    }


def test_a_pulled_dataset_is_the_one_that_was_pushed(
    hub: LoopbackHub, built: Path, tmp_path: Path, capsys: Any
) -> None:
    files = files_of(built, "data/train.lance")
    commit = hub.add_dataset(REPO, {"README.md": b"# x", ".gitattributes": b"", **files})
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["commit"], report["fetched_files"]) == ("pulled", commit, report["files"])
    check_whole(tmp_path / "x.lance")
    assert lance.dataset(str(tmp_path / "x.lance")).to_table() == lance.dataset(str(built)).to_table()
    assert run(["info", str(tmp_path / "x.lance")]) == 0
    assert run(["show", str(tmp_path / "x.lance")]) == 0
    assert run(["verify", str(tmp_path / "x.lance"), "--version", "1"]) == 0
    hub.log.clear()
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance")]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert not hub.requests("/resolve/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lance"]


def test_the_default_output_is_named_after_the_repository(
    hub: LoopbackHub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    assert run(["pull", REPO]) == 0
    check_whole(tmp_path / "name.lance")


def test_an_update_adds_the_new_version_and_fetches_only_what_is_new(
    hub: LoopbackHub, built: Path, tmp_path: Path
) -> None:
    target = tmp_path / "x.lance"
    old = hub.add_dataset(REPO, first_version(built))
    assert pull(REPO, target).status == "pulled"
    assert [version.number for version in lance_prep.versions(target)] == [1]
    hub.add_dataset(REPO, {**first_version(built), **files_of(built, "data/train.lance")})
    hub.log.clear()
    report = pull(REPO, target)
    assert (report.status, report.before) == ("updated", old)
    assert 0 < report.fetched_bytes < 0.7 * report.bytes
    assert {Path(request["path"]).name for request in hub.requests(f"GET .*{DATA}")}.isdisjoint(
        Path(path).name for path in first_version(built)
    )
    assert [version.number for version in lance_prep.versions(target)] == [1, 2]
    check_whole(target)
    latest = hub.add_dataset(REPO, {"README.md": b"other"})
    report = pull(REPO, target)
    assert (report.status, report.commit) == ("unchanged", latest)
    with pytest.raises(OutputExists, match="it has version 2, and the latest on the Hub is 1"):
        pull(REPO, target, revision=old)
    assert [path.name for path in tmp_path.iterdir()] == ["x.lance"]


def test_a_killed_pull_continues_and_shows_nothing_before(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    files = files_of(built, "data/train.lance")
    hub.add_dataset(REPO, files)
    cut = max((path for path in files if DATA in f"/{path}"), key=lambda path: len(files[path]))
    name = cut.rpartition("/")[2]
    hub.fault(f"GET .*{name}", cut_after=40_000)
    hub.fault(f"GET .*{name}", stall=True)
    process = start("pull", REPO, "-o", tmp_path / "x.lance", "--workers", "2")
    staged = tmp_path / ".x.lance.pull"
    others = [path.removeprefix("data/train.lance/") for path in files if path != cut]
    kept = [path for path in others if ".lance_prep/lock" not in path and "/cache/" not in path]
    assert wait_for(lambda: all((staged / path).exists() for path in kept) and len(hub.requests(name)) == 2, process)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lance.pull"]
    process.kill()
    finish(process)
    have = (staged / f"data/{name}.part").stat().st_size
    assert 20_000 < have <= 40_000
    hub.released.set()
    hub.log.clear()
    code, _, err = finish(start("pull", REPO, "-o", tmp_path / "x.lance"))
    assert code == 0, err
    (request,) = hub.requests("/resolve/")
    assert (request["path"].rpartition("/")[2], request["range"]) == (name, f"bytes={have}-{len(files[cut]) - 1}")
    check_whole(tmp_path / "x.lance")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lance"]


def test_a_kill_at_any_change_of_an_update_leaves_a_whole_dataset(
    hub: LoopbackHub, built: Path, tmp_path: Path, tokenizer: str
) -> None:
    """Stop before each rename of the update, and look at what a reader sees."""
    hub.add_dataset(REPO, first_version(built))
    pull(REPO, tmp_path / "begun.lance")
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    seen = set()
    for stop in range(40):
        target = tmp_path / f"{stop}.lance"
        shutil.copytree(tmp_path / "begun.lance", target)
        code = KILLED_AT.format(stop=stop, target=str(target))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        latest = lance_prep.versions(target)[-1].number
        seen.add(latest)
        assert lance_prep.verify(target, latest).problems == []
        if done.returncode == 0:
            break
        assert pull(REPO, target).status == "updated"
        check_whole(target)
    assert seen == {1, 2}
    assert stop >= 3


def test_content_with_another_hash_is_refused(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    files = files_of(built, "data/train.lance")
    hub.add_dataset(REPO, files)
    data = next(path for path in files if DATA in f"/{path}")
    hub.fault(f"GET .*{data}", times=9, garble=True)
    with pytest.raises(BadFile, match="its content has another hash") as caught:
        pull(REPO, tmp_path / "x.lance")
    assert "again" in caught.value.advice
    assert not (tmp_path / "x.lance").exists()
    hub.faults.clear()
    assert pull(REPO, tmp_path / "x.lance").status == "pulled"
    check_whole(tmp_path / "x.lance")


def test_what_pull_did_not_make_is_never_touched(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    hub.add_dataset("owner/other", files_of(built, "data/train.lance"))
    shutil.copytree(built, tmp_path / "own.lance")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "own.lance")
    pull("owner/other", tmp_path / "other.lance")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("own.lance", "file", "link", "other.lance"):
        with pytest.raises(OutputExists):
            pull(REPO, tmp_path / name, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "other.lance", "own.lance"]
    (tmp_path / "empty").mkdir()
    assert pull(REPO, tmp_path / "empty").status == "pulled"


def test_a_dataset_that_was_built_anew_replaces_the_old_one_only_if_asked(
    hub: LoopbackHub, built: Path, tmp_path: Path
) -> None:
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    pull(REPO, tmp_path / "x.lance")
    lance_prep.build(write_texts(tmp_path / "a.jsonl", 50, seed=9), output=tmp_path / "new.lance", layout="raw")
    files = files_of(tmp_path / "new.lance", "data/train.lance")
    hub.repos[f"datasets/{REPO}"].commits[hub.add_dataset(REPO, files)] = files  # without the files of the first
    with pytest.raises(OutputExists, match="it has version 2, and the latest on the Hub is 1") as caught:
        pull(REPO, tmp_path / "x.lance")
    assert "overwrite=True" in caught.value.advice
    check_whole(tmp_path / "x.lance")
    assert pull(REPO, tmp_path / "x.lance", overwrite=True).status == "replaced"
    assert lance.dataset(str(tmp_path / "x.lance")).count_rows() == 50
    check_whole(tmp_path / "x.lance")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "new.lance", "x.lance"]


def test_folders_beside_the_target_that_pull_did_not_make_stay(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    target, staging, aside = (tmp_path / name for name in ("x.lance", ".x.lance.pull", ".x.lance.old"))
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    (staging / "sub").mkdir(parents=True)
    (staging / "sub" / "notes").write_text("mine")
    with pytest.raises(OutputExists, match=r"\.x\.lance\.pull exists and was not made by pull: it holds sub/notes"):
        pull(REPO, target)
    assert (staging / "sub" / "notes").read_text() == "mine"
    shutil.rmtree(staging)
    pull(REPO, target)
    lance_prep.build(write_texts(tmp_path / "a.jsonl", 50, seed=9), output=tmp_path / "new.lance", layout="raw")
    files = files_of(tmp_path / "new.lance", "data/train.lance")
    hub.repos[f"datasets/{REPO}"].commits[hub.add_dataset(REPO, files)] = files
    aside.mkdir()
    (aside / "notes").write_text("mine")
    with pytest.raises(OutputExists, match="was not set aside by pull"):
        pull(REPO, target, overwrite=True)
    assert (aside / "notes").read_text() == "mine"
    check_whole(target)


def test_no_build_runs_in_a_dataset_that_is_changed(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.lance"
    hub.add_dataset(REPO, first_version(built))
    pull(REPO, target)
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    before = files_of(target, "")
    with output_lock(str(target)), pytest.raises(OutputLocked, match="is being updated by"):
        pull(REPO, target)
    assert {path: data for path, data in files_of(target, "").items() if "lock" not in path} == before
    assert pull(REPO, target).status == "updated"
    check_whole(target)
    lance_prep.build(write_texts(tmp_path / "a.jsonl", 50, seed=9), output=tmp_path / "new.lance", layout="raw")
    files = files_of(tmp_path / "new.lance", "data/train.lance")
    hub.repos[f"datasets/{REPO}"].commits[hub.add_dataset(REPO, files)] = files
    with output_lock(str(target)), pytest.raises(OutputLocked):
        pull(REPO, target, overwrite=True)
    check_whole(target)
    assert pull(REPO, target, overwrite=True).status == "replaced"


def test_a_build_while_files_are_fetched_is_not_lost(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.lance"
    hub.add_dataset(REPO, first_version(built))
    pull(REPO, target)
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    fault = hub.fault("GET .*/resolve/", stall=True)

    def build() -> None:
        assert fault.reached.wait(30)
        write_texts(tmp_path / "a.jsonl", 50, seed=9)
        lance_prep.build(tmp_path / "a.jsonl", output=target, layout="raw", overwrite=True)
        hub.release()

    thread = threading.Thread(target=build)
    thread.start()
    with pytest.raises(OutputExists, match="its version 2 differs"):
        pull(REPO, target)
    thread.join()
    assert lance.dataset(str(target)).count_rows() == 50
    assert run(["verify", str(target)]) == 0


def test_a_kill_while_a_dataset_is_replaced_is_made_good(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    """Stop between the two renames, when neither the old nor the new dataset has the name."""
    target = tmp_path / "x.lance"
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    pull(REPO, target)
    lance_prep.build(write_texts(tmp_path / "a.jsonl", 50, seed=9), output=tmp_path / "new.lance", layout="raw")
    files = files_of(tmp_path / "new.lance", "data/train.lance")
    hub.repos[f"datasets/{REPO}"].commits[hub.add_dataset(REPO, files)] = files
    code = f"""
import os, pathlib
from lance_prep.hub import pull
rename = pathlib.Path.rename

def rename_and_die(self, target):
    rename(self, target)
    os._exit(9)

pathlib.Path.rename = rename_and_die
pull("owner/name", {str(target)!r}, overwrite=True)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir() if "x" in path.name) == [".x.lance.old", ".x.lance.pull"]
    hub.log.clear()
    pull(REPO, target)
    assert not hub.requests("/resolve/")
    check_whole(target)
    assert lance.dataset(str(target)).count_rows() == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "new.lance", "x.lance"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a//b", "a\\b", "a\nb", ".", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(hub: LoopbackHub, built: Path, tmp_path: Path, name: str) -> None:
    hub.add_dataset(REPO, {**files_of(built, "data/train.lance"), f"data/train.lance/{name}": b"evil"})
    (tmp_path / "below").mkdir()
    with pytest.raises(BadFile, match="invalid name"):
        pull(REPO, tmp_path / "below" / "x.lance")
    assert not list((tmp_path / "below").iterdir())


def test_what_this_machine_writes_is_not_taken_from_the_hub(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    more = {f"data/train.lance/.lance_prep/{name}": b"evil" for name in ("pulled.json", "lock", "cache/v1/index.npz")}
    hub.add_dataset(REPO, {**files_of(built, "data/train.lance"), **more})
    pull(REPO, tmp_path / "x.lance")
    assert not [path for path in (tmp_path / "x.lance").rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    assert pull(REPO, tmp_path / "x.lance").status == "unchanged"


def test_a_collection_comes_with_its_manifest(hub: LoopbackHub, tmp_path: Path, tokenizer: str) -> None:
    for name in ("code", "chat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_texts(tmp_path / "in" / name / f"{name}.jsonl", 200, seed=ord(name[1]))
    assert (
        run(["build", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--recursive", "--tokenizer", tokenizer]) == 0
    )
    whole = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    hub.add_dataset(REPO, {"README.md": b"# x", "extra/x.lance/_versions/1.manifest": b"", **whole})
    report = pull(REPO, tmp_path / "pulled")
    assert len(report.datasets) == 2
    from lance_prep.train import Mixture

    ours = Mixture.from_manifest(tmp_path / "pulled", weights="tokens")
    theirs = Mixture.from_manifest(tmp_path / "out", weights="tokens")
    assert len(ours) == len(theirs)
    assert ours[3]["input_ids"].tolist() == theirs[3]["input_ids"].tolist()
    assert not (tmp_path / "pulled" / "extra").exists()
    one = pull(REPO, tmp_path / "one.lance", path_in_repo=report.datasets[0])
    check_whole(one.folder)


def test_what_cannot_be_pulled_is_said(hub: LoopbackHub, built: Path, tmp_path: Path, capsys: Any) -> None:
    files = files_of(built, "a.lance")
    hub.add_dataset(REPO, {**files, **files_of(built, "b/c.lance")})
    hub.add_dataset("owner/plain", {"data/train.parquet": b"x"})
    hub.add_dataset("owner/private", files, private=True)
    for arguments, said in (
        ([REPO], "2 Lance datasets, and no manifest.json"),
        ([REPO, "--path-in-repo", "nosuch"], "has no nosuch at commit"),
        ([REPO, "--revision", "nosuch"], "no revision 'nosuch'"),
        (["owner/plain"], "no Lance dataset"),
        (["owner/private"], "no such repository on the Hub, or it is private"),
        (["owner/name/a.lance"], "owner/name/a.lance is not owner/name"),
        (["name"], "name is not owner/name"),
        ([f"hf://datasets/{REPO}/a.lance", "--path-in-repo", "b"], "two places"),
    ):
        assert run(["pull", *arguments, "-o", str(tmp_path / "x.lance")]) != 0, arguments
        err = capsys.readouterr().err
        assert said in err, err
        assert "  try: " in err
    assert list(tmp_path.iterdir()) == []
    assert pull(f"hf://datasets/{REPO}/b", tmp_path / "x.lance").path == "b/c.lance"


def test_a_private_dataset_needs_a_token(
    hub: LoopbackHub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_dataset(REPO, files_of(built, "x.lance"), private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull(REPO, tmp_path / "x.lance").status == "pulled"


def test_two_pulls_at_once_fetch_once(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    hub.add_dataset(REPO, files_of(built, "x.lance"))
    running = [start("pull", REPO, "-o", tmp_path / "x.lance", "--json") for _ in range(3)]
    reports = [report_of(process) for process in running]
    assert sorted(report["status"] for report in reports) == ["pulled", "unchanged", "unchanged"]
    asked = [request["path"] for request in hub.requests("/resolve/")]
    assert len(asked) == len(set(asked))
    check_whole(tmp_path / "x.lance")


def test_what_push_sends_comes_back(
    hub: LoopbackHub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for number, (version, status) in enumerate((("1", "pulled"), ("2", "updated"), ("2", "unchanged"))):
        assert run(["push", str(built), REPO, "--version", version]) == 0
        report = pull(REPO, tmp_path / "x.lance")
        assert (report.status, report.before is None) == (status, number == 0)
        check_whole(tmp_path / "x.lance", int(version))
        pulled = lance.dataset(str(tmp_path / "x.lance"))
        assert pulled.version == int(version)
        assert pulled.to_table() == lance.dataset(str(built), version=int(version)).to_table()


@pytest.mark.parametrize("output", ["x.lance", "x"])
def test_a_dataset_comes_back_with_its_validation_set(
    hub: LoopbackHub, tmp_path: Path, tokenizer: str, output: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    texts, built, pulled = write_texts(tmp_path / "texts.jsonl", 300), tmp_path / "built", tmp_path / "pulled"
    options = ["--tokenizer", tokenizer, "--block-size", "64", "--val-fraction", "0.2"]
    assert run(["build", texts, "-o", str(built / "x.lance"), *options]) == 0
    assert run(["push", str(built / "x.lance"), REPO]) == 0
    for status in ("pulled", "unchanged"):
        capsys.readouterr()
        assert run(["pull", REPO, "-o", str(pulled / output), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["status"], report["validation"]["status"]) == (status, status)
    assert sorted(path.name for path in pulled.iterdir()) == sorted([output, "x.val.lance"])
    for name, copy in (("x.lance", output), ("x.val.lance", "x.val.lance")):
        check_whole(pulled / copy)
        assert lance.dataset(str(pulled / copy)).to_table() == lance.dataset(str(built / name)).to_table()
    assert run(["pull", REPO, "-o", str(pulled / "other.lance")]) == 0
    assert "other.val.lance (pulled)" in capsys.readouterr().out
    one = pull(REPO, tmp_path / "one.lance", path_in_repo="data/train.lance")
    assert one.validation is None
    assert not (tmp_path / "one.val.lance").exists()


def test_a_pushed_collection_comes_back(
    hub: LoopbackHub, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("code", "chat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_texts(tmp_path / "in" / name / f"{name}.jsonl", 100, seed=ord(name[1]))
    assert (
        run(["build", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--recursive", "--tokenizer", tokenizer]) == 0
    )
    assert run(["push", str(tmp_path / "out"), REPO]) == 0
    report = pull(REPO, tmp_path / "pulled")
    assert len(report.datasets) == 2
    for name in report.datasets:
        check_whole(tmp_path / "pulled" / name)
    assert json.loads((tmp_path / "pulled" / "manifest.json").read_text())["splits"]
    assert pull(REPO, tmp_path / "pulled").status == "unchanged"


@pytest.mark.parametrize("output", ["s3://bucket/x", "hf://datasets/owner/x", "/", "."])
def test_a_place_that_is_no_local_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["pull", REPO, "-o", output]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_while_files_are_fetched_is_the_hubs(
    built: Path, tmp_path: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    hub.fault(r"GET /datasets/.*/resolve/", status=403, times=1000)
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance")]) == 1
    said = capsys.readouterr().err
    assert "reading hf://" in said
    assert "AWS" not in said
    assert not (tmp_path / "x.lance").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_dataset_that_is_damaged_on_the_hub_does_not_appear(
    hub: LoopbackHub, built: Path, tmp_path: Path, capsys: Any, damage: str
) -> None:
    files = files_of(built, "data/train.lance")
    name = next(path for path in sorted(files) if "/data/" in path.removeprefix("data/train.lance"))
    whole = files.pop(name)
    if damage != "missing":
        files[name] = whole[:-1] if damage == "cut" else b""
    hub.add_dataset(REPO, files)
    assert run(["pull", REPO, "-o", str(tmp_path / "x.lance")]) == 1
    said = {"missing": "is missing", "cut": f"has {len(whole) - 1:,} bytes, and {len(whole):,}", "empty": "has 0 bytes"}
    err = capsys.readouterr().err
    assert f"{name.removeprefix('data/train.lance/')} {said[damage]}" in err
    assert not (tmp_path / "x.lance").exists()


def test_an_update_to_a_damaged_version_changes_nothing(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    first, second = (
        {file.path for part in lance.dataset(str(built), version=n).get_fragments() for file in part.metadata.files}
        for n in (1, 2)
    )
    lost = f"data/train.lance/data/{min(second - first)}"
    hub.add_dataset(REPO, {path: data for path, data in first_version(built).items() if path != lost})
    pull(REPO, tmp_path / "x.lance")
    hub.add_dataset(REPO, {path: data for path, data in files_of(built, "data/train.lance").items() if path != lost})
    before = rows_of(tmp_path / "x.lance")
    with pytest.raises(DamagedDataset, match="is missing"):
        pull(REPO, tmp_path / "x.lance")
    assert lance.dataset(str(tmp_path / "x.lance")).version == 1
    assert rows_of(tmp_path / "x.lance") == before


def test_damaged_bytes_of_the_right_size_are_fetched_again(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    target = tmp_path / "x.lance"
    pull(REPO, target)
    damaged = next((target / "data").iterdir())
    data = damaged.read_bytes()
    damaged.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert verify(target).problems
    report = pull(REPO, target)
    assert (report.status, report.fetched_files) == ("updated", 1)
    check_whole(target)


def test_a_copy_of_a_pulled_dataset_is_hashed_once(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    hub.add_dataset(REPO, files_of(built, "data/train.lance"))
    pull(REPO, tmp_path / "x.lance")
    copied = tmp_path / "y.lance"
    for path in (tmp_path / "x.lance").rglob("*"):
        if path.is_file():
            place = copied / path.relative_to(tmp_path / "x.lance")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    before = (copied / ".lance_prep/pulled.json").read_bytes()
    report = pull(REPO, copied)
    assert (report.status, report.fetched_files) == ("unchanged", 0)
    assert (copied / ".lance_prep/pulled.json").read_bytes() != before


def test_a_build_while_a_dataset_is_replaced_is_not_lost(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    hub.add_dataset(REPO, first_version(built))
    target = tmp_path / "x.lance"
    pull(REPO, target)
    write_texts(tmp_path / "b.jsonl", 50, seed=9)
    assert run(["build", str(tmp_path / "b.jsonl"), "--layout", "raw", "-o", str(tmp_path / "new.lance")]) == 0
    repo = hub.repos[f"datasets/{REPO}"]
    hub.commit(repo, files_of(tmp_path / "new.lance", "data/train.lance"), Message("anew", "", None), "main")
    stalled = hub.fault(r"GET .*\.lance", stall=True)
    failed: list[BaseException] = []

    def replace() -> None:
        try:
            pull(REPO, target, overwrite=True)
        except OutputExists as error:
            failed.append(error)

    thread = threading.Thread(target=replace)
    thread.start()
    assert stalled.reached.wait(30)
    lance.write_dataset(lance.dataset(str(target)).to_table().slice(0, 1), str(target), mode="append")
    hub.release()
    thread.join(60)
    assert "was changed while it was pulled" in str(failed[0])
    assert lance.dataset(str(target)).version == 2


@pytest.mark.parametrize(
    "name", [".git/config", "a/.GIT/hooks/x", "a\u202eb", "a\x7fb", "DATA/x", "data", "a/b", "A/c"]
)
def test_a_name_that_would_replace_or_hide_is_refused(hub: LoopbackHub, built: Path, tmp_path: Path, name: str) -> None:
    more = {f"data/train.lance/{name}": b"evil", "data/train.lance/a/b/c": b"", "other/.git/x": b"", "other\n": b""}
    hub.add_dataset(REPO, {**files_of(built, "data/train.lance"), **more})
    with pytest.raises(BadFile, match=r"invalid name|two files in one place"):
        pull(REPO, tmp_path / "x.lance")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    ["--revision=", "--revision=a b", "--revision=a..b", "--revision=-x", "--path-in-repo=", "--path-in-repo=/"],
)
def test_an_invalid_place_is_refused_before_the_hub_is_asked(
    hub: LoopbackHub, tmp_path: Path, capsys: Any, option: str
) -> None:
    assert run(["pull", REPO, option, "-o", str(tmp_path / "x.lance")]) == 2
    assert "  try: " in capsys.readouterr().err
    assert hub.log == []


def test_deletion_files_and_older_versions_are_checked(hub: LoopbackHub, tmp_path: Path, capsys: Any) -> None:
    made = tmp_path / "made.lance"
    lance.write_dataset(pa.table({"n": range(10)}), made)
    lance.dataset(made).delete("n < 3")
    lance.write_dataset(pa.table({"n": range(5)}), made, mode="overwrite")
    files = {f"x.lance/{p.relative_to(made).as_posix()}": p.read_bytes() for p in made.rglob("*") if p.is_file()}
    deletion = next(path for path in files if "_deletions" in path)
    newest = min(path for path in files if "_versions" in path)  # names descend
    hub.add_dataset("owner/old", {path: data for path, data in files.items() if path != deletion})
    assert run(["pull", "owner/old", "-o", str(tmp_path / "old.lance")]) == 0
    name = deletion.removeprefix("x.lance/")
    assert f"version 2 cannot be read, because {name} is missing" in capsys.readouterr().err
    assert lance.dataset(tmp_path / "old.lance").count_rows() == 5
    files = {path: data for path, data in files.items() if path != newest}
    hub.add_dataset("owner/new", {**files, deletion: b""})
    assert run(["pull", "owner/new", "-o", str(tmp_path / "new.lance")]) == 1
    assert f"is damaged: {name} is empty" in capsys.readouterr().err
    assert not (tmp_path / "new.lance").exists()
