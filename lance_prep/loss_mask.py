"""The column `loss_mask`: which tokens of a row are learned, as lengths of runs.

A row's list alternates between the number of tokens that are not learned and the number of those that are. A last run
that is not learned is left out, so a row without learned tokens has an empty list. A run longer than 65,535 tokens is
written as 65,535, 0 and the rest, so the type is always `list<uint16>`. A conversation of four turns takes 8 bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.keyed import Indices

#: Enclose the learned parts of a text. Noncharacters, which Unicode reserves for marks inside a program.
LEARN, END_LEARN = "\U0010fffe", "\U0010ffff"

MASK_COLUMN = "loss_mask"
MASK_TYPE = pa.list_(pa.uint16())

_LONGEST = np.iinfo(np.uint16).max


def mask_to_runs(mask: npt.NDArray[np.bool_], offsets: Indices) -> pa.ListArray:
    """Return the column for rows whose tokens are laid end to end.

    Args:
        mask: bool `[tokens]`, whether a token is learned.
        offsets: int64 `[rows + 1]`, where each row begins in `mask`; the first is 0.
    """
    before = np.zeros(len(mask) + 1, np.bool_)
    before[1:] = mask
    before[offsets] = False  # a run ends with its row
    starts = np.flatnonzero(mask & ~before[:-1])
    after = np.zeros(len(mask) + 1, np.bool_)
    after[:-1] = mask
    after[offsets] = False
    stops = np.flatnonzero(mask & ~after[1:]) + 1
    rows = np.searchsorted(offsets, starts, "right") - 1
    # The run before a learned one begins where the last learned run of the row ended, or where the row begins.
    since = np.concatenate([np.zeros(1, np.int64), stops[:-1]])[: len(starts)]
    gaps = starts - np.maximum(since, offsets[rows])
    lengths = np.stack([gaps, stops - starts], axis=1).reshape(-1)
    counts = 2 * np.bincount(rows, minlength=len(offsets) - 1)
    if len(lengths) and int(lengths.max()) > _LONGEST:
        lengths, counts = _split(lengths, counts)
    bounds = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    return pa.ListArray.from_arrays(pa.array(bounds), pa.array(lengths.astype(np.uint16)))


def _split(lengths: Indices, counts: Indices) -> tuple[Indices, Indices]:
    """Write each long run as 65,535, 0, 65,535, 0, ... and the rest."""
    times = np.maximum(lengths - 1, 0) // _LONGEST
    ends = np.cumsum(1 + 2 * times)
    split = np.zeros(int(ends[-1]), np.int64)
    split[ends - 1] = lengths - times * _LONGEST
    long = np.flatnonzero(times)
    for i in long.tolist():
        split[int(ends[i]) - 1 - 2 * int(times[i]) : int(ends[i]) - 1 : 2] = _LONGEST
    rows = np.repeat(np.arange(len(counts)), counts)
    return split, counts + np.bincount(rows, weights=2 * times, minlength=len(counts)).astype(np.int64)


def runs_to_spans(values: npt.NDArray[np.integer], bounds: Indices) -> tuple[Indices, Indices, Indices]:
    """Return the runs of learned tokens: where each starts and stops in its row, and where each row's runs begin.

    Args:
        values: the column's values, row after row.
        bounds: int64 `[rows + 1]`, where each row begins in `values`.

    Returns:
        `starts` and `stops` `[runs]`, and `offsets` `[rows + 1]`. A run may be empty, or begin where another ends.

    Raises:
        ValueError: a row has an odd number of values.
    """
    counts = np.diff(bounds)
    if (counts % 2).any():
        raise ValueError("a row has an odd number of runs")
    edges = np.cumsum(values, dtype=np.int64)
    base = np.concatenate([np.zeros(1, np.int64), edges])[bounds[:-1]]
    edges -= np.repeat(base, counts)
    return edges[0::2], edges[1::2], bounds // 2
