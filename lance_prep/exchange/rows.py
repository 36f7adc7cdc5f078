"""The rows of a dataset, in batches of a fixed number of rows, however they are cut into fragments."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import DamagedDataset, TokenizerError, UsageError, reading_dataset
from lance_prep.exchange.base import Batches, ExportOptions, Source, Target
from lance_prep.exchange.checks import VERIFY
from lance_prep.layouts import LAYOUTS
from lance_prep.loss_mask import MASK_COLUMN
from lance_prep.store import IGNORE, DatasetVersion, FlatPages, NotFlat, find_flat_pages
from lance_prep.tokenizer import followed_by, real_ids
from lance_prep.transport import is_local

#: Bytes that Lance reads ahead. By default it holds 2 GB.
_READ_AHEAD = 64 << 20


class StoredRows:
    """Rows as they are stored; see `Source`."""

    unit = "row"

    def __init__(self, opened: DatasetVersion) -> None:
        self.opened = opened
        with reading_dataset(opened.uri):
            self.rows: int = opened.dataset.count_rows()
        self.length: int | None = opened.metadata.block_size if LAYOUTS[opened.metadata.layout].packed else None
        self._blocks = None if self.length is None else FlatBlocks.find(opened, self.rows, self.length)

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Batches:
        others = [name for name in columns if name != "input_ids"]
        if self._blocks is None or not others or len(others) == len(columns):
            yield from _regrouped(_scan(self.opened, columns, start, size), size)
            return
        with closing(_regrouped(_scan(self.opened, others, start, size), size)) as batches:
            for batch in batches:
                ids = self._blocks.read(start, start + batch.num_rows)
                yield batch.append_column("input_ids", ids)
                start += batch.num_rows


@dataclass(frozen=True)
class FlatBlocks:
    """Blocks that are stored flat in the files of a local dataset, and are read without Lance.

    Lance decodes 500 Mtok/s of them per core, and holds up to 2 GB. Reading the bytes is eight times faster.

    Attributes:
        uri: of the dataset.
        pages: where the tokens are.
        length: tokens per block.
        dtype: of the tokens.
        ends: int64 `[pages]`, tokens up to the end of each page.
    """

    uri: str
    pages: FlatPages
    length: int
    dtype: np.dtype[Any]
    ends: npt.NDArray[np.int64]

    @classmethod
    def find(cls, opened: DatasetVersion, rows: int, length: int) -> FlatBlocks | None:
        """Return the blocks of a dataset, or None if they have to be read through Lance."""
        if not is_local(opened.uri) or opened.metadata.dtype not in ("uint16", "uint32"):
            return None
        dtype = np.dtype(opened.metadata.dtype).newbyteorder("<")
        with reading_dataset(opened.uri):
            try:
                root, size = Path(opened.uri), dtype.itemsize
                pages = find_flat_pages(opened.dataset, root, itemsize=size, block_size=length)
            except NotFlat:
                return None
            blocks = cls(opened.uri, pages, length, dtype, np.cumsum(pages.count))
            # Lance promises no encoding, so compare some rows with what it reads.
            some = np.unique(np.linspace(0, rows - 1, min(rows, 16)).astype(np.int64)).tolist()
            taken = opened.dataset.take(some, columns=["input_ids"])["input_ids"].combine_chunks() if some else []
            same = pages.count.sum() == rows * length
            same = same and all(blocks.read(row, row + 1)[0] == ids for row, ids in zip(some, taken, strict=True))
        return blocks if same else None

    def read(self, start: int, stop: int) -> pa.FixedSizeListArray:
        """Return blocks.

        Raises:
            DamagedDataset: a file is cut short.
        """
        at, end = start * self.length, stop * self.length
        out, done = np.empty(end - at, self.dtype), 0
        page = int(self.ends.searchsorted(at, side="right"))
        while at < end:
            skip = at - int(self.ends[page] - self.pages.count[page])
            count = min(end, int(self.ends[page])) - at
            path = Path(self.uri) / "data" / self.pages.files[self.pages.file[page]]
            with path.open("rb") as file:
                file.seek(int(self.pages.position[page]) + skip * self.dtype.itemsize)
                if file.readinto(out[done : done + count]) != count * self.dtype.itemsize:
                    raise DamagedDataset(f"{path} is cut short", VERIFY)
            at, done, page = at + count, done + count, page + 1
        return pa.FixedSizeListArray.from_arrays(pa.array(out), self.length)


def _scan(opened: DatasetVersion, columns: Sequence[str], start: int = 0, size: int = 8192) -> Batches:
    """Yield columns from a row on, in order."""
    with reading_dataset(opened.uri):
        scanner = opened.dataset.scanner(
            columns=list(columns),
            offset=start or None,
            batch_size=min(size, 8192),
            io_buffer_size=_READ_AHEAD,
        )
        yield from scanner.to_batches()


def _regrouped(batches: Batches, size: int) -> Batches:
    """Yield the same rows, `size` at a time."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    with closing(batches):
        for batch in batches:
            while count + batch.num_rows >= size:
                waiting.append(batch.slice(0, size - count))
                batch = batch.slice(size - count)
                yield pa.concat_batches(waiting)
                waiting, count = [], 0
            if batch.num_rows:
                waiting.append(batch)
                count += batch.num_rows
    if waiting:
        yield pa.concat_batches(waiting)


