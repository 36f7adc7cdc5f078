"""Texts before they are encoded: lines, blanks and nulls. On Arrow buffers, no Python object per text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.layout.base import Indices

NEWLINE = 10


def offsets_of(texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    """int64 `[n + 1]`, offsets into the array's data buffer."""
    buffer = texts.buffers()[1]
    return np.frombuffer(buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]


def bytes_of(texts: pa.LargeStringArray) -> npt.NDArray[np.uint8]:
    """uint8, the array's data buffer, whole: index it with `offsets_of`."""
    data = texts.buffers()[2]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def without_nulls(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Nulls as empty texts."""
    return texts.fill_null("") if texts.null_count else texts


def split_lines(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, Indices]:
    r"""Each text split at `\n` as Python's `str.split("\n")` does, and int64 the index of the text of each line."""
    offsets, data = offsets_of(texts), bytes_of(texts)
    # Most corpora of lines hold none: looking costs a tenth of splitting.
    if not np.any(data[offsets[0] : offsets[-1]] == NEWLINE):
        return texts, np.arange(len(texts), dtype=np.int64)
    lists = pc.split_pattern(texts, "\n")
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return lists.flatten(), np.repeat(np.arange(len(texts), dtype=np.int64), lengths)


def count_ended(texts: pa.LargeStringArray) -> int:
    r"""Return how many texts end with `\n`. It ends their last line, and `split_lines` puts an empty one after it."""
    offsets, data = offsets_of(texts), bytes_of(texts)
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    return int(np.count_nonzero(data[offsets[1:][filled] - 1] == NEWLINE))


def drop_blank(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, Indices]:
    """The texts that hold more than white space, and int64 their indices."""
    offsets = offsets_of(texts)
    empty = offsets[1:] == offsets[:-1]
    data = bytes_of(texts)
    # A text whose first byte is a visible ASCII character is not blank: only the others are looked at whole.
    first = data[np.minimum(offsets[:-1], len(data) - 1)] if len(data) else np.zeros(len(texts), np.uint8)
    unsure = np.flatnonzero(((first <= 0x20) | (first >= 0x7F)) & ~empty)
    blank = empty
    if len(unsure):
        blank = empty.copy()
        blank[unsure] = pc.utf8_is_space(texts.take(pa.array(unsure))).to_numpy(zero_copy_only=False)
    if not blank.any():
        return texts, np.arange(len(texts), dtype=np.int64)
    kept = np.flatnonzero(~blank)
    return texts.take(pa.array(kept)), kept
