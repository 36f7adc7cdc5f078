"""The plan: pinned files and the ordered shards cut from them. Plain data, JSON both ways."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from lance_prep.ledger import as_plain
from lance_prep.recipe import Recipe


@dataclass(frozen=True)
class SourceFile:
    """A file at a pinned state.

    Attributes:
        url: absolute local path, `hf://datasets/owner/name@<commit sha>/path`, or `s3://bucket/key`.
        format: name of a registered format.
        size: bytes, as stored (compressed).
        identity: a value that changes with the content: Hub blob id, ETag, or `mtime_ns` of a local file.
        compression: of the whole file, as in `.jsonl.gz`: gzip, zstd, bz2 or xz; None if it is not compressed.
    """

    url: str
    format: str
    size: int
    identity: str
    compression: str | None = None


@dataclass(frozen=True)
class Part:
    """A piece of one file: row groups, bytes or, for formats that cannot be cut, the whole file.

    Attributes:
        file: index into `Plan.files`.
        start, stop: half-open range of row groups (Parquet), of bytes (uncompressed JSONL and text: the lines whose
            first byte is in the range), of rows (Lance); `0, 0` means the whole file.
        rows: number of source rows; None if the metadata does not tell.
    """

    file: int
    start: int = 0
    stop: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class Skipped:
    """Something in a source's folder that is not read.

    Attributes:
        path: relative to the folder.
        reason: why it is not read, such as `hidden` or `not a data file`.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """The unit of work, parallelism, resume and determinism.

    Attributes:
        index: number in the dataset, the high bits of `doc_id`; consecutive in a plan.
        parts: in order.
        bytes: number of stored bytes in its parts, for progress.
        rows: number of source rows, or None if unknown.
    """

    index: int
    parts: tuple[Part, ...]
    bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class PinnedSource:
    """A source as asked for, and as resolved.

    Attributes:
        asked: the recipe's `source`.
        repo: id of a dataset on the Hub, else None.
        config, split: as resolved, else None.
        revision: the ref asked for (`main` by default), Hub only.
        commit: the commit sha that the ref resolved to, Hub only.
    """

    asked: str
    repo: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Plan:
    """A recipe made concrete.

    Attributes:
        recipe: with `column` and `split` filled in as resolved.
        source: the recipe's source, as resolved.
        files: all files, in order.
        shards: in order, with consecutive indices that start at 0 unless the plan is for an append.
        schema: Arrow schema of the rows that `source` delivers: the text column first (large_string if the layout
            tokenizes), then the kept columns; for `raw`, all columns.
        read_schema: of the columns that are read, in the source's order: those of `schema`, and what the filter and
            the template use. Line formats have no types of their own, so the plan fixes them for every shard.
        skipped: files of the source's folder that are not read. They do not affect the rows.
        pinned: other values that determine the rows, by name: the builds that an append adds to, if texts are compared.
    """

    recipe: Recipe
    source: PinnedSource
    files: tuple[SourceFile, ...]
    shards: tuple[Shard, ...]
    schema: pa.Schema = field(compare=False)
    read_schema: pa.Schema = field(compare=False)
    skipped: tuple[Skipped, ...] = field(default=(), compare=False)
    pinned: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """Number of source rows; None if that of a shard is unknown before it is read."""
        rows = [shard.rows for shard in self.shards]
        return None if None in rows else sum(r for r in rows if r is not None)

    def shard(self, index: int) -> Shard:
        """Return the shard with this number in the dataset."""
        return self.shards[index - self.shards[0].index]

    def split(self) -> Iterator[Plan]:
        """Return a small plan for each shard, with only the shard's files. It reads the same rows.

        The recipe's source, which may have thousands of names, is left out.
        """
        recipe = self.recipe.model_copy(update={"source": ()})
        source = replace(self.source, asked="")
        for shard in self.shards:
            places = {number: place for place, number in enumerate(dict.fromkeys(part.file for part in shard.parts))}
            parts = tuple(replace(part, file=places[part.file]) for part in shard.parts)
            files = tuple(self.files[number] for number in places)
            own = replace(shard, parts=parts)
            yield Plan(recipe, source, files, (own,), self.schema, self.read_schema)

    @property
    def left_out(self) -> str:
        """The files of the source's folder that are not read, in one line; empty if all are read."""
        reasons: dict[str, list[str]] = {}
        for each in self.skipped:
            reasons.setdefault(each.reason, []).append(each.path)
        said = [
            f"{', '.join(paths[:3])}{f' and {len(paths) - 3:,} more' if len(paths) > 3 else ''} ({reason})"
            for reason, paths in sorted(reasons.items(), key=lambda item: (item[0] == "hidden", item[0]))
        ]
        return f"{len(self.skipped):,} left out of {self.source.asked}: {'; '.join(said)}" if said else ""

    def as_json(self) -> dict[str, Any]:
        """Return all fields that determine the rows: all except `skipped`."""
        return {
            "recipe": self.recipe.as_json(),
            "source": as_plain(self.source),
            "files": [as_plain(file) for file in self.files],
            "shards": [{**as_plain(shard), "parts": [as_plain(p) for p in shard.parts]} for shard in self.shards],
            "schema": _pack(self.schema),
            "read_schema": _pack(self.read_schema),
            **({"pinned": dict(self.pinned)} if self.pinned else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        return cls(
            recipe=Recipe(**data["recipe"]),
            source=PinnedSource(**data["source"]),
            files=tuple(SourceFile(**f) for f in data["files"]),
            shards=tuple(Shard(**{**s, "parts": tuple(Part(**p) for p in s["parts"])}) for s in data["shards"]),
            schema=_unpack(data["schema"]),
            read_schema=_unpack(data["read_schema"]),
            pinned=data.get("pinned", {}),
        )


def _pack(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _unpack(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
