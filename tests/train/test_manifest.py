"""`Mixture.from_manifest`: weights from targets or tokens, pinned versions, and what it refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import lance_prep
from lance_prep.errors import DamagedDataset, DatasetError, StateMismatch, UsageError
from lance_prep.exchange import export
from lance_prep.store import Manifest, read_manifest
from lance_prep.train import LanceDataset, Mixture, Phase, TakeSampler, TokenLoader
from tests import tokenizers_made
from tests.train.collections_made import BLOCK, build_split, make_collection


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    make_collection(folder, tokenizer)
    return folder


def token_shares(mixture: Mixture) -> dict[str, float]:
    """The share of tokens of each source, from its share of samples and its mean sample."""
    tokens = {
        name: float(share) * source._mean_tokens
        for (name, share), source in zip(mixture.shares().items(), mixture.sources, strict=True)
    }
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


@pytest.fixture
def change(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return the folder of a manifest that differs in some fields of the splits or of the manifest."""

    def changed(splits: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Path:
        manifest = read_manifest(made)
        found = {name: replace(split, **(splits or {}).get(name, {})) for name, split in manifest.splits.items()}
        folder = tmp_path / "changed"
        shutil.copytree(made, folder, dirs_exist_ok=True)
        replace(manifest, splits=found, **fields).write(folder)
        return folder

    return changed


def test_the_default_is_the_target_shares_of_tokens(made: Path) -> None:
    mixture = Mixture.from_manifest(made)
    assert mixture.names == ["chat", "code", "maths"]
    assert Mixture.from_manifest(f"file://{made}")[0]["input_ids"].tolist() == mixture[0]["input_ids"].tolist()
    assert mixture.phases[0].weights == {"chat": Fraction(1, 4), "code": Fraction(9, 16), "maths": Fraction(3, 16)}
    assert token_shares(mixture) == pytest.approx({"chat": 0.25, "code": 0.5625, "maths": 0.1875}, rel=1e-4)
    # What is delivered: real tokens, counted in the samples themselves.
    counted = dict.fromkeys(mixture.names, 0)
    source, _ = mixture.locate(np.arange(4000))
    for start in range(0, 4000, 1000):
        for sample, number in zip(mixture.take(range(start, start + 1000)), source[start : start + 1000], strict=True):
            counted[mixture.names[number]] += sample.valid
    delivered = {name: count / sum(counted.values()) for name, count in counted.items()}
    assert delivered == pytest.approx({"chat": 0.25, "code": 0.5625, "maths": 0.1875}, abs=0.002)


def test_samples_are_those_of_the_datasets(made: Path) -> None:
    mixture = Mixture.from_manifest(made, labels="shifted", attention_mask=True)
    source, sample = mixture.locate(np.arange(50))
    batch = mixture.take(range(50))
    for i, name in enumerate(mixture.names):
        own = LanceDataset(made / f"{name}.lance", labels="shifted", attention_mask=True)
        here = np.flatnonzero(source == i)
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key][here], own.take(sample[here])[key])
    assert {origin.source for origin in mixture.trace(0, global_batch_size=50)} == set(mixture.names)


def test_fewer_splits_keep_the_proportions_between_them(made: Path) -> None:
    weights = Mixture.from_manifest(made, ["maths", "chat"]).phases[0].weights
    assert weights == {"maths": Fraction(3, 7), "chat": Fraction(4, 7)}
    assert Mixture.from_manifest(made, ["maths"]).phases[0].weights == {"maths": 1}


def test_a_category_without_shares_is_divided_by_tokens(change: Callable[..., Path]) -> None:
    folder = change({"code": {"share": None}, "maths": {"share": None}})
    manifest = read_manifest(folder)
    code, maths = manifest.splits["code"].tokens, manifest.splits["maths"].tokens
    assert Mixture.from_manifest(folder).phases[0].weights == {
        "chat": Fraction(1, 4),
        "code": Fraction(3, 4) * Fraction(code, code + maths),
        "maths": Fraction(3, 4) * Fraction(maths, code + maths),
    }
    with pytest.raises(UsageError, match="only code of code, maths have a share"):
        Mixture.from_manifest(change({"code": {"share": 1.0}, "maths": {"share": None}}))


