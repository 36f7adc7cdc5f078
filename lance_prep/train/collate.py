"""Batches of samples whose lengths differ: padded to the longest, or laid end to end for variable-length attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lance_prep.errors import UsageError
from lance_prep.train.permutation import IndexArray
from lance_prep.train.samples import IGNORE, Batch, Sample, SampleOptions

#: What each tensor holds where there is no token.
_FILL = {"labels": IGNORE, "attention_mask": 0, "position_ids": 0, "document_ids": -1}


def pad_collate(
    samples: Sequence[Mapping[str, Any]], *, pad_id: int | None = None, pad_to_multiple_of: int = 1
) -> dict[str, Any]:
    """Samples as one batch, padded on the right to the longest.

    Args:
        samples: of a `LanceDataset`, or dicts of 1-D int64 tensors of one length each.
        pad_id: what padding holds; the dataset's pad token by default, 0 for plain dicts.
        pad_to_multiple_of: round the length up to one.

    Returns:
        `input_ids`, `attention_mask` (1 for tokens) and what else the samples hold, int64 `[samples, longest]`; labels
        are -100 on padding. Kept columns are lists.
    """
    flat, lists, starts, options = _flatten(samples)
    lengths = np.diff(starts)
    longest = int(lengths.max()) if len(lengths) else 0
    longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    pad = pad_id if pad_id is not None else (options.pad_id if options is not None else 0)
    if "attention_mask" not in flat:
        mask = torch.ones_like(flat["input_ids"])
        flat["attention_mask"] = mask
    real = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    out: dict[str, Any] = {}
    for name, values in flat.items():
        out[name] = torch.full(real.shape, _FILL.get(name, pad if name == "input_ids" else 0), dtype=values.dtype)
        out[name][real] = values
    return {**out, **lists}


def varlen_collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples laid end to end with their documents' bounds: what `flash_attn_varlen_func` takes, with no padding.

    Returns:
        `input_ids`, `position_ids` and `labels` (where samples hold them), int64 `[tokens]`; `cu_seqlens`, int32
        `[documents + 1]`, where each document begins, and the end; `max_seqlen`, int, the longest. A document that
        goes on over two samples counts as two: attention does not reach across samples. Labels are -100 where the
        token to learn belongs to another document than the one before it.

    Raises:
        UsageError: plain dicts, which say neither what padding nor what EOS is.
    """
    flat, lists, starts, options = _flatten(samples)
    if options is None:
        raise UsageError("varlen_collate needs the samples of a LanceDataset", "pass them as the dataset gives them")
    valid = _valid(samples, starts)
    flat, starts = _without_padding(flat, starts, valid)
    ids = flat["input_ids"]
    begins = torch.zeros(len(ids), dtype=torch.bool)
    begins[torch.from_numpy(starts[:-1][np.diff(starts) > 0])] = True
    if options.eos_id is not None and len(ids):
        begins[1:] |= ids[:-1] == options.eos_id
    first = torch.nonzero(begins).view(-1)
    bounds = torch.cat([first, torch.tensor([len(ids)])])
    place = torch.arange(len(ids))
    flat["position_ids"] = place - torch.where(begins, place, 0).cummax(0).values if len(ids) else place
    if "labels" in flat:
        labels = flat["labels"].clone()
        # "same": nothing predicts a document's first token; "shifted": its last token predicts nothing of it.
        labels[first if options.labels == "same" else bounds[1:] - 1] = IGNORE
        flat["labels"] = labels
    flat.pop("attention_mask", None)
    sizes = bounds.diff()
    longest = int(sizes.max()) if len(sizes) else 0
    return {**flat, **lists, "cu_seqlens": bounds.to(torch.int32), "max_seqlen": longest}


def _flatten(
    samples: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]], IndexArray, SampleOptions | None]:
    """Samples end to end: tensors `[tokens]`, lists, where each begins, and what they are made with."""
    if isinstance(samples, Batch):
        tensors, lists = dict(samples.tensors), dict(samples.lists)
        if not tensors:
            raise UsageError("raw records hold no tokens", "use torch's default collate_fn")
        if samples.offsets is not None:
            return tensors, lists, samples.offsets, samples.options
        for name in [name for name, values in tensors.items() if values.ndim == 1]:
            lists[name] = tensors.pop(name).tolist()
        count, size = tensors["input_ids"].shape
        starts = np.arange(count + 1, dtype=np.int64) * size
        return {name: values.reshape(-1) for name, values in tensors.items()}, lists, starts, samples.options
    names = list(samples[0])
    sizes = np.array([len(sample["input_ids"]) for sample in samples], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    flat, lists = {}, {}
    for name in names:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], torch.Tensor) and values[0].ndim == 1:
            flat[name] = torch.cat(values)
        else:
            lists[name] = values
    first = samples[0]
    return flat, lists, starts, first.options if isinstance(first, Sample) else None


def _valid(samples: Sequence[Mapping[str, Any]], starts: IndexArray) -> IndexArray:
    if isinstance(samples, Batch):
        return np.diff(starts) if samples.valid is None else samples.valid
    return np.array([s.valid if isinstance(s, Sample) else len(s["input_ids"]) for s in samples], np.int64)


def _without_padding(
    flat: dict[str, torch.Tensor], starts: IndexArray, valid: IndexArray
) -> tuple[dict[str, torch.Tensor], IndexArray]:
    lengths = np.diff(starts)
    if np.array_equal(valid, lengths):
        return dict(flat), starts
    offset = np.arange(int(starts[-1])) - np.repeat(starts[:-1], lengths)
    keep = torch.from_numpy(offset < np.repeat(valid, lengths))
    kept = {name: values[keep] for name, values in flat.items()}
    return kept, np.concatenate([np.zeros(1, np.int64), np.cumsum(valid)])
