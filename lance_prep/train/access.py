"""Opening a dataset in the process that reads it, and choosing the way to its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from lance_prep.errors import DatasetError
from lance_prep.layouts import LAYOUTS
from lance_prep.store.cache import Cache, Stat
from lance_prep.train.index import Index, filtered_rows, load_index, token_pages
from lance_prep.train.lance_reads import Facts, Lance, ReadOptions
from lance_prep.train.pages import FlatPages, NotFlat
from lance_prep.train.permutation import IndexArray
from lance_prep.train.tokens import MappedTokens, TakeTokens, TokenSource, list_values

#: The largest flat copy of a local dataset's tokens that is made unasked.
CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Access:
    """How rows are read: `way` is "mmap" (the dataset's own files), "cache" (a flat copy of the tokens) or "take"."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"{self.way}: {self.why}"


@dataclass(frozen=True)
class Verdict:
    """What a process found when it opened a version, for its workers. Small and picklable.

    Attributes:
        access: the way that it chose, after comparing rows read from the files with those that Lance reads.
        checked: the files of the cache that it has checked.
        doc_ids: whether doc_ids are read from the files.
    """

    access: Access
    checked: dict[str, Stat] = field(default_factory=dict)
    doc_ids: bool = False


@dataclass(frozen=True)
class Reader:
    """An open version: its index, the rows that pass the filter, and the tokens.

    Attributes:
        index: see `Index`; None for raw rows.
        rows: how many rows there are after the filter.
        chosen: int64 `[rows]`, which live rows those are; None for all.
        tokens: None for raw rows.
        doc_ids: for blocks in files that are mapped, the doc_ids of the pieces; else None.
        verdict: the way in use and why, and what was checked.
    """

    index: Index | None
    rows: int
    chosen: IndexArray | None
    tokens: TokenSource | None
    verdict: Verdict
    doc_ids: TokenSource | None = None

    @property
    def access(self) -> Access:
        return self.verdict.access

    def documents(self, rows: IndexArray) -> pa.LargeListArray | None:
        """Return the doc_ids of live rows from the mapped files, or None if they have to be read through Lance."""
        if self.doc_ids is None or self.index is None or self.index.pieces is None:
            return None
        offsets = self.index.pieces.offsets
        counts = offsets[rows + 1] - offsets[rows]
        ids = self.doc_ids.pieces(rows, np.zeros(len(rows), np.int64), counts)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return pa.LargeListArray.from_arrays(bounds, ids)

    def live(self, rows: IndexArray) -> IndexArray:
        """Which live rows of the dataset these rows after the filter are."""
        return rows if self.chosen is None else self.chosen[rows]


def open_reader(options: ReadOptions, facts: Facts, lance: Lance, verdict: Verdict | None = None) -> Reader:
    """Open a version for reading in this process.

    Lance is imported only if it is needed: with the verdict of the parent process, its index in the cache is enough for
    mapping.

    Args:
        verdict: of the parent process. Without it, rows read from the files are compared with those that Lance reads.

    Raises:
        DatasetError: `access="mmap"` and it cannot be mapped; a filter that Lance refuses; damaged document boundaries.
    """
    cache = Cache(Path(facts.cache), verdict.checked if verdict else None)
    chosen = None
    if options.filter is not None:
        sql = options.filter
        chosen = filtered_rows(lambda: lance.filtered(facts, sql), cache, sql)
    if not LAYOUTS[facts.layout].tokens:
        rows = lance.count(facts.version) if chosen is None else len(chosen)
        return Reader(None, rows, chosen, None, Verdict(Access("take", "raw rows hold no token column"), cache.checked))
    index = load_index(cache)
    if index is None or (verdict is None and index.rows != lance.count(facts.version)):
        built = lance.index(facts)
        index = load_index(cache) or built
    rows = index.rows if chosen is None else len(chosen)
    if chosen is not None and len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < index.rows:
        raise DatasetError(
            f"filter {options.filter!r} names rows beyond the {index.rows} of {options.uri}", f"remove {cache.folder}"
        )
    tokens, access = _choose(options, facts, lance, cache, index, verdict)
    docs = None
    if access.way == "mmap" and (verdict is None or verdict.doc_ids):
        docs = _map_doc_ids(options, facts, index, tokens, lance if verdict is None else None)
    return Reader(index, rows, chosen, tokens, Verdict(access, cache.checked, docs is not None), docs)


def _map_doc_ids(
    options: ReadOptions, facts: Facts, index: Index, tokens: TokenSource, lance: Lance | None
) -> TokenSource | None:
    """Map the doc_ids of blocks, if they lie flat; `lance`: compare some with those that it reads."""
    if index.pieces is None or index.docs is None or options.root is None:
        return None
    offsets = index.pieces.offsets
    try:
        docs = MappedTokens(
            options.root / "data",
            index.docs,
            itemsize=8,
            row_start=lambda rows: offsets[rows],
            beside=tokens if isinstance(tokens, MappedTokens) else None,
        )
    except NotFlat:
        return None
    if len(docs) != len(index.pieces.lengths):
        return None
    if lance is not None and index.rows:
        rows = _some_rows(index)
        read, bounds = list_values(lance.take(facts.version, rows, ["doc_ids"])["doc_ids"], "doc_ids")
        counts = offsets[rows + 1] - offsets[rows]
        if not np.array_equal(counts, np.diff(bounds)):
            return None
        if not np.array_equal(docs.pieces(rows, np.zeros(len(rows), np.int64), counts), read):
            return None
    return docs


def _some_rows(index: Index) -> IndexArray:
    """Rows to compare with those that Lance reads: others each time."""
    return np.unique(np.random.default_rng().integers(0, index.rows, 16))


def _choose(
    options: ReadOptions, facts: Facts, lance: Lance, cache: Cache, index: Index, verdict: Verdict | None
) -> tuple[TokenSource, Access]:
    take = TakeTokens(lambda rows: lance.take(facts.version, rows, ["input_ids"]))
    if options.access == "take":
        return take, Access("take", "it was asked for")
    if verdict is not None and verdict.access.way == "take":
        return take, verdict.access
    try:
        mapped, access = _map(options, facts, lance, cache, index)
        if verdict is None:
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
            # Rows that are not there would be read from outside the maps.
            raise NotFlat(f"the files hold {len(mapped)} tokens for {index.rows} rows")
        return mapped, Access("mmap", index.why)
    if offsets is None:
        raise NotFlat(index.why)
    try:
        pages = _copied(options, facts, lance, cache, index)
    except NotFlat as error:
        raise NotFlat(f"{index.why}; {error}") from error
    mapped = MappedTokens(cache.folder, pages, itemsize=size, row_start=row_start)
    return mapped, Access("cache", f"{index.why}; a flat copy of the tokens lies in {cache.folder}")


def _copied(options: ReadOptions, facts: Facts, lance: Lance, cache: Cache, index: Index) -> FlatPages:
    """Return the pages of a flat copy of the tokens in the cache; make it if that is allowed.

    Raises:
        NotFlat: it is not allowed, or the cache cannot be written.
    """
    size, limit = index.tokens * facts.itemsize, options.cache_bytes
    if limit is None and options.root is None:
        raise NotFlat(f"to copy its tokens ({size:,} bytes) to {cache.folder}, ask for it with cache_bytes")
    if size > (limit := CACHE_BYTES if limit is None else limit):
        raise NotFlat(f"a flat copy of its tokens ({size:,} bytes) exceeds cache_bytes={limit:,}")
    pages = token_pages(cache, index.tokens, facts.itemsize)
    if pages is None:
        pages = lance.flat_tokens(facts, index.tokens)
        cache.find("tokens.bin")  # for the verdict
    return pages


def _compare(mapped: MappedTokens, take: TakeTokens, facts: Facts, index: Index) -> None:
    """Rows drawn over the whole dataset must come out of the maps as they come out of Lance.

    Raises:
        NotFlat: they do not.
    """
    if not index.rows:
        return
    rows = _some_rows(index)
    if index.offsets is None:
        lengths = np.full(len(rows), facts.block_size, np.int64)
    else:
        lengths = index.offsets[rows + 1] - index.offsets[rows] - 1
    begins = np.zeros(len(rows), np.int64)
    if not np.array_equal(mapped.pieces(rows, begins, lengths), take.pieces(rows, begins, lengths)):
        raise NotFlat("rows read from the files differ from those that Lance reads")
