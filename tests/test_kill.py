"""Real commands killed at random instants, or at a change on disk, and run again: the same bytes, nothing left over."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from lance_prep.cli.main import run
from lance_prep.dataset import list_versions, open_version, verify
from tests import tokenizers_made as made
from tests.helpers import check_whole
from tests.processes import finish, killed_at, make_killer, report_of, start, wait_for, write_texts

SEED = 20_250_607
SHARDS = 16

#: What a kill waits for, and up to how many seconds after it the kill comes.
AIMS = {
    "any time": 1.5,
    "data file": 0.03,
    "receipt": 0.03,
    "last receipt": 0.05,
    "transaction": 0.004,
    "new version": 0.02,
}


@dataclass(frozen=True)
class World:
    """What all kills share.

    Attributes:
        before: a dataset with one version, to start from.
        rows: of that version.
        arguments: the command that is killed, without its output.
        content_hash: what it gives when nobody kills it.
    """

    before: Path
    rows: pa.Table
    arguments: list[str]
    content_hash: str

    def command(self, output: Path) -> list[str]:
        return ["build", *self.arguments, "-o", str(output), "--json"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("kill")
    tokenizer = made.save(root / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    before = root / "before.lance"
    first = write_texts(root / "first", files=1, rows=50, seed=1)
    assert run(["build", first, "-o", str(before), "--tokenizer", tokenizer, "--layout", "documents"]) == 0
    second = write_texts(root / "second", files=4, rows=800, seed=2)
    size = sum(path.stat().st_size for path in Path(second).iterdir())
    shape = ["--shard-size", str(size // SHARDS), "--shuffle-batch-size", "50", "--block-size", "64"]
    arguments = [second, "--overwrite", "--tokenizer", tokenizer, *shape]
    report = report_of(start("build", *arguments, "-o", root / "whole.lance", "--json"))
    assert report["shards"] >= SHARDS
    return World(before, lance.dataset(str(before)).to_table(), arguments, report["content_hash"])


def aimed(output: Path, aim: str, draw: random.Random, process: subprocess.Popen[str]) -> str:
    """Wait for the instant at which to kill; returns which one it is."""
    data = len(list((output / "data").iterdir()))
    builds = {path.name for path in (output / ".lance_prep" / "builds").iterdir()}
    count = draw.randint(1, SHARDS)

    def receipts() -> int:
        return sum(
            len(list(path.glob("shard-*")))
            for path in (output / ".lance_prep/builds").iterdir()
            if path.name not in builds
        )

    conditions: dict[str, Callable[[], bool]] = {
        "any time": lambda: True,
        "data file": lambda: len(list((output / "data").iterdir())) >= data + count,
        "receipt": lambda: receipts() >= count,
        "last receipt": lambda: receipts() >= SHARDS,
        "transaction": lambda: len(list((output / "_transactions").iterdir())) > 1,
        "new version": lambda: len(list((output / "_versions").iterdir())) > 1,
    }
    wait_for(conditions[aim], process)
    delay = draw.uniform(0, AIMS[aim])
    end = time.perf_counter() + delay
    wait_for(lambda: time.perf_counter() >= end, process)
    return f"{aim} (of {count}) + {delay * 1000:.1f} ms"


def kill_once(world: World, output: Path, aim: str, draw: random.Random, instants: list[str]) -> None:
    """Kill a build into `output`, and look at what can be read then."""
    process = start(*world.command(output))
    instants.append(aimed(output, aim, draw, process))
    process.kill()
    finish(process)
    assert lance.dataset(str(output), version=1).to_table() == world.rows
    latest = open_version(output)
    assert latest.dataset.version in (1, 2)
    if latest.dataset.version == 2:
        assert latest.metadata.content_hash == world.content_hash


def run_again(world: World, output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The same command to its end (in this process, which has everything loaded), and what must hold then."""
    capsys.readouterr()
    assert run(world.command(output)) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["content_hash"] == world.content_hash
    assert report["version"] == 2
    check_whole(output)
    assert verify(output, version=1).problems == []
    return report


def torment(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str], *, rounds: int, again: int, seed: int
) -> None:
    """`rounds` outputs, each built with one kill and up to so many `again`. A failure names its seed and instants."""
    output = folder / "out.lance"
    for number in range(rounds):
        draw = random.Random(f"{seed} {number}")
        aims = [list(AIMS)[number % len(AIMS)], *draw.choices(list(AIMS), k=draw.randint(0, again))]
        instants: list[str] = []
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(world.before, output)
        try:
            for aim in aims:
                kill_once(world, output, aim, draw, instants)
            run_again(world, output, capsys)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}, killed at: {instants}") from error


