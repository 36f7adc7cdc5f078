"""The index that random access to a version needs: built once and kept in a cache beside the dataset.

It holds where each row begins (ragged rows, 8 bytes per row), the documents of each block (blocks), where tokens are
stored flat in the files, and the rows that pass each filter. The cache's folder is named after the version's data
files, which Lance never changes, so an index of other rows is never found. A worker process maps the cache's files and
does not import Lance, which takes 1.4 s.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lance_prep.errors import DatasetError
from lance_prep.keyed import Indices
from lance_prep.store import Cache, FlatPages, NotFlat, find_flat_pages, user_folder
from lance_prep.train.tokens import list_values, ragged_arange


@dataclass(frozen=True)
class Pieces:
    """The documents, or parts of documents, that each block holds.

    Attributes:
        offsets: int64 `[rows + 1]`: block r has the pieces `offsets[r]` to `offsets[r + 1]`.
        lengths: uint32 `[offsets[-1]]`, tokens of each piece.
    """

    offsets: Indices
    lengths: npt.NDArray[np.uint32]

    def of(self, rows: Indices) -> tuple[Indices, Indices]:
        """Return the number of pieces of each row, and their lengths end to end; int64."""
        first = self.offsets[rows]
        counts = self.offsets[rows + 1] - first
        return counts, self.lengths[np.repeat(first, counts) + ragged_arange(counts)].astype(np.int64)


@dataclass(frozen=True)
class Index:
    """The index of one version of a dataset.

    Attributes:
        rows: live rows.
        offsets: for ragged rows, else None: int64 `[rows + 1]`, where each row begins in the stream of all rows, each
            followed by one EOS. Row r has `offsets[r + 1] - offsets[r] - 1` tokens.
        pieces: for blocks, else None.
        short: int64 `[k]`, blocks that are padded, in order.
        short_tokens: int64 `[k]`, the real tokens of each.
        pages: where the tokens are stored flat, or None.
        docs: where the doc_ids of blocks are stored flat, one for each piece, or None.
        why: the reason that `pages` is what it is.
    """

    rows: int
    offsets: Indices | None
    pieces: Pieces | None
    short: Indices
    short_tokens: Indices
    pages: FlatPages | None
    docs: FlatPages | None
    why: str

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows, for ragged rows."""
        return 0 if self.offsets is None else int(self.offsets[-1]) - self.rows


def index_folder(uri: str, version: int, fragments: list[Any], chosen: Path | None) -> Path:
    """Return the folder of a version's index.

    Its name depends on the version and on the names of its data and deletion files, which are unique.
    """
    digest = hashlib.sha256(str(version).encode())
    for fragment in fragments:
        digest.update(repr(([f.path for f in fragment.data_files()], fragment.deletion_file())).encode())
    return cache_folder(uri, f"v{version}-{digest.hexdigest()[:24]}", chosen)


def cache_folder(uri: str, name: str, chosen: Path | None) -> Path:
    """Return a folder for what is derived from data: beside it if it is local, else below the user's cache folder.

    Its name also depends on the user, who trusts only their own files.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"{name}-{user}"
    if chosen is not None:
        return chosen / name
    beside = Path(uri) / ".lance_prep"
    linked = (beside / "cache" / name).is_symlink()  # the folders above were checked when a dataset was opened
    if Path(uri).is_dir() and not linked and os.access(beside if beside.is_dir() else uri, os.W_OK):
        return beside / "cache" / name
    return user_folder() / hashlib.sha256(uri.encode()).hexdigest()[:16] / name


def load_index(cache: Cache) -> Index | None:
    """Return the index as it was stored, or None, without opening the dataset."""
    path = cache.find("index.npz")
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as z:
            facts = json.loads(z["facts"].tobytes())
            offsets = pieces = None
            if facts["ragged"]:
                offsets = mapped(cache, "offsets.npy")
            else:
                pieces = Pieces(mapped(cache, "piece_offsets.npy"), mapped(cache, "piece_lengths.npy"))
            pages, docs = (
                FlatPages(facts[name], *z[name]) if facts[name] is not None else None for name in ("pages", "docs")
            )
            return Index(facts["rows"], offsets, pieces, z["short"], z["short_tokens"], pages, docs, facts["why"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # one of the other files is missing or damaged


def mapped(cache: Cache, name: str) -> npt.NDArray[Any]:
    """Map an array of the cache.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = cache.find(name)
    if path is None:
        raise ValueError(f"{name} is missing or damaged")
    # Return a plain array: indexing a `memmap` creates another one each time, which takes 2 us.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def stored(cache: Cache, name: str, made: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Store an array and return it mapped, or as it is if the cache cannot be written."""
    return made if cache.write(name, lambda file: np.save(file, made)) is None else mapped(cache, name)


