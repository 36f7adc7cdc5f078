"""Opens a dataset in the process that reads it, and chooses how its tokens are read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lance_prep.errors import DatasetError, UsageError
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.loss_mask import MASK_COLUMN
from lance_prep.store import Cache, FlatPages, NotFlat, Stat
from lance_prep.train.index import Index, filtered_rows, load_index, token_pages
from lance_prep.train.lance_reads import Facts, Lance, ReadOptions
from lance_prep.train.learned import Learned, load_learned
from lance_prep.train.tokens import MappedTokens, TakeTokens, TokenSource, list_values

#: The largest flat copy of a local dataset's tokens that is made without being asked for.
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
        rows: number of rows after the filter.
        chosen: int64 `[rows]`, the live rows that pass the filter; None for all.
        tokens: None for raw rows.
        learned: which tokens are learned, if it was asked for.
        doc_ids: for blocks in files that are mapped, the doc_ids of the pieces; else None.
        verdict: how tokens are read and why, and what was checked.
    """

    index: Index | None
    rows: int
    chosen: Indices | None
    tokens: TokenSource | None
    verdict: Verdict
    doc_ids: TokenSource | None = None
    learned: Learned | None = None

    @property
    def access(self) -> Access:
        """How tokens are read, and why."""
        return self.verdict.access

    def documents(self, rows: Indices) -> pa.LargeListArray | None:
        """Return the doc_ids of live rows from the mapped files, or None if they have to be read through Lance."""
        if self.doc_ids is None or self.index is None or self.index.pieces is None:
            return None
        offsets = self.index.pieces.offsets
        counts = offsets[rows + 1] - offsets[rows]
        ids = self.doc_ids.pieces(rows, np.zeros(len(rows), np.int64), counts)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return pa.LargeListArray.from_arrays(bounds, ids)

    def live(self, rows: Indices) -> Indices:
        """Return the live rows of the dataset that these rows after the filter are."""
        return rows if self.chosen is None else self.chosen[rows]


def open_reader(
    options: ReadOptions, facts: Facts, lance: Lance, verdict: Verdict | None = None, *, learned: bool = False
) -> Reader:
    """Open a version for reading in this process.

    Lance is imported only if it is needed: with the verdict of the parent process, its index in the cache is enough for
    mapping.

    Args:
        learned: also read which tokens are learned.
        verdict: of the parent process. Without it, rows read from the files are compared with those that Lance reads.

    Raises:
        DatasetError: the dataset cannot be mapped although `access="mmap"`, Lance refuses the filter, or document
            boundaries are damaged.
        UsageError: a raw dataset was to be mapped.
    """
    cache = Cache(Path(facts.cache), verdict.checked if verdict else None)
    reader = _Opening(options, facts, lance, verdict, cache).run()
    if not learned or reader.index is None:
        return reader
    if MASK_COLUMN not in facts.columns:
        raise UsageError(
            f"labels='assistant' needs to know what the assistant wrote, and {options.uri} has no column {MASK_COLUMN}",
            "build it from conversations, with `messages`; or use labels='same'",
        )
    return replace(reader, learned=load_learned(cache) or lance.learned(facts))


