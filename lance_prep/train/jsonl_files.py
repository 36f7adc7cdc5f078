"""Reads the records of indexed JSONL files: looks them up in the index, reads their bytes and parses them.

Records are parsed by msgspec, three times faster than `json` and with the same values. Bytes come from memory maps or
by `pread`. Random records of 350 and 3,000 bytes, 64 at a time from the page cache, take 1.8 and 3.6 us mapped and 3.1
and 5.6 us by `pread`. Files larger than memory are read by `pread`, because a page fault reads only 4 KiB from the
disk and blocks all threads meanwhile. Reading a mapped file that was truncated ends the process with a bus error, so
the size is checked at each read.

Lance is used only by the process that opens the index. Workers, forked or spawned, map its columns.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import resource
import threading
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec
import numpy as np

from lance_prep.errors import BadFile, DatasetError, SourceChanged, UsageError
from lance_prep.keyed import Indices
from lance_prep.store import (
    FlatPages,
    IndexedFile,
    IndexPlace,
    JsonlIndex,
    LocalFiles,
    NotFlat,
    find_flat_pages,
    open_index,
    open_unchanged,
)
from lance_prep.train.access import Access
from lance_prep.train.forks import renew_after_fork
from lance_prep.train.tokens import MappedTokens

Record = dict[str, Any]
Way = Literal["auto", "mmap", "pread"]

_COLUMNS = {"file": 4, "offset": 8, "length": 4}
#: At most this many rows are looked up without numpy, which is faster for so few.
_FEW = 24
#: With `pread`, look for adjacent records only if two rows are at most this many apart: it takes as long as 8 records.
_NEAR = 8
#: Records at most this many bytes apart are read in one call.
_GAP_BYTES = 4096
#: Maximum number of bytes of one call, unless a record is longer.
_RUN_BYTES = 4 << 20

_decode = msgspec.json.Decoder().decode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RecordFiles:
    """Reads the records of indexed files. Small when pickled. Threads may share one.

    Args:
        place: the files and their index.
        way: "mmap", "pread", or "auto": "mmap" if all files together need at most half of the machine's memory.

    Attributes:
        place: as given.
        index: the open index.
        access: how bytes are read, and why.

    Raises:
        DatasetError: the index is missing, damaged, or of other files.
        UsageError: `way` is invalid.
    """

    def __init__(self, place: IndexPlace, way: Way) -> None:
        if way not in ("auto", "mmap", "pread"):
            raise UsageError(f"invalid access {way!r}", "use 'auto', 'mmap' or 'pread'")
        self.place = place
        self.index, self._columns = _open(place)
        self.access = Access(way, "it was asked for") if way != "auto" else _choose(self.index.bytes)
        self._reset()

    def _reset(self) -> None:
        self._files: list[IndexedFile] | None = None
        self._lookup: _Lookup | None = None
        self._open: dict[int, _Opened] = {}
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "index": self.index, "_columns": self._columns, "access": self.access}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def files(self) -> list[IndexedFile]:
        """The files that hold the records, in order."""
        if self._files is None:
            self._files = self.index.files()
        return self._files

    def path(self, file: int) -> Path:
        """Return the path of a file.

        Raises:
            DatasetError: the file is outside the folder, or missing in the index's list.
        """
        if not file < len(self.files):
            raise DatasetError(f"{self.index.uri} names file {file} of {len(self.files)}", "remove it, and index again")
        return LocalFiles(Path(self.place.root)).path(self.files[file].path)

    def paths_of(self, rows: Indices) -> list[Path]:
        """Return the file of each row."""
        return [self.path(file) for file in self._looked_up().find(rows)[0].tolist()]

    def read(self, rows: Indices) -> list[Record]:
        """Return the records of rows, in the order of `rows`. They are read in the order of the files.

        Raises:
            SourceChanged: a file changed since it was indexed.
            BadFile: a line is not a JSON object.
        """
        lookup = self._looked_up()
        listed: list[int] = rows.tolist()
        if len(listed) <= _FEW:
            order = sorted(range(len(listed)), key=listed.__getitem__)
            listed = [listed[at] for at in order]
            files, offsets, lengths = lookup.few(listed)
        else:
            by_row = np.argsort(rows, kind="stable")
            order = by_row.tolist()
            files, offsets, lengths = (column.tolist() for column in lookup.find(rows[by_row]))
            listed = rows[by_row].tolist() if self.access.way == "pread" else []
        items: list[Any] = [None] * len(order)
        if self.access.way == "pread" and any(b - a <= _NEAR for a, b in itertools.pairwise(listed)):
            self._read_runs(files, offsets, lengths, order, items)
            return items
        last = -1
        for at, file, offset, length in zip(order, files, offsets, lengths, strict=True):
            if file != last:
                content, last = self._content(file), file
            data = content[offset : offset + length]
            if len(data) != length:
                self._too_short(file)
            try:
                record = _decode(data)
            except _REFUSED:
                record = self._as_json_does(data, file, offset)
            items[at] = record if type(record) is dict else self._no_record(file, offset)
        return items

    def _read_runs(
        self, files: list[int], offsets: list[int], lengths: list[int], order: list[int], items: list[Any]
    ) -> None:
        """Read adjacent records in one call."""
        for first, stop in itertools.pairwise(_runs(files, offsets, lengths)):
            file, start, end = files[first], offsets[first], offsets[stop - 1] + lengths[stop - 1]
            data = memoryview(self._content(file)[start:end])
            if len(data) != end - start:
                self._too_short(file)
            for i in range(first, stop):
                line = data[offsets[i] - start :][: lengths[i]]
                try:
                    record = _decode(line)
                except _REFUSED:
                    record = self._as_json_does(line, file, offsets[i])
                items[order[i]] = record if type(record) is dict else self._no_record(file, offsets[i])

    def _looked_up(self) -> _Lookup:
        if self._lookup is None:
            with self._lock:
                self._lookup = self._lookup or _Lookup(self.index, self._columns)
        return self._lookup

    # Files.

    def _content(self, file: int) -> Any:
        """Return the content of a file. Its slices are bytes."""
        found = self._open.get(file)
        return found.content if found is not None and found.is_unchanged() else self._reopened(file)

    def _reopened(self, file: int) -> Any:
        """Open a file.

        Raises:
            SourceChanged: it changed since it was indexed.
        """
        path = self.path(file)
        handle = open_unchanged(path, self.files[file])
        opened: _Opened = _Plain(handle) if self.access.way == "pread" else _Mapped(handle)
        with self._lock:
            if len(self._open) >= _most_open():
                # A thread that is reading the file holds a reference, so it is closed only afterwards.
                del self._open[next(iter(self._open))]
            self._open[file] = opened
        return opened.content

    def _too_short(self, file: int) -> NoReturn:
        self._reopened(file)  # raises an error that says what changed
        raise SourceChanged(f"{self.path(file)} is shorter than its index says", "run `lance-prep index` again")

    # Lines that msgspec refuses.

    def _no_record(self, file: int, offset: int) -> NoReturn:
        raise BadFile(f"{self.path(file)}: the line at byte {offset} is not a JSON object", "fix or remove the line")

    def _as_json_does(self, data: bytes | memoryview, file: int, offset: int) -> Any:
        """Parse values that only `json` accepts: NaN, infinity and lone surrogates."""
        try:
            return json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            self._reopened(file)  # if the file changed, raise that error
            raise BadFile(
                f"{self.path(file)}: the line at byte {offset} is not valid JSON ({error})", "fix or remove the line"
            ) from error


class _Opened:
    """An open file. Slices of `content` are bytes."""

    content: Any

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._state = self._now()

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def is_unchanged(self) -> bool:
        """Return whether the file still has the size and modification time it was opened with. Takes 1 us."""
        return self._now() == self._state


class _Mapped(_Opened):
    """A memory-mapped file."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file)
        self.content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Plain(_Opened):
    """A file read by `pread`."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file)
        self.content = self

    def __getitem__(self, part: slice) -> bytes:
        start, length = part.start, part.stop - part.start
        data = os.pread(self._file.fileno(), length, start)
        while len(data) < length:  # one call returns at most 2 GiB
            more = os.pread(self._file.fileno(), length - len(data), start + len(data))
            if not more:
                break
            data += more
        return data


def _choose(size: int) -> Access:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size <= memory // 2:
        return Access("mmap", f"the files ({size:,} bytes) need at most half of the memory ({memory:,} bytes)")
    return Access("pread", f"the files ({size:,} bytes) need more than half of the memory ({memory:,} bytes)")


def _most_open() -> int:
    """Return the maximum number of open files: half of this process's limit."""
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4096))


