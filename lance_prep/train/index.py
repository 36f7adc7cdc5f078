"""What has to be known of a dataset's version before random access: built once, kept beside the dataset.

For ragged rows it is where each row begins (8 bytes a row); for blocks the few that are padded; for both where the
tokens lie flat in the files; for a filter the rows that pass. Files are keyed by the version's data files, which Lance
never changes, so a stale one cannot be taken for a fresh one. A worker process maps them and needs no Lance at all
(an import of 1.4 s).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lance_prep.train.pages import FlatPages, NotFlat, find_flat_pages
from lance_prep.train.permutation import IndexArray


@dataclass(frozen=True)
class Index:
    """Of one version of a dataset.

    Attributes:
        rows: live rows.
        offsets: int64 `[rows + 1]` for ragged rows, else None: where each row begins in the stream in which every row
            is followed by one EOS; row r has `offsets[r + 1] - offsets[r] - 1` tokens.
        short: int64 `[k]`, blocks that are padded, in order.
        short_tokens: int64 `[k]`, how many real tokens those hold.
        pages: where the tokens lie flat, or None.
        why: why `pages` is what it is.
    """

    rows: int
    offsets: IndexArray | None
    short: IndexArray
    short_tokens: IndexArray
    pages: FlatPages | None
    why: str

    @property
    def tokens(self) -> int:
        """Tokens of all rows, for ragged rows."""
        return 0 if self.offsets is None else int(self.offsets[-1]) - self.rows


#: What a file of the cache that is missing or cut short raises.
_BROKEN = (OSError, ValueError, KeyError, EOFError, BadZipFile)


def _mapped(path: Path) -> npt.NDArray[Any]:
    # As a plain array: every index of a `memmap` makes another one, 2 us each.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class Cache:
    """A directory of arrays, written whole or not at all; one that cannot be written holds nothing, and is no error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def array(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The array of that name, memory-mapped; made and stored where it is not there."""
        path = self.folder / f"{name}.npy"
        try:
            return _mapped(path)
        except _BROKEN:
            made = make()
            stored = self.write(path.name, lambda file: np.save(file, made))
            return _mapped(path) if stored else made

    def write(self, name: str, fill: Callable[[Any], None]) -> bool:
        """Store a file under a name, in one rename; False where the directory cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f".{name}.", delete=False) as file:
                try:
                    fill(file)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            Path(file.name).replace(self.folder / name)
        except OSError:
            return False
        return True


def cache_folder(uri: str, version: int, fragments: list[Any], chosen: Path | None) -> Path:
    """Where the index of a version lies: beside a local dataset, else below the user's cache directory.

    The name is made of the version and of the names of its data and deletion files, which are unique.
    """
    digest = hashlib.sha256(str(version).encode())
    for fragment in fragments:
        digest.update(repr(([f.path for f in fragment.data_files()], fragment.deletion_file())).encode())
    name = f"v{version}-{digest.hexdigest()[:24]}"
    beside = Path(uri) / ".lance_prep"
    if chosen is not None:
        return chosen / name
    if Path(uri).is_dir() and os.access(beside if beside.is_dir() else uri, os.W_OK):
        return beside / "cache" / name
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lance-prep" / hashlib.sha256(uri.encode()).hexdigest()[:16] / name


def load_index(cache: Cache) -> Index | None:
    """The index as it was stored, or None. Opens no dataset."""
    try:
        facts = json.loads((cache.folder / "index.json").read_text())
        offsets = None
        if facts["ragged"]:
            offsets = _mapped(cache.folder / "offsets.npy")
        with np.load(cache.folder / "pages.npz", allow_pickle=False) as z:
            pages = None
            if facts["flat"]:
                pages = FlatPages(facts["files"], z["file_of"], z["position"], z["count"])
            return Index(facts["rows"], offsets, z["short"], z["short_tokens"], pages, facts["why"])
    except _BROKEN:
        return None


