"""Export targets: what a format is, and the registry of them.

A target is a `Target` that is passed to `register_target`, and an `Encoder` that it names:

    register_target(Target("ids", ".ids", "my_package.ids:IdsEncoder"))

An encoder turns a fixed number of rows into a piece of a file, and never sees the file. `exchange.run` reads rows,
encodes pieces on several threads, joins them to shards, writes shards durably, and continues after a kill.

A file is `begin`, pieces, `end`. How it is written depends on what the encoder says of itself: pieces go straight to
the file; or, if `begin` depends on them, they are `held` until the file is complete; or, if a file is nothing but its
pieces (`plain`), it may grow to any size, and a killed export continues in the middle of it. Once all shards of a
source are written, `beside` gives the files that describe them, such as an index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.store import DatasetVersion

GB = 10**9

By = Literal["row", "document"]


@dataclass(frozen=True)
class ExportOptions:
    """What decides the content of exported files. A target names those that it reads.

    Attributes:
        shard_size: maximum size of a file, in bytes; None for the target's own. Every target reads it.
        max_seq_length: tokens per row. Layouts with rows of different lengths are cut to it, as
            `LanceDataset(block_size=...)` does: rows, each followed by EOS, form one stream.
        mask_boundaries: ignore the label that leads from one document to the next.
        by: what a record is: a "row" of the dataset, or a "document", whose parts in successive blocks are joined.
        skip_special_tokens: leave special tokens, such as EOS, out of decoded text.
    """

    shard_size: int | None = None
    max_seq_length: int | None = None
    mask_boundaries: bool = False
    by: By = "row"
    skip_special_tokens: bool = False

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_size < 1:
            raise UsageError(f"shard_size must be at least 1, got {self.shard_size}")
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise UsageError(f"max_seq_length must be at least 1, got {self.max_seq_length}")
        if self.by not in get_args(By):
            raise UsageError(f"invalid by {self.by!r}", f"use one of {', '.join(get_args(By))}")


Batches = Generator[pa.RecordBatch, None, None]


class Source(Protocol):
    """The rows of one dataset, for an encoder.

    Attributes:
        opened: the dataset's version.
        rows: number of rows.
        length: tokens per row, or None if rows vary in length.
        unit: name of a row, for messages.
    """

    opened: DatasetVersion
    rows: int
    length: int | None
    unit: str

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Batches:
        """Yield the rows from `start`, in order, `size` at a time; only the last batch may be smaller."""


@dataclass(frozen=True)
class Piece:
    """Rows as they are stored in a file.

    Attributes:
        data: bytes-like objects, in order.
        size: of all of them, in bytes.
        rows: number of rows.
        tokens: number of tokens without padding.
        end: upper bound of what the piece adds to the end of its file, in bytes.
        note: what `Encoder.end` needs to know of the piece.
        ends: if a file may end after any row, int64 `[rows]`: bytes up to the end of each row. `data` then is one
            object.
        row_tokens: beside `ends`: tokens of each row.
    """

    data: Sequence[Any]
    size: int
    rows: int
    tokens: int
    end: int = 0
    note: Any = None
    ends: Indices | None = None
    row_tokens: Indices | None = None

    def split(self, room: int) -> tuple[Piece | None, Piece | None]:
        """Return the rows that fit in `room` bytes, and the others; None for no rows."""
        if self.size + self.end <= room:
            return self, None
        fit = 0 if self.ends is None else int(np.searchsorted(self.ends, room, side="right"))
        return self._part(0, fit), self._part(fit, self.rows)

    def first(self) -> tuple[Piece, Piece | None]:
        """Return as few rows as a file may hold, and the others."""
        part = self if self.ends is None else self._part(0, 1)
        assert part is not None
        return part, self._part(part.rows, self.rows)

    def _part(self, start: int, stop: int) -> Piece | None:
        if start >= stop or self.ends is None or self.row_tokens is None:
            return self if stop > start else None
        first, last = int(self.ends[start - 1]) if start else 0, int(self.ends[stop - 1])
        tokens = self.row_tokens[start:stop]
        data = memoryview(self.data[0])[first:last]
        ends = self.ends[start:stop] - first
        return Piece([data], last - first, stop - start, int(tokens.sum()), 0, None, ends, tokens)


@dataclass(frozen=True)
class Written:
    """A finished file.

    Attributes:
        name: in the source's folder.
        rows, tokens, bytes: as in `Piece`, of the whole file.
    """

    name: str
    rows: int
    tokens: int
    bytes: int


class Encoder(ABC):
    """Writes the rows of one source. A target makes it with the `Source` and the `ExportOptions`.

    What it returns depends on its arguments alone, and threads share it.

    Attributes:
        columns: columns of the source that it reads.
        batch_rows: number of rows that make a piece.
        held: `begin` depends on the pieces, so a file's pieces stay in memory until it is complete.
        plain: a file is nothing but its pieces.
        ids_below: the ids that its files can hold are less than this.
    """

    columns: Sequence[str]
    batch_rows: int
    held = False
    plain = False
    ids_below = 1 << 31

    @abstractmethod
    def encode(self, batch: pa.RecordBatch) -> Piece:
        """Return `batch_rows` rows (fewer at the end of the source), which were checked, as a piece of a file."""

    def begin(self, pieces: Sequence[Piece]) -> bytes:
        """Return what is before the first piece of a file.

        Args:
            pieces: of the file, if they are `held`. Without pieces, it returns its smallest size.
        """
        return b""

    def end(self, notes: Sequence[Any]) -> bytes:
        """Return what is after the last piece of a file, given the notes of all pieces in it.

        Without notes it returns its smallest size, from which the size of a file is reckoned.
        """
        return b""

    def beside(self, files: Sequence[Written]) -> Iterator[tuple[str, Iterable[Any]]]:
        """Yield what else is in the folder once all files are written: a name, and bytes-like objects."""
        yield from ()

    def about(self) -> dict[str, Any]:
        """Return what a reader must know of the files and cannot see in them, for the statistics."""
        return {}


@dataclass(frozen=True)
class Target:
    """A format that datasets can be exported to.

    Attributes:
        name: for `--format`.
        suffix: of its files, with the dot.
        encoder: a function of `Source` and `ExportOptions` that returns an `Encoder`, or `module:name` of it.
        version: changed when the same rows give other bytes, so that an unfinished export starts again.
        reads: names of the `ExportOptions` that it reads. Others are refused.
        tokens: it needs token ids, so layout `raw` is refused.
        fixed: it needs rows of one length, so layouts with other rows need `max_seq_length`.
        shard_size: maximum size of a file unless the options say otherwise; None for one file of any size.
        unmasked: its files hold ids and cannot say which are learned, so conversations are refused.
        loads: `datasets.load_dataset` reads its files.
    """

    name: str
    suffix: str
    encoder: Any
    version: int = 1
    reads: Sequence[str] = ()
    tokens: bool = True
    fixed: bool = False
    shard_size: int | None = 2 * GB
    unmasked: bool = False
    loads: bool = False

    def settled(self, options: ExportOptions) -> ExportOptions:
        """Return the options with the target's own shard size, if they have none."""
        return options if options.shard_size is not None else replace(options, shard_size=self.shard_size)

    def make(self, source: Source, options: ExportOptions) -> Encoder:
        """Return an encoder for a source."""
        if isinstance(self.encoder, str):
            module, _, name = self.encoder.partition(":")
            made: Encoder = getattr(import_module(module), name)(source, options)
            return made
        return self.encoder(source, options)  # type: ignore[no-any-return]

    def check(self, options: ExportOptions) -> None:
        """Refuse options that have no effect.

        Raises:
            UsageError: names one.
        """
        for field in fields(ExportOptions):
            if field.name not in (*self.reads, "shard_size") and getattr(options, field.name) != field.default:
                raise UsageError(f"{field.name} has no effect with format={self.name!r}", f"leave `{field.name}` out")