def _runs(files: list[int], offsets: list[int], lengths: list[int]) -> list[int]:
    """Return the first record of each run that is read in one call, followed by the number of records."""
    file, offset, length = np.array(files), np.array(offsets), np.array(lengths)
    ends = offset + length
    gaps = offset[1:] - ends[:-1]
    together = (file[1:] == file[:-1]) & (gaps >= 0) & (gaps <= _GAP_BYTES)
    out = [0]
    for stop in [*(np.flatnonzero(~together) + 1).tolist(), len(files)]:
        while int(ends[stop - 1]) - offsets[out[-1]] > _RUN_BYTES and out[-1] < stop - 1:
            most = int(np.searchsorted(ends[:stop], offsets[out[-1]] + _RUN_BYTES, side="right"))
            out.append(max(most, out[-1] + 1))
        if out[-1] < stop:
            out.append(stop)
    return out


# The index.


def _open(place: IndexPlace) -> tuple[JsonlIndex, dict[str, FlatPages] | dict[str, Indices]]:
    """Return the index of a place, and the pages of its columns, or the columns themselves if they are not flat.

    Raises:
        DatasetError: the index is missing, damaged, or of other files.
    """
    asked = place.root if place.pattern is None else f"{place.root}/{place.pattern}"
    opened = open_index(place.uri)
    if opened is None:
        raise DatasetError(f"{asked} has no index: {place.uri} does not exist", f"run `lance-prep index {asked}`")
    index, dataset = opened
    if index.pattern != place.pattern:
        held = "a whole folder" if index.pattern is None else repr(index.pattern)
        raise DatasetError(f"{place.uri} is the index of {held}, not of {asked}", "pass the path that was indexed")
    try:
        pages = {
            name: find_flat_pages(dataset, Path(index.uri), itemsize=size, block_size=None, column=name)
            for name, size in _COLUMNS.items()
        }
        some = np.unique(np.random.default_rng().integers(0, index.rows, 16))
        read = dataset.take(some.tolist())
        for name, found in zip(_COLUMNS, _Lookup(index, pages).find(some), strict=True):
            if not np.array_equal(found, read[name].to_numpy()):
                raise NotFlat("rows read from the file differ from those that Lance reads")
        return index, pages
    except NotFlat:
        table = dataset.to_table()
        return index, {name: table[name].to_numpy().astype(np.int64) for name in _COLUMNS}


