"""Samples: tensors of one row of tokens each, and batches of them that are tensors already.

torch's DataLoader asks a dataset for a batch and then stacks it sample by sample: 40 us for 8 samples of 1,024 tokens,
four times what reading them takes. A `Batch` is a sequence of samples for whoever wants those (each a view), and tells
`default_collate`, through the registry that torch has for it, that it is collated already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.data.dataloader import default_collate

from lance_prep.errors import UsageError
from lance_prep.train.permutation import IndexArray

Labels = Literal["same", "shifted"] | None

#: The label that losses skip.
IGNORE = -100


@dataclass(frozen=True)
class SampleOptions:
    """What a sample consists of. Validates itself.

    Args:
        labels: "same" (equal to input_ids: the model shifts, as in Hugging Face), "shifted" (the next token), or None.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: counted from the start of the document, or of the sample where the document began before it.
        document_ids: which document of the sample a token is of, from 0; -1 for padding.
        mask_boundaries: no label on a document's first token: nothing predicts it.
        eos_id: what ends a document; None where the tokenizer has none.
        pad_id: what padding holds.

    Raises:
        UsageError: another `labels`, or boundaries asked for and no EOS.
    """

    labels: Labels = "same"
    attention_mask: bool = False
    position_ids: bool = False
    document_ids: bool = False
    mask_boundaries: bool = False
    eos_id: int | None = None
    pad_id: int = 0

    @property
    def plain(self) -> bool:
        """Nothing but `input_ids` and perhaps equal labels."""
        rest = (self.attention_mask, self.position_ids, self.document_ids, self.mask_boundaries)
        return self.labels != "shifted" and not any(rest)

    def __post_init__(self) -> None:
        if self.labels not in ("same", "shifted", None):
            raise UsageError(f"labels={self.labels!r}", "labels is 'same', 'shifted' or None")
        if self.mask_boundaries and self.labels is None:
            raise UsageError("mask_boundaries=True and labels=None", "boundaries are masked in labels: ask for those")


class Sample(dict[str, Any]):
    """One sample: a dict of int64 tensors `[length]` (and of kept columns), with what collating needs to know."""

    __slots__ = ("options", "valid")

    def __init__(self, values: dict[str, Any], options: SampleOptions, valid: int) -> None:
        super().__init__(values)
        self.options = options
        self.valid = valid

    def __reduce__(self) -> tuple[Any, ...]:
        return Sample, (dict(self), self.options, self.valid)


class Batch(Sequence[Sample]):
    """Samples that were read together.

    Args:
        tensors: int64, by name: `[samples, block_size]`, or flat `[tokens]` where `offsets` is given.
        lists: values of kept columns, by name, one a sample.
        count: samples.
        options: what the samples consist of.
        valid: int64 `[samples]`, tokens of each that are not padding; None where nothing is padded.
        offsets: int64 `[samples + 1]`, where each sample begins, where their lengths differ.

    As a sequence it holds samples, whose tensors are views; `batch["input_ids"]` is the tensor of all.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        lists: dict[str, list[Any]],
        count: int,
        options: SampleOptions,
        *,
        valid: IndexArray | None = None,
        offsets: IndexArray | None = None,
    ) -> None:
        self._tensors, self.lists, self.options = tensors, lists, options
        self.valid, self.offsets = valid, offsets
        self._count = count

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of all samples, by name."""
        return self._tensors

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, key: int) -> Sample: ...
    @overload
    def __getitem__(self, key: slice) -> Batch: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            return self.lists[key] if key in self.lists else self.tensors[key]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise UsageError(f"a batch cannot be cut in steps of {step}", "slice it in steps of 1")
            return self._cut(start, max(start, stop))
        i = range(self._count)[key]
        return self._sample(i, {k: t[self._span(i)] for k, t in self.tensors.items()})

    def __iter__(self) -> Iterator[Sample]:
        if self.offsets is None:
            rows = {k: t.unbind(0) for k, t in self.tensors.items()}
        else:
            sizes = np.diff(self.offsets).tolist()
            rows = {k: torch.split(t, sizes) for k, t in self.tensors.items()}
        for i in range(len(self)):
            yield self._sample(i, {k: r[i] for k, r in rows.items()})

    def _span(self, i: int) -> int | slice:
        return i if self.offsets is None else slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def _sample(self, i: int, tensors: dict[str, Any]) -> Sample:
        whole = len(tensors["input_ids"]) if tensors else 0
        valid = whole if self.valid is None else int(self.valid[i])
        return Sample(tensors | {k: v[i] for k, v in self.lists.items()}, self.options, valid)

    def _cut(self, start: int, stop: int) -> Batch:
        lists = {k: v[start:stop] for k, v in self.lists.items()}
        valid = None if self.valid is None else self.valid[start:stop]
        offsets, span = None, slice(start, stop)
        if self.offsets is not None:
            span = slice(int(self.offsets[start]), int(self.offsets[stop]))
            offsets = self.offsets[start : stop + 1] - self.offsets[start]
        tensors = {k: t[span] for k, t in self.tensors.items()}
        return Batch(tensors, lists, stop - start, self.options, valid=valid, offsets=offsets)

    def collated(self) -> dict[str, Any]:
        """The batch as one dict of tensors, and of lists for kept columns: no copy.

        Raises:
            UsageError: the samples' lengths differ.
        """
        if self.offsets is not None:
            raise UsageError(
                "the samples of a ragged dataset differ in length",
                "pass collate_fn=pad_collate or varlen_collate, or give the dataset a block_size",
            )
        return {**self.tensors, **self.lists}


class CompactBatch(Batch):
    """A batch of whole samples with no padding, which becomes int64 when it is looked at: parts of it first, if cut.

    Args:
        tokens: uint16 or uint32 `[samples, block_size]`.
        options: what the samples consist of; plain ones only.

    Of the 24 M tokens a second that a `take` of thousands of rows gives, half of the time went into page faults of
    int64 that was written once, read once and freed.
    """

    def __init__(self, tokens: npt.NDArray[Any], options: SampleOptions) -> None:
        super().__init__({}, {}, len(tokens), options)
        self._tokens = tokens

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        if not self._tensors:
            self._tensors.update(plain_tensors(self._tokens.astype(np.int64), self.options))
        return self._tensors

    def _cut(self, start: int, stop: int) -> Batch:
        if self._tensors:
            return super()._cut(start, stop)
        return CompactBatch(self._tokens[start:stop], self.options)


def plain_tensors(ids: IndexArray, options: SampleOptions) -> dict[str, torch.Tensor]:
    """`input_ids`, and equal labels where they are asked for; int64 `[samples, block_size]`."""
    tensors = {"input_ids": torch.from_numpy(ids)}
    if options.labels is not None:
        tensors["labels"] = torch.from_numpy(ids.copy())
    return tensors


def _collate_samples(batch: Any, *, collate_fn_map: Any = None) -> dict[str, Any]:
    if isinstance(batch, Batch):
        return batch.collated()
    collated: dict[str, Any] = default_collate([dict(sample) for sample in batch])
    return collated


default_collate_fn_map[Sample] = _collate_samples


def annotate(
    ids: torch.Tensor,
    starts: IndexArray,
    options: SampleOptions,
    *,
    valid: IndexArray | None = None,
    following: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Everything asked for beside `input_ids`, for samples laid end to end.

    Args:
        ids: int64 `[tokens]`.
        starts: int64 `[samples + 1]`, where each begins in `ids`.
        options: what to make.
        valid: int64 `[samples]`, tokens of each sample before its padding; None where there is none.
        following: int64 `[samples]`, the token after each sample's last, `IGNORE` where there is none.

    Returns:
        int64 `[tokens]` each: `input_ids`, and what `options` asks for.
    """
    out = {"input_ids": ids}
    lengths = np.diff(starts)
    valid = lengths if valid is None else valid
    padding = _padding(starts, lengths, valid)
    after_eos = _after_eos(ids, starts, options) if options.mask_boundaries or _wants_documents(options) else None
    if options.labels == "same":
        labels = ids.clone()
        if after_eos is not None and options.mask_boundaries:
            labels[after_eos] = IGNORE
        if padding is not None:
            labels[padding] = IGNORE
        out["labels"] = labels
    elif options.labels == "shifted":
        out["labels"] = _shifted(ids, starts, options, valid, padding, following)
    if options.attention_mask:
        mask = torch.ones_like(ids)
        if padding is not None:
            mask[padding] = 0
        out["attention_mask"] = mask
    if after_eos is not None and _wants_documents(options):
        out |= _documents(after_eos, starts, lengths, options, padding)
    return out


