"""`JsonlDataset`: the records of JSONL files, in place, as a map-style torch dataset.

`lance-prep index` has found where each record is. A record is read with one `pread` and parsed by msgspec, which is
three times faster than `json` and gives the same values. The files are not mapped into memory: cutting a mapped file
short would end the process that reads it with a bus error, while `pread` returns fewer bytes. Lance is used only by the
process that opens the index. Workers, forked or spawned, map its columns.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import torch

from lance_prep.errors import BadFile, DatasetError, SourceChanged, UsageError
from lance_prep.keyed import Indices
from lance_prep.store import IndexedFile, IndexPlace, JsonlIndex, LocalFiles, open_index, open_unchanged
from lance_prep.train.lance_reads import renew_after_fork
from lance_prep.train.order import PAD_ROW
from lance_prep.train.pages import FlatPages, NotFlat, find_flat_pages
from lance_prep.train.samples import IGNORE, Batch, Documents, Sample, SampleOptions, no_documents
from lance_prep.train.sources import MapStyle, Mask, Origin
from lance_prep.train.tokens import MappedTokens

Record = dict[str, Any]
Transform = Callable[[Record], Any]

_STATE = ("_place", "_index", "_columns", "_transform", "_block_size")

_COLUMNS = {"file": 4, "offset": 8, "length": 4}
#: Rows that are at most this many apart may be in one run. Looking for runs costs as much as reading 8 records.
_NEAR = 8
#: Records that are at most this many bytes apart are read in one call.
_GAP_BYTES = 4096
#: The most bytes that one call reads, unless a record is longer.
_RUN_BYTES = 4 << 20
#: Files that are open at a time.
_OPEN_FILES = 128


class JsonlDataset(MapStyle):
    """The records of JSONL files that `lance-prep index` has indexed, read in place.

    Args:
        path: the folder, file or glob that was indexed.
        index: path of the index, if it was written elsewhere (`lance-prep index -o`).
        transform: called with each record (a dict); its result is the item. Use it to tokenize on the fly. To reach
            spawned workers it must be picklable: a function of a module, or an object with `__call__`.
        block_size: the number of tokens that `transform` makes of every record. It must return that many ids, or a dict
            of arrays of that length, `input_ids` among them. Items are then dicts of int64 tensors `[block_size]`, as
            those of a `LanceDataset`, and `Mixture` can mix them with tokens. Ids alone get equal labels.

    Items are dicts of Python values, as `json.loads` returns them. A `DataLoader` makes a batch a dict of lists, with
    None for what a record lacks. With a `transform` and no `block_size`, items are what it returns, `take` and slices
    return a list, and a `DataLoader` collates as torch does.

    An instance pickles in a few KB, and can be sent to forked, forkserver and spawned workers. Threads may share one.
    Opening a file checks its size and the time of its last change against the index.

    Raises:
        DatasetError: the files have no index, or it is damaged.
        SourceNotFound: there is no such file or folder.
        UsageError: `block_size` is below 1 or has no effect. When an item is read: the transform returned something
            else than `block_size` ids.
        SourceChanged: when a file is first read: it is not as it was when it was indexed.
        BadFile: when an item is read: the line is not a JSON object.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        index: str | Path | None = None,
        transform: Transform | None = None,
        block_size: int | None = None,
    ) -> None:
        if block_size is not None and (block_size < 1 or transform is None):
            raise UsageError(
                f"block_size={block_size} needs a transform that makes that many ids of a record, and at least 1",
                "pass transform too, or remove block_size",
            )
        self._place = IndexPlace.of(path, index)
        self._index, self._columns = _open(self._place)
        self._transform = transform
        self._block_size = block_size
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._files: list[IndexedFile] | None = None
        self._handles: dict[int, FileIO] = {}
        self._lookup: _Lookup | None = None
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def files(self) -> list[IndexedFile]:
        """The files that hold the records, in order."""
        if self._files is None:
            self._files = self._index.files()
        return self._files

    def __repr__(self) -> str:
        return f"JsonlDataset({self._place.root!r}, records={len(self):,})"

    def __len__(self) -> int:
        return self._index.rows

    def _read(self, indices: Indices, padding: Mask | None) -> Any:
        """Return items: `Records`, a list of what the transform returned, or with a block_size a `Batch`."""
        if padding is not None and self._block_size is None:
            raise UsageError("a JSON record cannot be padding", "use tail='drop' or 'repeat'")
        if padding is not None:
            return _padded(self._read(indices[~padding], None), padding)
        if self._block_size is not None and not len(indices):
            return self._read(np.zeros(1, np.int64), None)[:0]  # which fields there are, only an item tells
        records = self._records(indices)
        if self._transform is None:
            return Records(records)
        items = [self._transform(record) for record in records]
        return items if self._block_size is None else _block(items, indices, self._block_size)

    def origins(self, indices: Indices) -> list[Origin]:
        """Return the file of each item, leaving out padding."""
        rows = indices[indices != PAD_ROW]
        files, _, _ = self._find(rows)
        return [
            Origin(str(Path(self._place.root, self.files[file].path)), row, ())
            for file, row in zip(files.tolist(), rows.tolist(), strict=True)
        ]

    # What samplers and loaders ask.

    @property
    def block_size(self) -> int | None:
        """Tokens per item, or None for records."""
        return self._block_size

    @property
    def _mean_tokens(self) -> float | None:
        # Only the transform knows about padding, so all tokens count.
        return None if self._block_size is None else float(self._block_size)

    @property
    def _content_hash(self) -> str:
        return self._index.content_hash

    @property
    def _read_rows(self) -> int:
        return 64

    @property
    def _slow(self) -> bool:
        return True

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what must be equal for a checkpoint, made at any position, to be resumed. Not the transform's code."""
        return {"content_hash": self._index.content_hash, "block_size": self._block_size, "samples": len(self)}

    # Reading.

    def _find(self, rows: Indices) -> tuple[Indices, Indices, Indices]:
        """Return the file, offset and length of rows."""
        if self._lookup is None:
            with self._lock:
                self._lookup = self._lookup or _Lookup(self._index, self._columns)
        return self._lookup.find(rows)

    def _records(self, rows: Indices) -> list[Record]:
        """Return the records of rows, in their order. They are read in the order of the files."""
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        found = self._find(rows)
        files, offsets, lengths = (column.tolist() for column in found)
        items: list[Any] = [None] * len(rows)
        if len(rows) > 1 and int((rows[1:] - rows[:-1]).min()) <= _NEAR:
            self._read_runs(_runs(*found), files, offsets, lengths, order.tolist(), items)
            return items
        for at, file, offset, length in zip(order.tolist(), files, offsets, lengths, strict=True):
            data = self._bytes(file, offset, length)
            try:
                record = _decode(data)
            except _REFUSED:
                record = self._as_json_does(data, file, offset)
            items[at] = record if type(record) is dict else self._no_record(file, offset)
        return items

    def _read_runs(
        self,
        runs: list[int],
        files: list[int],
        offsets: list[int],
        lengths: list[int],
        order: list[int],
        items: list[Any],
    ) -> None:
        """Read records that are beside each other in one call."""
        for first, stop in itertools.pairwise(runs):
            file, start, end = files[first], offsets[first], offsets[stop - 1] + lengths[stop - 1]
            data = memoryview(self._bytes(file, start, end - start))
            for i in range(first, stop):
                offset = offsets[i] - start
                line = data[offset : offset + lengths[i]]
                try:
                    record = _decode(line)
                except _REFUSED:
                    record = self._as_json_does(bytes(line), file, offsets[i])
                items[order[i]] = record if type(record) is dict else self._no_record(file, offsets[i])

    def _bytes(self, file: int, offset: int, length: int) -> bytes:
        handle = self._handles.get(file) or self._opened(file)
        data = os.pread(handle.fileno(), length, offset)
        if len(data) < length:
            data += self._rest(file, handle, offset + len(data), length - len(data))
        return data

    def _rest(self, file: int, handle: FileIO, offset: int, length: int) -> bytes:
        """Return the bytes that one call did not read: it returns at most 2 GiB.

        Raises:
            SourceChanged: the file ends before.
        """
        parts = []
        while length:
            data = os.pread(handle.fileno(), length, offset)
            if not data:
                self._opened(file)  # says what changed
                raise SourceChanged(f"{self._path(file)} became shorter", "run `lance-prep index` again")
            parts.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(parts)

    def _opened(self, file: int) -> FileIO:
        """Open a file, if it is as it was indexed."""
        if not file < len(self.files):
            raise DatasetError(
                f"{self._index.uri} names file {file} of {len(self.files)}", "remove it, and index again"
            )
        handle = open_unchanged(self._path(file), self.files[file])
        with self._lock:
            if len(self._handles) >= _OPEN_FILES:
                # A thread that reads from it still holds it, and it is closed after that.
                del self._handles[next(iter(self._handles))]
            self._handles[file] = handle
        return handle

    def _path(self, file: int) -> Path:
        return LocalFiles(Path(self._place.root)).path(self.files[file].path)

    def _no_record(self, file: int, offset: int) -> NoReturn:
        raise BadFile(f"{self._path(file)}: the line at byte {offset} is not a JSON object", "fix or remove the line")

    def _as_json_does(self, data: bytes, file: int, offset: int) -> Any:
        """Parse what msgspec refuses, some of which `json` takes: NaN, infinity, lone surrogates."""
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            self._opened(file)  # if the file changed, say that
            raise BadFile(
                f"{self._path(file)}: the line at byte {offset} is not valid JSON ({error})", "fix or remove the line"
            ) from error


