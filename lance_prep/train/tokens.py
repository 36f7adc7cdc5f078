"""Token sources: read the tokens of any rows, by memory map or by Lance's `take`. Both return the same arrays.

A source returns runs of tokens end to end: `lengths[i]` tokens from token `begins[i]` of row `rows[i]`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.errors import DatasetError
from lance_prep.keyed import Indices
from lance_prep.store import FlatPages, NotFlat

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

#: Number of blocks that are gathered before they are converted.
_AT_ONCE = 64


class TokenSource(Protocol):
    """Tokens by row. Threads may share one. It is never pickled nor used in a forked child."""

    #: Whether consecutive rows are stored end to end, so that `windows` works.
    contiguous: bool

    def pieces(self, rows: Indices, begins: Indices, lengths: Indices) -> Tokens:
        """Return runs of tokens within rows, end to end: `[sum(lengths)]`."""

    def blocks(self, rows: Indices, size: int) -> Tokens | Indices:
        """Return whole rows of `size` tokens each: a new array `[len(rows), size]`, int64 or as on disk."""

    def windows(self, starts: Indices, length: int) -> Tokens:
        """Return `[len(starts), length]` tokens of the flat column, from each start.

        Tokens beyond the end of the column are undefined. The caller must overwrite them.
        """


def ragged_arange(lengths: Indices) -> Indices:
    """Return 0..lengths[0]-1, 0..lengths[1]-1, ... end to end."""
    ends = np.cumsum(lengths)
    out = np.arange(int(ends[-1]) if ends.size else 0, dtype=np.int64)
    out -= np.repeat(ends - lengths, lengths)
    return out


class _Span:
    """An array over a range of addresses, for `np.asarray`."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], typestr: str) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
        }


class MappedTokens:
    """The flat pages of a dataset, memory-mapped.

    All maps are read through one array that spans their addresses, so a batch from many files is one fancy index, at
    0.9 of the speed of a single array, instead of a loop over files. Between the maps the array covers addresses that
    are not mapped, so only addresses computed from the page table may be read. `LanceDataset.take` checks once per
    batch that the rows are in range. Opening checks that the column is complete.

    Args:
        root: the directory that holds the files.
        pages: where the tokens are.
        itemsize: bytes per token.
        row_start: returns where rows begin in the flat column.
        beside: another column of the same files, whose maps are reused.

    Raises:
        NotFlat: the files cannot be mapped (too many for the system), or a page is not inside its file.

    Torch maps the files, because it keeps no file descriptors. `mmap.mmap` and Arrow keep one per file, and 10,000
    shards would exceed `ulimit -n`.
    """

    contiguous = True

    def __init__(
        self,
        root: Path,
        pages: FlatPages,
        *,
        itemsize: int,
        row_start: Callable[[Indices], Indices],
        beside: MappedTokens | None = None,
    ) -> None:
        shared = beside is not None and beside.files == pages.files
        self.files: list[str] = pages.files
        self._maps: list[Any] = (
            beside._maps if beside is not None and shared else [_map_file(root, name) for name in self.files]
        )
        _check_pages(pages, [m.numel() for m in self._maps], itemsize)
        self._row_start = row_start
        self._dtype = np.dtype(f"<u{itemsize}")
        self._first = np.concatenate([[0], np.cumsum(pages.count)]).astype(np.int64)
        bases = np.array([m.data_ptr() for m in self._maps], np.int64)
        address = bases[pages.file] + pages.position if len(pages.file) else np.empty(0, np.int64)
        # Use the end of the maps, not of the pages: a window may begin in the last page and end after it.
        self._start = int(address.min()) if address.size else 0
        ends = [m.data_ptr() + m.numel() for m in self._maps]
        self._span = (max(ends, default=self._start) - self._start) // itemsize
        #: Added to a token's number, this gives its place in the span.
        self._shift = (address - self._start) // itemsize - self._first[:-1]
        self._first_list, self._shift_list = self._first[:-1].tolist(), self._shift.tolist()
        self._flat = self._view(1).reshape(-1)
        self._views: dict[int, Tokens] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def _view(self, length: int) -> Tokens:
        size = self._dtype.itemsize
        shape = (max(self._span - length + 1, 0), length)
        return np.asarray(_Span(self._start, shape, (size, size), self._dtype.str))

    def _place(self, tokens: Indices) -> Indices:
        if len(self._shift) == 1:
            place: Indices = tokens + self._shift[0]
        else:
            place = tokens + self._shift[self._page(tokens)]
        return place

    def _page(self, tokens: Indices) -> Indices:
        # Of several pages that begin at the same token, take the last: the others are empty.
        page: Indices = self._first.searchsorted(tokens, side="right") - 1
        return page

    def _windows_at(self, length: int) -> Tokens:
        """Return a view of every run of `length` tokens in the span, to be indexed by place.

        Index it by `view[place]`: `np.take` would first copy the whole overlapping view.
        """
        view = self._views.get(length)
        return view if view is not None else self._views.setdefault(length, self._view(length))

    def blocks(self, rows: Indices, size: int) -> Tokens | Indices:
        # A block is never split between pages.
        view, place = self._windows_at(size), self._place(rows * size)
        if len(rows) <= _AT_ONCE:
            return view[place].astype(np.int64)
        # Convert in parts that fit the CPU's cache: a fifth faster at 512 rows.
        out = np.empty((len(rows), size), np.int64)
        for i in range(0, len(rows), _AT_ONCE):
            out[i : i + _AT_ONCE] = view[place[i : i + _AT_ONCE]]
        return out

    def windows(self, starts: Indices, length: int) -> Tokens:
        view = self._windows_at(length)
        ends = starts + length
        page = self._page(starts)
        place = starts + self._shift[page]
        inside = ends <= self._first[page + 1]
        if inside.all():
            whole: Tokens = view[place]
            return whole
        out: Tokens = np.zeros((len(starts), length), self._dtype)
        out[inside] = view[place[inside]]
        over = np.flatnonzero(~inside)
        for i in over.tolist():  # a window that crosses the end of a page: one in thousands
            start, end = int(starts[i]), min(int(ends[i]), len(self))
            out[i, : end - start] = self._run(start, end)
        return out

    def few(self, tokens: list[int]) -> list[int]:
        """Return single tokens of the flat column. Below 30 it is faster than numpy: 8 take 1 us instead of 4."""
        flat, first, shift = self._flat.data, self._first_list, self._shift_list
        if len(shift) == 1:
            return [flat[token + shift[0]] for token in tokens]
        return [flat[token + shift[bisect_right(first, token) - 1]] for token in tokens]

    def _run(self, start: int, end: int) -> Tokens:
        """Return the tokens `[start, end)` of the flat column, from all pages that hold them."""
        parts = []
        while start < end:
            page = int(np.searchsorted(self._first, start, side="right")) - 1
            stop = min(end, int(self._first[page + 1]))
            shift = int(self._shift[page])
            parts.append(self._flat[start + shift : stop + shift])
            start = stop
        whole: Tokens = np.concatenate(parts).astype(self._dtype, copy=False)
        return whole

    def pieces(self, rows: Indices, begins: Indices, lengths: Indices) -> Tokens:
        starts = self._row_start(rows) + begins
        found: Tokens = self._flat[self._place(np.repeat(starts, lengths) + ragged_arange(lengths))]
        return found