def build_index(dataset: Any, cache: Cache, *, root: Path | None, itemsize: int, block_size: int | None) -> Index:
    """Read what an index holds from an open dataset, and store it.

    Args:
        dataset: `lance.LanceDataset`.
        cache: where to keep it.
        root: the dataset's directory where it is a local one.
        itemsize: bytes a token.
        block_size: tokens a row for `blocks`, None for ragged rows.
    """
    none = np.empty(0, np.int64)
    offsets, short, short_tokens = None, none, none
    if block_size is None:
        offsets = cache.array("offsets", lambda: _row_offsets(dataset))
    else:
        table = dataset.scanner(columns=["_rowoffset", "num_tokens"], filter=f"num_tokens < {block_size}").to_table()
        short, short_tokens = (table[c].to_numpy().astype(np.int64) for c in ("_rowoffset", "num_tokens"))
        order = np.argsort(short, kind="stable")
        short, short_tokens = short[order], short_tokens[order]
    rows = dataset.count_rows()
    pages, why = _pages(dataset, root, itemsize, block_size)
    if pages is not None and offsets is not None and int(pages.count.sum()) != int(offsets[-1]) - rows:
        pages, why = None, "the values of input_ids are not as many as num_tokens says"
    index = Index(rows, offsets, short, short_tokens, pages, why)
    _store(cache, index)
    return index


def _pages(dataset: Any, root: Path | None, itemsize: int, block_size: int | None) -> tuple[FlatPages | None, str]:
    if root is None:
        return None, "the dataset is not on a local disk"
    try:
        return find_flat_pages(dataset, root, itemsize=itemsize, block_size=block_size), "every page is flat"
    except NotFlat as error:
        return None, str(error)


def _row_offsets(dataset: Any) -> IndexArray:
    """Ends of rows in the stream, every row followed by one EOS: one scan of `num_tokens`."""
    counts = [batch.column(0).to_numpy() for batch in dataset.scanner(columns=["num_tokens"]).to_batches()]
    lengths = np.concatenate([np.zeros(1, np.int64), *counts]).astype(np.int64)
    lengths[1:] += 1
    out: IndexArray = np.cumsum(lengths, out=lengths)
    return out


def _store(cache: Cache, index: Index) -> None:
    pages = index.pages
    empty = np.empty(0, np.int64)
    arrays: dict[str, Any] = {
        "file_of": empty if pages is None else pages.file,
        "position": empty if pages is None else pages.position,
        "count": empty if pages is None else pages.count,
        "short": index.short,
        "short_tokens": index.short_tokens,
    }
    facts = {
        "rows": index.rows,
        "ragged": index.offsets is not None,
        "flat": pages is not None,
        "files": [] if pages is None else pages.files,
        "why": index.why,
    }
    # index.json last: whoever finds it finds the rest.
    if cache.write("pages.npz", lambda file: np.savez(file, **arrays)):
        cache.write("index.json", lambda file: file.write(json.dumps(facts).encode()))


def filtered_rows(find: Callable[[], IndexArray], cache: Cache, sql: str) -> IndexArray:
    """Which live rows pass a filter, in order: int64. Found once by `find`, then mapped from the cache."""
    return cache.array(f"filter-{hashlib.sha256(sql.encode()).hexdigest()[:24]}", find)


def flat_token_cache(
    open_dataset: Callable[[], Any], cache: Cache, tokens: int, itemsize: int, limit: int
) -> FlatPages:
    """All tokens of the live rows end to end in one file of the cache: made at first use, mapped ever after.

    For ragged rows whose files are not flat. A scan: 200 Mtok/s.

    Raises:
        NotFlat: it would exceed `limit` bytes, or the cache cannot be written.
    """
    from lance_prep.train.tokens import list_values

    size = tokens * itemsize
    if size > limit:
        raise NotFlat(f"a flat cache of {size:,} bytes is over cache_bytes={limit:,}")

    def fill(file: Any) -> None:
        for batch in open_dataset().scanner(columns=["input_ids"]).to_batches():
            values, _ = list_values(batch.column(0))
            file.write(np.ascontiguousarray(values).data)
        file.write(bytes(itemsize))  # room for a window of one token more

    path = cache.folder / "tokens.bin"
    if not path.exists() and not cache.write(path.name, fill):
        raise NotFlat(f"{cache.folder} cannot be written")
    if path.stat().st_size != size + itemsize:
        path.unlink()
        raise NotFlat(f"{path} had another size than {size + itemsize}")
    return FlatPages([path.name], np.zeros(1, np.int32), np.zeros(1, np.int64), np.array([tokens], np.int64))