def build_index(dataset: Any, cache: Cache, *, root: Path | None, itemsize: int, block_size: int | None) -> Index:
    """Build the index of an open dataset, and store it.

    Args:
        dataset: `lance.LanceDataset`.
        cache: where to keep it.
        root: the dataset's directory, if it is local.
        itemsize: bytes per token.
        block_size: tokens per row for `blocks`, None for ragged rows.

    Raises:
        DatasetError: `seq_lengths` and `num_tokens` contradict each other.
    """
    short = short_tokens = np.empty(0, np.int64)
    offsets = pieces = None
    if block_size is None:
        offsets = stored(cache, "offsets.npy", _row_offsets(dataset))
        rows = len(offsets) - 1
    else:
        counts, found = _read_pieces(dataset)
        pieces = Pieces(
            stored(cache, "piece_offsets.npy", found.offsets), stored(cache, "piece_lengths.npy", found.lengths)
        )
        rows = len(counts)
        short = np.flatnonzero(counts < block_size)
        short_tokens = counts[short]
    pages, why = _pages(dataset, root, itemsize, block_size)
    docs = None
    if root is not None and pieces is not None:
        with suppress(NotFlat):
            docs = find_flat_pages(dataset, root, itemsize=8, block_size=None, column="doc_ids")
    if pages is not None and offsets is not None and int(pages.count.sum()) != int(offsets[-1]) - rows:
        pages, why = None, "input_ids does not have the number of values that num_tokens says"
    index = Index(rows, offsets, pieces, short, short_tokens, pages, docs, why)
    _store(cache, index)
    return index


def _pages(dataset: Any, root: Path | None, itemsize: int, block_size: int | None) -> tuple[FlatPages | None, str]:
    if root is None:
        return None, "the dataset is not on a local disk"
    try:
        return find_flat_pages(dataset, root, itemsize=itemsize, block_size=block_size), "every page is flat"
    except NotFlat as error:
        return None, str(error)


def _row_offsets(dataset: Any) -> Indices:
    """Return where rows begin in the stream, each followed by one EOS, from one scan of `num_tokens`."""
    counts = [batch.column(0).to_numpy() for batch in dataset.scanner(columns=["num_tokens"]).to_batches()]
    lengths = np.concatenate([np.zeros(1, np.int64), *counts]).astype(np.int64)
    lengths[1:] += 1
    out: Indices = np.cumsum(lengths, out=lengths)
    return out


def _read_pieces(dataset: Any) -> tuple[Indices, Pieces]:
    """Read the real tokens of each block, and its pieces, in one scan."""
    tokens, counts, lengths, row = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.uint32)], 0
    for batch in dataset.scanner(columns=["num_tokens", "seq_lengths"], scan_in_order=True).to_batches():
        stated = batch.column("num_tokens").to_numpy().astype(np.int64)
        values, bounds = list_values(batch.column("seq_lengths"), "seq_lengths")
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
        total = ends[bounds[1:]] - ends[bounds[:-1]]
        if (total != stated).any() or not values.all():
            at = int(np.argmax(total != stated))
            raise DatasetError(
                f"row {row + at} has {stated[at]} tokens, but its seq_lengths add up to {total[at]}"
                if total[at] != stated[at]
                else f"seq_lengths of rows {row} to {row + len(batch)} name an empty document",
                "run `lance-prep verify` on the dataset, and build it again",
            )
        tokens.append(stated)
        counts.append(np.diff(bounds))
        lengths.append(np.asarray(values, np.uint32))
        row += len(batch)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return np.concatenate(tokens), Pieces(offsets, np.concatenate(lengths))


def _store(cache: Cache, index: Index) -> None:
    facts: dict[str, Any] = {"rows": index.rows, "ragged": index.offsets is not None, "why": index.why}
    arrays: dict[str, Any] = {"short": index.short, "short_tokens": index.short_tokens}
    for name, pages in (("pages", index.pages), ("docs", index.docs)):
        facts[name] = None if pages is None else pages.files
        if pages is not None:
            arrays[name] = np.stack([pages.file, pages.position, pages.count]).astype(np.int64)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    cache.write("index.npz", lambda file: np.savez(file, **arrays))


def filtered_rows(find: Callable[[], Indices], cache: Cache, sql: str) -> Indices:
    """Return the live rows that pass a filter, in order: int64, from the cache or else from `find`."""
    name = f"filter-{hashlib.sha256(sql.encode()).hexdigest()[:24]}.npy"
    return mapped(cache, name) if cache.find(name) is not None else stored(cache, name, find())


def token_pages(cache: Cache, tokens: int, itemsize: int) -> FlatPages | None:
    """Return the pages of the cache's flat copy of all tokens, or None if it is missing or damaged."""
    path = cache.find("tokens.bin")
    if path is None or path.stat().st_size != (tokens + 1) * itemsize:
        return None
    return FlatPages([path.name], np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([tokens], np.int64))


def copy_tokens(dataset: Any, cache: Cache, tokens: int, itemsize: int) -> FlatPages:
    """Write the tokens of all live rows, end to end, into a file of the cache, at 200 Mtok/s.

    Used for ragged rows whose files are not flat.

    Raises:
        NotFlat: the cache cannot be written, or the number of tokens differs from `num_tokens`.
    """

    def fill(file: Any) -> None:
        for batch in dataset.scanner(columns=["input_ids"], scan_in_order=True).to_batches():
            values, _ = list_values(batch.column(0))
            file.write(np.ascontiguousarray(values).data)
        file.write(bytes(itemsize))  # windows may read one token beyond the end

    if cache.write("tokens.bin", fill) is None:
        raise NotFlat(f"{cache.folder} cannot be written")
    pages = token_pages(cache, tokens, itemsize)
    if pages is None:
        raise NotFlat(f"input_ids does not have the {tokens} tokens that num_tokens says")
    return pages