class JoinedRows:
    """Rows of different lengths as one stream, each followed by EOS, cut into rows of `length`; see `Source`.

    The last row is padded. These are the samples of `LanceDataset(block_size=length)`.

    Besides `input_ids` and `num_tokens`, batches have `following` (the first token of the next row, or `IGNORE`: the
    label of the row's last token) and, if asked for, `seq_lengths` (the parts of documents in the row).
    """

    unit = "exported row"

    def __init__(self, opened: DatasetVersion, length: int, eos: int, pad: int) -> None:
        self.opened, self._length = opened, length
        self.length: int | None = length
        self._eos, self._pad = eos, pad
        with reading_dataset(opened.uri):
            table = opened.dataset.to_table(columns=["num_tokens"])
        lengths = table["num_tokens"].to_numpy().astype(np.int64)
        #: Where each row begins in the stream.
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 1)])
        self.rows: int = -(-int(self._offsets[-1]) // length)

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Batches:
        first = int(self._offsets.searchsorted(start * self._length, side="right")) - 1
        skip = start * self._length - int(self._offsets[first])
        stream = np.empty(0, np.uint16)
        with closing(self._stream(first)) as parts:
            while start < self.rows:
                waiting, held = [stream[skip:]], len(stream) - skip
                # One token more than the batch: the label of its last one.
                while held <= size * self._length and (part := next(parts, None)) is not None:
                    waiting.append(part)
                    held += len(part)
                stream = np.concatenate([part for part in waiting if len(part)] or waiting)
                count = min(size, self.rows - start)
                batch = self._batch(start, count, stream)
                if "seq_lengths" in columns:
                    batch = batch.append_column("seq_lengths", self._parts(start, count))
                yield batch
                start, skip = start + count, count * self._length

    def _stream(self, row: int) -> Generator[npt.NDArray[Any], None, None]:
        """Yield tokens from the start of a row, EOS after each row."""
        with closing(_scan(self.opened, ["input_ids"], row)) as batches:
            for batch in batches:
                column = batch.column(0)
                values = column.flatten().to_numpy()
                lengths = column.value_lengths().to_numpy(zero_copy_only=False)
                stop = row + len(lengths)
                if not np.array_equal(np.diff(self._offsets[row : stop + 1]) - 1, lengths):
                    raise DamagedDataset(f"{self.opened.uri}: num_tokens differs from input_ids", VERIFY)
                offsets = self._offsets[row : stop + 1] - self._offsets[row] - np.arange(stop + 1 - row)
                yield followed_by(offsets, values, self._eos)
                row = stop

    def _batch(self, start: int, count: int, stream: npt.NDArray[Any]) -> pa.RecordBatch:
        """Return `count` rows from row `start`, whose tokens the stream begins with."""
        length, size = self._length, count * self._length
        total = int(self._offsets[-1])
        valid = np.full(count, length)
        following = np.full(count, IGNORE, np.int64)
        ids = stream[:size]
        following[:-1] = ids[length::length]
        if len(stream) > size:
            following[-1] = stream[size]
        elif len(ids) < size:
            valid[-1] = total - (start + count - 1) * length
            ids = np.concatenate([ids, np.full(size - len(ids), self._pad, ids.dtype)])
        return pa.record_batch(
            {
                "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids), length),
                "num_tokens": pa.array(valid, pa.uint32()),
                "following": pa.array(following),
            }
        )

    def _parts(self, start: int, count: int) -> pa.ListArray:
        """Return the lengths of the parts of documents in `count` rows from row `start`.

        Parts begin where rows of the stored dataset and where rows of the result begin.
        """
        begins = np.arange(start, start + count + 1) * self._length
        begins[-1] = min(begins[-1], self._offsets[-1])
        inner = self._offsets[slice(*self._offsets.searchsorted([begins[0], begins[-1] + 1]))]
        # `np.union1d` hashes and sorts both, which took two thirds of the time of joining rows.
        at = inner.searchsorted(begins)
        new = np.append(inner, -1)[at] != begins
        cuts = np.insert(inner, at[new], begins[new])
        offsets = np.searchsorted(cuts, begins).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.diff(cuts).astype(np.uint32)))


