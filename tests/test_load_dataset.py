"""`datasets.load_dataset` reads a dataset of ours: from a folder, from a Hub repository, and as a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import lance
import pytest

import lance_prep
from lance_prep.dataset import compact, restore, tag, verify
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made
from tests.loopback_hub import TOKEN, LoopbackHub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"row {i} of words"}) + "\n" for i in range(60)))
    return tmp_path


def build(home: Path, layout: str, **fields: Any) -> str:
    if layout == "blocks":
        fields["block_size"] = 16
    if layout != "raw":
        fields["tokenizer"] = str(home / "tokenizer")
    return lance_prep.build(home / "a.jsonl", output=home / "o.lance", layout=layout, **fields).uri


def load(uri: str, where: str, hub: LoopbackHub, cache: Path) -> list[dict[str, Any]]:
    source, options = uri, {"streaming": "streaming" in where}
    if where.startswith("hub"):
        paths = [path for path in Path(uri).rglob("*") if path.is_file()]
        hub.add_dataset("owner/tokens", {path.relative_to(uri).as_posix(): path.read_bytes() for path in paths})
        # Without a token, `datasets` 5.2 hands Lance a None where it wants text.
        source, options = "owner/tokens", {**options, "token": TOKEN}
    return list(datasets.load_dataset(source, split="train", cache_dir=str(cache), **options))


@pytest.mark.parametrize("where", ["local", "local streaming", "hub", "hub streaming"])
@pytest.mark.parametrize("layout", ["lines", "documents", "blocks", "raw"])
def test_load_dataset_reads_the_rows_of_the_version(home: Path, hub: LoopbackHub, layout: str, where: str) -> None:
    uri = build(home, layout)
    LanceDataset(uri)[0]  # leaves a cache in the sidecar
    assert load(uri, where, hub, home / "cache") == lance.dataset(uri).to_table().to_pylist()


@pytest.mark.parametrize("where", ["local", "local streaming", "hub", "hub streaming"])
def test_load_dataset_with_a_history(home: Path, hub: LoopbackHub, where: str) -> None:
    uri = build(home, "blocks")
    build(home, "documents", overwrite=True)
    restore(uri, 1)
    restore(uri, 2)
    compact(uri)
    for name in ("a", "b", "c", "d"):  # more .json files than there are .lance files
        tag(uri, name, 1)
    assert load(uri, where, hub, home / "cache") == lance.dataset(uri).to_table().to_pylist()
    assert verify(uri).problems == []


def test_a_loader_file_of_the_user_stays(home: Path) -> None:
    uri = build(home, "documents")
    mine = Path(uri) / ".huggingface.yaml"
    mine.write_text("license: mit\n")
    build(home, "documents", overwrite=True, seed=2)
    assert mine.read_text() == "license: mit\n"
    assert any("datasets" in problem for problem in verify(uri).problems)
