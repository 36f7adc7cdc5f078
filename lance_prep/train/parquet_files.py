"""Parquet shards on disk: their footers, their rows, and the flat copy of their tokens that is memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lance_prep.errors import DatasetError, translating
from lance_prep.keyed import Indices
from lance_prep.process import read_ahead
from lance_prep.store import EXPORT_KEY, IGNORE, Cache, FlatPages, natural, refuse_links
from lance_prep.train.index import cache_folder
from lance_prep.train.sources import Mask
from lance_prep.train.tokens import MappedTokens, list_values

#: Tokens that are decoded and checked at once.
_TOKENS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Shards:
    """What the footers of a folder's shards say. Small and picklable.

    Attributes:
        root: the folder.
        names: of the files, in order.
        rows: of each file.
        block_size: tokens per row.
        content_hash: of the dataset that was exported; of the footers if they do not say.
        tokenizer: SHA-256 of its tokenizer; None if the footers do not say.
        cache: folder of the flat copy.
    """

    root: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    block_size: int
    content_hash: str
    tokenizer: str | None
    cache: str


# The shards.


def read_footers(folder: Path, cache_dir: Path | None) -> Shards:
    """Read the footers of a folder's shards.

    Raises:
        DatasetError: the folder has no shards, one is a link, or their rows differ in length.
        BadFile: a file is not Parquet.
    """
    import pyarrow.parquet as pq

    refuse_links(str(folder))
    names = sorted((path.name for path in folder.glob("*.parquet") if not path.name.startswith(".")), key=natural)
    if not names:
        raise DatasetError(f"no .parquet files in {folder}", "export a dataset with `lance-prep export`")
    rows, sizes, said = [], set(), set()
    footers, files = hashlib.sha256(), hashlib.sha256()
    for name in names:
        path = folder / name
        if path.is_symlink():
            raise DatasetError(f"{path} is a link", "put the file itself into the folder")
        with translating(f"reading {path}"), pq.ParquetFile(path) as file:
            footer = file.metadata
            sizes.add(_row_length(file, path))
            said.add(_exported(file.schema_arrow.metadata or {}))
        rows.append(footer.num_rows)
        stat = path.stat()
        files.update(f"{name}/{stat.st_size}/{stat.st_mtime_ns}/".encode())
        footers.update(f"{name}/{stat.st_size}/{footer.num_rows}/{footer.serialized_size}/".encode())
    if len(sizes) > 1 or len(said) > 1:
        raise DatasetError(
            f"the shards in {folder} are of different exports, with rows of {sorted(sizes)} tokens",
            "export the dataset again, into an empty folder",
        )
    content, tokenizer = said.pop()
    content = content or f"parquet-{footers.hexdigest()[:32]}"
    cache = cache_folder(str(folder), f"parquet-{files.hexdigest()[:24]}", cache_dir)
    return Shards(str(folder), tuple(names), tuple(rows), sizes.pop(), content, tokenizer, str(cache))


def _row_length(file: Any, path: Path) -> int:
    """Return the tokens per row of an open shard: as the schema says, or else those of the first row."""
    import pyarrow as pa

    schema = file.schema_arrow
    if "input_ids" not in schema.names:
        raise DatasetError(
            f"{path} has no column input_ids", f"use shards with that column (this one has {', '.join(schema.names)})"
        )
    kind = schema.field("input_ids").type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DatasetError(f"{path}: input_ids is {kind}, not lists of integers", "export the dataset again")
    first = next(file.iter_batches(1, columns=["input_ids"]), None)
    return 0 if first is None else len(first.column(0)[0])


def _exported(metadata: dict[bytes, bytes]) -> tuple[str | None, str | None]:
    """Return the hashes of the content and the tokenizer that were exported; None if another program made the file."""
    try:
        said = json.loads(metadata[EXPORT_KEY])
        found = said["content_hash"], said["tokenizer_sha256"]
    except (KeyError, ValueError, TypeError):
        return None, None
    return found if all(isinstance(each, str) for each in found) else (None, None)


# The flat copy.


@dataclass(frozen=True)
class Rows:
    """The rows of all shards, mapped.

    Attributes:
        count: number of rows.
        tokens: of all rows.
        valid: int64 `[rows]`, tokens of each row before its padding; None if none is padded.
        following: int64 `[rows]`, the label of each row's last token; None if all are ignored.
        ignored: uint8 `[rows, block_size / 8]`, one bit per token whose label is ignored within a row; None for none.
        pad_id: the token of padding.
    """

    count: int
    tokens: MappedTokens
    valid: Indices | None
    following: Indices | None
    ignored: npt.NDArray[np.uint8] | None
    pad_id: int


def load_rows(cache: Cache, shards: Shards) -> Rows | None:
    """Return the flat copy, or None if it is missing or damaged."""
    paths = [cache.find(name) for name in ("rows.npz", "tokens.bin")]
    if paths[0] is None or paths[1] is None:
        return None
    count, size = sum(shards.rows), shards.block_size
    try:
        with np.load(paths[0], allow_pickle=False) as z:
            itemsize, pad_id, some_ignored = z["facts"].tolist()
            valid, following = z["valid"], z["following"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    ignored = None
    if some_ignored:
        path = cache.find("ignored.bin")
        if path is None:
            return None
        ignored = np.asarray(np.memmap(path, np.uint8, "r")).reshape(count, -1)
    if paths[1].stat().st_size != (count * size + 1) * itemsize:
        return None
    pages = FlatPages(["tokens.bin"], np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([count * size], np.int64))
    tokens = MappedTokens(cache.folder, pages, itemsize=itemsize, row_start=lambda rows: rows * size)
    return Rows(
        count,
        tokens,
        None if (valid == size).all() else valid,
        None if (following == IGNORE).all() else following,
        ignored,
        pad_id,
    )


def convert(cache: Cache, shards: Shards, limit: int) -> Rows:
    """Make the flat copy of the shards.

    Raises:
        DatasetError: it would exceed `limit` bytes, it cannot be written, or the shards are not as expected.
    """
    tokens = sum(shards.rows) * shards.block_size
    for itemsize in (2, 4):
        if tokens * itemsize > limit:
            raise DatasetError(
                f"a flat copy of the tokens in {shards.root} ({tokens * itemsize:,} bytes) exceeds "
                f"cache_bytes={limit:,}",
                "pass a larger cache_bytes, or train from the Lance dataset, which needs no copy",
            )
        try:
            written = _write(cache, shards, itemsize)
        except _TooLarge:
            continue  # the files do not say in advance whether two bytes suffice
        rows = load_rows(cache, shards) if written else None
        if rows is None:
            break
        return rows
    raise DatasetError(
        f"a flat copy of the tokens in {shards.root} ({tokens * itemsize:,} bytes) cannot be written to {cache.folder}",
        "free disk space, or pass cache_dir= with a folder that can be written",
    )


class _TooLarge(Exception):
    """A token id does not fit."""


def _write(cache: Cache, shards: Shards, itemsize: int) -> bool:
    """Write the files of the flat copy; return whether they could be written.

    Raises:
        _TooLarge: an id does not fit into `itemsize` bytes.
    """
    valid, following = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    pad_id, some_ignored = None, False

    def fill(tokens: BinaryIO) -> None:
        if cache.write("ignored.bin", lambda bits: fill_both(tokens, bits)) is None:
            raise OSError(f"{cache.folder} cannot be written")

    def fill_both(tokens: BinaryIO, bits: BinaryIO) -> None:
        nonlocal pad_id, some_ignored
        for part in read_ahead(_parts(shards), 2):
            if part.ids.size and int(part.ids.max()) >> 8 * itemsize:
                raise _TooLarge
            tokens.write(part.ids.astype(f"<u{itemsize}").data)
            bits.write(np.packbits(part.ignored, axis=1).data)
            valid.append(part.valid)
            following.append(part.following)
            some_ignored = some_ignored or bool(part.ignored.any())
            short = np.flatnonzero(part.valid < shards.block_size)
            if pad_id is None and short.size:
                pad_id = int(part.ids[short[0], -1])
        tokens.write(bytes(itemsize))  # windows may read one token beyond the end

    if cache.write("tokens.bin", fill) is None:
        return False
    if not some_ignored:
        cache.remove("ignored.bin")
    arrays: dict[str, Any] = {
        "facts": np.array([itemsize, pad_id or 0, some_ignored], np.int64),
        "valid": np.concatenate(valid),
        "following": np.concatenate(following),
    }
    return cache.write("rows.npz", lambda file: np.savez(file, **arrays)) is not None


class _Part(NamedTuple):
    """Some rows, decoded: `ids` and `ignored` are `[rows, block_size]`, the others as in `Rows`."""

    ids: npt.NDArray[Any]
    ignored: Mask
    valid: Indices
    following: Indices


def _parts(shards: Shards) -> Iterator[_Part]:
    """Yield the rows of all shards, in order.

    Raises:
        DatasetError: a column is not as `ParquetDataset` describes it.
    """
    import pyarrow.parquet as pq

    size = shards.block_size
    for name, rows in zip(shards.names, shards.rows, strict=True):
        path, row = Path(shards.root) / name, 0
        with translating(f"reading {path}"), pq.ParquetFile(path) as file:
            columns = [n for n in ("input_ids", "attention_mask", "labels") if n in file.schema_arrow.names]
            for batch in file.iter_batches(max(1, _TOKENS_AT_ONCE // max(1, size)), columns=columns):
                yield _decoded({n: _column(batch, n, size, path) for n in columns}, size, f"{path}, from row {row}")
                row += len(batch)
        if row != rows:
            raise DatasetError(f"{path} changed while it was read: it had {rows} rows, now {row}", "open it again")


def _column(batch: Any, name: str, size: int, path: Path) -> npt.NDArray[Any]:
    values, offsets = list_values(batch.column(name), name)
    if (np.diff(offsets) != size).any() or values.dtype.kind not in "iu":
        raise DatasetError(f"{path}: {name} must be lists of {size} integers without nulls", "export the dataset again")
    return values.reshape(-1, size)


def _decoded(columns: dict[str, npt.NDArray[Any]], size: int, where: str) -> _Part:
    """Return rows without the labels that can be computed from the tokens.

    Raises:
        DatasetError: the columns contradict each other.
    """
    ids, every = columns["input_ids"], np.arange(size)
    count = len(ids)
    valid = np.full(count, size, np.int64)
    if "attention_mask" in columns:
        mask = columns["attention_mask"]
        valid = mask.sum(axis=1, dtype=np.int64)
        short = np.flatnonzero(valid != size)
        if (mask[short] != (every < valid[short, None])).any() or mask.max(initial=0) > 1:
            raise DatasetError(f"{where}: attention_mask must be ones, then zeros", "export the dataset again")
    if ids.size and ids.min() < 0:
        raise DatasetError(f"{where}: input_ids has a negative token", "export the dataset again")
    if "labels" not in columns or not count:
        return _Part(ids, np.zeros(ids.shape, np.bool_), valid, np.full(count, IGNORE, np.int64))
    labels, last = columns["labels"], np.maximum(valid - 1, 0)
    following = np.where(valid > 0, labels[np.arange(count), last], IGNORE).astype(np.int64)
    expected = np.full(ids.shape, IGNORE, labels.dtype)
    expected[:, :-1] = ids[:, 1:]
    expected[np.arange(count), last] = following
    for row in np.flatnonzero(valid < size).tolist():
        expected[row, int(valid[row]) :] = IGNORE
    ignored: Mask = labels != expected
    if ignored.any() and (labels[ignored] != IGNORE).any():
        row = int(np.argmax((ignored & (labels != IGNORE)).any(axis=1)))
        raise DatasetError(
            f"{where}: labels of row {row} of these are neither the next token nor {IGNORE}",
            "write shifted labels, or leave the column out to learn every token",
        )
    return _Part(ids, ignored, valid, following)