def test_weights_by_tokens_and_by_hand(made: Path) -> None:
    splits = read_manifest(made).splits
    total = sum(split.tokens for split in splits.values())
    by_tokens = Mixture.from_manifest(made, weights="tokens")
    assert by_tokens.phases[0].weights == {name: Fraction(split.tokens, total) for name, split in splits.items()}
    counts = by_tokens.counts(sum(split.sequences for split in splits.values()))
    assert counts == pytest.approx({name: split.sequences for name, split in splits.items()}, abs=1.01)
    by_hand = Mixture.from_manifest(made, weights={"code": 3, "chat": 1})
    assert by_hand.phases[0].weights == {"code": Fraction(3, 4), "chat": Fraction(1, 4)}
    by_category = Mixture.from_manifest(made, weights={"tech": 0.8, "chat": 0.2})
    assert by_category.phases[0].weights == {
        "code": Fraction(6, 10),
        "maths": Fraction(2, 10),
        "chat": Fraction(2, 10),
    }


def test_phases_name_splits_and_categories(made: Path) -> None:
    mixture = Mixture.from_manifest(made, weights=[Phase({"tech": 1}, until_tokens=40 * BLOCK), Phase({"chat": 1})])
    names = [mixture.names[i] for i in mixture.locate(np.arange(80))[0]]
    assert set(names[:40]) == {"code", "maths"}
    assert set(names[40:]) == {"chat"}
    assert names[:40].count("code") == 30


def test_validation_sets_are_a_mixture_of_their_own(made: Path, change: Callable[..., Path]) -> None:
    mixture = Mixture.from_manifest(made, validation=True)
    assert [source.uri for source in mixture.sources] == [f"{made}/{name}.val.lance" for name in mixture.names]
    assert len(mixture) > 0
    with pytest.raises(DatasetError, match="no validation set with sequences above 0") as error:
        Mixture.from_manifest(change(validation={}), validation=True)
    assert "--val-fraction" in error.value.advice


def test_an_empty_split_is_left_out_aloud_and_refused_by_name(change: Callable[..., Path]) -> None:
    folder = change({"code": {"sequences": 0, "tokens": 0}})
    with pytest.warns(UserWarning, match="left out, because they have no sequences: code"):
        mixture = Mixture.from_manifest(folder)
    # The rest of the category takes the empty split's part.
    assert mixture.phases[0].weights == {"chat": Fraction(1, 4), "maths": Fraction(3, 4)}
    with pytest.warns(UserWarning, match="code"):
        Mixture.from_manifest(folder, weights={"tech": 1})
    for wrong in ({"splits": ["code", "chat"]}, {"weights": {"code": 1.0}}):
        with pytest.raises(UsageError, match="split 'code' has no sequences"):
            Mixture.from_manifest(folder, **wrong)  # type: ignore[arg-type]
    assert Mixture.from_manifest(folder, ["maths"]).names == ["maths"]  # nothing to warn of


def test_nothing_to_train_on_is_said_with_the_command_that_makes_it(
    change: Callable[..., Path], tmp_path: Path
) -> None:
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError, match=f"no manifest: {missing}/manifest.json") as error:
            Mixture.from_manifest(missing)
        assert f"lance-prep build DIR -o {missing} --recursive" in error.value.advice
    empty = change({name: {"sequences": 0} for name in ("chat", "code", "maths")})
    with pytest.raises(DatasetError, match=r"no split with sequences above 0 \(chat: 0, code: 0, maths: 0\)") as error:
        Mixture.from_manifest(empty)
    assert f"raw/recipe.yaml -o {empty} --force`" in error.value.advice
    replace(read_manifest(empty), input_path="my data").write(empty)
    with pytest.raises(DatasetError) as error:
        Mixture.from_manifest(empty)
    assert f"`lance-prep build 'my data' -o {empty} --recursive --force`" in error.value.advice
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DamagedDataset, match="is not a manifest"):
        Mixture.from_manifest(tmp_path)


