"""Views map sample indices to rows and their tokens, and make a `Batch` of these.

A sample is a block, a piece of the stream of all rows, a row, or a raw record. Views read through any `TokenSource`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.store import IGNORE
from lance_prep.train.access import Reader
from lance_prep.train.annotate import annotate
from lance_prep.train.lance_reads import Facts
from lance_prep.train.samples import (
    Batch,
    CompactBatch,
    Documents,
    FindDocuments,
    SampleOptions,
    plain_tensors,
)
from lance_prep.train.sources import Mask
from lance_prep.train.tokens import Tokens, TokenSource, ragged_arange

#: Returns columns at sorted rows, as a table.
TakeColumns = Callable[[Indices, list[str]], Any]

#: Larger batches are always split before use, so their conversion to int64 is deferred.
_MANY = 1024


class View(Protocol):
    """Samples by index. A view does not change, so threads may share one."""

    def __len__(self) -> int: ...

    def read(self, indices: Indices, padding: Mask | None) -> Batch:
        """Return the samples at indices in 0..len-1, in any order. Those marked in `padding` are all padding."""

    def row_of(self, indices: Indices) -> Indices:
        """Return the live row of the dataset in which each sample begins."""


def fixed_batch(
    tokens: Tokens | Indices,
    size: int,
    options: SampleOptions,
    find: FindDocuments,
    *,
    valid: Indices | None,
    following: Indices | None = None,
    learned: Mask | None = None,
) -> Batch:
    """Make a batch of samples of `size` tokens from `[samples, size or more]` tokens."""
    count = len(tokens)
    if valid is not None and not (valid < size).any():
        valid = None
    if valid is None and options.plain and count > _MANY and tokens.dtype != np.int64:
        return CompactBatch(tokens[:, :size], options, find)
    # Convert each batch once, by numpy. From 32 K elements torch uses two threads. If another process needs the second
    # core, they wait for each other: 8 Mtok/s instead of 600 were measured.
    ids = tokens[:, :size].astype(np.int64, copy=False)
    if valid is None and options.plain:  # 8 samples are read in 20 us, which the code below would double
        return Batch(plain_tensors(ids, options), {}, count, options, find=find)
    starts = np.arange(0, (count + 1) * size, size, dtype=np.int64)
    flat = annotate(ids.reshape(-1), starts, options, find, valid=valid, following=following, learned=learned)
    return Batch({k: v.view(count, size) for k, v in flat.items()}, {}, count, options, valid=valid, find=find)


class _RowSamples:
    """A row is a sample."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return self._reader.rows

    def row_of(self, indices: Indices) -> Indices:
        return self._reader.live(indices)


class BlockView(_RowSamples):
    """`blocks`: a row is a sample."""

    def __init__(self, reader: Reader, source: TokenSource, options: SampleOptions, block_size: int) -> None:
        super().__init__(reader)
        assert reader.index is not None
        assert reader.index.pieces is not None
        self._source, self._size = source, block_size
        self._options = options.of_packed_samples()
        self._pieces = reader.index.pieces
        self._learned = reader.learned
        self._short = reader.index.short
        # Append a sentinel so that a lookup past the last entry finds nothing.
        self._short_or_none = np.append(self._short, -1)
        self._short_tokens = np.append(reader.index.short_tokens, block_size)

    def read(self, indices: Indices, padding: Mask | None) -> Batch:
        rows = self._reader.live(indices)
        size = self._size
        tokens = self._source.blocks(rows, size)
        valid = self._valid(rows)
        if padding is not None:
            tokens[padding] = self._options.pad_id
            valid = np.where(padding, 0, size if valid is None else valid)
        learned = None
        if self._learned is not None:
            learned = self._learned.bits(rows, np.zeros(len(rows), np.int64), np.full(len(rows), size))
        find = partial(self._documents, rows, padding)
        return fixed_batch(tokens, size, self._options, find, valid=valid, learned=learned)

    def _documents(self, rows: Indices, padding: Mask | None) -> Documents:
        if padding is None:
            return Documents(*self._pieces.of(rows))
        counts = np.zeros(len(rows), np.int64)
        counts[~padding], lengths = self._pieces.of(rows[~padding])
        return Documents(counts, lengths)

    def _valid(self, rows: Indices) -> Indices | None:
        """Return the real tokens of each row, or None if all are full. Only the last row of a shard can be short."""
        if not self._short.size:
            return None
        at = self._short.searchsorted(rows)
        found = self._short_or_none[at] == rows
        return np.where(found, self._short_tokens[at], self._size) if found.any() else None


