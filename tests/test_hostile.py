"""A dataset folder from a stranger: nothing outside it is written, truncated or deleted, and only our own files go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lance_prep.cli.main import run
from lance_prep.errors import DatasetError
from lance_prep.store.sidecar import LocalFiles
from tests import tokenizers_made as made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, a tokenizer and a dataset of two versions."""
    home = tmp_path_factory.mktemp("hostile")
    made.save(home / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    (home / "s.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50)) + "bad\n")
    for seed in ("1", "2"):
        assert run(build(home, home / "o.lance", "--overwrite", "--seed", seed)) == 0
    return home


def build(home: Path, output: Path, *more: str) -> list[str]:
    return ["build", str(home / "s.jsonl"), "--tokenizer", str(home / "tokenizer"), "-o", str(output), *more]


@pytest.fixture
def dataset(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "o.lance", tmp_path / "o.lance"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside the dataset with files that must survive."""
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    for name in ("thesis.tex", f"{'01' * 12}{'ab' * 13}.lance", "plan.json", "deep/committed.json"):
        (victim / name).write_text(name)
    return victim


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMANDS = [
    ["build", "--overwrite", "--seed", "3"],
    ["compact"],
    ["restore", "1"],
    ["prune", "--older-than", "0d"],
    ["tag", "gold"],
]


@pytest.mark.parametrize("folder", ["data", ".lance_prep", ".lance_prep/builds", "_versions", "_refs"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_folder_that_is_a_link_is_refused(
    home: Path, dataset: Path, victim: Path, folder: str, command: list[str], capsys: Any
) -> None:
    if (dataset / folder).is_dir():
        shutil.copytree(dataset / folder, victim, dirs_exist_ok=True)
        shutil.rmtree(dataset / folder)
    (dataset / folder).symlink_to(victim)
    before = content(victim)
    name, *rest = command
    arguments = build(home, dataset, *rest) if name == "build" else [name, str(dataset), *rest]
    assert run(arguments) == 1
    said = capsys.readouterr().err
    assert f"{dataset / folder} is a symbolic link to '{victim}'" in said
    assert "  try: replace the link" in said
    assert content(victim) == before


@pytest.mark.parametrize(
    "name",
    ["_versions/x", "data/x.lance", ".lance_prep/seals/2.json", ".lance_prep/quarantine.json", "_refs/tags/gold.json"],
)
@pytest.mark.parametrize("command", ["info", "verify", "versions", "tag"])
def test_a_fifo_does_not_block(dataset: Path, name: str, command: str, capsys: Any) -> None:
    (dataset / name).parent.mkdir(parents=True, exist_ok=True)
    (dataset / name).unlink(missing_ok=True)
    os.mkfifo(dataset / name)
    assert run([command, str(dataset), *(["gold"] if command == "tag" else [])]) == 1
    assert f"{name} is not a file: it is a FIFO" in capsys.readouterr().err


def test_a_fifo_among_the_files_of_a_build_is_a_missing_file(dataset: Path, capsys: Any) -> None:
    receipt = next((dataset / ".lance_prep" / "builds").rglob("shard-000000.json"))
    receipt.unlink()
    os.mkfifo(receipt)
    assert run(["verify", str(dataset), "--version", "1"]) + run(["verify", str(dataset)]) == 1
    assert "shard-000000.json" in capsys.readouterr().out


def test_a_new_output_with_a_linked_data_folder(home: Path, victim: Path, tmp_path: Path) -> None:
    output = tmp_path / "new.lance"
    (output / ".lance_prep").mkdir(parents=True)
    (output / "data").symlink_to(victim)
    before = content(victim)
    assert run(build(home, output)) == 1
    assert content(victim) == before


def test_links_in_place_of_files(home: Path, dataset: Path, victim: Path, capsys: Any) -> None:
    """The lock, and the temporary files of the sidecar and of the quarantine."""
    before = content(victim)
    tokenizer = next((dataset / ".lance_prep" / "tokenizers").iterdir())
    for path in (tokenizer.with_name(f".{tokenizer.name}.part"), dataset.with_name(".o.rejected.jsonl.part")):
        path.symlink_to(victim / "thesis.tex")
    data = tokenizer.read_bytes()
    tokenizer.unlink()
    assert run(build(home, dataset, "--overwrite", "--seed", "4")) == 0
    assert tokenizer.read_bytes() == data
    assert (dataset.parent / "o.rejected.jsonl").read_text().count("\n") == 1
    assert content(victim) == before
    tokenizer.unlink()
    tokenizer.symlink_to(victim / "thesis.tex")
    assert run(["show", str(dataset)]) == 1
    assert f"{tokenizer} is a symbolic link" in capsys.readouterr().err
    lock = dataset / ".lance_prep" / "lock"
    lock.unlink()
    lock.symlink_to(victim / "thesis.tex")
    assert run(["tag", str(dataset), "gold"]) == 1
    assert "lock is a symbolic link" in capsys.readouterr().err
    assert content(victim) == before


def test_only_files_with_a_name_of_ours_are_leftovers(home: Path, dataset: Path) -> None:
    leftover = dataset / "data" / f"{'01' * 12}{'ab' * 13}.lance"
    leftover.write_text("of a shard that never finished")
    others = [dataset / "data" / "notes.txt", dataset / "data" / "deep" / leftover.name, dataset / "_versions" / "x"]
    link = dataset / "data" / leftover.name.replace("ab", "cd")
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("by hand")
    link.symlink_to(others[0])
    assert run(build(home, dataset, "--overwrite", "--seed", "5")) == 0
    assert run(["prune", str(dataset), "--older-than", "0d"]) == 0
    assert not leftover.exists()
    assert link.is_symlink()
    assert [path.read_text() for path in others] == ["by hand"] * 3


def jsonl(path: Path, *records: Any) -> bytes:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path.read_bytes()


@pytest.mark.parametrize("linked", [False, True])
def test_a_build_does_not_overwrite_its_source(home: Path, tmp_path: Path, linked: bool, capsys: Any) -> None:
    """`q.rejected.jsonl` is where `q.lance`, its default output, would put its rejected rows."""
    source = tmp_path / "q.rejected.jsonl"
    before = jsonl(source, {"text": "one"}, {"text": 5}, {"text": "fixed by hand"})
    given = source
    if linked:
        given = tmp_path / "other.jsonl"
        given.symlink_to(source)
    arguments = ["build", str(given), "--tokenizer", str(home / "tokenizer"), "--layout", "documents", "-o"]
    assert run([*arguments, str(tmp_path / "q.lance")]) == 2
    said = capsys.readouterr().err
    assert "is a source, and the rejected rows" in said
    assert "choose another output" in said
    assert source.read_bytes() == before
    assert not (tmp_path / "q.lance").exists()
    assert run([*arguments, str(tmp_path / "fixed.lance")]) == 0
    assert source.read_bytes() == before


def test_a_source_inside_the_output_is_refused(home: Path, dataset: Path, capsys: Any) -> None:
    source = next(dataset.glob(".lance_prep/builds/*/rejected-*.jsonl"))
    before = source.read_bytes()
    arguments = ["build", str(source), "--tokenizer", str(home / "tokenizer"), "-o", str(dataset), "--overwrite"]
    assert run(arguments) == 2
    assert "or is inside it" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_only_the_dataset_s_own_quarantine_file_is_overwritten(home: Path, tmp_path: Path, capsys: Any) -> None:
    source, own = tmp_path / "s.jsonl", tmp_path / "q.rejected.jsonl"
    build = ["build", str(source), "--tokenizer", str(home / "tokenizer"), "-o", str(tmp_path / "q.lance"), "--json"]

    def rejected(*more: str) -> str:
        capsys.readouterr()
        assert run([*build, *more]) == 0
        return str(json.loads(capsys.readouterr().out)["rejected_file"])

    somebody_s = jsonl(own, {"text": "of somebody else"})
    jsonl(source, {"text": "a"}, {"text": 1})
    first = rejected()
    assert first == str(tmp_path / "q.2.rejected.jsonl")
    assert rejected() == first
    jsonl(source, {"text": "a"}, {"text": 2})
    assert rejected("--overwrite") == first  # its own
    assert json.loads(Path(first).read_text())["text"] == '{"text": 2}'
    changed = jsonl(Path(first), {"text": "fixed by hand"})
    jsonl(source, {"text": "a"}, {"text": 3})
    assert rejected("--overwrite") == str(tmp_path / "q.3.rejected.jsonl")
    assert (own.read_bytes(), Path(first).read_bytes()) == (somebody_s, changed)


def test_a_quarantine_file_that_a_killed_build_owes_is_written_by_the_next(home: Path, tmp_path: Path) -> None:
    output, own = tmp_path / "q.lance", tmp_path / "q.rejected.jsonl"
    assert run(build(home, output)) == 0
    lines = own.read_bytes()
    for path in (own, output / ".lance_prep" / "quarantine.json"):  # as a kill right after the commit leaves it
        path.unlink()
    assert run(build(home, output)) == 0
    assert own.read_bytes() == lines


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", ".."])
def test_no_name_leaves_the_dataset(dataset: Path, path: str) -> None:
    ours = LocalFiles(dataset)
    for act in (ours.read, ours.list, ours.sync, ours.delete, lambda path: ours.write(path, b"x")):
        with pytest.raises(DatasetError, match="outside the dataset"):
            act(path)


def test_an_unsupported_platform_is_named_in_the_first_line(tmp_path: Path) -> None:
    code = "import sys; from lance_prep.cli.main import main; sys.platform = 'win32'; main()"
    done = subprocess.run([sys.executable, "-c", code, "build", "sample"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    what, advice = done.stderr.splitlines()
    assert what == "error: lance-prep runs on Linux and macOS, not on this platform (win32)"
    assert "WSL" in advice
    assert list(tmp_path.iterdir()) == []


def test_macos_flushes_the_drive_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the calls to the system are looked at: this is no Mac."""
    import fcntl

    asked: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: asked.append(what))
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("fsync alone stops at the drive's cache"))
    LocalFiles(tmp_path).write("folder/file", b"x")
    assert asked == [51] * 3  # the new folder in its parent, the file, and the file in its folder
