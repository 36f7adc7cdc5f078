"""`pad_collate` and `varlen_collate` against loops over samples."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conftest import BLOCK, EOS, PAD, Made

from lance_prep.errors import UsageError
from lance_prep.train import LanceDataset, pad_collate, varlen_collate
from lance_prep.train.order import PAD_ROW


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
            assert batch["position_ids"][k].tolist() == list(range(len(row))) + [0] * rest
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
        start = 0
        for j, token in enumerate(row):
            if j and row[j - 1] == EOS:
                start = j
                bounds.append(bounds[-1] if j == 0 else len(ids))
            ids.append(token)
            places.append(j - start)
            if labels == "same":
                want_labels.append(-100 if j == start else token)
            else:
                ends = j + 1 == len(row) or token == EOS
                want_labels.append(-100 if ends else row[j + 1])
        if row:
            bounds.append(len(ids))
    for samples in (ds.take(indices), [ds[i] for i in indices]):
        batch = varlen_collate(samples)
        assert batch["input_ids"].tolist() == ids
        assert batch["position_ids"].tolist() == places
        assert batch["labels"].tolist() == want_labels
        assert batch["cu_seqlens"].tolist() == bounds
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["max_seqlen"] == max(b - a for a, b in itertools.pairwise(bounds))


def test_varlen_leaves_padding_out(blocks: Made) -> None:
    batch = varlen_collate(LanceDataset(blocks.path).take([PAD_ROW, 102]))
    assert batch["input_ids"].tolist() == blocks.rows[102].tolist()
    assert len(blocks.rows[102]) < BLOCK


def test_refusals(raw: Made) -> None:
    with pytest.raises(UsageError, match="samples of a LanceDataset"):
        varlen_collate([{"input_ids": torch.arange(3)}])
    with pytest.raises(UsageError, match="no tokens"):
        pad_collate(LanceDataset(raw.path).take([1]))