class StreamView:
    """`lines` or `documents` with a `block_size`: rows, each followed by EOS, as one stream cut into blocks.

    The last block is padded. Two binary searches in the rows' offsets find a sample.
    """

    def __init__(self, reader: Reader, source: TokenSource, options: SampleOptions, block_size: int) -> None:
        assert reader.index is not None
        assert reader.index.offsets is not None
        assert options.eos_id is not None
        self._reader, self._source, self._size = reader, source, block_size
        self._options = options.of_packed_samples()
        self._eos = options.eos_id
        self._offsets = reader.index.offsets
        if reader.chosen is not None:
            lengths = self._offsets[reader.chosen + 1] - self._offsets[reader.chosen]
            self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._total = int(self._offsets[-1])
        self._tokens = self._total - reader.rows

    def __len__(self) -> int:
        return -(-self._total // self._size)

    def row_of(self, indices: Indices) -> Indices:
        return self._reader.live(np.searchsorted(self._offsets, indices * self._size, side="right") - 1)

    def read(self, indices: Indices, padding: Mask | None) -> Batch:
        size = self._size
        starts = indices * size
        # The label of the last token is the first one of the next sample: read one more.
        length = size + self._options.shifted
        if self._source.contiguous and self._reader.chosen is None and self._tokens:
            tokens = self._by_windows(starts, length)
        else:
            tokens = self._by_pieces(starts, length)
        valid = None
        if padding is not None or (len(starts) and int(starts.max()) + size > self._total):
            valid = np.minimum(self._total - starts, size)
            if padding is not None:
                valid[padding] = 0
            tokens[np.arange(length) >= np.where(valid < size, valid, length)[:, None]] = self._options.pad_id
        following = None
        if length > size:
            following = np.where(starts + size < self._total, tokens[:, size].astype(np.int64), IGNORE)
        learned = None
        if self._reader.learned is not None:
            bits = self._bits(starts, length)
            if following is not None:
                following = np.where(bits[:, size], following, IGNORE)
            learned = np.ascontiguousarray(bits[:, :size]).reshape(-1)
        find = partial(self._documents, starts, padding)
        return fixed_batch(tokens, size, self._options, find, valid=valid, following=following, learned=learned)

    def _bits(self, starts: Indices, length: int) -> Mask:
        """Return whether each token of the samples is learned: `[len(starts), length]`. The EOS between rows is not."""
        assert self._reader.learned is not None
        rows, begin, lengths, place = self._pieces_of(starts, length)
        bits = self._reader.learned.bits(self._reader.live(rows), begin, lengths)
        out = np.zeros(len(starts) * length, np.bool_)
        out[np.repeat(place, lengths) + ragged_arange(lengths)] = bits
        return out.reshape(-1, length)

    def _documents(self, starts: Indices, padding: Mask | None) -> Documents:
        """Return the documents of samples: the rows of the stream, each with the EOS that follows it."""
        stops = np.minimum(starts + self._size, self._total)
        if padding is not None:
            stops = np.where(padding, starts, stops)
        first = np.searchsorted(self._offsets, starts, side="right") - 1
        counts = np.searchsorted(self._offsets, stops, side="left") - first
        counts[stops <= starts] = 0
        rows = np.repeat(first, counts) + ragged_arange(counts)
        begin = np.maximum(self._offsets[rows], np.repeat(starts, counts))
        return Documents(counts, np.minimum(self._offsets[rows + 1], np.repeat(stops, counts)) - begin)

    def _by_windows(self, starts: Indices, length: int) -> Tokens:
        """Read samples from a flat column of unfiltered rows: copy each sample's tokens, then insert EOS between rows.

        Reads 360 Mtok/s at 64 samples of 17 rows each. `_by_pieces`, with one index per token, reads 170.
        """
        offsets, count = self._offsets, len(starts)
        first = np.searchsorted(offsets, starts, side="right") - 1
        ends = np.searchsorted(offsets, starts + length, side="right") - 1 - first  # EOS in each sample
        compact = self._source.windows(np.minimum(starts - first, self._tokens - 1), length)
        most = int(ends.max()) if count else 0
        if most == 0:
            return compact
        # Give each sample room for `length` tokens and its EOS, then cut it to `length`.
        width = length + most
        rows = np.repeat(first, ends) + ragged_arange(ends)
        eos = offsets[rows + 1] - 1 + np.repeat(np.arange(count) * width - starts, ends)
        keep = np.ones(count * width, np.bool_)
        keep[eos] = False
        grid = keep.reshape(count, width)
        grid[:, length:] = np.arange(most) < ends[:, None]
        out = np.empty((count, width), compact.dtype)
        out[grid] = compact.reshape(-1)
        out.reshape(-1)[eos] = self._eos
        return out[:, :length]

    def _by_pieces(self, starts: Indices, length: int) -> Tokens:
        """Read samples from any source: copy each piece of a row to its place. The places between are EOS."""
        count = len(starts)
        rows, begin, lengths, place = self._pieces_of(starts, length)
        tokens = self._source.pieces(self._reader.live(rows), begin, lengths)
        out = np.full(count * length, self._eos, tokens.dtype)
        out[np.repeat(place, lengths) + ragged_arange(lengths)] = tokens
        return out.reshape(count, length)

    def _pieces_of(self, starts: Indices, length: int) -> tuple[Indices, Indices, Indices, Indices]:
        """Return the pieces of rows in samples: row, first token, tokens, and place in the samples laid end to end."""
        offsets = self._offsets
        first = np.searchsorted(offsets, starts, side="right") - 1
        stop = np.minimum(np.searchsorted(offsets, starts + length, side="left"), len(offsets) - 1)
        pieces = np.maximum(stop - first, 0)
        rows = np.repeat(first, pieces) + ragged_arange(pieces)
        start = np.repeat(starts, pieces)
        begin = np.maximum(offsets[rows], start)
        lengths = np.maximum(np.minimum(offsets[rows + 1] - 1, start + length) - begin, 0)
        place = np.repeat(np.arange(len(starts)) * length, pieces) + begin - start
        return rows, begin - offsets[rows], lengths, place


class RowView(_RowSamples):
    """`lines` or `documents` without a `block_size`: a row is a sample, of its own length."""

    def __init__(self, reader: Reader, source: TokenSource, options: SampleOptions) -> None:
        super().__init__(reader)
        assert reader.index is not None
        assert reader.index.offsets is not None
        self._source, self._options = source, options
        self._offsets = reader.index.offsets

    def read(self, indices: Indices, padding: Mask | None) -> Batch:
        rows = self._reader.live(indices)
        lengths = self._offsets[rows + 1] - self._offsets[rows] - 1
        if padding is not None:
            lengths = np.where(padding, 0, lengths)
        begins = np.zeros(len(rows), np.int64)
        tokens = self._source.pieces(rows, begins, lengths)
        learned = self._reader.learned.bits(rows, begins, lengths) if self._reader.learned is not None else None
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        find = partial(_whole_rows, lengths)
        flat = annotate(tokens.astype(np.int64), starts, self._options, find, learned=learned)
        return Batch(flat, {}, len(rows), self._options, valid=lengths, offsets=starts, find=find)


def _whole_rows(lengths: Indices) -> Documents:
    """Return the documents of whole rows: one each, or none if the row is empty."""
    return Documents((lengths > 0).astype(np.int64), lengths[lengths > 0])


class RecordView(_RowSamples):
    """`raw`: a row is a sample, a dict of its columns' Python values."""

    def __init__(self, reader: Reader, take: TakeColumns, options: SampleOptions, columns: list[str]) -> None:
        super().__init__(reader)
        self._take, self._options, self._columns = take, options, columns

    def read(self, indices: Indices, padding: Mask | None) -> Batch:
        if padding is not None:
            raise UsageError("a raw record cannot be padding", "use tail='drop' or 'repeat'")
        lists = read_columns(self._take, self._reader.live(indices), self._columns)
        return Batch({}, lists, len(indices), self._options)


@dataclass(frozen=True)
class ViewOptions:
    """What the samples of a dataset are to be. `LanceDataset` describes the fields. Validates itself.

    Attributes:
        sample: what each consists of.
        labels_given: whether the caller chose the labels.

    Raises:
        UsageError: `block_size` is below 1.
    """

    sample: SampleOptions
    block_size: int | None
    columns: tuple[str, ...] | None
    labels_given: bool

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise UsageError(f"block_size must be at least 1, got {self.block_size}")


def make_view(options: ViewOptions, facts: Facts, reader: Reader, take: TakeColumns) -> View:
    """Return the view of an open version.

    Raises:
        UsageError: an option contradicts the dataset's layout, or names an unknown column.
    """
    missing = sorted(set(options.columns or ()) - set(facts.columns))
    if missing:
        raise UsageError(f"unknown columns: {', '.join(missing)}", f"use some of: {', '.join(facts.columns)}")
    pad = facts.pad_id if facts.pad_id is not None else facts.eos_id
    sample = replace(options.sample, eos_id=facts.eos_id, pad_id=pad or 0)
    if not LAYOUTS[facts.layout].tokens or reader.tokens is None:
        _check_raw(options)
        return RecordView(reader, take, sample, list(options.columns or facts.columns))
    if LAYOUTS[facts.layout].packed:
        if options.block_size not in (None, facts.block_size):
            raise UsageError(
                f"block_size={options.block_size} differs from the dataset's blocks of {facts.block_size} tokens",
                "remove block_size, or build the dataset with it",
            )
        return BlockView(reader, reader.tokens, sample, facts.block_size or 0)
    if options.block_size is None:
        return RowView(reader, reader.tokens, sample)
    if facts.eos_id is None:
        raise UsageError("the tokenizer has no EOS token to join rows with", "remove block_size, or build blocks")
    if options.columns:
        raise UsageError(
            "columns cannot be combined with block_size: a sample then holds many rows", "remove one of them"
        )
    return StreamView(reader, reader.tokens, sample, options.block_size)


def _check_raw(options: ViewOptions) -> None:
    sample = options.sample
    asked = {
        "block_size": options.block_size is not None,
        f"labels={sample.labels!r}": options.labels_given and sample.labels is not None,
        "attention_mask": sample.attention_mask,
        "position_ids": sample.position_ids,
        "document_ids": sample.document_ids,
        "mask_boundaries": sample.mask_boundaries,
    }
    if wrong := [name for name, given in asked.items() if given]:
        raise UsageError(
            f"{', '.join(wrong)}: not possible with a raw dataset, which has no tokens", "remove these options"
        )


def read_columns(take: TakeColumns, rows: Indices, columns: list[str]) -> dict[str, list[Any]]:
    """Return the values of columns at live rows, in the rows' order, as Python objects."""
    unique, inverse = np.unique(rows, return_inverse=True)
    table = take(unique, columns).take(pa.array(inverse))
    return {name: table[name].to_pylist() for name in columns}
