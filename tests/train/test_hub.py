"""Training from a dataset on the Hub: streamed or from a local copy, always at one commit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

import lance_prep
from lance_prep.errors import HubUnreachable, SourceNotFound, StateMismatch, UsageError
from lance_prep.train import LanceDataset, Mixture, TokenLoader
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.processes import write_texts

URL = "hf://datasets/owner/name/data/train.lance"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        f"data/train.lance/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "cache" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> list[Path]:
    """Two datasets of different texts."""
    home = tmp_path_factory.mktemp("built")
    for seed in (0, 1):
        texts = write_texts(home / str(seed), files=2, rows=100, seed=seed)
        lance_prep.build(texts, output=home / f"{seed}.lance", tokenizer=tokenizer, block_size=64)
    return [home / "0.lance", home / "1.lance"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds local copies, empty."""
    import huggingface_hub.utils._cache_assets as assets

    monkeypatch.setattr(assets, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "assets" / "lance-prep" / "datasets--owner--name"


def batches(source: Any, **options: Any) -> list[torch.Tensor]:
    with TokenLoader(source, global_batch_size=8, seed=7, **options) as loader:
        return [batch["input_ids"] for batch in loader]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 3 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def replace(hub: LoopbackHub, dataset: Path) -> str:
    """Make a commit that holds this dataset and nothing else."""
    files = files_of(dataset)
    commit = hub.add_dataset("owner/name", files)
    hub.repos["datasets/owner/name"].commits[commit] = files
    return commit


def test_a_local_copy_is_mapped_and_made_once(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    commit = replace(hub, built[0])
    dataset = LanceDataset(URL, cache=True)
    assert not home.exists()  # opened at first use
    assert dataset.access.way == "mmap"
    assert dataset.uri == URL
    assert same(batches(dataset), batches(LanceDataset(built[0])))
    assert (home / commit / "data" / "train.lance" / "data").is_dir()
    assert not [path for path in home.rglob("*") if path.is_symlink()]
    hub.log.clear()
    assert same(batches(LanceDataset(URL, cache=True)), batches(LanceDataset(built[0])))
    assert [entry["path"] for entry in hub.log] == ["/api/datasets/owner/name/revision/main"]
    hub.log.clear()
    pinned = LanceDataset(f"hf://datasets/owner/name@{commit}/data/train.lance", cache=True)
    assert len(pinned) == len(dataset)
    assert hub.log == []


@pytest.mark.parametrize("cache", [True, False])
def test_a_push_in_between_changes_nothing(hub: LoopbackHub, built: list[Path], home: Path, cache: bool) -> None:
    first = replace(hub, built[0])
    dataset = LanceDataset(URL, cache=cache)
    text = dataset.text(0)
    second = replace(hub, built[1])
    hub.log.clear()
    assert same(batches(pickle.loads(pickle.dumps(dataset))), batches(LanceDataset(built[0])))
    assert dataset.text(0) == text
    assert not [entry for entry in hub.log if first not in entry["path"]]
    new, old = LanceDataset(URL, cache=cache), LanceDataset(URL.replace("/data/", f"@{first}/data/"), cache=cache)
    assert same(batches(new), batches(LanceDataset(built[1])))
    assert same(batches(old), batches(LanceDataset(built[0])))
    if cache:
        assert sorted(path.name for path in home.iterdir()) == sorted([first, second, "refs"])


def test_commits_share_the_files_that_are_equal(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    first = replace(hub, built[0])
    assert len(LanceDataset(URL, cache=True))
    second = hub.add_dataset("owner/name", {"README.md": b"new"})
    hub.log.clear()
    assert len(LanceDataset(URL, cache=True))
    assert not hub.requests("/resolve/")
    a, b = (sorted((home / commit / "data/train.lance/data").iterdir()) for commit in (first, second))
    assert [path.stat().st_ino for path in a] == [path.stat().st_ino for path in b]


def test_loader_workers_and_checkpoints(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    replace(hub, built[0])
    local = LanceDataset(built[0])
    for cache, samples in ((True, len(local)), (False, 12)):
        chosen = Subset(LanceDataset(URL, cache=cache), range(samples))
        found = [sample["input_ids"] for sample in DataLoader(chosen, batch_size=None, num_workers=1)]
        assert same(found, [local[i]["input_ids"] for i in range(samples)])
    with TokenLoader(LanceDataset(URL, cache=True), global_batch_size=8, seed=7) as loader:
        batches_of_it = iter(loader)
        next(batches_of_it)
        state = loader.state_dict()
        wanted = next(batches_of_it)
    with TokenLoader(LanceDataset(built[0]), global_batch_size=8, seed=7) as local:
        local.load_state_dict(state)
        assert torch.equal(next(iter(local))["input_ids"], wanted["input_ids"])
    replace(hub, built[1])
    with (
        TokenLoader(LanceDataset(URL, cache=True), global_batch_size=8, seed=7) as other,
        pytest.raises(StateMismatch),
    ):
        other.load_state_dict(state)


def test_a_mixture_of_datasets_on_the_hub(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    replace(hub, built[0])
    hub.add_dataset("owner/other", files_of(built[1]))
    other = "hf://datasets/owner/other/data/train.lance"
    local = Mixture({str(built[0]): 0.3, str(built[1]): 0.7})
    for options in ({"cache": True}, {}):
        mixed = Mixture({URL: 0.3, other: 0.7}, **options)
        assert len(mixed) == len(local)
        assert same([mixed[i]["input_ids"] for i in range(0, 60, 5)], [local[i]["input_ids"] for i in range(0, 60, 5)])


def test_a_mixture_caches_only_what_is_on_the_hub(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    replace(hub, built[0])
    mixed = Mixture({URL: 0.3, str(built[1]): 0.7}, cache=True)
    local = Mixture({str(built[0]): 0.3, str(built[1]): 0.7})
    assert same([mixed[i]["input_ids"] for i in range(0, 60, 5)], [local[i]["input_ids"] for i in range(0, 60, 5)])
    assert home.exists()
    with pytest.raises(UsageError, match="not on the Hub"):
        Mixture({str(built[0]): 0.3, str(built[1]): 0.7}, cache=True)


def test_without_the_hub_the_copy_that_is_there_is_used(
    hub: LoopbackHub, built: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    replace(hub, built[0])
    samples = len(LanceDataset(URL, cache=True))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert len(LanceDataset(URL, cache=True)) == samples
    assert hub.log == []
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        len(LanceDataset(URL.replace("/data/", "@v2/data/"), cache=True))
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        len(LanceDataset(URL))


def test_processes_that_begin_at_once_fetch_once(hub: LoopbackHub, built: list[Path], tmp_path: Path) -> None:
    replace(hub, built[0])
    code = f"""
from lance_prep.hub import cached_dataset
from lance_prep.transport import Transport
print(cached_dataset({URL!r}, Transport()))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (folder,) = {process.communicate()[0].strip() for process in running}
    assert Path(folder).is_relative_to(tmp_path / "assets")
    asked = [entry["path"] for entry in hub.requests("/resolve/")]
    assert len(asked) == len(set(asked)) > 5


def test_what_cannot_be_cached_is_said(hub: LoopbackHub, built: list[Path], home: Path) -> None:
    replace(hub, built[0])
    with pytest.raises(UsageError, match="not on the Hub"):
        LanceDataset(built[0], cache=True)
    for cache in (True, False):
        with pytest.raises(SourceNotFound, match="no revision 'nosuch'"):
            len(LanceDataset(URL.replace("/data/", "@nosuch/data/"), cache=cache))
    with pytest.raises(SourceNotFound, match=r"has no data/nosuch.lance"):
        len(LanceDataset(URL.replace("train", "nosuch"), cache=True))
    with pytest.raises(SourceNotFound, match="it holds others"):
        len(LanceDataset("hf://datasets/owner/name/data", cache=True))
    with pytest.raises(UsageError, match="names a repository"):
        len(LanceDataset("hf://datasets/owner/name", cache=True))


def test_the_token_of_the_storage_options_fetches_the_local_copy(
    hub: LoopbackHub, built: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.add_dataset("owner/name", files_of(built[0]), private=True)
    dataset = LanceDataset(URL, cache=True, storage_options={"hf_token": TOKEN})
    assert same(batches(dataset), batches(LanceDataset(built[0])))