class DocumentRows:
    """The documents of blocks, one per row; see `Source`.

    Parts of a document that follow each other, in one block or from one to the next, are joined. With `best-fit`
    packing, parts of a document that is longer than a block may be apart: each is then a row.

    Batches have `input_ids`, `num_tokens` and `doc_id`. They may have fewer rows than asked for.
    """

    unit = "document"

    def __init__(self, opened: DatasetVersion) -> None:
        self.opened = opened
        self.length: int | None = None
        self.rows, last = 0, None
        with closing(_scan(opened, ["doc_ids"])) as batches:
            for batch in batches:
                ids = batch.column(0).flatten().to_numpy()
                if len(ids):
                    self.rows += int(np.count_nonzero(ids[1:] != ids[:-1])) + (ids[0] != last)
                    last = ids[-1]

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Batches:
        for batch in self._documents(size):
            if start < batch.num_rows:
                yield batch.slice(start)
            start = max(start - batch.num_rows, 0)

    def _documents(self, size: int) -> Batches:
        left = _Documents.empty()
        with closing(_scan(self.opened, ["input_ids", "num_tokens", "seq_lengths", "doc_ids"], 0, size)) as batches:
            for batch in batches:
                found = left.joined(_Documents.of(batch, self.opened.uri))
                whole, left = found.split(len(found.ids) - 1)  # the last may go on in the next block
                if len(whole.ids):
                    yield whole.batch()
        if len(left.ids):
            yield left.batch()


