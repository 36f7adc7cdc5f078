"""`train.yaml`: from a file to batches, and what is said about a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lance_prep.errors import DatasetError, LancePrepError, RecipeError, UsageError
from lance_prep.store import read_manifest
from lance_prep.train import Mixture, Phase, TokenLoader, TrainConfig, load_train_config
from tests.train.collections_made import BLOCK, make_collection


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A folder with a collection in `tokens`."""
    folder = tmp_path_factory.mktemp("run")
    make_collection(folder / "tokens", tokenizer)
    return folder


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def rows(loader: TokenLoader | None) -> list[Any]:
    assert loader is not None
    return [row for batch in loader for row in batch["input_ids"].tolist()]


def test_a_file_with_nothing_but_paths(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # paths in the file are relative to it
    config = load_train_config(
        write(run, "train_data_path: tokens\nval_data_path: tokens\nuse_pretokenized_data: true\n")
    )
    mixture = Mixture.from_manifest(run / "tokens")
    assert rows(config.train_loader()) == rows(TokenLoader(mixture, 8))
    validation = config.val_mixture()
    assert validation is not None
    assert [source.uri for source in validation.sources] == [f"{run}/tokens/{n}.val.lance" for n in mixture.names]
    # An epoch of validation has each of their samples, about once.
    sizes = {name: split.sequences for name, split in read_manifest(run / "tokens").validation.items()}
    assert validation.counts(len(validation)) == pytest.approx(sizes, abs=1)
    assert len(rows(config.val_loader())) == -(-len(validation) // 8) * 8


def test_every_field_has_its_effect(run: Path) -> None:
    text = """
train_data_path: tokens
pretokenized_splits: [chat, code]
phases:
  - {weights: {talk: 3, code: 1}, until_tokens: 1_280}
  - weights: target
seed: 7
stopping: stop
experiment_tokens: 1000
target_tokens: 2000
global_batch_size: 4
tail: repeat
labels: shifted
document_ids: true
num_workers: 2
prefetch: 1
"""
    config = load_train_config(write(run, text))
    loader = config.train_loader(rank=1, world_size=2)
    phases = [Phase({"talk": 3, "code": 1}, until_tokens=1280), Phase("target")]
    mixture = Mixture.from_manifest(
        run / "tokens",
        ["chat", "code"],
        weights=phases,
        seed=7,
        stopping="stop",
        experiment_tokens=1000,
        target_tokens=2000,
        labels="shifted",
        document_ids=True,
    )
    twin = TokenLoader(mixture, 4, rank=1, world_size=2, tail="repeat", num_workers=2, prefetch=1)
    assert loader.state_dict() == twin.state_dict()
    batches, theirs = iter(loader), iter(twin)
    for _ in range(3):
        ours = next(batches)
        assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in next(theirs).items()}
    assert ours.keys() == {"input_ids", "labels", "document_ids"}
    names = [mixture.names[i] for i in config.train_mixture().locate(np.arange(10))[0]]
    assert names.count("chat") in (7, 8)
    assert config.val_mixture() is None
    assert config.val_loader() is None
    loader.close()
    twin.close()


def test_phases_may_follow_the_targets(run: Path) -> None:
    found = Mixture.from_manifest(run / "tokens", weights=[Phase("tokens", 40 * BLOCK), Phase({"chat": 1.0})])
    assert found.names == ["chat", "code", "maths"]
    assert found.shares(0) == Mixture.from_manifest(run / "tokens", weights="tokens").shares()
    assert found.shares(1) == {"chat": 1, "code": 0, "maths": 0}
    for needs_a_manifest in ("target", [Phase("target")]):
        with pytest.raises(UsageError, match="weights='target' needs a manifest") as error:
            Mixture(needs_a_manifest)  # type: ignore[arg-type]
        assert "Mixture.from_manifest" in error.value.advice


def test_one_dataset_and_other_validation_data(run: Path) -> None:
    tokens = run / "tokens"
    paths = {"train_data_path": str(tokens / "chat.lance"), "val_data_path": str(tokens / "code.lance")}
    config = load_train_config(paths)
    assert rows(config.train_loader()) == rows(TokenLoader(Mixture({paths["train_data_path"]: 1}), 8))
    validation = config.val_mixture()
    assert validation is not None
    assert validation.names == [str(tokens / "code.lance")]
    for extra in ({"weights": "tokens"}, {"pretokenized_splits": ["a"]}, {"phases": [{"weights": "target"}]}):
        with pytest.raises(UsageError, match=f"{next(iter(extra))} would have no effect"):
            load_train_config({"train_data_path": str(tokens / "chat.lance"), **extra}).train_mixture()


def test_validation_follows_the_chosen_splits(run: Path, tmp_path: Path, tokenizer: str) -> None:
    tokens = str(run / "tokens")
    config = load_train_config({"train_data_path": tokens, "val_data_path": tokens, "pretokenized_splits": ["maths"]})
    validation = config.val_mixture()
    assert validation is not None
    assert validation.names == ["maths"]
    make_collection(tmp_path / "other", tokenizer)
    manifest = read_manifest(tmp_path / "other")
    fewer = {name: split for name, split in manifest.validation.items() if name != "chat"}
    replace(manifest, validation=fewer).write(tmp_path / "other")
    other = str(tmp_path / "other")
    asked = {"train_data_path": tokens, "val_data_path": other, "pretokenized_splits": ["chat", "code"]}
    with pytest.warns(UserWarning, match="no validation set for chat"):
        validation = load_train_config(asked).val_mixture()
    assert validation is not None
    assert validation.names == ["code"]
    # A folder of its own without validation sets is validation data itself.
    replace(manifest, validation={}).write(tmp_path / "other")
    asked.pop("pretokenized_splits")
    validation = load_train_config(asked).val_mixture()
    assert validation is not None
    assert next(source.uri for source in validation.sources) == f"{tmp_path}/other/chat.lance"
    with pytest.raises(DatasetError, match="no validation set with sequences above 0"):
        load_train_config({"train_data_path": other, "val_data_path": other}).val_mixture()


REFUSED = [
    ("seed: 3", "train_data_path: required field is missing"),
    ("train_data_pth: x", "train_data_pth: no such field; did you mean train_data_path?"),
    ("train_data_path: x\nval_data_pth: y", "val_data_pth: no such field; did you mean val_data_path?"),
    ("train_data_path: x\nphases: [{wieghts: target}]", "phases.0.wieghts: no such field; did you mean weights?"),
    (
        "train_data_path: x\nphases: [{weights: target, until_token: 3}]",
        "phases.0.until_token: no such field; did you mean until_tokens?",
    ),
    ("train_data_path: x\nglobal_batch_size: 0", "global_batch_size: .* (given: 0)"),
    ("train_data_path: x\nglobal_batch_size: '8'", "global_batch_size: .* (given: '8')"),
    ("train_data_path: x\nstopping: never", "stopping: Input should be 'repeat' or 'stop' (given: 'never')"),
    ("train_data_path: x\nweights: targets", "weights: invalid weights 'targets'; use 'target', 'tokens' or a mapping"),
    ("train_data_path: x\nweights: {a: x}", "weights: weights must be numbers"),
    ("train_data_path: x\nweights: {a: -1}", "weights: invalid weights {'a': -1}"),
    ("train_data_path: x\nweights: [a]", "weights: must be target, tokens, or a mapping"),
    ("train_data_path: x\nweights: tokens\nphases: [{weights: target}]", "weights and phases exclude each other"),
    (
        "train_data_path: x\nphases: [{weights: target, until_tokens: 5}, {weights: tokens, until_tokens: 9}]",
        "invalid phases: they end at [5, 9] tokens; let each end later",
    ),
    ("train_data_path: x\nexperiment_tokens: 5", "got experiment_tokens=5 and target_tokens=None; pass both"),
    ("train_data_path: x\nuse_pretokenized_data: false", "use_pretokenized_data: false is not supported"),
    ("train_data_path: [", "is not valid YAML"),
    ("train_data_path: x\ntrain_data_path: y", "train_data_path is given twice"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_wrong_file_is_refused_with_the_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_train_config(write(tmp_path, text))
    first, _, last = message.partition(".* ") if ".* " in message else (message, "", "")
    assert first in str(error.value)
    assert last in str(error.value)
    assert str(tmp_path / "train.yaml") in str(error.value)
    assert error.value.advice
    if "use_pretokenized_data" in message:
        assert "lance-prep build DIR -o OUT --recursive" in error.value.advice


def test_missing_files_and_data_are_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such file: .*train\.yaml"):
        load_train_config(tmp_path / "train.yaml")
    with pytest.raises(LancePrepError, match=f"no manifest: {tmp_path}/nowhere/manifest.json"):
        load_train_config({"train_data_path": str(tmp_path / "nowhere")}).train_mixture()
    config = load_train_config({"train_data_path": "x"})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert isinstance(config, TrainConfig)
