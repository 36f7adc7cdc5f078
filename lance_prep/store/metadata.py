"""The metadata of a dataset version: one JSON object in the Lance schema, under the key `lance_prep`.

Lance carries schema metadata to every version, so an append, a restore and a compaction keep or replace it in the same
commit as the rows. Every manifest holds a copy, and every reader parses it, so it must stay small: lists that grow
with the number of source files or builds are in files of their own (see `store.version`), and the metadata holds only
their hashes.

All of it may come from a stranger. `Metadata.from_json` checks every type and refuses what it does not know, and names
that become parts of a path are hexadecimal.
"""

from __future__ import annotations

import json
import platform
import re
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from importlib.metadata import version as version_of
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from lance_prep.errors import DamagedDataset, DatasetError
from lance_prep.layouts import FUNCTION_PREFIX, LAYOUTS, NO_TOKENIZER
from lance_prep.ledger import Ledger, as_plain

KEY = b"lance_prep"
#: Key of a Parquet file's metadata under which an export says what it was made of.
EXPORT_KEY = b"lance_prep_export"
#: The label of a token from which nothing is learned; loss functions ignore it.
IGNORE = -100
FORMAT = 2
FOLDER = ".lance_prep"
BUILDS_FOLDER = f"{FOLDER}/builds"
TOKENIZERS_FOLDER = f"{FOLDER}/tokenizers"
LISTS_FOLDER = f"{FOLDER}/lists"

_KEY_PATTERN = re.compile(r"[0-9a-f]{16}")
_SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRecord:
    """The source as named, and as resolved.

    Attributes:
        asked: the recipe's `source`.
        repo: Hub dataset id, else None.
        config, split: as resolved, else None.
        revision: the revision asked for, Hub only.
        commit: the commit that it meant, Hub only.
    """

    asked: str
    repo: str | None
    config: str | None
    split: str | None
    revision: str | None
    commit: str | None


@dataclass(frozen=True)
class FileRecord:
    """A source file as it was when it was read. The first five fields are those of `model.SourceFile`.

    Attributes:
        hash: xxh3-128 of a local file; None for a remote one, whose `identity` depends on its content.
    """

    url: str
    format: str
    size: int
    identity: str
    compression: str | None
    hash: str | None


@dataclass(frozen=True)
class ChatRecord:
    """The chat template of a version.

    Attributes:
        sha256: of its file in the sidecar, which holds the template and what it was used with.
        template: sha256 of the template's text.
        origin: where the template is from.
    """

    sha256: str
    template: str
    origin: str

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        check_sha256(self.template, "template")


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer of a version. Fields have the names of `tokenizer.TokenizerSpec`.

    Attributes:
        chat: None if the rows are not conversations.
        backends: names of the encoders whose ids were written, sorted.
    """

    name: str
    commit: str | None
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    is_template: bool
    backends: tuple[str, ...] = ()
    chat: ChatRecord | None = None

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of its files in the sidecar."""
        return (self.sha256,) if self.chat is None else (self.sha256, self.chat.sha256)

    @property
    def key(self) -> str:
        """Identifies the tokenizer and the chat template in a build."""
        return self.sha256 if self.chat is None else f"{self.sha256}+{self.chat.sha256}"

    @property
    def is_function(self) -> bool:
        """Whether it is a Python function, which the dataset names and does not hold."""
        return self.name.startswith(FUNCTION_PREFIX)

    @property
    def decodes(self) -> bool:
        """Whether the dataset has a `tokenizer.json`, with which its ids become text."""
        return not self.is_function and self.name != NO_TOKENIZER

    @property
    def padding_id(self) -> int:
        """The id that fills up blocks: the padding token, else EOS, else 0."""
        return self.pad_id if self.pad_id is not None else self.eos_id or 0