def _check_pages(pages: FlatPages, sizes: list[int], itemsize: int) -> None:
    """Refuse pages that are outside their files. Reading one would end the process with a segmentation fault.

    Raises:
        NotFlat: names the file.
    """
    if not len(pages.file):
        return
    known = (pages.file >= 0) & (pages.file < len(sizes))
    limit = np.array([*sizes, 0], np.int64)[np.where(known, pages.file, -1)]
    # Windows of block_size + 1 may read one token beyond a page. A data file's footer follows its pages.
    room = (limit - pages.position) // itemsize - 1
    good = known & (pages.position >= 0) & (pages.position % itemsize == 0)
    good &= (pages.position <= limit) & (pages.count >= 0) & (pages.count <= room)
    if not good.all():
        file = int(pages.file[np.argmin(good)])
        name = pages.files[file] if 0 <= file < len(sizes) else f"file {file}"
        raise NotFlat(f"a page of the index is not inside {name}")


def _map_file(root: Path, name: str) -> Any:
    import torch

    if Path(name).name != name or name == "..":
        raise NotFlat(f"{name!r} is not the name of a data file")
    path = root / name
    try:
        size = path.stat().st_size
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise NotFlat(f"{path.name} cannot be memory-mapped: {error}") from error


class TakeTokens:
    """Reads rows through Lance's `take`, which works with every store, encoding and deletion.

    Reads 13 Mtok/s at 8 rows of 1,024 tokens per call, 38 at 64 and 118 at 2,048, so ask for many rows at once.

    Args:
        take: returns the column `input_ids` at sorted rows, as a table.
    """

    contiguous = False

    def __init__(self, take: Callable[[Indices], Any]) -> None:
        self._take = take

    def blocks(self, rows: Indices, size: int) -> Tokens | Indices:
        unique, inverse = np.unique(rows, return_inverse=True)
        tokens, _ = self._rows(unique)
        found: Tokens = tokens.reshape(-1, size)[inverse]
        return found

    def windows(self, starts: Indices, length: int) -> Tokens:
        raise NotImplementedError("rows read by take are not stored end to end")

    def pieces(self, rows: Indices, begins: Indices, lengths: Indices) -> Tokens:
        unique, inverse = np.unique(rows, return_inverse=True)  # read a row of several pieces once
        tokens, offsets = self._rows(unique)
        starts = offsets[inverse] + begins
        ordered = len(rows) == len(unique) and np.array_equal(rows, unique)
        if ordered and not begins.any() and np.array_equal(lengths, np.diff(offsets)):
            return tokens
        return tokens[np.repeat(starts, lengths) + ragged_arange(lengths)]

    def _rows(self, rows: Indices) -> tuple[Tokens, Indices]:
        """Return the tokens of sorted, distinct rows, and where each row begins in them."""
        return list_values(self._take(rows)["input_ids"])


def list_values(column: Any, name: str = "input_ids") -> tuple[Tokens, Indices]:
    """Return the values of an Arrow list array as numpy, and the offsets `[rows + 1]` of the rows in them.

    Raises:
        DatasetError: the array contains nulls.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if column.null_count:
        raise DatasetError(f"{name} has {column.null_count} null rows", f"filter them out: filter='{name} is not null'")
    values = column.flatten()
    if pa.types.is_fixed_size_list(column.type):
        offsets = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
    else:
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = offsets - offsets[0]
    return values.to_numpy(zero_copy_only=False), offsets
