"""`JsonlDataset`: a map-style torch dataset that reads the records of JSONL files in place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.store import IGNORE, IndexPlace
from lance_prep.train.access import Access
from lance_prep.train.jsonl_files import Record, RecordFiles, Way
from lance_prep.train.order import PAD_ROW
from lance_prep.train.samples import Batch, Documents, Sample, SampleOptions, no_documents
from lance_prep.train.sources import MapStyle, Mask, Origin

Transform = Callable[[Record], Any]


class JsonlDataset(MapStyle):
    """The records of JSONL files that `lance-prep index` has indexed, read in place.

    Args:
        path: the folder, file or glob that was indexed.
        index: path of the index, if it was written elsewhere (`lance-prep index -o`).
        transform: called with each record (a dict); its result is the item. Use it to tokenize on the fly. To reach
            spawned workers it must be picklable: a function of a module, or an object with `__call__`.
        block_size: the number of tokens that `transform` makes of every record. It must return that many ids, or a dict
            of arrays of that length that includes `input_ids`. Items are then dicts of int64 tensors `[block_size]`,
            like those of a `LanceDataset`, and `Mixture` can mix them with tokens. If only ids are returned, the labels
            equal them.
        access: "mmap" maps the files into memory. "pread" reads each record, or a group of adjacent records, with one
            call. "auto" maps the files if they need at most half of the memory. `ds.access` tells which is used.

    Items are dicts of Python values, as `json.loads` returns them. A `DataLoader` makes a batch a dict of lists, with
    None for what a record lacks. With a `transform` and no `block_size`, items are what it returns, `take` and slices
    return a list, and a `DataLoader` collates as torch does.

    An instance pickles to a few KB, and works in forked, forkserver and spawned workers. Threads may share one.
    A file's size and modification time are checked when it is opened and at each read.

    Raises:
        DatasetError: the files have no index, or it is damaged.
        SourceNotFound: no such file or folder.
        UsageError: `block_size` is below 1 or has no effect. When an item is read: the transform did not return
            `block_size` ids.
        SourceChanged: when a file is read: it changed since it was indexed.
        BadFile: when an item is read: the line is not a JSON object.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        index: str | Path | None = None,
        transform: Transform | None = None,
        block_size: int | None = None,
        access: Way = "auto",
    ) -> None:
        if block_size is not None and (block_size < 1 or transform is None):
            raise UsageError(
                f"block_size={block_size} needs a transform that makes that many ids of a record, and at least 1",
                "pass transform too, or remove block_size",
            )
        self._records = RecordFiles(IndexPlace.of(path, index), access)
        self._transform = transform
        self._block_size = block_size

    @property
    def access(self) -> Access:
        """How records are read, and why."""
        return self._records.access

    def __repr__(self) -> str:
        return f"JsonlDataset({self._records.place.root!r}, records={len(self):,})"

    def __len__(self) -> int:
        return self._records.index.rows

    def _read(self, indices: Indices, padding: Mask | None) -> Any:
        """Return items: `Records`, a list of what the transform returned, or with a block_size a `Batch`."""
        if padding is not None and self._block_size is None:
            raise UsageError("a JSON record cannot be padding", "use tail='drop' or 'repeat'")
        if padding is not None:
            return _padded(self._read(indices[~padding], None), padding)
        if self._block_size is not None and not len(indices):
            return self._read(np.zeros(1, np.int64), None)[:0]  # only an item tells its fields
        records = self._records.read(indices)
        if self._transform is None:
            return Records(records)
        items = [self._transform(record) for record in records]
        return items if self._block_size is None else _block(items, indices, self._block_size)

    def origins(self, indices: Indices) -> list[Origin]:
        """Return the file of each item, leaving out padding."""
        rows = indices[indices != PAD_ROW]
        paths = self._records.paths_of(rows)
        return [Origin(str(path), row, ()) for path, row in zip(paths, rows.tolist(), strict=True)]

    # What samplers and loaders ask.

    @property
    def block_size(self) -> int | None:
        """Tokens per item, or None for records."""
        return self._block_size

    @property
    def _tokenizer_hash(self) -> None:
        return None

    @property
    def _mean_tokens(self) -> float | None:
        # Only the transform knows which tokens are padding, so count all.
        return None if self._block_size is None else float(self._block_size)

    @property
    def _content_hash(self) -> str:
        return self._records.index.content_hash

    @property
    def _read_rows(self) -> int:
        return 64

    @property
    def _slow(self) -> bool:
        return True

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what must be equal for a checkpoint, made at any position, to be resumed. Not the transform's code."""
        return {"content_hash": self._records.index.content_hash, "block_size": self._block_size, "samples": len(self)}


class Records(Batch):
    """Records that were read together: a sequence of them, whose `["name"]` is the list of one field's values."""

    def __init__(self, items: list[Record]) -> None:
        super().__init__({}, {}, len(items), _PLAIN)
        self._items = items

    @property
    def lists(self) -> dict[str, list[Any]]:
        """The values of each field of any record, None where a record lacks it; gathered at first use."""
        if not self._lists:
            items = self._items
            try:
                if all(len(item) == len(items[0]) for item in items):
                    self._lists.update({name: [item[name] for item in items] for name in (items[0] if items else ())})
                    return self._lists
            except KeyError:
                self._lists.clear()
            names = dict.fromkeys(itertools.chain.from_iterable(items))
            self._lists.update({name: [item.get(name) for item in items] for name in names})
        return self._lists

    def _sample(self, i: int, tensors: dict[str, Any]) -> Sample:
        return Sample(self._items[i], _PLAIN, 0, no_documents)

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(i, {}) for i in range(len(self)))

    def _cut(self, start: int, stop: int) -> Records:
        return Records(self._items[start:stop])


_PLAIN = SampleOptions(None)


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