@dataclass(frozen=True)
class BuildRecord:
    """One build whose rows are in a version.

    Attributes:
        key: names its journal; see `store.journal.build_key`.
        how: what the command did to the dataset.
        version: the version that it became.
        created: time of the commit, ISO 8601, UTC.
        first_shard, shards: numbers of its shards.
        rows, tokens: that it wrote.
        commit: of the source, Hub only.
        files: number of source files.
        sources: hash of the list of its source files (`FileRecord`s).
        receipts: hash of the list of its receipts (`ReceiptRecord`s); empty if the shards' numbers name them, as on a
            local disk.
    """

    key: str
    how: Literal["build", "append", "overwrite"]
    version: int
    created: str
    first_shard: int
    shards: int
    rows: int
    tokens: int
    commit: str | None
    files: int
    sources: str
    receipts: str = ""

    def __post_init__(self) -> None:
        check_key(self.key)
        for name, digest in self.lists.items():
            check_sha256(digest, name)

    @property
    def lists(self) -> dict[str, str]:
        """The hashes of its lists, by field."""
        return {"sources": self.sources, **({"receipts": self.receipts} if self.receipts else {})}


@dataclass(frozen=True)
class Lengths:
    """How long the documents are, in tokens (for `lines`, the lines).

    Attributes:
        median, p99, longest: number of tokens.
        longest_doc_id: where the longest one came from.
    """

    median: int
    p99: int
    longest: int
    longest_doc_id: int


@dataclass(frozen=True)
class Metadata:
    """The metadata of a version.

    Attributes:
        recipe: all fields of the recipe, as resolved: the text column, template, filter and so on.
        layout: the name of a layout that is registered.
        block_size: tokens in a block; None if the layout does not pack.
        dtype: of the token ids; None if rows hold none.
        ledger: of all builds together.
        content_hash: of the rows, in order.
        rows, tokens, shards, files: of all builds together.
        build: the last build.
        builds: hash of the list of all builds (`BuildRecord`s), in order.
        lengths: None if they were not measured.
        versions: of the libraries that decide a dataset's bytes.
    """

    recipe: dict[str, Any]
    source: SourceRecord
    tokenizer: TokenizerRecord | None
    layout: str
    block_size: int | None
    dtype: Literal["uint16", "uint32"] | None
    seed: int
    ledger: Ledger
    content_hash: str
    rows: int
    tokens: int
    shards: int
    files: int
    build: BuildRecord
    builds: str
    lengths: Lengths | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sha256(self.builds, "builds")
        layout = LAYOUTS[self.layout]
        if layout.tokens != (self.tokenizer is not None) or layout.tokens != (self.dtype is not None):
            raise ValueError(f"layout {self.layout!r} does not go with its tokenizer and dtype")
        if (self.block_size is not None and self.block_size > 0) != layout.packed:
            raise ValueError(f"layout {self.layout!r} does not go with block_size {self.block_size}")

    @property
    def itemsize(self) -> int:
        """Bytes of a token on disk; 0 for `raw`."""
        return {"uint16": 2, "uint32": 4, None: 0}[self.dtype]

    @property
    def tokenizer_key(self) -> str | None:
        """What identifies the tokenizer and the chat template in a build; None for `raw`."""
        return self.tokenizer.key if self.tokenizer else None

    @property
    def tokenizer_sha256(self) -> str | None:
        """Hash of the tokenizer's file; None for `raw`."""
        return self.tokenizer.sha256 if self.tokenizer else None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON, with the format's version."""
        return {"format": FORMAT, **as_plain(self)}

    @classmethod
    def from_json(cls, data: Any) -> Metadata:
        """Check and convert what `as_json` returned.

        Raises:
            ValueError: a field is missing, unknown or has the wrong type.
        """
        if not isinstance(data, dict):
            raise ValueError(f"the metadata is {_short(data)}, not an object")
        return decode(cls, {name: value for name, value in data.items() if name != "format"})


