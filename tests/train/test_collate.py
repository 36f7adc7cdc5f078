"""`pad_collate` and `varlen_collate` against loops over samples."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lance_prep.errors import UsageError
from lance_prep.train import LanceDataset, Mixture, TokenLoader, pad_collate, varlen_collate
from lance_prep.train.order import PAD_ROW
from tests.train.made import BLOCK, PAD, Made


def test_pad_collate_equals_a_loop(lines: Made) -> None:
    ds = LanceDataset(lines.path, position_ids=True, columns=["title"])
    indices = [5, 0, 17, 17, 80]
    longest = max(len(lines.rows[i]) for i in indices)
    for samples in (ds.take(indices), [ds[i] for i in indices]):
        batch = pad_collate(samples)
        for k, i in enumerate(indices):
            row = lines.rows[i].tolist()
            rest = longest - len(row)
            assert batch["input_ids"][k].tolist() == row + [PAD] * rest
            assert batch["labels"][k].tolist() == row + [-100] * rest
            assert batch["attention_mask"][k].tolist() == [1] * len(row) + [0] * rest
            assert batch["position_ids"][k].tolist() == [*range(len(row)), *range(rest)]
        assert batch["title"] == [lines.columns["title"][i] for i in indices]


def test_pad_collate_options(lines: Made) -> None:
    plain = [{"input_ids": torch.arange(n)} for n in (3, 5)]
    assert pad_collate(plain)["input_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    batch = pad_collate(plain, pad_id=9, pad_to_multiple_of=8)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 9, 9, 9, 9, 9], [0, 1, 2, 3, 4, 9, 9, 9]]
    assert pad_collate(LanceDataset(lines.path).take([]))["input_ids"].shape == (0, 0)


@pytest.mark.parametrize("labels", ["same", "shifted"])
@pytest.mark.parametrize("layout", ["blocks", "lines"])
def test_varlen_collate_equals_a_loop(request: Any, layout: str, labels: Any) -> None:
    made: Made = request.getfixturevalue(layout)
    ds = LanceDataset(made.path, labels=labels)
    indices = [39, 3, 62, 102 if layout == "blocks" else 100]
    ids, places, want_labels, bounds = [], [], [], [0]
    for i in indices:
        row = made.rows[i].tolist()
        for length in made.pieces[i] if layout == "blocks" else [len(row)] if row else []:
            document, row = row[:length], row[length:]
            ids += document
            places += range(length)
            want_labels += [-100, *document[1:]] if labels == "same" else [*document[1:], -100]
            bounds.append(len(ids))
    batch = ds.take(indices)
    pickled = pickle.loads(pickle.dumps(batch))
    for samples in (
        batch,
        pickled,
        batch[0:4],
        [ds[i] for i in indices],
        [pickle.loads(pickle.dumps(s)) for s in batch],
    ):
        batch = varlen_collate(samples)
        assert batch["input_ids"].tolist() == ids
        assert batch["position_ids"].tolist() == places
        assert batch["labels"].tolist() == want_labels
        assert batch["cu_seqlens"].tolist() == bounds
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["max_seqlen"] == max(b - a for a, b in itertools.pairwise(bounds))


def documents_of(made: Made, indices: list[int]) -> list[torch.Tensor]:
    """The tokens of each document in blocks, in order."""
    return [
        torch.from_numpy(part.copy())
        for i in indices
        for part in np.split(made.rows[i], np.cumsum(made.pieces[i])[:-1])
    ]


def test_varlen_for_transformers_equals_its_own_collator(blocks: Made) -> None:
    from transformers import DataCollatorWithFlattening

    indices = [39, 3, 102]
    features = [{"input_ids": ids.tolist()} for ids in documents_of(blocks, indices)]
    want = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features)
    got = varlen_collate(LanceDataset(blocks.path).take(indices), style="transformers")
    assert set(got) == set(want)
    for name, value in want.items():
        assert type(got[name]) is type(value)
        if isinstance(value, torch.Tensor):
            assert got[name].dtype == value.dtype
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_packed_documents_have_the_logits_of_each_alone(blocks: Made, llama: Any) -> None:
    """In blocks with position_ids and laid end to end, no document attends to another, nor to padding."""
    indices = [39, 3, 102]
    ds = LanceDataset(blocks.path, position_ids=True, labels=None)
    with torch.no_grad():
        alone = torch.cat([llama(ids[None]).logits[0] for ids in documents_of(blocks, indices)])
        flat = llama(**varlen_collate(ds.take(indices), style="transformers"), use_cache=False).logits[0]
        rows = llama(**ds.take(indices).collated(), use_cache=False).logits
    assert torch.allclose(flat, alone, atol=1e-5)
    packed = torch.cat([row[: len(blocks.rows[i])] for row, i in zip(rows, indices, strict=True)])
    assert torch.allclose(packed, alone, atol=1e-5)
    with torch.no_grad():
        mixed = llama(ds.take(indices)["input_ids"]).logits[0]
    assert not torch.allclose(mixed, alone[: len(mixed)], atol=1e-3), "without positions documents are not isolated"


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("layout", ["blocks", "lines"])
def test_varlen_in_loaders_and_worker_processes(request: Any, layout: str) -> None:
    made: Made = request.getfixturevalue(layout)
    ds = LanceDataset(made.path, block_size=BLOCK, position_ids=True)
    want = [varlen_collate(ds.take(range(at, min(at + 8, len(ds))))) for at in range(0, len(ds), 8)]
    loader = DataLoader(
        ds, batch_size=8, num_workers=2, multiprocessing_context="forkserver", collate_fn=varlen_collate
    )
    assert all(same(one, other) for one, other in zip(loader, want, strict=True))
    ours = TokenLoader(ds, 8, shuffle=False, tail="drop", collate_fn=varlen_collate)
    assert all(same(one, other) for one, other in zip(ours, want, strict=False))


def test_varlen_of_a_mixture(blocks: Made, documents: Made) -> None:
    sources = [LanceDataset(made.path, block_size=BLOCK) for made in (blocks, documents)]
    names = [str(source.uri) for source in sources]
    mix = Mixture(dict.fromkeys(names, 0.5), by="rows", block_size=BLOCK)
    indices = list(range(12))
    source, sample = mix.locate(np.array(indices))
    alone = [varlen_collate(sources[s].take([i])) for s, i in zip(source.tolist(), sample.tolist(), strict=True)]
    got = varlen_collate(mix.take(indices))
    assert len({*source.tolist()}) == 2
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(got[name], torch.cat([batch[name] for batch in alone]))
    assert torch.equal(got["cu_seqlens"].diff(), torch.cat([batch["cu_seqlens"].diff() for batch in alone]))


def test_varlen_leaves_padding_out(blocks: Made) -> None:
    batch = varlen_collate(LanceDataset(blocks.path).take([PAD_ROW, 102]))
    assert batch["input_ids"].tolist() == blocks.rows[102].tolist()
    assert len(blocks.rows[102]) < BLOCK


def test_collating_refuses_plain_dicts_and_raw_records(raw: Made) -> None:
    with pytest.raises(UsageError, match="samples of a LanceDataset"):
        varlen_collate([{"input_ids": torch.arange(3)}])
    with pytest.raises(UsageError, match="no tokens"):
        pad_collate(LanceDataset(raw.path).take([1]))
