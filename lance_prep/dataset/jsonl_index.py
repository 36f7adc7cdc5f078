"""Index JSONL files in place: find where each record begins and how long it is, without copying any text.

Newlines are found by numpy in blocks that fit a CPU cache, at 2.5 to 3 GB/s a core from the page cache, hashing
included. A file is scanned in chunks of 64 MiB, several at once. Records are not parsed: that would cost ten times as
much, and reading a record does it anyway.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from lance_prep.errors import BadFile, SourceChanged, SourceNotFound, translating
from lance_prep.keyed import Indices
from lance_prep.store import (
    INDEX_SCHEMA,
    IndexedFile,
    IndexPlace,
    JsonlIndex,
    LocalFiles,
    natural,
    open_unchanged,
    write_index,
)

_SUFFIXES = (".jsonl", ".ndjson")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
#: Part of the definition of a file's hash.
CHUNK_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SINCE = "while it was being indexed"
_NEWLINE, _RETURN = 10, 13
#: White space, with which a blank line begins.
_WHITE = np.zeros(256, bool)
_WHITE[list(b" \t\r\f\v\n")] = True
#: Rows copied at a time from the earlier index.
_ROWS_AT_ONCE = 1 << 20


@dataclass
class Indexed:
    """The result of `index_jsonl`.

    Attributes:
        index: path of the index.
        left_out: path and reason of each JSONL file that is not indexed.
        status: "indexed", "updated" or "up to date".
        files, rows, bytes: of all files that are indexed.
        scanned_files, scanned_bytes: the part of them that was read.
        added, changed, removed: paths of files, compared with the earlier index.
        content_hash: of the content of all files.
        seconds: from the first byte that was read to the last one.
    """

    index: str
    left_out: list[tuple[str, str]]
    status: str = "up to date"
    files: int = 0
    rows: int = 0
    bytes: int = 0
    scanned_files: int = 0
    scanned_bytes: int = 0
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    content_hash: str = ""
    seconds: float = 0.0


def index_jsonl(
    path: str | Path,
    *,
    output: str | Path | None = None,
    rescan: bool = False,
    workers: int | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Index the records of JSONL files for `JsonlDataset`. Only new and changed files are read.

    A file counts as changed if its size or the time of its last change differs. An interrupted run leaves the earlier
    index as it was.

    Args:
        path: a folder (with its subfolders), a file or a glob. Hidden files and folders are left out, links are not
            followed.
        output: where to write the index. By default into the folder, under a hidden name.
        rescan: read all files again.
        workers: threads that read. By default the number of CPUs, at most 8.
        on_bytes: called with the bytes that were read so far, and the bytes to read.

    Raises:
        SourceNotFound: there are no `.jsonl` files, or no records in them.
        BadFile: a file is not UTF-8, or a line has 4 GiB or more.
        SourceChanged: a file changed while it was being read.
        OutputLocked: another process is indexing the same files.
    """
    place = IndexPlace.of(path, output)
    with translating(f"indexing {path}"):
        found, left_out = find_files(place)
        if not found:
            raise _nothing(place, left_out)
        work = _Work(
            place, found, rescan, workers or min(os.cpu_count() or 1, 8), on_bytes, Indexed(place.uri, left_out)
        )
        index = write_index(place, work.start)
    done = work.done
    done.files, done.rows, done.bytes, done.content_hash = len(found), index.rows, index.bytes, index.content_hash
    return done


# Finding files.


def find_files(place: IndexPlace) -> tuple[list[IndexedFile], list[tuple[str, str]]]:
    """Return the JSONL files of a place in natural order, not hashed yet; and path and reason of those left out."""
    root, found, left_out = Path(place.root), list[IndexedFile](), list[tuple[str, str]]()
    for path in _paths(root, place.pattern):
        name = path.relative_to(root).as_posix()
        reason = _reason(root, path)
        if reason is not None:
            left_out.append((name, reason))
            continue
        state = path.stat()
        found.append(IndexedFile(name, state.st_size, state.st_mtime_ns, "", 0))
    found.sort(key=lambda each: natural(each.path))
    return found, sorted(left_out)


def _paths(root: Path, pattern: str | None) -> Iterator[Path]:
    """Yield files with the name of a JSONL file, compressed ones too, and links with such a name."""
    if pattern is None:
        for folder, folders, names in os.walk(root, onerror=_fail):  # does not follow links
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            yield from (Path(folder, name) for name in names if not name.startswith((".", "__")) and _is_jsonl(name))
        return
    for path in [root / pattern] if os.path.lexists(root / pattern) else root.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts[:-1])
        if _is_jsonl(path.name) and not hidden and not path.is_dir():
            yield path


def _fail(error: OSError) -> None:
    raise error  # os.walk would leave the folder out silently


def _is_jsonl(name: str) -> bool:
    plain = PurePosixPath(name.lower())
    if plain.suffix in _COMPRESSED:
        plain = plain.with_suffix("")
    return plain.suffix in _SUFFIXES