#: By name, in the order of the help.
TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Make a target known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if target.name in TARGETS:
        raise ValueError(f"{target.name!r} is registered already")
    TARGETS[target.name] = target


def target_named(name: str) -> Target:
    """Return a target.

    Raises:
        UsageError: unknown target.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown format {name!r}", f"use one of {', '.join(TARGETS)}")
    return TARGETS[name]


register_target(
    Target(
        "parquet",
        ".parquet",
        "lance_prep.exchange.parquet:ParquetEncoder",
        reads=("max_seq_length", "mask_boundaries"),
        fixed=True,
        loads=True,
    )
)
register_target(
    Target(
        "trl",
        ".parquet",
        "lance_prep.exchange.parquet:TrlEncoder",
        reads=("max_seq_length",),
        fixed=True,
        loads=True,
    )
)
register_target(
    Target(
        "jsonl",
        ".jsonl",
        "lance_prep.exchange.jsonl:JsonlEncoder",
        reads=("by", "skip_special_tokens"),
        tokens=False,
        loads=True,
    )
)
for _name, _encoder in (("bin", "flat:BinEncoder"), ("megatron", "megatron:MegatronEncoder")):
    _encoder = f"lance_prep.exchange.{_encoder}"
    register_target(Target(_name, ".bin", _encoder, reads=("by",), shard_size=None, unmasked=True))
for _name, _suffix, _encoder in (("mds", ".mds", "mds:MdsEncoder"), ("litdata", ".bin", "litdata:LitdataEncoder")):
    register_target(
        Target(
            _name,
            _suffix,
            f"lance_prep.exchange.{_encoder}",
            reads=("max_seq_length",),
            fixed=True,
            shard_size=1 << 26,
            unmasked=True,
        )
    )
