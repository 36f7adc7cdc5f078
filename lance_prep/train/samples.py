"""Samples, and batches that hold the tensors of all their samples.

torch's DataLoader asks a dataset for a batch and then stacks it sample by sample. For 8 samples of 1,024 tokens that
takes 40 us, four times as long as reading them. A `Batch` is a sequence of samples, whose tensors are views. It is
registered with torch's `default_collate`, which returns its tensors as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.data.dataloader import default_collate

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.train.tokens import ragged_arange

Mask = npt.NDArray[np.bool_]
Labels = Literal["same", "shifted", "assistant", "assistant-shifted"] | None

MASK_AND_POSITIONS = (
    "attention_mask and position_ids cannot be combined for packed samples: transformers separates packed documents by "
    "position_ids only without an attention_mask",
    "remove attention_mask: labels are -100 on padding anyway",
)


@dataclass(frozen=True)
class SampleOptions:
    """What a sample consists of. Validates itself.

    Args:
        labels: "same" (equal to input_ids: the model shifts, as in Hugging Face), "shifted" (the next token), or None.
            "assistant" and "assistant-shifted": the same, and -100 for all tokens but those that the assistant of a
            conversation wrote.
        attention_mask: 1 for tokens, 0 for padding. Cannot be combined with `position_ids` if samples are packed.
        position_ids: position in the document, or in the sample if the document began before it. Padding counts from 0.
        document_ids: number of the token's document in the sample, from 0; -1 for padding.
        mask_boundaries: -100 as the label of a document's first token, which the document before does not predict.
        eos_id: the token that joins rows into a stream; None if the tokenizer has none. It does not mark documents.
        pad_id: the token of padding.
        packed: a sample holds several documents.

    Raises:
        UsageError: `labels` is invalid, or `mask_boundaries` is set without labels.
    """

    labels: Labels = "same"
    attention_mask: bool = False
    position_ids: bool = False
    document_ids: bool = False
    mask_boundaries: bool = False
    eos_id: int | None = None
    pad_id: int = 0
    packed: bool = False

    def of_packed_samples(self) -> SampleOptions:
        """Return these options for samples that hold several documents each.

        Raises:
            UsageError: `attention_mask` and `position_ids` are both set.
        """
        if self.attention_mask and self.position_ids:
            raise UsageError(*MASK_AND_POSITIONS)
        return replace(self, packed=True)

    @property
    def plain(self) -> bool:
        """Whether a sample has only `input_ids` and perhaps equal labels."""
        rest = (self.attention_mask, self.position_ids, self.document_ids, self.mask_boundaries)
        return self.labels in ("same", None) and not any(rest)

    @property
    def shifted(self) -> bool:
        """Whether a label is the token after its own."""
        return self.labels in ("shifted", "assistant-shifted")

    @property
    def masked(self) -> bool:
        """Whether only what the assistant of a conversation wrote is learned."""
        return self.labels in ("assistant", "assistant-shifted")

    def __post_init__(self) -> None:
        if self.labels not in ("same", "shifted", "assistant", "assistant-shifted", None):
            raise UsageError(
                f"invalid labels {self.labels!r}", "use 'same', 'shifted', 'assistant', 'assistant-shifted' or None"
            )
        if self.mask_boundaries and self.labels is None:
            raise UsageError("mask_boundaries=True has no effect with labels=None", "use labels='same' or 'shifted'")


@dataclass(frozen=True)
class Documents:
    """The documents, or parts of documents, in samples.

    Attributes:
        counts: int64 `[samples]`, the number of documents in each.
        lengths: int64 `[sum(counts)]`, tokens of each document.
    """

    counts: Indices
    lengths: Indices

    def slice(self, start: int, stop: int) -> Documents:
        """Return the documents of the samples `start` to `stop`."""
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        return Documents(self.counts[start:stop], self.lengths[first:last])

    @staticmethod
    def merged(parts: Sequence[Documents], wheres: Sequence[Indices], count: int) -> Documents:
        """Return the documents of `count` samples, where `parts[i]` holds those of the samples `wheres[i]`."""
        counts = np.zeros(count, np.int64)
        for part, where in zip(parts, wheres, strict=True):
            counts[where] = part.counts
        starts = np.cumsum(counts) - counts
        lengths = np.empty(int(counts.sum()), np.int64)
        for part, where in zip(parts, wheres, strict=True):
            lengths[np.repeat(starts[where], part.counts) + ragged_arange(part.counts)] = part.lengths
        return Documents(counts, lengths)


FindDocuments = Callable[[], Documents]


class Sample(dict[str, Any]):
    """One sample: a dict of int64 tensors `[length]` (and of kept columns), with what collating needs to know."""

    __slots__ = ("_find", "options", "valid")

    def __init__(self, values: dict[str, Any], options: SampleOptions, valid: int, find: FindDocuments) -> None:
        super().__init__(values)
        self.options = options
        self.valid = valid
        self._find = find

    @property
    def documents(self) -> Documents:
        """The documents in the sample, looked up at each use."""
        return self._find()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sample, (dict(self), self.options, self.valid, Lookup(None, self.documents))


class Lookup:
    """Documents that are looked up once, at first use or when pickled."""

    __slots__ = ("_documents", "_find")

    def __init__(self, find: FindDocuments | None, documents: Documents | None = None) -> None:
        self._find, self._documents = find, documents

    def __call__(self) -> Documents:
        if self._documents is None:
            assert self._find is not None
            self._documents = self._find()
        return self._documents

    def __reduce__(self) -> tuple[Any, ...]:
        return Lookup, (None, self())


def no_documents() -> Documents:
    """Return the documents of raw records, which hold no tokens."""
    return Documents(np.empty(0, np.int64), np.empty(0, np.int64))


def _sliced(find: FindDocuments, start: int, stop: int) -> Documents:
    return find().slice(start, stop)


class Batch(Sequence[Sample]):
    """Samples that were read together.

    Args:
        tensors: int64, by name: `[samples, block_size]`, or flat `[tokens]` if `offsets` is given.
        lists: values of kept columns, by name, one per sample.
        count: number of samples.
        options: what the samples consist of.
        valid: int64 `[samples]`, tokens of each that are not padding; None if none is padded.
        offsets: int64 `[samples + 1]`, where each sample begins; None if all have the same length.
        find: looks up the documents in the samples. Left out for raw records.

    As a sequence it holds samples, whose tensors are views; `batch["input_ids"]` is the tensor of all.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        lists: dict[str, list[Any]],
        count: int,
        options: SampleOptions,
        *,
        valid: Indices | None = None,
        offsets: Indices | None = None,
        find: FindDocuments = no_documents,
    ) -> None:
        self._find = Lookup(find)
        self._tensors, self._lists, self.options = tensors, lists, options
        self.valid, self.offsets = valid, offsets
        self._count = count

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of all samples, by name."""
        return self._tensors

    @property
    def lists(self) -> dict[str, list[Any]]:
        """The values of kept columns, by name."""
        return self._lists

    @property
    def documents(self) -> Documents:
        """The documents in each sample, without padding, looked up at first use."""
        return self._find()

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
                raise UsageError(f"a batch cannot be sliced in steps of {step}", "use a step of 1")
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
        find = partial(_sliced, self._find, i, i + 1)
        return Sample(tensors | {k: v[i] for k, v in self.lists.items()}, self.options, valid, find)

    def _cut(self, start: int, stop: int) -> Batch:
        lists = {k: v[start:stop] for k, v in self.lists.items()}
        valid = None if self.valid is None else self.valid[start:stop]
        offsets, span = None, slice(start, stop)
        if self.offsets is not None:
            span = slice(int(self.offsets[start]), int(self.offsets[stop]))
            offsets = self.offsets[start : stop + 1] - self.offsets[start]
        tensors = {k: t[span] for k, t in self.tensors.items()}
        find = partial(_sliced, self._find, start, stop)
        return Batch(tensors, lists, stop - start, self.options, valid=valid, offsets=offsets, find=find)

    def collated(self) -> dict[str, Any]:
        """Return the batch as one dict of tensors and, for kept columns, lists. Nothing is copied.

        Raises:
            UsageError: the samples' lengths differ.
        """
        if self.offsets is not None:
            raise UsageError(
                "samples of different lengths cannot be collated into one tensor",
                "pass collate_fn=pad_collate or varlen_collate, or open the dataset with a block_size",
            )
        return {**self.tensors, **self.lists}


class CompactBatch(Batch):
    """A batch of full samples that is converted to int64 at first use, after it was split.

    Args:
        tokens: uint16 or uint32 `[samples, block_size]`.
        options: what the samples consist of. They must be plain.

    A `take` of thousands of rows reads 24 Mtok/s if it converts all of them at once: half of the time goes into page
    faults of int64 memory that is written once, read once and freed.
    """

    def __init__(self, tokens: npt.NDArray[Any], options: SampleOptions, find: FindDocuments) -> None:
        super().__init__({}, {}, len(tokens), options, find=find)
        self._tokens = tokens

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        if not self._tensors:
            self._tensors.update(plain_tensors(self._tokens.astype(np.int64), self.options))
        return self._tensors

    def _cut(self, start: int, stop: int) -> Batch:
        if self._tensors:
            return super()._cut(start, stop)
        return CompactBatch(self._tokens[start:stop], self.options, partial(_sliced, self._find, start, stop))


def plain_tensors(ids: Indices, options: SampleOptions) -> dict[str, torch.Tensor]:
    """Return `input_ids` and, if asked for, equal labels: int64 `[samples, block_size]`."""
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
