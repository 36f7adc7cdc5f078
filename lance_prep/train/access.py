"""Opening a dataset in the process that reads it, and choosing the way to its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lance_prep.errors import DatasetError
from lance_prep.train.index import Cache, Index, load_index
from lance_prep.train.lance_reads import Facts, Lance, ReadOptions
from lance_prep.train.pages import NotFlat
from lance_prep.train.permutation import IndexArray
from lance_prep.train.tokens import MappedTokens, TakeTokens, TokenSource


@dataclass(frozen=True)
class Access:
    """How rows are read: `way` is "mmap" (the dataset's own files), "cache" (a flat copy of the tokens) or "take"."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"{self.way}: {self.why}"


@dataclass(frozen=True)
class Reader:
    """An open version: its index, the rows that pass the filter, and the tokens.

    Attributes:
        index: see `Index`; None for raw rows.
        rows: how many rows there are after the filter.
        chosen: int64 `[rows]`, which live rows those are; None for all.
        tokens: None for raw rows.
        access: the way in use, and why.
    """

    index: Index | None
    rows: int
    chosen: IndexArray | None
    tokens: TokenSource | None
    access: Access

    def live(self, rows: IndexArray) -> IndexArray:
        """Which live rows of the dataset these rows after the filter are."""
        return rows if self.chosen is None else self.chosen[rows]


def open_reader(options: ReadOptions, facts: Facts, lance: Lance, *, check: bool) -> Reader:
    """Open a version for reading in this process; `check` some mapped rows against Lance's.

    Lance is imported only where it is needed: the index of another process, found in the cache, is enough for mapping.

    Raises:
        DatasetError: `access="mmap"` and it cannot be mapped; a filter that Lance refuses.
    """
    cache = Cache(Path(facts.cache))
    chosen = None
    if options.filter is not None:
        chosen = lance.filtered(facts, options.filter)
    if facts.layout == "raw":
        rows = lance.count(facts.version) if chosen is None else len(chosen)
        return Reader(None, rows, chosen, None, Access("take", "raw rows hold no token column"))
    index = load_index(cache)
    if index is None:
        check = True
        index = lance.index(facts)
    rows = index.rows if chosen is None else len(chosen)
    tokens, access = _choose(options, facts, lance, cache, index, check=check)
    return Reader(index, rows, chosen, tokens, access)


def _choose(
    options: ReadOptions, facts: Facts, lance: Lance, cache: Cache, index: Index, *, check: bool
) -> tuple[TokenSource, Access]:
    take = TakeTokens(lambda rows: lance.take(facts.version, rows, ["input_ids"]))
    if options.access == "take":
        return take, Access("take", "it was asked for")
    try:
        mapped, access = _map(options, facts, lance, cache, index)
        if check:
            _compare(mapped, take, facts, index)
        return mapped, access
    except NotFlat as error:
        if options.access == "mmap":
            raise DatasetError(f"{options.uri} cannot be memory-mapped: {error}", "use access='auto'") from error
        return take, Access("take", str(error))


def _map(options: ReadOptions, facts: Facts, lance: Lance, cache: Cache, index: Index) -> tuple[MappedTokens, Access]:
    size, offsets, block = facts.itemsize, index.offsets, facts.block_size

    def row_start(rows: IndexArray) -> IndexArray:
        if offsets is None:
            return rows * (block or 0)
        starts: IndexArray = offsets[rows] - rows
        return starts

    if index.pages is not None and options.root is not None:
        mapped = MappedTokens(options.root / "data", index.pages, itemsize=size, row_start=row_start)
        if len(mapped) != (index.tokens if block is None else index.rows * block):
            raise NotFlat(
                f"the files hold {len(mapped)} tokens for {index.rows} rows"
            )  # reading on would leave the maps
        return mapped, Access("mmap", index.why)
    if offsets is None:
        raise NotFlat(index.why)
    try:
        pages = lance.flat_tokens(facts, index.tokens)
    except NotFlat as error:
        raise NotFlat(f"{index.why}; {error}") from error
    mapped = MappedTokens(cache.folder, pages, itemsize=size, row_start=row_start)
    return mapped, Access("cache", f"{index.why}; a flat copy of the tokens lies in {cache.folder}")


def _compare(mapped: MappedTokens, take: TakeTokens, facts: Facts, index: Index) -> None:
    """Rows drawn over the whole dataset must come out of the maps as they come out of Lance.

    Raises:
        NotFlat: they do not.
    """
    if not index.rows:
        return
    rows = np.unique(np.linspace(0, index.rows - 1, 16).astype(np.int64))
    if index.offsets is None:
        lengths = np.full(len(rows), facts.block_size, np.int64)
    else:
        lengths = index.offsets[rows + 1] - index.offsets[rows] - 1
    begins = np.zeros(len(rows), np.int64)
    if not np.array_equal(mapped.pieces(rows, begins, lengths), take.pieces(rows, begins, lengths)):
        raise NotFlat("rows read from the files differ from those that Lance reads")
