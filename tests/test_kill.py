"""Real builds killed at random instants, and run again: the same bytes, nothing left over, nothing lost meanwhile."""

from __future__ import annotations

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
from lance_prep.dataset import open_version, verify
from tests import tokenizers_made as made
from tests.processes import check_whole, finish, report_of, start, wait_for, write_texts

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
def test_thirty_kills(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torment(world, tmp_path, capsys, rounds=30, again=0, seed=SEED)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_two_hundred_kills(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torment(world, tmp_path, capsys, rounds=200, again=2, seed=SEED + 1)