_decode = msgspec.json.Decoder().decode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Records(Batch):
    """Records that were read together: a sequence of them, whose `["name"]` is the list of one field's values."""

    def __init__(self, items: list[Record]) -> None:
        super().__init__({}, {}, len(items), _PLAIN)
        self._items = items

    @property
    def lists(self) -> dict[str, list[Any]]:
        """The values of each field of any record, None where a record lacks it; gathered at first use."""
        if not self._lists:
            names = dict.fromkeys(itertools.chain.from_iterable(self._items))
            self._lists.update({name: [item.get(name) for item in self._items] for name in names})
        return self._lists

    def _sample(self, i: int, tensors: dict[str, Any]) -> Sample:
        return Sample(self._items[i], _PLAIN, 0, no_documents)

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(i, {}) for i in range(len(self)))

    def _cut(self, start: int, stop: int) -> Records:
        return Records(self._items[start:stop])


_PLAIN = SampleOptions(None)


def _runs(files: Indices, offsets: Indices, lengths: Indices) -> list[int]:
    """Return where runs of records that are read in one call begin, and the number of records."""
    ends = offsets + lengths
    gaps = offsets[1:] - ends[:-1]
    together = (files[1:] == files[:-1]) & (gaps >= 0) & (gaps <= _GAP_BYTES)
    breaks = [0, *(np.flatnonzero(~together) + 1).tolist(), len(files)]
    if int(ends[-1] - offsets[0]) <= _RUN_BYTES and len(breaks) == 2:
        return breaks
    out = [0]
    for first, stop in itertools.pairwise(breaks):
        start = int(offsets[first])
        for i in range(first + 1, stop):
            if int(ends[i]) - start > _RUN_BYTES:
                out.append(i)
                start = int(offsets[i])
        out.append(stop)
    return out


