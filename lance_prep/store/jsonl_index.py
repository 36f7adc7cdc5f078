"""The index of JSONL files: where each record is. A small Lance dataset inside the folder that it indexes.

    DIR/.jsonl_index.lance/                  columns file (uint32), offset (uint64), length (uint32): 16 bytes a record
    DIR/.jsonl_index.lance/.lance_prep/      its lock, and the list of files, compressed and named by hash

The rows are in the order of the files' names (numbers in them count as numbers), then of the lines. Lance's file format
2.0 stores such columns flat, so training maps them into memory. Readers find the files of an index only below the
folder that they were told, and follow no links there: an index may come from a stranger.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from lance_prep.errors import DamagedDataset, SourceChanged, SourceNotFound, UsageError, reading_dataset
from lance_prep.store.sidecar import LocalFiles, refuse_links
from lance_prep.store.stores import output_lock
from lance_prep.store.version import read_list, write_list
from lance_prep.transport import absolute_uri, is_local

#: The schema metadata that marks an index.
KEY = b"lance_prep_jsonl_index"
FORMAT = 1
SCHEMA = pa.schema(
    [
        pa.field("file", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),
        pa.field("length", pa.uint32(), nullable=False),
    ]
)
_NAME = ".jsonl_index"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class IndexedFile:
    """A file as it was when it was indexed.

    Attributes:
        path: relative to the folder, with `/`.
        size: bytes.
        mtime_ns: time of the last change.
        xxh3: xxh3-128 of the xxh3-128 of each 64 MiB of its content, so that threads can share the work.
        rows: records.
    """

    path: str
    size: int
    mtime_ns: int
    xxh3: str
    rows: int


@dataclass(frozen=True)
class IndexPlace:
    """Which files an index is of, and where it is.

    Attributes:
        root: the folder that holds the files.
        pattern: of files below it, or None for all in it and its subfolders.
        uri: path of the index.
    """

    root: str
    pattern: str | None
    uri: str

    @classmethod
    def of(cls, path: str | Path, index: str | Path | None = None) -> IndexPlace:
        """Return the place for a folder, a file or a glob.

        Args:
            index: where the index is. By default it is in the folder; that of a file or glob has a name of its own.

        Raises:
            SourceNotFound: no such folder or file.
            UsageError: a URL.
        """
        text = absolute_uri(path)
        if not is_local(text):
            raise UsageError(f"{path}: only local files can be indexed", "download the files first")
        root, pattern = _split(Path(text))
        if not root.is_dir() or not (pattern is None or _GLOB.search(pattern) or (root / pattern).exists()):
            raise SourceNotFound(f"{path}: no such file or folder", "name a folder, a file or a glob of .jsonl files")
        name = _NAME if pattern is None else f"{_NAME}-{hashlib.sha256(os.fsencode(pattern)).hexdigest()[:12]}"
        uri = str(root / f"{name}.lance") if index is None else absolute_uri(index)
        return cls(str(root), pattern, uri)


def _split(path: Path) -> tuple[Path, str | None]:
    """Return the folder, and the name or pattern below it."""
    if path.is_dir():
        return path, None
    if os.path.lexists(path):
        return path.parent, path.name
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
    return Path(*parts[:first]), "/".join(parts[first:])


@dataclass(frozen=True)
class JsonlIndex:
    """An index as it was opened. Small and picklable.

    Attributes:
        uri: path of the index.
        version: of the Lance dataset.
        rows: records.
        bytes: of all files.
        content_hash: of the content of all files, in order. Names do not count.
        pattern: as in `IndexPlace`.
        list_hash: of the list of files.
    """

    uri: str
    version: int
    rows: int
    bytes: int
    content_hash: str
    pattern: str | None
    list_hash: str

    def files(self) -> list[IndexedFile]:
        """Read the list of files, without Lance. `file` in the index counts from its start.

        Raises:
            DamagedDataset: it is missing or damaged.
        """
        return read_list(LocalFiles(Path(self.uri)), self.list_hash, IndexedFile)


def open_index(uri: str) -> tuple[JsonlIndex, Any] | None:
    """Open an index with Lance; return it and the `lance.LanceDataset`, or None if there is none.

    Raises:
        DamagedDataset: it cannot be read, or is not an index.
        DatasetError: it has a symbolic link in place of one of its folders.
    """
    if not (Path(uri) / "_versions").is_dir():
        return None
    refuse_links(uri)
    import lance

    with reading_dataset(uri):
        dataset = lance.dataset(uri)
        stated, rows = (dataset.schema.metadata or {}).get(KEY), dataset.count_rows()
    advice = "remove it, and run `lance-prep index` again"
    if stated is None or not dataset.schema.equals(SCHEMA):
        raise DamagedDataset(f"{uri} is not an index of JSONL files", advice)
    try:
        fields = json.loads(stated)
        if fields["format"] != FORMAT:
            raise DamagedDataset(f"{uri} has format {fields['format']!r}, not {FORMAT}", advice)
        found = JsonlIndex(
            uri,
            dataset.version,
            rows,
            int(fields["bytes"]),
            str(fields["content_hash"]),
            fields["pattern"],
            str(fields["files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataset(f"{uri} is damaged: invalid metadata ({error})", advice) from error
    return found, dataset


def write_index(
    place: IndexPlace,
    make: Callable[[tuple[JsonlIndex, Any] | None], tuple[Iterator[pa.RecordBatch], Sequence[IndexedFile]] | None],
) -> JsonlIndex:
    """Write an index, or its next version, in one Lance transaction. The earlier version is then removed.

    Args:
        place: where.
        make: called with the index that is there, under its lock. Returns its rows, and a sequence that is complete
            after the last of them; or None to leave the index as it is.

    Raises:
        OutputLocked: another process is writing it.
        OutputError: it cannot be written.
    """
    with output_lock(place.uri) as lock:
        found = open_index(place.uri)
        if found and lock.interrupted:
            _tidy(found[1], found[0].list_hash)
        made = make(found)
        if made is None:
            assert found is not None
            return found[0]
        return _commit(place, *made, version=0 if found is None else found[0].version)


def _commit(
    place: IndexPlace, rows: Iterator[pa.RecordBatch], files: Sequence[IndexedFile], *, version: int
) -> JsonlIndex:
    import lance
    from lance.fragment import write_fragments

    uri, failed = place.uri, list[BaseException]()

    def kept() -> Iterator[pa.RecordBatch]:
        try:
            yield from rows
        except BaseException as error:  # Lance hides it behind an error of its own
            failed.append(error)
            raise

    try:
        fragments = write_fragments(
            pa.RecordBatchReader.from_batches(SCHEMA, kept()),
            uri,
            schema=SCHEMA,
            mode="overwrite" if version else "create",  # Lance warns if there is nothing to overwrite
            data_storage_version="2.0",
            max_rows_per_file=(1 << 32) - 1,
            max_bytes_per_file=1 << 60,
        )
    except BaseException as error:
        raise (failed[0] if failed else error) from None
    local = LocalFiles(Path(uri))
    for fragment in fragments:
        for file in fragment.files:
            local.sync(f"data/{file.path}")
    digest = content_hash(files)
    listed = write_list(local, files)
    size = sum(file.size for file in files)
    about = {"format": FORMAT, "content_hash": digest, "bytes": size, "pattern": place.pattern, "files": listed}
    schema = SCHEMA.with_metadata({KEY: json.dumps(about).encode()})
    operation = lance.LanceOperation.Overwrite(schema, fragments)
    made = lance.LanceDataset.commit(uri, lance.Transaction(version, operation), max_retries=20 if version else 0)
    for path in (*local.list("_versions"), *local.list("_transactions")):
        local.sync(path)
    _tidy(made, listed)
    return JsonlIndex(uri, made.version, made.count_rows(), size, digest, place.pattern, listed)


def _tidy(dataset: Any, listed: str) -> None:
    """Remove what earlier versions and killed processes left. Readers that have mapped a file keep it."""
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    files = LocalFiles(Path(dataset.uri))
    for path in files.list(".lance_prep/lists"):
        if Path(path).stem != listed:
            files.delete(path)


def open_unchanged(path: Path, state: IndexedFile, *, since: str = "since it was indexed") -> FileIO:
    """Open a file for reading, unless it is not in the state that was recorded. Follows no link.

    Raises:
        SourceChanged: it is missing, or has another size or time of change. The message has both states.
    """
    advice = "run `lance-prep index` again; it reads only the files that changed"
    try:
        # O_NONBLOCK: opening a FIFO that was put in the file's place must not wait.
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)), "r")
    except FileNotFoundError:
        raise SourceChanged(f"{path} was removed {since}: it had {_said(state.size, state.mtime_ns)}", advice) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise SourceChanged(f"{path} was replaced by a symbolic link {since}", advice) from None
    now = os.fstat(file.fileno())
    if (now.st_size, now.st_mtime_ns) != (state.size, state.mtime_ns) or not stat.S_ISREG(now.st_mode):
        file.close()
        raise SourceChanged(
            f"{path} changed {since}: it had {_said(state.size, state.mtime_ns)}, now it has "
            f"{_said(now.st_size, now.st_mtime_ns)}",
            advice,
        )
    return file


def _said(size: int, mtime_ns: int) -> str:
    seconds, rest = divmod(mtime_ns, 1_000_000_000)
    at = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{size:,} bytes, last changed at {at}.{rest:09}Z"


def content_hash(files: Sequence[IndexedFile]) -> str:
    """Return a hash of the content of files, in order."""
    return str(xxhash.xxh3_128_hexdigest(json.dumps([[file.xxh3, file.rows] for file in files]).encode()))