def read_metadata(schema: pa.Schema) -> Metadata:
    """Return the metadata in a dataset's schema.

    Raises:
        DatasetError: it is missing, has another format, or is invalid (`DamagedDataset`).
    """
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise DatasetError(
            "lance-prep did not build this Lance dataset: its schema has no metadata 'lance_prep'",
            "build it with lance-prep, or read it as a source with layout 'raw'",
        )
    try:
        data = json.loads(text)
        number = data.get("format") if isinstance(data, dict) else None
        if number != FORMAT:
            raise DatasetError(
                f"the dataset has format {_short(number)}; this version of lance-prep reads format {FORMAT}",
                "upgrade lance-prep" if isinstance(number, int) and number > FORMAT else "build the dataset again",
            )
        if isinstance(layout := data.get("layout"), str) and layout not in LAYOUTS:
            raise DatasetError(
                f"the dataset's layout is {_short(layout)}, not one of {', '.join(LAYOUTS)}",
                "import the module that registers the layout, or upgrade lance-prep",
            )
        return Metadata.from_json(data)
    except (ValueError, RecursionError) as error:
        raise DamagedDataset(
            f"the dataset's metadata is invalid: {error}", "restore an older version, or build the dataset again"
        ) from error


def with_metadata(schema: pa.Schema, metadata: Metadata) -> pa.Schema:
    """Return the schema with this metadata in it."""
    text = json.dumps(metadata.as_json(), sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), KEY: text})


def versions_in_use() -> dict[str, str]:
    """Return the versions of the libraries that decide a dataset's bytes."""
    return dict(_versions())


@lru_cache
def _versions() -> tuple[tuple[str, str], ...]:
    # Reading them takes 6 ms, a quarter of what the build of a small source takes.
    names = ("lance-prep", "pylance", "pyarrow", "tokenizers", "gigatoken", "numpy")
    return (("python", platform.python_version()), *((name, version_of(name)) for name in names))


def check_key(key: str) -> str:
    """Return a build's key if it is one.

    Raises:
        ValueError: it is not 16 hexadecimal digits. It becomes part of a path.
    """
    if not _KEY_PATTERN.fullmatch(key):
        raise ValueError(f"key is {_short(key)}, not 16 hexadecimal digits")
    return key


def check_sha256(digest: str, name: str) -> str:
    """Return a SHA-256 if it is one.

    Raises:
        ValueError: it is not 64 hexadecimal digits. It becomes part of a path.
    """
    if not _SHA256_PATTERN.fullmatch(digest):
        raise ValueError(f"{name} is {_short(digest)}, not 64 hexadecimal digits")
    return digest


# JSON to frozen dataclasses. pydantic would do, but every loader worker would import it.


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """Convert parsed JSON to a dataclass, checking every type on the way.

    Knows what the records here are made of: str, int, float, bool, None, literals, `tuple[X, ...]`, `dict[str, X]`,
    arrays of int, at least 0, other dataclasses and `Any`. Fields with a default may be missing.

    Raises:
        ValueError: a field is missing, unknown or has the wrong type; its path is in the message.
    """
    hints, required = _fields_of(kind)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or kind.__name__} is {_short(value)}, not an object")
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"unknown field {_short(where + min(unknown))}")
    if missing := required - value.keys():
        raise ValueError(f"missing field {where}{min(missing)}")
    # Most values have just the type of their field: three quarters of the time for a receipt goes into calls.
    return kind(
        **{
            name: given if type(given) is hints[name] else _decode(hints[name], given, where + name)
            for name, given in value.items()
        }
    )


@lru_cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    required = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    return get_type_hints(kind), frozenset(required)


def _decode(kind: Any, value: Any, where: str) -> Any:
    if type(value) is kind or kind is Any:
        return value
    if is_dataclass(kind):
        return decode(kind, value, f"{where}.")  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType) and NoneType in arguments:
        rest = [argument for argument in arguments if argument is not NoneType]
        return None if value is None else _decode(rest[0], value, where)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if kind is array and isinstance(value, list) and set(map(type, value)) <= {int}:
        with suppress(OverflowError):  # a negative one
            return array("Q", value)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[]") for item in value)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _decode(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    expected = f"one of {', '.join(arguments)}" if origin is Literal else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where} is {_short(value)}, not {expected}")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