# What a transform with a block_size makes.


def _block(items: Sequence[Any], indices: Indices, size: int) -> Batch:
    """Return a batch of what a transform made of the records at indices.

    Raises:
        UsageError: it did not make arrays of `size` integers. Names the record.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for item, index in zip(items, indices.tolist(), strict=True):
        fields = item if isinstance(item, Mapping) else {"input_ids": item, "labels": item}
        if "input_ids" not in fields or (parts and fields.keys() != parts.keys()):
            said = f"{', '.join(map(repr, fields)) or 'nothing'} for record {index}"
            raise UsageError(f"the transform returned {said}", "return input_ids, and the same fields for every record")
        for name, values in fields.items():
            tensor = torch.as_tensor(values)
            if tensor.shape != (size,) or tensor.is_floating_point() or tensor.is_complex():
                raise UsageError(
                    f"the transform returned {name} of shape {list(tensor.shape)} and type {tensor.dtype} for record "
                    f"{index}, not {size} integers",
                    "cut and pad the ids to block_size in the transform",
                )
            parts.setdefault(name, []).append(tensor.to(torch.int64))
    tensors = {name: torch.stack(values) for name, values in parts.items()}
    return Batch(tensors, {}, len(items), SampleOptions(), find=partial(_one_each, len(items), size))


def _one_each(count: int, size: int) -> Documents:
    return Documents(np.ones(count, np.int64), np.full(count, size, np.int64))


def _padded(batch: Batch, padding: Mask) -> Batch:
    """Return a batch with samples that are all padding put in: token 0, and no label."""
    tensors, count = {}, len(padding)
    size = batch.tensors["input_ids"].shape[1]
    for name, values in batch.tensors.items():
        tensors[name] = torch.full((count, size), IGNORE if name == "labels" else 0)
        tensors[name][torch.from_numpy(~padding)] = values
    documents = Documents((~padding).astype(np.int64), np.full(int((~padding).sum()), size, np.int64))
    return Batch(
        tensors, {}, count, batch.options, valid=np.where(padding, 0, size).astype(np.int64), find=lambda: documents
    )


# The index.


def _open(place: IndexPlace) -> tuple[JsonlIndex, dict[str, FlatPages] | dict[str, Indices]]:
    """Open the index of a place; return it and where its columns are stored, or the columns if they are not flat.

    Raises:
        DatasetError: there is none, or it is damaged or of other files.
    """
    asked = place.root if place.pattern is None else f"{place.root}/{place.pattern}"
    opened = open_index(place.uri)
    if opened is None:
        raise DatasetError(f"{asked} has no index: {place.uri} does not exist", f"run `lance-prep index {asked}`")
    index, dataset = opened
    if index.pattern != place.pattern:
        held = "a whole folder" if index.pattern is None else repr(index.pattern)
        raise DatasetError(f"{place.uri} is the index of {held}, not of {asked}", "name the files that were indexed")
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
                    f"{index.uri} was replaced since it was opened ({error})", "make the JsonlDataset again"
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