@dataclass(frozen=True)
class _Opening:
    """The steps of `open_reader`, which describes the first fields. `cache` is the folder of the version's index."""

    options: ReadOptions
    facts: Facts
    lance: Lance
    verdict: Verdict | None
    cache: Cache

    def run(self) -> Reader:
        options, facts, chosen = self.options, self.facts, None
        if (sql := options.filter) is not None:
            chosen = filtered_rows(lambda: self.lance.filtered(facts, sql), self.cache, sql)
        if not LAYOUTS[facts.layout].tokens:
            if options.access == "mmap":
                raise UsageError("access='mmap': not possible with a raw dataset, which has no tokens", "remove it")
            rows = self.lance.count(facts.version) if chosen is None else len(chosen)
            access = Access("take", "raw rows hold no token column")
            return Reader(None, rows, chosen, None, Verdict(access, self.cache.checked))
        index = load_index(self.cache)
        if index is None or (self.verdict is None and index.rows != self.lance.count(facts.version)):
            built = self.lance.index(facts)
            index = load_index(self.cache) or built
        rows = index.rows if chosen is None else len(chosen)
        if chosen is not None and len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < index.rows:
            raise DatasetError(
                f"filter {options.filter!r} names rows beyond the {index.rows} of {options.uri}",
                f"remove {self.cache.folder}",
            )
        tokens, access = self._tokens(index)
        docs = None
        if isinstance(tokens, MappedTokens) and access.way == "mmap" and (self.verdict is None or self.verdict.doc_ids):
            with suppress(NotFlat):
                docs = self._doc_ids(index, tokens)
        return Reader(index, rows, chosen, tokens, Verdict(access, self.cache.checked, docs is not None), docs)

    def _tokens(self, index: Index) -> tuple[TokenSource, Access]:
        """Choose the way to the tokens, as `access` asks for and as the parent process found."""
        options, verdict = self.options, self.verdict
        take = TakeTokens(lambda rows: self.lance.take(self.facts.version, rows, ["input_ids"]))
        if options.access == "take":
            return take, Access("take", "it was asked for")
        if verdict is not None and verdict.access.way == "take":
            return take, verdict.access
        try:
            mapped, access = self._mapped(index)
            if verdict is None:
                self._compare(mapped, take, index)
            return mapped, access
        except NotFlat as error:
            if options.access == "mmap":
                raise DatasetError(f"{options.uri} cannot be memory-mapped: {error}", "use access='auto'") from error
            return take, Access("take", str(error))

    def _mapped(self, index: Index) -> tuple[MappedTokens, Access]:
        """Map the dataset's own files or, if they are not flat, a flat copy of the tokens.

        Raises:
            NotFlat: neither is possible.
        """
        size, offsets, block, root = self.facts.itemsize, index.offsets, self.facts.block_size, self.options.root

        def row_start(rows: Indices) -> Indices:
            if offsets is None:
                return rows * (block or 0)
            starts: Indices = offsets[rows] - rows
            return starts

        if index.pages is not None and root is not None:
            mapped = MappedTokens(root / "data", index.pages, itemsize=size, row_start=row_start)
            if len(mapped) != (index.tokens if block is None else index.rows * block):
                # Missing rows would be read from outside the maps.
                raise NotFlat(f"the files hold {len(mapped)} tokens for {index.rows} rows")
            return mapped, Access("mmap", index.why)
        if offsets is None:
            raise NotFlat(index.why)
        try:
            pages = self._copied(index)
        except NotFlat as error:
            raise NotFlat(f"{index.why}; {error}") from error
        mapped = MappedTokens(self.cache.folder, pages, itemsize=size, row_start=row_start)
        return mapped, Access("cache", f"{index.why}; a flat copy of the tokens is in {self.cache.folder}")

    def _copied(self, index: Index) -> FlatPages:
        """Return the pages of a flat copy of the tokens in the cache; make it if that is allowed.

        Raises:
            NotFlat: it is not allowed, or the cache cannot be written.
        """
        size, limit = index.tokens * self.facts.itemsize, self.options.cache_bytes
        if limit is None and self.options.root is None:
            raise NotFlat(f"to copy its tokens ({size:,} bytes) to {self.cache.folder}, ask for it with cache_bytes")
        if size > (limit := CACHE_BYTES if limit is None else limit):
            raise NotFlat(f"a flat copy of its tokens ({size:,} bytes) exceeds cache_bytes={limit:,}")
        pages = token_pages(self.cache, index.tokens, self.facts.itemsize)
        if pages is None:
            pages = self.lance.flat_tokens(self.facts, index.tokens)
            self.cache.find("tokens.bin")  # for the verdict
        return pages

    def _compare(self, mapped: MappedTokens, take: TakeTokens, index: Index) -> None:
        """Compare rows drawn from the whole dataset, as read from the maps and by Lance.

        Raises:
            NotFlat: they differ.
        """
        if not index.rows:
            return
        rows = _some_rows(index)
        if index.offsets is None:
            lengths = np.full(len(rows), self.facts.block_size, np.int64)
        else:
            lengths = index.offsets[rows + 1] - index.offsets[rows] - 1
        begins = np.zeros(len(rows), np.int64)
        if not np.array_equal(mapped.pieces(rows, begins, lengths), take.pieces(rows, begins, lengths)):
            raise NotFlat("rows read from the files differ from those that Lance reads")

    def _doc_ids(self, index: Index, tokens: MappedTokens) -> TokenSource | None:
        """Map the doc_ids of blocks, or return None if they differ from those that Lance reads.

        Raises:
            NotFlat: they cannot be mapped.
        """
        if index.pieces is None or index.docs is None or self.options.root is None:
            return None
        offsets = index.pieces.offsets
        folder = self.options.root / "data"
        docs = MappedTokens(folder, index.docs, itemsize=8, row_start=lambda rows: offsets[rows], beside=tokens)
        if len(docs) != len(index.pieces.lengths):
            return None
        if self.verdict is None and index.rows:
            rows = _some_rows(index)
            read, bounds = list_values(self.lance.take(self.facts.version, rows, ["doc_ids"])["doc_ids"], "doc_ids")
            counts = offsets[rows + 1] - offsets[rows]
            if not np.array_equal(counts, np.diff(bounds)):
                return None
            if not np.array_equal(docs.pieces(rows, np.zeros(len(rows), np.int64), counts), read):
                return None
        return docs


def _some_rows(index: Index) -> Indices:
    """Return rows to compare with those that Lance reads, different ones each time."""
    return np.unique(np.random.default_rng().integers(0, index.rows, 16))
