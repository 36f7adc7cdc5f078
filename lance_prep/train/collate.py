"""Makes batches of samples whose lengths differ, and moves batches to a device.

Samples are padded to the longest one, or laid end to end for variable-length attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.store import IGNORE
from lance_prep.train.samples import MASK_AND_POSITIONS, Batch, Documents, Sample, SampleOptions
from lance_prep.train.tokens import ragged_arange

#: Values of padding, by tensor.
_FILL = {"labels": IGNORE, "attention_mask": 0, "document_ids": -1}


def pad_collate(
    samples: Sequence[Mapping[str, Any]], *, pad_id: int | None = None, pad_to_multiple_of: int = 1
) -> dict[str, Any]:
    """Collate samples into one batch, padded on the right to the longest.

    Args:
        samples: of a `LanceDataset`, or dicts of 1-D int64 tensors of equal length.
        pad_id: token id of padding. By default the dataset's pad token, or 0 for plain dicts.
        pad_to_multiple_of: the length is rounded up to a multiple of this.

    Returns:
        `input_ids`, `attention_mask` (1 for tokens) and what else the samples hold, int64 `[samples, longest]`. Labels
        are -100 on padding, and its `position_ids` count from 0. Kept columns are lists.

    Raises:
        UsageError: samples are packed and have `position_ids`, so they must not get an attention mask.
    """
    flat, lists, starts, options = _flatten(samples)
    if options is not None and options.packed and "position_ids" in flat:
        raise UsageError(MASK_AND_POSITIONS[0], "use torch's default collate_fn or varlen_collate")
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
        if name == "position_ids":
            after = torch.arange(longest) - torch.from_numpy(lengths)[:, None]
            out[name] = after.clamp(min=0)
        out[name][real] = values
    return {**out, **lists}


def varlen_collate(
    samples: Sequence[Mapping[str, Any]], *, style: Literal["flash", "transformers"] = "flash"
) -> dict[str, Any]:
    """Collate samples end to end, without padding, with the bounds of their documents for variable-length attention.

    Args:
        samples: of a `LanceDataset` or a `Mixture`.
        style: "flash" names the bounds as `flash_attn_varlen_func` does; "transformers" returns what
            `DataCollatorWithFlattening` does, for `model(**batch, use_cache=False)`: with a cache, transformers does
            not keep packed documents apart.

    Returns:
        `input_ids`, `position_ids` and `labels` (if samples have them), int64 `[tokens]`, or `[1, tokens]` for
        transformers. A document that spans two samples counts as two: attention does not cross samples.
        The labels of documents' first tokens are -100. There is no attention mask.

        "flash": `cu_seqlens`, int32 `[documents + 1]`, where each document begins, and the end; `max_seqlen`, int, the
        length of the longest. "transformers": the same as `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and
        `max_length_k`.

    Raises:
        UsageError: `style` is invalid, or samples are plain dicts, whose documents are unknown.
    """
    if style not in ("flash", "transformers"):
        raise UsageError(f"invalid style {style!r}", "use 'flash' or 'transformers'")
    flat, lists, starts, options = _flatten(samples)
    if options is None:
        raise UsageError("varlen_collate needs the samples of a LanceDataset", "pass them as the dataset returns them")
    lengths = _documents(samples).lengths
    flat = _without_padding(flat, starts, _valid(samples, starts))
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    flat["position_ids"] = torch.from_numpy(ragged_arange(lengths))
    if "labels" in flat:
        labels = flat["labels"].clone()
        # "same": the document's first token is not predicted. "shifted": its last token predicts nothing.
        labels[torch.from_numpy(bounds[1:] - 1 if options.shifted else bounds[:-1])] = IGNORE
        flat["labels"] = labels
    flat.pop("attention_mask", None)
    ends, longest = torch.from_numpy(bounds.astype(np.int32)), int(lengths.max(initial=0))
    if style == "flash":
        return {**flat, **lists, "cu_seqlens": ends, "max_seqlen": longest}
    rows = {name: values[None] for name, values in flat.items()}
    bounded = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends.clone(), "max_length_q": longest, "max_length_k": longest}
    return {**rows, **lists, **bounded}


def _documents(samples: Sequence[Mapping[str, Any]]) -> Documents:
    if isinstance(samples, Batch):
        return samples.documents
    found = [sample.documents for sample in samples if isinstance(sample, Sample)]
    return Documents(np.concatenate([d.counts for d in found]), np.concatenate([d.lengths for d in found]))


def _flatten(
    samples: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]], Indices, SampleOptions | None]:
    """Return samples end to end: tensors `[tokens]`, lists, where each sample begins, and the samples' options."""
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


def _valid(samples: Sequence[Mapping[str, Any]], starts: Indices) -> Indices:
    if isinstance(samples, Batch):
        return np.diff(starts) if samples.valid is None else samples.valid
    return np.array([s.valid if isinstance(s, Sample) else len(s["input_ids"]) for s in samples], np.int64)


def _without_padding(flat: dict[str, torch.Tensor], starts: Indices, valid: Indices) -> dict[str, torch.Tensor]:
    lengths = np.diff(starts)
    if np.array_equal(valid, lengths):
        return dict(flat)
    keep = torch.from_numpy(ragged_arange(lengths) < np.repeat(valid, lengths))
    return {name: values[keep] for name, values in flat.items()}


def each_tensor(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch with every tensor in it changed: in mappings, lists, tuples and named tuples, nested."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: each_tensor(value, change) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return changed
        # Keep the class, which may carry more than its items, as transformers' BatchEncoding does.
        twin = copy(batch)
        twin.update(changed)
        return twin
    if isinstance(batch, list | tuple):
        parts = [each_tensor(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    return each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))


def on_gpu(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield batches on a GPU. Each is copied on a stream of its own while the one before is in use."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    none = object()
    ahead: Any = none
    for batch in batches:
        pinned = each_tensor(batch, torch.Tensor.pin_memory)
        with torch.cuda.stream(stream):
            copied = moved(pinned, device)
        if ahead is not none:
            yield _ready(ahead, stream, device)
        ahead = copied
    if ahead is not none:
        yield _ready(ahead, stream, device)


def _ready(batch: Any, stream: Any, device: torch.device) -> Any:
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)

    def in_use(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(current)  # its memory must not be reused before the training step is done with it
        return tensor

    return each_tensor(batch, in_use)
