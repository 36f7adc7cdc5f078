"""Exports killed at a change on disk, stopped by a signal, or out of space, and run again: the same bytes."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lance_prep.cli.main import run
from lance_prep.store import Manifest, Split
from tests.processes import PROGRAM, finish, killed_at, make_killer, start, wait_for
from tests.train.made import make_tokens


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an export but the lock, which is empty if the last command ended well."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "lock"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of several shards each, with a manifest."""
    root = tmp_path_factory.mktemp("collection")
    splits = {}
    for i, (name, rows) in enumerate((("chat", 30), ("web", 60))):
        make_tokens(root / f"{name}.lance", "blocks", [rows, rows], block_size=128, seed=i)
        splits[name] = Split(f"{name}.lance", 2, 2 * rows, 7, 1000, None, None, 1)
    Manifest("gpt2", 128, "data", "out", 2, splits).write(root)
    return root


def command(source: Path, output: Path) -> list[str]:
    return ["export", str(source), "-o", str(output), "--shard-size", "20kB", "--json"]


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_killer(tmp_path_factory.mktemp("killer"))


@pytest.fixture(scope="module")
def whole(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nobody kills."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(command(collection, output)) == 0
    found = contents(output)
    assert sum("shard_" in name for name in found) > 7
    return found


def killed_and_run_again(collection: Path, output: Path, killer: Path, whole: dict[str, bytes], change: int) -> bool:
    """Kill an export, look at what is there, and run it again; False if it made fewer changes."""
    if not killed_at(killer, output, change, *command(collection, output)):
        return False
    for name, data in contents(output).items():
        # Whatever has a final name is whole; only the state goes on changing.
        assert Path(name).name.endswith((".part", ".tmp")) or name.startswith(".lance_prep") or data == whole[name]
    assert run(command(collection, output)) == 0
    assert contents(output) == {**whole, "manifest.json": contents(output)["manifest.json"]}
    assert json.loads(contents(output)["manifest.json"]) == {
        **json.loads(whole["manifest.json"]), "output_path": str(output),
    }  # fmt: skip
    return True


@pytest.mark.parametrize("change", [1, 6, 7, 8, 9, 20])
def test_an_export_killed_at_a_change_on_disk(
    collection: Path, tmp_path: Path, killer: Path, whole: dict[str, bytes], change: int
) -> None:
    assert killed_and_run_again(collection, tmp_path / "killed-export", killer, whole, change)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_an_export_killed_at_every_change_on_disk(
    collection: Path, tmp_path: Path, killer: Path, whole: dict[str, bytes]
) -> None:
    outputs = (tmp_path / f"killed-export-{n}" for n in itertools.count())
    killed = (killed_and_run_again(collection, next(outputs), killer, whole, n) for n in itertools.count(1))
    assert len(list(itertools.takewhile(bool, killed))) > 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_export(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "web.lance", tmp_path / "out"
    make_tokens(source, "blocks", [4000], block_size=128)
    process = start(*command(source, output))
    assert wait_for(lambda: (output / "web" / "shard_0002.parquet").exists(), process)
    began = time.monotonic()
    process.send_signal(number)
    code, out, err = finish(process)
    assert time.monotonic() - began < 2.5
    assert (code, out) == (1, "")
    assert "error: stopped\n  try: run the same command again" in err
    assert not (output / "manifest.json").exists()
    assert run(command(source, output)) == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["status"] == "resumed"
    assert run(command(source, tmp_path / "fresh")) == 0
    ours, fresh = contents(output), contents(tmp_path / "fresh")
    assert {**ours, "manifest.json": b""} == {**fresh, "manifest.json": b""}


def test_the_disk_is_full(
    tmp_path: Path,
    collection: Path,
    whole: dict[str, bytes],
    small_disk: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "disk" / "out"
    blocks = sum(map(len, whole.values())) // 4096
    for size in range(8, blocks, blocks // 4):
        small_disk(f"size={size * 4}k,nr_inodes=0")
        assert run(command(collection, output)) == 1
        err = capsys.readouterr().err
        assert "no space left on the disk" in err
        assert "the same command then continues" in err
        assert not list(output.rglob("*.part"))
    small_disk("size=50%,nr_inodes=0")
    assert run(command(collection, output)) == 0
    assert {**contents(output), "manifest.json": b""} == {**whole, "manifest.json": b""}


def test_an_export_continues_after_a_file_could_not_grow(tmp_path: Path) -> None:
    make_tokens(tmp_path / "in.lance", "blocks", [2000], block_size=64)
    command = [PROGRAM, "export", "in.lance", "-o", "out", "--format", "bin"]
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *command]
    failed = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "a file is larger than the system allows\n  try: raise the limit" in failed.stderr
    assert not list((tmp_path / "out" / "in").iterdir())
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out" / "in" / "train.bin").stat().st_size > 100 << 10