def test_unknown_names_are_refused_with_the_nearest(made: Path, change: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no split 'math'") as error:
        Mixture.from_manifest(made, ["math"])
    assert error.value.advice == "did you mean maths? it has: chat, code, maths"
    with pytest.raises(UsageError, match="no split 'teck'") as error:
        Mixture.from_manifest(made, weights={"teck": 1.0})
    assert "did you mean tech?" in error.value.advice
    refused: list[tuple[dict[str, Any], str]] = [
        ({"splits": "code"}, "not a list"),
        ({"splits": []}, "empty list"),
        ({"splits": ["code", "code"]}, "names a split twice"),
        ({"splits": ["code"], "weights": {"chat": 1}}, "which splits leaves out"),
        ({"weights": {"code": 1, "tech": 1}}, "itself and its category"),
        ({"weights": {"code": -1}}, "invalid weight -1"),
        ({"weights": {"code": True}}, "invalid weight True"),
        ({"weights": {"code": float("nan")}}, "invalid weight nan"),
        ({"weights": {"code": 0}}, "all 0"),
        ({"weights": "targets"}, "invalid weights 'targets'"),
        ({"weights": []}, "invalid phases"),
        ({"weights": {}}, "empty mapping"),
        ({"version": 1}, "version cannot be combined"),
    ]
    for options, message in refused:
        with pytest.raises(UsageError, match=message):
            Mixture.from_manifest(made, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lables'"):
        Mixture.from_manifest(made, lables="same")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"chat\.lance is one dataset"):
        Mixture.from_manifest(made / "chat.lance")
    with pytest.raises(UsageError, match="s3://bucket/tokens is not a local folder"):
        Mixture.from_manifest("s3://bucket/tokens")
    own = change({"chat": {"category": None}})
    with pytest.raises(UsageError, match="no target share for chat") as error:
        Mixture.from_manifest(own)
    assert "weights='tokens'" in error.value.advice
    assert Mixture.from_manifest(own, ["code"]).names == ["code"]


def test_each_split_is_read_at_the_version_of_the_manifest(change: Callable[..., Path], tokenizer: str) -> None:
    folder = change()
    want = Mixture.from_manifest(folder, ["chat"]).take(range(5))["input_ids"].tolist()
    later = build_split(folder, "more", ["another text, and another one"] * 50, tokenizer)
    options = {"tokenizer": tokenizer, "block_size": BLOCK}
    lance_prep.build(folder / "raw" / "more.jsonl", output=folder / "chat.lance", overwrite=True, **options)
    assert lance_prep.info(folder / "chat.lance").metadata.content_hash == later.content_hash
    assert Mixture.from_manifest(folder, ["chat"]).take(range(5))["input_ids"].tolist() == want
    # A version that is gone, and a dataset that was built anew at the same path.
    shutil.rmtree(folder / "chat.lance")
    shutil.copytree(folder / "more.lance", folder / "chat.lance")
    with pytest.raises(DatasetError, match=r"manifest.json: split 'chat' has content \w+ in the manifest") as error:
        len(Mixture.from_manifest(folder, ["chat"]))
    assert "`lance-prep build " in error.value.advice
    manifest = read_manifest(folder)
    gone = {"chat": replace(manifest.splits["chat"], version=7)}
    replace(manifest, splits=gone).write(folder)
    with pytest.raises(DatasetError, match=r"split 'chat': .*chat\.lance has no version 7"):
        len(Mixture.from_manifest(folder, ["chat"]))
    shutil.rmtree(folder / "chat.lance")
    with pytest.raises(DatasetError, match="split 'chat' is missing: no folder"):
        Mixture.from_manifest(folder, ["chat"])


def test_a_link_out_of_the_folder_is_not_followed(change: Callable[..., Path], tmp_path: Path) -> None:
    folder = change()
    (folder / "chat.lance").rename(tmp_path / "elsewhere.lance")
    (folder / "chat.lance").symlink_to(tmp_path / "elsewhere.lance")
    with pytest.raises(DatasetError, match="split 'chat' is a link"):
        Mixture.from_manifest(folder, ["chat"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data_format", ["lance", "parquet"])
def test_every_loader_reads_it(made: Path, tmp_path: Path, workers: int, data_format: str) -> None:
    if data_format == "parquet":
        export(made, tmp_path / "out")
    mixture = Mixture.from_manifest(made if data_format == "lance" else tmp_path / "out")
    n = len(mixture) // 6 * 6
    want = mixture.take(range(n))["input_ids"].tolist()
    samplers = [TakeSampler(mixture, 6, rank=rank, world_size=2) for rank in range(2)]
    loaders = [TokenLoader(mixture, 6, rank=rank, world_size=2, num_workers=workers) for rank in range(2)]
    plain = [DataLoader(mixture, batch_sampler=sampler, num_workers=workers) for sampler in samplers]
    for some in (plain, loaders):
        got = [row for step in zip(*some, strict=True) for part in step for row in part["input_ids"].tolist()]
        assert got == want
    shuffled = DataLoader(mixture, batch_size=6, shuffle=True, num_workers=workers)
    got = [row for batch in shuffled for row in batch["input_ids"].tolist()]
    assert sorted(got) == sorted(mixture.take(range(len(mixture)))["input_ids"].tolist())


def test_a_checkpoint_resumes_on_the_same_manifest_alone(made: Path, change: Callable[..., Path]) -> None:
    loader = TokenLoader(Mixture.from_manifest(made), 5)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    want = next(batches)["input_ids"].tolist()
    moved = change()  # the same collection in another folder
    again = TokenLoader(Mixture.from_manifest(moved), 5, num_workers=2)
    again.load_state_dict(state)
    assert next(iter(again))["input_ids"].tolist() == want
    again.close()
    for other in (
        Mixture.from_manifest(made, weights="tokens"),
        Mixture.from_manifest(made, ["chat", "code"]),
        Mixture.from_manifest(change(categories={"talk": 0.5, "tech": 0.75})),
    ):
        with pytest.raises(StateMismatch):
            TokenLoader(other, 5).load_state_dict(state)


def test_rows_of_varying_length_need_a_block_size(tmp_path: Path, tokenizer: str) -> None:
    split = build_split(tmp_path, "a", ["one text", "and another"] * 40, tokenizer, layout="documents", block_size=1024)
    Manifest(tokenizer, None, "data", "out", 1, {"a": split}).write(tmp_path)
    with pytest.raises(UsageError, match="block size"):
        len(Mixture.from_manifest(tmp_path, weights="tokens"))
    assert Mixture.from_manifest(tmp_path, weights="tokens", block_size=16)[0]["input_ids"].shape == (16,)


def test_tokens_of_two_tokenizers_are_not_mixed_silently(made: Path, tmp_path: Path) -> None:
    tokenizers_made.save(tmp_path, tokenizers_made.with_template(), eos_token="<|endoftext|>")
    build_split(tmp_path, "other", ["one text", "and another"] * 90, str(tmp_path))
    names = [str(made / "chat.lance"), str(tmp_path / "other.lance")]
    with pytest.warns(UserWarning, match=r"different tokenizers.* \(.*chat\.lance: \w{12}, .*other\.lance: \w{12}\)"):
        assert len(Mixture(dict.fromkeys(names, 1.0))) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Mixture.from_manifest(made)) > 0