@dataclass(frozen=True)
class _Documents:
    """Documents end to end: `tokens`, and `lengths` and `ids` of each."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls) -> _Documents:
        return cls(np.empty(0, np.uint16), np.empty(0, np.int64), np.empty(0, np.uint64))

    @classmethod
    def of(cls, batch: pa.RecordBatch, uri: str) -> _Documents:
        """Return the parts of documents in blocks."""
        lengths = batch["seq_lengths"].flatten().to_numpy().astype(np.int64)
        ids = batch["doc_ids"].flatten().to_numpy()
        real = batch["num_tokens"].to_numpy().astype(np.int64)
        tokens = real_ids(batch["input_ids"], real)
        if len(ids) != len(lengths) or lengths.sum() != len(tokens):
            raise DamagedDataset(f"{uri}: seq_lengths and doc_ids differ from num_tokens", VERIFY)
        return cls(tokens, lengths, ids)

    def joined(self, other: _Documents) -> _Documents:
        """Return the documents of both. Neighbours with the same id are one."""
        lengths, ids = np.concatenate([self.lengths, other.lengths]), np.concatenate([self.ids, other.ids])
        first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.empty(0, np.int64)
        tokens = np.concatenate([self.tokens, other.tokens]) if len(self.tokens) else other.tokens
        return _Documents(tokens, np.add.reduceat(lengths, first) if len(ids) else lengths, ids[first])

    def split(self, count: int) -> tuple[_Documents, _Documents]:
        """Return the first `count` documents, and the others."""
        count = max(count, 0)
        at = int(self.lengths[:count].sum())
        return (
            _Documents(self.tokens[:at], self.lengths[:count], self.ids[:count]),
            _Documents(self.tokens[at:], self.lengths[count:], self.ids[count:]),
        )

    def batch(self) -> pa.RecordBatch:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        return pa.record_batch(
            {
                "input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(self.tokens)),
                "num_tokens": pa.array(self.lengths),
                "doc_id": pa.array(self.ids),
            }
        )


def open_source(opened: DatasetVersion, target: Target, options: ExportOptions) -> Source:
    """Return the rows of a dataset as a target needs them.

    Raises:
        UsageError: the target cannot hold them, or `max_seq_length` is missing or contradicts the dataset.
    """
    layout, stored = LAYOUTS[opened.metadata.layout], StoredRows(opened)
    if target.tokens and not layout.tokens:
        raise UsageError(
            f"{opened.uri} has layout {layout.name!r}: its rows hold no tokens, which format={target.name!r} needs",
            "build it with another layout",
        )
    asked = options.max_seq_length
    if MASK_COLUMN in opened.dataset.schema.names:
        _check_mask_is_kept(opened, target, options)
    if options.by == "document" and opened.recipe.get("packing") == "rows":
        raise UsageError(
            f"by='document': the blocks of {opened.uri} were imported as they are, and their documents have no ids",
            "use by='row'",
        )
    if not target.fixed:
        return DocumentRows(opened) if options.by == "document" and layout.packed else stored
    if stored.length is None:
        return _joined(opened, target, asked)
    if asked not in (None, stored.length):
        raise UsageError(
            f"max_seq_length={asked} differs from the {stored.length} tokens of the blocks in {opened.uri}",
            "leave it out, or build blocks of that size",
        )
    return stored


def _check_mask_is_kept(opened: DatasetVersion, target: Target, options: ExportOptions) -> None:
    """Refuse to export conversations without the mask that says which of their tokens are learned.

    Raises:
        UsageError: the target's files cannot hold it, or documents are put together without it.
    """
    packed = LAYOUTS[opened.metadata.layout].packed
    if options.by == "document" and packed and not target.unmasked:
        raise UsageError(
            f"by='document': {opened.uri} holds conversations, and their {MASK_COLUMN} cannot be put together from "
            "blocks",
            "use by='row', or build it with layout 'documents'",
        )
    if target.unmasked or (target.fixed and not packed):
        raise UsageError(
            f"{opened.uri} holds conversations, and these files could not say which of their tokens are learned",
            "export it with format='parquet' or 'trl'"
            if packed
            else "build it with layout 'blocks', and export that with format='parquet' or 'trl'",
        )


def _joined(opened: DatasetVersion, target: Target, length: int | None) -> JoinedRows:
    layout, tokenizer = opened.metadata.layout, opened.metadata.tokenizer
    if length is None:
        raise UsageError(
            f"{opened.uri} has layout {layout!r}, and format={target.name!r} needs rows of one length",
            "set max_seq_length: rows, each followed by EOS, are then joined and cut to that length",
        )
    if tokenizer is None or tokenizer.eos_id is None:
        raise TokenizerError(
            f"{opened.uri}: its tokenizer has no EOS token to join rows with", "build it with layout blocks"
        )
    return JoinedRows(opened, length, tokenizer.eos_id, tokenizer.padding_id)