class _Lookup:
    """The columns of an index, mapped into memory in the process that reads.

    Raises:
        DatasetError: the index was replaced since it was opened.
    """

    def __init__(self, index: JsonlIndex, columns: dict[str, FlatPages] | dict[str, Indices]) -> None:
        self._maps: list[MappedTokens] = []
        self._arrays: list[Indices] = []
        beside = None
        for name, size in _COLUMNS.items():
            column = columns[name]
            if not isinstance(column, FlatPages):
                self._arrays.append(column)
                continue
            try:
                mapped = MappedTokens(
                    Path(index.uri) / "data", column, itemsize=size, row_start=lambda rows: rows, beside=beside
                )
            except NotFlat as error:
                raise DatasetError(
                    f"{index.uri} was replaced since it was opened ({error})", "create the JsonlDataset again"
                ) from error
            if len(mapped) != index.rows:
                raise NotFlat(f"the file holds {len(mapped)} values for {index.rows} rows")
            beside = mapped
            self._maps.append(mapped)

    def find(self, rows: Indices) -> tuple[Indices, Indices, Indices]:
        """Return the file, offset and length of rows."""
        if self._arrays:
            file, offset, length = (column[rows] for column in self._arrays)
        else:
            file, offset, length = (mapped.blocks(rows, 1).reshape(-1).astype(np.int64) for mapped in self._maps)
        return file, offset, length

    def few(self, rows: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Do the same as `find` for a few rows, with lists."""
        if self._arrays:
            file, offset, length = (column[rows].tolist() for column in self._arrays)
        else:
            file, offset, length = (mapped.few(rows) for mapped in self._maps)
        return file, offset, length