def _reason(root: Path, path: Path) -> str | None:
    """Return why a file is left out, or None."""
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), path.relative_to(root)):  # noqa: PTH118
        return "a link"
    if not stat.S_ISREG(path.stat().st_mode):
        return "not a regular file"
    return "compressed" if path.suffix.lower() in _COMPRESSED else None


def _nothing(place: IndexPlace, left_out: Sequence[tuple[str, str]]) -> SourceNotFound:
    where = place.root if place.pattern is None else f"{place.root}/{place.pattern}"
    if not left_out:
        said = "here or in its subfolders" if place.pattern is None else "matches"
        advice = "name a folder, a file or a glob of JSONL files"
        return SourceNotFound(f"{where}: no .jsonl or .ndjson file {said}", advice)
    name, reason = left_out[0]
    advice = "index the folder that holds the files themselves: links are not followed"
    if reason == "compressed":
        advice = "decompress the files (`gunzip`, `zstd -d`), or build a dataset from them"
    return SourceNotFound(f"{where}: {name} is {reason}, and there is no plain .jsonl file", advice)


# The order of the work.


@dataclass
class _Work:
    """Makes the rows of an index, from the earlier index and by scanning.

    Attributes:
        done: what was done, filled in on the way.
        files: the files whose rows were made so far, hashed.
    """

    place: IndexPlace
    found: list[IndexedFile]
    rescan: bool
    workers: int
    on_bytes: Callable[[int, int], None]
    done: Indexed
    files: list[IndexedFile] = field(default_factory=list)

    def start(
        self, earlier: tuple[JsonlIndex, Any] | None
    ) -> tuple[Iterator[pa.RecordBatch], Sequence[IndexedFile]] | None:
        """Compare the files with those of the earlier index; return the rows to write, or None if nothing changed."""
        listed = [] if earlier is None else earlier[0].files()
        firsts = accumulate((file.rows for file in listed), initial=0)
        old = {file.path: (file, first) for file, first in zip(listed, firsts, strict=False)}
        scanned, done = [], self.done
        for file in self.found:
            before = old[file.path][0] if file.path in old else None
            same = before is not None and (before.size, before.mtime_ns) == (file.size, file.mtime_ns)
            if not same:
                (done.added if before is None else done.changed).append(file.path)
            if self.rescan or not same:
                scanned.append(file)
        done.removed = sorted(old.keys() - {file.path for file in self.found})
        done.scanned_files, done.scanned_bytes = len(scanned), sum(file.size for file in scanned)
        if earlier is not None and not scanned and not done.removed:
            return None
        done.status = "indexed" if earlier is None else "updated"
        return self._rows(None if earlier is None else earlier[1], old, scanned), self.files

    def _rows(
        self, earlier: Any, old: dict[str, tuple[IndexedFile, int]], scanned: list[IndexedFile]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all files in order: copied from the earlier index, or found by scanning."""
        read, started, again = 0, time.monotonic(), {file.path for file in scanned}
        local = LocalFiles(Path(self.place.root))
        with ThreadPoolExecutor(self.workers, thread_name_prefix="lance-prep-index") as pool:
            chunks = _Chunks(pool, local, scanned, ahead=2 * self.workers)
            for number, file in enumerate(self.found):
                if file.path not in again:
                    known, first = old[file.path]
                    yield from _copied(earlier, number, first, known.rows)
                    self.files.append(known)
                    continue
                lines = _Lines(local.path(file.path), file)
                for chunk in chunks.of(file):
                    offsets, lengths = lines.add(chunk)
                    read += chunk.stop - chunk.start
                    self.on_bytes(read, self.done.scanned_bytes)
                    if len(offsets):
                        yield _batch(number, offsets, lengths)
                self.files.append(lines.finished())
        self.done.seconds = time.monotonic() - started
        if not any(file.rows for file in self.files):
            raise SourceNotFound(
                f"{self.place.root}: the {len(self.found)} .jsonl files hold no records", "check that they are complete"
            )


def _copied(dataset: Any, number: int, first: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield rows of the earlier index under the file's new number."""
    for start in range(first, first + rows, _ROWS_AT_ONCE):
        limit = min(_ROWS_AT_ONCE, first + rows - start)
        table = dataset.to_table(columns=["offset", "length"], offset=start, limit=limit, scan_in_order=True)
        yield _batch(number, table["offset"].to_numpy(), table["length"].to_numpy())


def _batch(number: int, offsets: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> pa.RecordBatch:
    columns = [np.full(len(offsets), number, np.uint32), offsets.astype(np.uint64), lengths.astype(np.uint32)]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=INDEX_SCHEMA)


# Scanning.


@dataclass(frozen=True)
class _Chunk:
    """Records found in a range of bytes of a file.

    Attributes:
        start, stop: the range.
        ends: int64 `[lines]`, where the newlines are.
        returns: a carriage return is before the newline.
        white: the next line begins with white space, or is empty.
        digest: of the bytes.
    """

    start: int
    stop: int
    ends: Indices
    returns: npt.NDArray[np.bool_]
    white: npt.NDArray[np.bool_]
    digest: bytes


class _Chunks:
    """Scans the chunks of files on threads, a few of them ahead, and hands them out in order."""

    def __init__(
        self, pool: ThreadPoolExecutor, local: LocalFiles, files: Sequence[IndexedFile], *, ahead: int
    ) -> None:
        self._pool, self._local, self._ahead = pool, local, ahead
        self._todo = iter((file, start) for file in files for start in range(0, file.size, CHUNK_BYTES))
        self._pending: deque[Future[_Chunk]] = deque()

    def of(self, file: IndexedFile) -> Iterator[_Chunk]:
        """Yield the chunks of the next file."""
        for _ in range(0, file.size, CHUNK_BYTES):
            while len(self._pending) < self._ahead and (next_ := next(self._todo, None)) is not None:
                self._pending.append(self._pool.submit(_scan, self._local.path(next_[0].path), *next_))
            yield self._pending.popleft().result()


def _scan(path: Path, file: IndexedFile, start: int) -> _Chunk:
    """Find the newlines of a chunk, and hash it."""
    stop = min(start + CHUNK_BYTES, file.size)
    digest, ends, returns, white = xxhash.xxh3_128(), [], [], []
    # With the byte before the block and the one after it, so that each newline has both neighbours.
    buffer = np.zeros(_BLOCK_BYTES + 2, np.uint8)
    with open_unchanged(path, file, since=_SINCE) as handle:
        before = os.pread(handle.fileno(), 1, start - 1)[0] if start else 0
        for at in range(start, stop, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, stop - at)
            buffer[0], buffer[size + 1] = before, 0
            got = os.preadv(handle.fileno(), [buffer.data[1 : size + 2]], at)
            if got < size:
                raise SourceChanged(f"{path} became shorter {_SINCE}", "run the same command again")
            block = buffer[1 : size + 1]
            digest.update(block.data)
            found = np.flatnonzero(block == _NEWLINE)
            ends.append(found + at)
            returns.append(buffer[found] == _RETURN)
            white.append(_WHITE[buffer[found + 2]])
            before = int(block[-1])
    return _Chunk(start, stop, np.concatenate(ends), np.concatenate(returns), np.concatenate(white), digest.digest())


class _Lines:
    """Joins the chunks of a file to lines that are not blank.

    Attributes:
        rows: lines so far.
    """

    def __init__(self, path: Path, file: IndexedFile) -> None:
        self.rows = 0
        self._path, self._file = path, file
        self._digests: list[bytes] = []
        with open_unchanged(path, file, since=_SINCE) as handle:
            head = handle.read(4)
        if head.startswith(_UTF_16):
            raise BadFile(f"{path} is UTF-16, not UTF-8", "convert it: `iconv -f UTF-16 -t UTF-8`")
        self._next = len(_BOM) if head.startswith(_BOM) else 0
        self._white = head[self._next : self._next + 1].isspace()

    def add(self, chunk: _Chunk) -> tuple[Indices, Indices]:
        """Return offsets and lengths of the lines that end in a chunk."""
        self._digests.append(chunk.digest)
        ends, returns, white = chunk.ends, chunk.returns, chunk.white
        if chunk.stop == self._file.size and (ends[-1] if len(ends) else self._next - 1) < chunk.stop - 1:
            # The last line has no newline.
            ends, returns, white = np.append(ends, chunk.stop), np.append(returns, False), np.append(white, False)
        if not len(ends):
            return ends, ends
        starts = np.concatenate([[self._next], ends[:-1] + 1])
        maybe = np.concatenate([[self._white], white[:-1]])
        self._next, self._white = int(ends[-1]) + 1, bool(white[-1])
        lengths = ends - starts - returns
        keep = lengths > 0
        for i in np.flatnonzero(maybe & keep).tolist():  # few: records rarely begin with white space
            keep[i] = not self._is_blank(int(starts[i]), int(lengths[i]))
        offsets, lengths = starts[keep], lengths[keep]
        if len(lengths) and int(lengths.max()) >= 1 << 32:
            at = int(offsets[lengths.argmax()])
            raise BadFile(f"{self._path}: the line at byte {at} has 4 GiB or more", "split the record")
        self.rows += len(offsets)
        return offsets, lengths

    def _is_blank(self, start: int, length: int) -> bool:
        with open_unchanged(self._path, self._file, since=_SINCE) as handle:
            for at in range(start, start + length, _BLOCK_BYTES):
                if os.pread(handle.fileno(), min(_BLOCK_BYTES, start + length - at), at).strip():
                    return False
        return True

    def finished(self) -> IndexedFile:
        """Return the file, after its last chunk.

        Raises:
            SourceChanged: it changed while it was being read.
        """
        with open_unchanged(self._path, self._file, since=_SINCE):
            pass
        return replace(self._file, xxh3=xxhash.xxh3_128_hexdigest(b"".join(self._digests)), rows=self.rows)