@pytest.mark.timeout(240)
def test_thirty_kills_change_no_row(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torment(world, tmp_path, capsys, rounds=30, again=0, seed=SEED)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_two_hundred_kills_change_no_row(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torment(world, tmp_path, capsys, rounds=200, again=2, seed=SEED + 1)


@dataclass(frozen=True)
class History:
    """A dataset with three versions, to run commands on.

    Attributes:
        dataset: versions 1 and 2 have several fragments, and other rows than version 3.
        build: arguments of a build that makes more versions of it.
        killer: library that kills a process at a change on disk.
    """

    dataset: Path
    build: list[str]
    killer: Path

    def command(self, output: Path, arguments: list[str]) -> list[str]:
        """Fill in the dataset ("W") and how to build it ("BUILD")."""
        filled = ([str(output)] if a == "W" else self.build if a == "BUILD" else [a] for a in arguments)
        return [argument for one in filled for argument in one]

    def copy(self, folder: Path) -> Path:
        output = folder / "killed.lance"
        shutil.rmtree(output, ignore_errors=True)
        return Path(shutil.copytree(self.dataset, output))

    def kill(self, output: Path, arguments: list[str], change: int) -> bool:
        """Run a command that is killed at a change on disk; False if it made fewer changes."""
        return killed_at(self.killer, output, change, *self.command(output, arguments))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    root = tmp_path_factory.mktemp("history")
    killer = make_killer(root)
    tokenizer = made.save(root / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    texts = write_texts(root / "texts", files=2, rows=100)
    build = [texts, "--overwrite", "--tokenizer", tokenizer, "--shuffle-batch-size", "50", "--shard-size", "30000"]
    for seed in ("1", "2", "3"):
        assert run(["build", "-o", str(root / "o.lance"), "--seed", seed, *build]) == 0
    assert len(lance.dataset(str(root / "o.lance")).get_fragments()) > 1
    return History(root / "o.lance", build, killer)


#: Command, versions when it is done, and the changes at which it is killed in a normal run (all of them in torture).
COMMANDS: dict[str, tuple[list[str], list[int], tuple[int, ...]]] = {
    "build": (["build", "BUILD", "-o", "W", "--seed", "4"], [1, 2, 3, 4], (12, 27, 29, 31, 33, 35)),
    "compact": (["compact", "W"], [1, 2, 3, 4], (1, 2, 3, 4, 5, 7)),
    "restore": (["restore", "W", "1"], [1, 2, 3, 4], (1, 3, 4, 5, 6, 8)),
    "prune": (["prune", "W", "--older-than", "0d"], [3], (1, 2, 3, 4, 7, 10)),
    "tag": (["tag", "W", "gold", "2"], [1, 2, 3], (1, 2, 3, 4)),
}


def killed_and_run_again(history: History, folder: Path, name: str, change: int) -> bool:
    """Kill a command, and run the same one or another one; False if the command made fewer changes."""
    arguments, versions, _ = COMMANDS[name]
    output = history.copy(folder)
    rows = {number: lance.dataset(str(output), version=number).to_table() for number in (1, 2, 3)}
    if not history.kill(output, arguments, change):
        return False
    for version in list_versions(output):
        assert version.made != "cannot be read"
        assert verify(output, version.number).problems == []
    if change % 2:
        assert run(["tag", str(output), "other"]) == 0
        if name != "build" or len(list_versions(output)) > 3:  # an unfinished build keeps its shards
            check_whole(output)
    assert run(history.command(output, arguments)) == 0
    check_whole(output)
    assert [version.number for version in list_versions(output)] == versions
    for number in versions[:3]:
        assert lance.dataset(str(output), version=number).to_table() == rows.get(number)
    assert all((output / ".lance_prep" / "seals" / f"{number}.json").is_file() for number in versions)
    return True


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in COMMANDS for change in COMMANDS[name][2]])
def test_a_command_killed_at_a_change_on_disk(history: History, tmp_path: Path, name: str, change: int) -> None:
    assert killed_and_run_again(history, tmp_path, name, change)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_every_change_on_disk(history: History, tmp_path: Path, name: str) -> None:
    changes = itertools.takewhile(lambda n: killed_and_run_again(history, tmp_path, name, n), itertools.count(1))
    assert max(changes) >= COMMANDS[name][2][-1]
