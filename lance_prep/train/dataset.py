"""`LanceDataset`: a version of a token dataset as a map-style torch dataset."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS
from lance_prep.loss_mask import MASK_COLUMN
from lance_prep.train.access import Access, Reader, Verdict, open_reader
from lance_prep.train.forks import renew_after_fork
from lance_prep.train.lance_reads import Facts, Lance, ReadOptions, Way
from lance_prep.train.order import PAD_ROW
from lance_prep.train.samples import Batch, Labels, SampleOptions
from lance_prep.train.sources import MapStyle, Mask, Origin
from lance_prep.train.views import BlockView, RecordView, StreamView, View, ViewOptions, make_view, read_columns
from lance_prep.transport import Transport, absolute_uri

#: Columns of the on-disk format that are returned as tensors, unlike kept columns.
_NUMBERS = ("num_tokens", "doc_id")
#: What `html` shows of a sample.
_MARKED = ("input_ids", "labels", "document_ids")


class DatasetOptions(TypedDict, total=False):
    """Keyword arguments of `LanceDataset`, which describes them, that a `Mixture` passes on to its datasets."""

    version: int | str | None
    filter: str | None
    columns: Sequence[str] | None
    labels: Labels
    attention_mask: bool
    position_ids: bool
    document_ids: bool
    mask_boundaries: bool
    access: Way
    cache: bool
    cache_dir: str | Path | None
    cache_bytes: int | None
    storage_options: Mapping[str, str] | None


class LanceDataset(MapStyle):
    """A version of a dataset, for `torch.utils.data.DataLoader` and for this package's sampler and loader.

    Args:
        path: a local `.lance` directory, or a URL that Lance reads. An `hf://datasets/owner/name@revision/path` URL
            is pinned at first use to the commit that the revision (`main` by default) has then.
        block_size: tokens per sample. `blocks` have one already, so it can be left out. `lines` and `documents` are
            read as one stream of rows, each followed by EOS, that is cut into samples of this size, the last one
            padded. Without it each row is a sample, of its own length.
        version: number or tag of a version. By default the latest one at first use.
        filter: rows to keep, in SQL over the dataset's columns. Evaluated once.
        columns: additional columns of each sample. For `raw`, the columns to read, all by default. Not possible with
            a stream.
        labels: "same" by default; "assistant" to learn only what the assistant of a conversation wrote (see
            `SampleOptions`). Not for `raw`.
        attention_mask, position_ids, document_ids, mask_boundaries: see `SampleOptions`. Not for `raw`.
        access: "auto" maps files into memory if their pages are flat, and otherwise reads through Lance's `take`.
            "mmap" raises an error instead of using `take`. "take" always uses it. The tensors are the same.
            `ds.access` says which is in use, and why.
        cache: first copy a dataset on the Hub, at that commit, to `$HF_HOME/assets/lance-prep`, and read the copy.
        cache_dir: where the index is kept. By default `.lance_prep/cache` in a local dataset that can be written,
            else `~/.cache/lance-prep`.
        cache_bytes: the largest flat copy of the tokens that may be made there, for ragged rows that cannot be
            memory-mapped; by default 4 GiB for a local dataset and none for another.
        storage_options: for Lance.

    Samples are dicts of int64 tensors `[block_size]`: `input_ids`, `labels` (-100 where nothing is learned), and what
    else was asked for. Samples of `raw` are dicts of Python values, and their batches dicts of lists.

    Files are opened at first use, in the process that uses them. An instance pickles in under 10 KB and can be sent to
    forked, forkserver and spawned workers. Threads may share one.

    Raises:
        UsageError: options contradict each other or, at first use, the dataset's layout.
        DatasetError: at first use: no such dataset or version, lance-prep did not build it, or it is damaged.
            Later: it cannot be read, or another dataset was built at its path.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        block_size: int | None = None,
        version: int | str | None = None,
        filter: str | None = None,
        columns: Sequence[str] | None = None,
        labels: Labels | EllipsisType = ...,
        attention_mask: bool = False,
        position_ids: bool = False,
        document_ids: bool = False,
        mask_boundaries: bool = False,
        access: Way = "auto",
        cache: bool = False,
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._options = ReadOptions(
            absolute_uri(path),
            int(version) if isinstance(version, np.integer) else version,
            filter,
            access,
            str(cache_dir) if cache_dir else None,
            cache_bytes,
            Transport.of(storage_options),
            cache,
        )
        self._uri = self._options.uri
        self._view_options = ViewOptions(
            SampleOptions(
                "same" if isinstance(labels, EllipsisType) else labels,
                attention_mask,
                position_ids,
                document_ids,
                mask_boundaries,
            ),
            block_size,
            None if columns is None else tuple(columns),
            labels_given=labels is not ...,
        )
        self._known: Facts | None = None
        self._verdict: Verdict | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._lance = Lance(self._options, self._known)
        self._reader: Reader | None = None
        self._view: View | None = None
        self._text: Any = None
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_uri", "_options", "_view_options", "_known")
        verdict = self._verdict if self._reader is None else self._reader.verdict
        return {**{name: getattr(self, name) for name in kept}, "_verdict": verdict}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # What it is.

    @property
    def _facts(self) -> Facts:
        """The version's metadata, read at first use."""
        if self._known is None:
            with self._lock:
                if self._known is None:
                    self._options = self._options.settled()
                    self._lance = Lance(self._options)
                    self._known = self._lance.facts()
        return self._known

    @property
    def version(self) -> int:
        """The number of the version in use."""
        return self._facts.version

    @property
    def block_size(self) -> int | None:
        """Tokens per sample, or None if samples vary in length or have no tokens."""
        return self._facts.block_size if LAYOUTS[self._facts.layout].packed else self._view_options.block_size

    @property
    def access(self) -> Access:
        """How tokens are read, and why."""
        self._open()
        assert self._reader is not None
        return self._reader.access

    @property
    def uri(self) -> str:
        """Absolute path or URL of the dataset, as it was named."""
        return self._uri

    @property
    def _content_hash(self) -> str:
        """Hash of the version's rows, whatever its path."""
        return self._facts.content_hash

    @property
    def _tokenizer_hash(self) -> str | None:
        return self._facts.tokenizer

    @property
    def _read_rows(self) -> int:
        """How many samples are best read at once: 64 K tokens of maps, which fit a cache; 8 M tokens by `take`."""
        tokens = (8 << 20) if self._slow else (64 << 10)
        return min(max(1, tokens // max(1, int(self._mean_tokens or 1))), 8192)

    @property
    def _slow(self) -> bool:
        """Whether rows are read through `take`, for which reading ahead always pays."""
        return self.access.way == "take"

    @property
    def _mean_tokens(self) -> float | None:
        """Mean tokens per sample without padding; None for `raw`."""
        view = self._open()
        index = self._reader.index if self._reader else None
        if index is None:
            return None
        if not len(view):
            return 1.0
        if isinstance(view, BlockView):
            size = self.block_size or 0
            return size - float((size - index.short_tokens).sum()) / max(index.rows, 1)
        if isinstance(view, StreamView):
            return float(self._view_options.block_size or 0)
        return index.tokens / max(index.rows, 1)

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what must be equal for a checkpoint, made at any position, to be resumed on this dataset."""
        return {
            "content_hash": self._facts.content_hash,
            "layout": self._facts.layout,
            "block_size": self.block_size,
            "filter": self._options.filter,
            "samples": len(self),
        }

    def __repr__(self) -> str:
        return f"LanceDataset({self.uri!r}, version={self.version}, block_size={self.block_size}, samples={len(self)})"

    def _repr_html_(self) -> str:
        from lance_prep import viz

        facts = self._facts
        shown = [("version", self.version), ("layout", facts.layout), ("samples", len(self))]
        shown += [("tokens in a sample", self.block_size)] if self.block_size else []
        shown += [("filter", self._options.filter)] if self._options.filter else []
        return viz.facts(self.uri, [*shown, ("read by", self.access), ("content hash", facts.content_hash)])

    # Samples.

    def __len__(self) -> int:
        return len(self._open())

    def _read(self, indices: Indices, padding: Mask | None) -> Batch:
        view = self._open()
        batch = view.read(indices, padding)
        if self._view_options.columns is not None and not isinstance(view, RecordView):
            self._add_columns(batch, view, indices, padding)
        return batch

    def _add_columns(self, batch: Batch, view: View, indices: Indices, padding: Mask | None) -> None:
        values = read_columns(self._take_columns, view.row_of(indices), list(self._view_options.columns or ()))
        for name, found in values.items():
            empty = 0 if name in _NUMBERS else None
            skip = [False] * len(found) if padding is None else padding.tolist()
            column = [empty if pad else value for value, pad in zip(found, skip, strict=True)]
            if name in _NUMBERS and batch.offsets is None:
                batch.tensors[name] = torch.tensor(column, dtype=torch.int64)
            else:
                batch.lists[name] = column

    def origins(self, indices: Indices) -> list[Origin]:
        """Return where samples come from, leaving out padding samples."""
        indices = indices[indices != PAD_ROW]
        rows = self._open().row_of(indices)
        documents: list[tuple[int, ...]] = [()] * len(rows)
        if LAYOUTS[self._facts.layout].tokens and len(rows):
            name = "doc_ids" if LAYOUTS[self._facts.layout].packed else "doc_id"
            found = read_columns(self._take_columns, rows, [name])[name]
            documents = [tuple(ids) if isinstance(ids, list) else (ids,) for ids in found]
        return [Origin(self.uri, row, docs) for row, docs in zip(rows.tolist(), documents, strict=True)]

    # Text.

    def text(self, index: int) -> str:
        """Return the text of a sample, with special tokens and without padding, by this version's own tokenizer.

        Raises:
            IndexError: out of range.
            UsageError: the dataset is raw and has no tokens.
            DatasetError: the tokenizer is missing or damaged.
        """
        sample = self[index]
        if "input_ids" not in sample:
            raise UsageError("a raw dataset has no tokens", "its records are text already: use ds[i]")
        return self.decode(sample["input_ids"][: sample.valid])

    def decode(self, ids: torch.Tensor | npt.NDArray[np.integer[Any]] | Sequence[int]) -> str:
        """Return the text of token ids `[length]`, special tokens included.

        Raises:
            DatasetError: the tokenizer is missing or damaged.
        """
        text: str = self._tokenizer().decode(torch.as_tensor(ids).tolist(), skip_special_tokens=False)
        return text

    def html(self, index: int) -> str:
        """Return a sample as HTML for a notebook: each token tinted, with its id on hover.

        A line is drawn where a document begins. Of a conversation, the tokens that are learned are underlined. Show it
        with `IPython.display.HTML(ds.html(0))`.

        Raises:
            IndexError: out of range.
            UsageError: the dataset is raw and has no tokens.
            DatasetError: the tokenizer is missing or damaged.
        """
        from lance_prep import viz

        if not LAYOUTS[self._facts.layout].tokens:
            raise UsageError("a raw dataset has no tokens", "its records are text already: use ds[i]")
        chat = MASK_COLUMN in self._facts.columns
        sample = self._with_marks("assistant" if chat else "same")[index]
        ids, labels, documents = (sample[name][: sample.valid].numpy() for name in _MARKED)
        return viz.sample_html(self._tokenizer(), ids.tolist(), labels >= 0 if chat else None, documents)

    def _with_marks(self, labels: Labels) -> LanceDataset:
        """Return the same samples with labels and document ids."""
        marked = LanceDataset.__new__(LanceDataset)
        options = replace(self._view_options, sample=SampleOptions(labels, document_ids=True), columns=None)
        marked.__setstate__({**self.__getstate__(), "_view_options": options})
        return marked

    def plot_lengths(self, ax: Any = None) -> Any:
        """Draw how long the documents are, on a logarithmic scale, and return matplotlib's axes.

        Args:
            ax: axes to draw on; new ones by default.

        Raises:
            UsageError: matplotlib is not installed, or the dataset has no tokens.
        """
        from lance_prep import viz

        options = self._options
        return viz.plot_lengths(self.uri, self.version, options.transport, filter=options.filter, ax=ax)

    def _tokenizer(self) -> Any:
        if self._text is None:
            self._text = self._read_tokenizer()
        return self._text

    def _read_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_buffer(self._lance.tokenizer(self.version))

    # Opening.

    def _take_columns(self, rows: Indices, columns: list[str]) -> Any:
        documents = self._reader.documents(rows) if self._reader and columns == ["doc_ids"] else None
        if documents is not None:
            return pa.table({"doc_ids": documents})
        return self._lance.take(self._facts.version, rows, columns)

    def _open(self) -> View:
        if self._view is None:
            with self._lock:
                if self._view is None:
                    facts = self._facts
                    learned = self._view_options.sample.masked
                    self._reader = open_reader(self._options, facts, self._lance, self._verdict, learned=learned)
                    self._view = make_view(self._view_options, facts, self._reader, self._take_columns)
        return self._view