def _wants_documents(options: SampleOptions) -> bool:
    return options.position_ids or options.document_ids


def _padding(starts: IndexArray, lengths: IndexArray, valid: IndexArray) -> torch.Tensor | None:
    """Where in the flat samples padding is, or None."""
    missing = lengths - valid
    if not missing.any():
        return None
    which = np.flatnonzero(missing)
    runs = [np.arange(starts[i] + valid[i], starts[i + 1]) for i in which.tolist()]
    return torch.from_numpy(np.concatenate(runs))


def _after_eos(ids: torch.Tensor, starts: IndexArray, options: SampleOptions) -> torch.Tensor:
    """bool `[tokens]`: the token before, in the same sample, ends a document."""
    after = torch.zeros(ids.shape, dtype=torch.bool)
    if options.eos_id is not None and len(ids):
        after[1:] = ids[:-1] == options.eos_id
        first = torch.from_numpy(starts[:-1][np.diff(starts) > 0])
        after[first] = False
    return after


def _shifted(
    ids: torch.Tensor,
    starts: IndexArray,
    options: SampleOptions,
    valid: IndexArray,
    padding: torch.Tensor | None,
    following: torch.Tensor | None,
) -> torch.Tensor:
    labels = torch.full_like(ids, IGNORE)
    if not len(ids):
        return labels
    labels[:-1] = ids[1:]
    if padding is not None:
        labels[padding] = IGNORE
    # Last real token of each sample: what follows it lies outside, or nowhere.
    some = valid > 0
    last = torch.from_numpy((starts[:-1] + valid - 1)[some])
    labels[last] = IGNORE if following is None else following[torch.from_numpy(some)]
    if options.mask_boundaries and options.eos_id is not None:
        labels[ids == options.eos_id] = IGNORE
    return labels


def _documents(
    after_eos: torch.Tensor,
    starts: IndexArray,
    lengths: IndexArray,
    options: SampleOptions,
    padding: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    begins = after_eos.clone()
    begins[torch.from_numpy(starts[:-1][lengths > 0])] = True
    if options.position_ids:
        place = torch.arange(len(begins))
        positions = place - torch.where(begins, place, 0).cummax(0).values if len(begins) else place
        if padding is not None:
            positions[padding] = 0
        out["position_ids"] = positions
    if options.document_ids:
        count = after_eos.to(torch.int64).cumsum(0)
        base = count[torch.from_numpy(np.minimum(starts[:-1], max(len(count) - 1, 0)))] if len(count) else count
        documents = count - base.repeat_interleave(torch.from_numpy(lengths)) if len(count) else count
        if padding is not None:
            documents[padding] = -1
        out["document_ids"] = documents
    return out
