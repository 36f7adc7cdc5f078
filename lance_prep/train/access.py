"""Opening a dataset in the process that reads it, and choosing the way to its tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lance_prep.errors import DatasetError, UsageError
from lance_prep.store.metadata import read_metadata
from lance_prep.train.index import (
    Cache,
    Index,
    build_index,
    cache_folder,
    filtered_rows,
    flat_token_cache,
    load_index,
)
from lance_prep.train.pages import NotFlat
from lance_prep.train.permutation import IndexArray
from lance_prep.train.tokens import MappedTokens, TakeTokens, TokenSource

Way = Literal["auto", "mmap", "take"]


@dataclass(frozen=True)
class Access:
    """How rows are read: `way` is "mmap" (the dataset's own files), "cache" (a flat copy of the tokens) or "take"."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"{self.way}: {self.why}"


@dataclass(frozen=True)
class ReadOptions:
    """Where a dataset is and how to read it. Small and picklable; see `LanceDataset` for what each means."""

    uri: str
    version: int | str | None
    filter: str | None
    access: Way
    cache_dir: str | None
    cache_bytes: int
    storage_options: Mapping[str, str] | None

    def __post_init__(self) -> None:
        if self.access not in ("auto", "mmap", "take"):
            raise UsageError(f"access={self.access!r}", "access is 'auto', 'mmap' or 'take'")

    @property
    def root(self) -> Path | None:
        """The dataset's directory, if it is a local one."""
        return Path(self.uri) if Path(self.uri).is_dir() else None


@dataclass(frozen=True)
class Facts:
    """What a version says of itself, as far as training needs it: all that a worker has to be told.

    Attributes:
        version: the version, resolved.
        layout: "lines", "documents", "blocks" or "raw".
        block_size: tokens a row, for blocks.
        itemsize: bytes a token on disk, 2 or 4.
        eos_id, pad_id: of the tokenizer, or None.
        content_hash: of the rows.
        cache: the directory of this version's index.
        columns: of the schema.
    """

    version: int
    layout: str
    block_size: int | None
    itemsize: int
    eos_id: int | None
    pad_id: int | None
    content_hash: str
    cache: str
    columns: tuple[str, ...]


class LanceHandle:
    """The dataset, open in this process: a forked child opens its own, for Lance's threads do not survive a fork."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._open: Any = None
        self._process = -1

    def __call__(self, version: int | str | None) -> Any:
        if self._open is None or self._process != os.getpid():
            self._open, self._process = self._dataset(version), os.getpid()
        return self._open

    def _dataset(self, version: int | str | None) -> Any:
        import lance

        uri, storage = self._options.uri, self._options.storage_options
        try:
            return lance.dataset(uri, version=version, storage_options=dict(storage) if storage else None)
        except (ValueError, OSError) as error:
            at = "" if version is None else f" at version {version!r}"
            message = str(error).split(", /")[0]
            raise DatasetError(f"{uri}{at} cannot be opened: {message}", "see `lance-prep versions`") from error


def read_facts(options: ReadOptions, handle: LanceHandle) -> Facts:
    """Resolve the version and read what it says of itself.

    Raises:
        DatasetError: no such dataset or version, or not one of lance-prep's.
    """
    dataset = handle(options.version)
    data = read_metadata(dataset.schema)
    tokenizer = data.get("tokenizer") or {}
    chosen = Path(options.cache_dir) if options.cache_dir else None
    folder = cache_folder(options.uri, dataset.version, dataset.get_fragments(), chosen)
    return Facts(
        version=dataset.version,
        layout=data["layout"],
        block_size=data.get("block_size"),
        itemsize=4 if data.get("dtype") == "uint32" else 2,
        eos_id=tokenizer.get("eos_id"),
        pad_id=tokenizer.get("pad_id"),
        content_hash=data["content_hash"],
        cache=str(folder),
        columns=tuple(dataset.schema.names),
    )


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


def open_reader(options: ReadOptions, facts: Facts, handle: LanceHandle, *, check: bool) -> Reader:
    """Open a version for reading in this process; `check` some mapped rows against Lance's.

    Lance is imported only where it is needed: the index of another process, found in the cache, is enough for mapping.

    Raises:
        DatasetError: `access="mmap"` and it cannot be mapped; a filter that Lance refuses.
    """
    cache = Cache(Path(facts.cache))
    chosen = None
    if options.filter is not None:
        chosen = filtered_rows(lambda: handle(facts.version), cache, options.filter)
    if facts.layout == "raw":
        rows = handle(facts.version).count_rows() if chosen is None else len(chosen)
        return Reader(None, rows, chosen, None, Access("take", "raw rows hold no token column"))
    index = load_index(cache)
    if index is None:
        check = True
        index = build_index(
            handle(facts.version), cache, root=options.root, itemsize=facts.itemsize, block_size=facts.block_size
        )
    rows = index.rows if chosen is None else len(chosen)
    tokens, access = _choose(options, facts, handle, cache, index, check=check)
    return Reader(index, rows, chosen, tokens, access)


def _choose(
    options: ReadOptions, facts: Facts, handle: LanceHandle, cache: Cache, index: Index, *, check: bool
) -> tuple[TokenSource, Access]:
    take = TakeTokens(lambda: handle(facts.version))
    if options.access == "take":
        return take, Access("take", "it was asked for")
    try:
        mapped, access = _map(options, facts, handle, cache, index)
        if check:
            _compare(mapped, take, facts, index)
        return mapped, access
    except NotFlat as error:
        if options.access == "mmap":
            raise DatasetError(f"{options.uri} cannot be memory-mapped: {error}", "use access='auto'") from error
        return take, Access("take", str(error))


def _map(
    options: ReadOptions, facts: Facts, handle: LanceHandle, cache: Cache, index: Index
) -> tuple[MappedTokens, Access]:
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
        pages = flat_token_cache(lambda: handle(facts.version), cache, index.tokens, size, options.cache_bytes)
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
