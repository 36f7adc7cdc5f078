"""A version of a dataset, and the one way to open it.

    NAME.lance/.lance_prep/tokenizers/<sha256>.json     the tokenizers of all versions
    NAME.lance/.lance_prep/lists/<sha256>.zst           builds of a version, source files of a build: JSON, compressed

Both are named by the hash of their content, so versions share them, and a damaged one is found when it is read.
Opening a version for reading reads neither: it costs the same for one source file as for a million.

Training opens versions too, so nothing here may import pydantic or the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lance_prep.errors import AccessDenied, DamagedDataset, DatasetError, as_cause, one_line, translate
from lance_prep.hub_path import parse_hub_url, pinned_uri
from lance_prep.layouts import PATH_FIELDS
from lance_prep.ledger import as_plain
from lance_prep.store.metadata import (
    LISTS_FOLDER,
    TOKENIZERS_FOLDER,
    BuildRecord,
    FileRecord,
    Metadata,
    check_sha256,
    decode,
    read_metadata,
)
from lance_prep.store.seal import manifest_versions
from lance_prep.store.sidecar import Files, refuse_links
from lance_prep.store.stores import files_of, open_dataset
from lance_prep.transport import Transport, absolute_uri, is_local

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: `datasets` infers a folder's format from the most frequent extension, and Lance writes each tag as a `.json` file.
#: This file tells it which files to load, in a folder and in the root of a Hub repository.
LOADER_FILE = ".huggingface.yaml"
LOADER = b"""\
# How `datasets.load_dataset` finds the data of this Lance dataset. Written by lance-prep.
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - _versions/*.manifest
    - data/*.lance
"""

_LONGEST_LIST = 1 << 30  # bytes of JSON: about five million source files

_TAG = re.compile(r"(?!.*\.\.)[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")

R = TypeVar("R", bound="DataclassInstance")


@dataclass(frozen=True)
class DatasetVersion:
    """A dataset at one version. Made by `open_version`.

    Attributes:
        uri: absolute path or URI.
        number: of the version.
        dataset: the Lance dataset.
        metadata: what the version says of itself.
        transport: how to reach an object store.
    """

    uri: str
    number: int
    dataset: Any = field(repr=False)
    metadata: Metadata = field(repr=False)
    transport: Transport = field(default_factory=Transport, repr=False)

    @cached_property
    def files(self) -> Files:
        """The small files beside the data."""
        return files_of(self.uri, self.transport)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as JSON, with absolute paths: a build with it gives the same rows."""
        return resolved_recipe(self.metadata.recipe, self.uri)

    @cached_property
    def builds(self) -> tuple[BuildRecord, ...]:
        """The builds whose rows are in this version, in order.

        Raises:
            DamagedDataset: their list is missing or damaged.
        """
        return tuple(read_list(self.files, self.metadata.builds, BuildRecord))

    @cached_property
    def source_files(self) -> tuple[FileRecord, ...]:
        """The source files of all builds, in order.

        Raises:
            DamagedDataset: a list is missing or damaged.
        """
        return tuple(file for build in self.builds for file in self.files_of_build(build))

    def files_of_build(self, build: BuildRecord) -> list[FileRecord]:
        """Return the source files of one build, with absolute paths. Raises as `source_files` does."""
        files = read_list(self.files, build.sources, FileRecord)
        return [replace(file, url=resolved_path(file.url, self.uri)) for file in files]

    def fragments(self) -> list[dict[str, Any]]:
        """Return the Lance fragments as JSON, in order."""
        return [fragment.metadata.to_json() for fragment in self.dataset.get_fragments()]

    def tokenizer_file(self) -> bytes:
        """Return the `tokenizer.json` that made this version.

        Raises:
            DatasetError: it is missing or damaged, the layout has none, or the ids have no tokenizer of that kind.
        """
        if self.metadata.tokenizer is not None and self.metadata.tokenizer.is_function:
            raise DatasetError(
                f"{self.uri} was tokenized by a Python function, {self.metadata.tokenizer.name}: it has no decoder",
                "decode the ids with the code that the function belongs to",
            )
        if self.metadata.tokenizer is not None and not self.metadata.tokenizer.decodes:
            raise DatasetError(
                f"{self.uri} holds ids that came without a tokenizer, so they cannot be decoded",
                "import them again with the tokenizer that made them",
            )
        return self.tokenizer_record()

    def tokenizer_record(self) -> bytes:
        """Return the file whose sha256 identifies the tokenizer: a `tokenizer.json`, or what names a Python function.

        Raises:
            DatasetError: it is missing or damaged, or the layout has none.
        """
        if self.metadata.tokenizer is None:
            raise DatasetError(
                f"{self.uri} has layout {self.metadata.layout!r}: its rows hold no tokens", "read its columns"
            )
        return read_by_hash(self.files, tokenizer_path(self.metadata.tokenizer.sha256))

    def chat_file(self) -> bytes | None:
        """Return the file of the chat template, or None if the rows are not conversations.

        Raises:
            DatasetError: it is missing or damaged.
        """
        tokenizer = self.metadata.tokenizer
        if tokenizer is None or tokenizer.chat is None:
            return None
        return read_by_hash(self.files, tokenizer_path(tokenizer.chat.sha256))


def portable_path(path: str, uri: str) -> str:
    """Return a local path as it is written into the dataset at `uri`, so that both can be moved together.

    A path inside the parent of the folder that contains the dataset becomes relative to that folder, and starts with
    `./` or `../`. For `/data/sets/x.lance`, `/data/raw/a.txt` becomes `../raw/a.txt`, and `/other/a.txt` stays as it
    is. If that parent is the root folder, only paths in the folder itself become relative.
    """
    path = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow symbolic links)
    for folder, prefix in _shared_folders(uri):
        if path.startswith(folder):
            return prefix + path[len(folder) :]
    return path


@lru_cache
def _shared_folders(uri: str) -> list[tuple[str, str]]:
    if not is_local(uri):
        return []
    folder = Path(uri).parent
    folders = [(folder, "./"), (folder.parent, "../")]
    return [(f"{path}/", prefix) for path, prefix in folders if path != path.parent]


def portable_url(url: str, uri: str) -> str:
    """Return `portable_path` of an absolute path; a URL or another name as it is."""
    return portable_path(url, uri) if url.startswith("/") else url


def resolved_path(path: str, uri: str) -> str:
    """Return what `portable_path` was given, for the place where the dataset is now; URLs and names as they are."""
    if is_local(uri) and path.startswith(("./", "../")):
        return os.path.normpath(f"{Path(uri).parent}/{path}")
    return path


def resolved_recipe(recipe: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Return a recipe as it was recorded, with the paths in it resolved."""

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return resolved_path(value, uri) if isinstance(value, str) else value

    return {name: resolve(value) if name in PATH_FIELDS else value for name, value in recipe.items()}


def open_version(
    path: str | Path, version: int | str | None = None, storage_options: Mapping[str, str] | None = None
) -> DatasetVersion:
    """Open a dataset that lance-prep built.

    Args:
        path: of the dataset, or its URI. A dataset on the Hub is pinned to the commit that it has now.
        version: number or tag; the latest by default.
        storage_options: for an object store.

    Raises:
        DatasetError: there is no dataset, it has no such version, lance-prep did not build it, one of its folders is a
            symbolic link, or it is damaged (`DamagedDataset`).
        SourceError: the Hub does not answer, or has no such repository or revision.
    """
    transport = Transport.of(storage_options)
    return open_at(pinned_uri(absolute_uri(path), transport), version, transport)


def open_at(uri: str, version: int | str | None, transport: Transport) -> DatasetVersion:
    """Open a version of the dataset at an absolute path or URI. Otherwise as `open_version`."""
    return opened(uri, open_any(uri, version, transport), transport)


def open_any(uri: str, version: int | str | None, transport: Transport) -> Any:
    """Open the Lance dataset at a URI, whichever program built it.

    Raises:
        DatasetError: there is no dataset, it has no such version, one of its folders is a symbolic link, or its
            manifest is damaged (`DamagedDataset`).
        AccessDenied: an object store refuses access.
    """
    refuse_links(uri)
    wanted = int(version) if version is not None and str(version).isdigit() else version
    if wanted >= 1 << 63 if isinstance(wanted, int) else wanted is not None and not _TAG.fullmatch(wanted):
        raise _not_there(uri, wanted, transport)  # Lance refuses such numbers and names in its own words
    try:
        dataset = open_dataset(uri, wanted, transport)
    except (ValueError, OSError, RuntimeError) as error:  # of an object store
        at = "" if version is None else f" at version {version}"
        ours = translate(error, f"opening {uri}")
        if not isinstance(ours, AccessDenied):
            said = f"{uri}{at} cannot be opened: {one_line(error)}"
            ours = DatasetError(said, "`lance-prep versions` lists those that can")
        raise ours from as_cause(error)
    if dataset is None:
        raise _not_there(uri, wanted, transport)
    return dataset


def opened(uri: str, dataset: Any, transport: Transport) -> DatasetVersion:
    """Return an open Lance dataset as a version.

    Raises:
        DatasetError: lance-prep did not build it.
    """
    return DatasetVersion(uri, int(dataset.version), dataset, read_metadata(dataset.schema), transport)


def _not_there(uri: str, version: int | str | None, transport: Transport) -> DatasetError:
    latest = open_dataset(uri, None, transport) if version is not None else None
    if latest is None and uri.startswith("hf://"):
        named = f"hf://datasets/{parse_hub_url(uri).repo}/data/train.lance"
        return DatasetError(f"there is no dataset at {uri}", f"name its folder in the repository, such as {named}")
    if latest is None:
        return DatasetError(f"there is no dataset at {uri}", "build one with lance-prep build")
    numbers, tags = version_numbers(uri, transport), sorted(latest.tags.list())
    known = f"version{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}"
    advice = f"use {known}" + (f", or a tag: {', '.join(tags)}" if tags else "")
    return DatasetError(f"{uri} has no version {version}", advice)


def _ranges(numbers: list[int]) -> str:
    """Return ascending numbers as text: `1, 3 to 5`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))


def version_numbers(uri: str, transport: Transport) -> list[int]:
    """Return the numbers of all versions, ascending, from the names of their manifests: damaged ones too."""
    return manifest_versions(files_of(uri, transport))


# Files named by the hash of their content.


def tokenizer_path(sha256: str) -> str:
    """Return the path of a tokenizer within a dataset."""
    return f"{TOKENIZERS_FOLDER}/{check_sha256(sha256, 'sha256')}.json"


def list_path(sha256: str) -> str:
    """Return the path of a list within a dataset."""
    return f"{LISTS_FOLDER}/{check_sha256(sha256, 'hash of a list')}.zst"


def read_by_hash(files: Files, path: str) -> bytes:
    """Return the content of a file that is named by its SHA-256.

    Raises:
        DamagedDataset: it is missing or damaged.
    """
    data, expected = files.read(path), Path(path).stem
    advice = "copy it from a backup, or build the dataset again"
    if data is None:
        raise DamagedDataset(f"{path} is missing", advice)
    if (actual := hashlib.sha256(data).hexdigest()) != expected:
        raise DamagedDataset(f"{path} is damaged: its sha256 is {actual}", advice)
    return data


def write_by_hash(files: Files, path: str, data: bytes) -> None:
    """Write a file that is named by its SHA-256, unless it is there and undamaged."""
    if files.read(path) != data:
        files.write(path, data)


def write_list(files: Files, records: Iterable[R]) -> str:
    """Write a list of records and return its hash."""
    import zstandard

    text = json.dumps([as_plain(record) for record in records], sort_keys=True, separators=(",", ":"))
    data = zstandard.ZstdCompressor().compress(text.encode())
    digest = hashlib.sha256(data).hexdigest()
    write_by_hash(files, list_path(digest), data)
    return digest


def read_list(files: Files, digest: str, kind: type[R]) -> list[R]:
    """Return the records of a list.

    Raises:
        DamagedDataset: it is missing, damaged or invalid.
    """
    import zstandard

    path = list_path(digest)
    data = read_by_hash(files, path)
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size > _LONGEST_LIST:  # also if the frame does not tell
            raise ValueError(f"it says that it holds {size:,} bytes")
        records = json.loads(zstandard.ZstdDecompressor().decompress(data))
        if not isinstance(records, list):
            raise ValueError("it is not a list")
        return [decode(kind, record) for record in records]
    except (ValueError, zstandard.ZstdError, RecursionError) as error:
        raise DamagedDataset(f"{path} is invalid: {error}", "build the dataset again") from error
