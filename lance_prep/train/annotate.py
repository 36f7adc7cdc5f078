"""Computes labels, masks, positions and document numbers of samples that are laid end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lance_prep.keyed import Indices
from lance_prep.store import IGNORE
from lance_prep.train.samples import Documents, Mask, SampleOptions
from lance_prep.train.tokens import ragged_arange


def annotate(
    ids: Indices,
    starts: Indices,
    options: SampleOptions,
    documents: Callable[[], Documents],
    *,
    valid: Indices | None = None,
    following: Indices | None = None,
    learned: Mask | None = None,
) -> dict[str, torch.Tensor]:
    """Return `input_ids` and what else was asked for, for samples laid end to end.

    Args:
        ids: int64 `[tokens]`.
        starts: int64 `[samples + 1]`, where each begins in `ids`.
        options: what to return.
        documents: looks up the documents; called only if they are needed.
        valid: int64 `[samples]`, tokens of each sample before its padding; None if none is padded.
        following: int64 `[samples]`, the token after each sample's last, or `IGNORE`.
        learned: bool `[tokens]`, whether each token is learned; None for all.

    Returns:
        int64 `[tokens]` each: `input_ids`, and what `options` selects.
    """
    out = {"input_ids": ids}
    lengths = np.diff(starts)
    valid = lengths if valid is None else valid
    padding = _padding(starts, lengths, valid)
    runs = None
    if options.position_ids or options.document_ids or options.mask_boundaries:
        runs = Runs.of(documents(), lengths, valid)
    if options.labels is not None:
        targets = ids.copy() if learned is None else np.where(learned, ids, IGNORE)
        labels = _shifted(targets, starts, valid, following) if options.shifted else targets
        if padding is not None:
            labels[padding] = IGNORE
        if runs is not None and options.mask_boundaries:
            # "same": the document's first token is not predicted. "shifted": its last token predicts nothing.
            labels[runs.starts + runs.lengths - 1 if options.shifted else runs.starts] = IGNORE
        out["labels"] = labels
    if options.attention_mask:
        mask = np.ones_like(ids)
        if padding is not None:
            mask[padding] = 0
        out["attention_mask"] = mask
    if runs is not None and options.position_ids:
        out["position_ids"] = runs.positions()
    if runs is not None and options.document_ids:
        out["document_ids"] = np.repeat(runs.number, runs.lengths)
    return {name: torch.from_numpy(values) for name, values in out.items()}


@dataclass(frozen=True)
class Runs:
    """The documents of samples laid end to end, and the padding after them.

    Attributes:
        starts, lengths: int64 `[runs]`, where each run of tokens begins, and its number of tokens. Runs cover all.
        number: int64 `[runs]`, the number of the document in its sample; -1 for padding.
    """

    starts: Indices
    lengths: Indices
    number: Indices

    @classmethod
    def of(cls, documents: Documents, sizes: Indices, valid: Indices) -> Runs:
        """Return the runs of samples with `sizes` tokens. Those after the first `valid` are padding."""
        lengths, counts = documents.lengths, documents.counts
        number = ragged_arange(counts)
        missing = sizes - valid
        padded = np.flatnonzero(missing)
        if padded.size:
            ends = np.cumsum(counts)[padded]
            lengths, number = np.insert(lengths, ends, missing[padded]), np.insert(number, ends, -1)
        stops = np.cumsum(lengths)
        return cls(stops - lengths, lengths, number)

    def positions(self) -> Indices:
        """Return the position of each token in its run. Padding counts from 0 too, as one run."""
        return ragged_arange(self.lengths)


def _padding(starts: Indices, lengths: Indices, valid: Indices) -> Indices | None:
    """Return the places of padding in the flat samples, or None."""
    missing = lengths - valid
    if not missing.any():
        return None
    return np.repeat(starts[:-1] + valid, missing) + ragged_arange(missing)


def _shifted(ids: Indices, starts: Indices, valid: Indices, following: Indices | None) -> Indices:
    labels = np.full_like(ids, IGNORE)
    labels[:-1] = ids[1:]
    # The label of each sample's last real token is outside of the sample, or missing.
    some = valid > 0
    labels[(starts[:-1] + valid - 1)[some]] = IGNORE if following is None else following[some]
    return labels
