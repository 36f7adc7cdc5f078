"""Downloads killed at random instants and at changes on disk, and run again: the same bytes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lance_prep.cli.main import run
from lance_prep.collection import download
from tests.loopback_hub import LoopbackHub
from tests.processes import finish, killed_at, make_killer, start, wait_for
from tests.sources import parquet_bytes

SEED = 20_251_124
#: When a kill comes: once the unfinished file of a source has bytes, or a state on disk has shards; or at any time.
AIMS = ("part", "state", "any time")


@dataclass(frozen=True)
class World:
    """Two sources on the Hub, and what a download of them gives if nobody kills it.

    Attributes:
        recipe: path of the collection recipe.
        files: contents by path, without times.
        killer: kills a process at a change on disk.
    """

    recipe: Path
    files: dict[str, Any]
    killer: Path

    def command(self, folder: Path) -> list[str]:
        return ["download", str(self.recipe), "-o", str(folder), "--workers", "1"]


def seed(hub: LoopbackHub) -> None:
    draw = random.Random(SEED)
    texts = ["".join(draw.choices('abc "\\\n', k=draw.randint(0, 600))) for _ in range(6000)]
    hub.add_dataset("owner/web", {"train.parquet": parquet_bytes({"text": texts}, compression="none")})
    lines = [json.dumps({"q": text, "a": number}) if number % 50 else "{" for number, text in enumerate(texts[:3000])]
    hub.add_dataset("owner/qa", {"train.jsonl": "\n".join(lines).encode()})


def contents(folder: Path) -> dict[str, Any]:
    """Return the files of a download by path; of the stats, everything but times."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != ".lance_prep/lock":
            found[name] = path.read_bytes()
        if name.endswith(".stats.json"):
            found[name] = {**json.loads(found[name]), "finished": None, "seconds": None}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from tests.conftest import _hub as hub

    hub.reset()
    seed(hub)
    root = tmp_path_factory.mktemp("kill")
    recipe = {
        "name": "mine",
        "defaults": {"shard_size": 60_000},
        "categories": {
            "web": {"share": 1, "sources": {"pages": {"source": "owner/web"}}},
            "questions": {"share": 1, "sources": {"qa": {"source": "owner/qa", "template": "{{ q }}={{ a }}"}}},
        },
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    report = download(root / "recipe.yaml", root / "whole", workers=1)
    assert not report.failed
    yield World(root / "recipe.yaml", contents(root / "whole"), make_killer(root))
    hub.reset()


def test_random_kills(world: World, tmp_path: Path) -> None:
    for number in range(4):
        draw = random.Random(f"{SEED} {number}")
        folder = tmp_path / f"raw{number}"
        instants = [kill_once(world, folder, aim, draw) for aim in (AIMS[number % 3], *AIMS[: draw.randint(0, 1)])]
        assert run(world.command(folder)) == 0, instants
        assert contents(folder) == world.files, instants


def kill_once(world: World, folder: Path, aim: str, draw: random.Random) -> str:
    """Kill a download at an instant; return which one it was."""
    name = draw.choice(["web/pages", "questions/qa"])
    part, state = folder / f"{name}.jsonl.part", folder / ".lance_prep" / "downloads" / f"{name.split('/')[1]}.json"
    least = draw.randint(1, len(world.files[f"{name}.jsonl"]))
    process = start(*world.command(folder))
    if aim == "part":
        wait_for(lambda: part.exists() and part.stat().st_size >= least, process)
    elif aim == "state":
        wait_for(lambda: state.exists() and b'"shards": 0' not in state.read_bytes(), process)
    else:
        wait_for(folder.exists, process)
    process.kill()
    finish(process)
    return f"{aim} {name} {least}"


def killed_and_run_again(world: World, folder: Path, change: int) -> bool:
    """Kill a download at a change on disk, and run it again; False if it made fewer changes."""
    if not killed_at(world.killer, folder, change, *world.command(folder)):
        return False
    assert run(world.command(folder)) == 0
    assert contents(folder) == world.files, f"killed at change {change}"
    return True


@pytest.mark.parametrize("change", [20, 64, 67, 71, 73])
def test_a_download_killed_at_a_change_on_disk(world: World, tmp_path: Path, change: int) -> None:
    assert killed_and_run_again(world, tmp_path / "raw", change)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_download_killed_at_every_change_on_disk(world: World, tmp_path: Path) -> None:
    changes = itertools.takewhile(
        lambda change: killed_and_run_again(world, tmp_path / str(change), change), itertools.count(1)
    )
    assert max(changes) >= 40
