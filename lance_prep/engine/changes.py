"""Finds what has changed in a source since a dataset was built from it. Files are known by content, not by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lance_prep.model import Plan, SourceFile
from lance_prep.source import check_unchanged
from lance_prep.store import FileRecord, hash_file
from lance_prep.transport import Transport, is_local

_HASH_THREADS = 4


@dataclass(frozen=True)
class Changes:
    """Files of the source that differ from those that a dataset was built from.

    Attributes:
        new: not in the dataset, or more copies than it has.
        changed: have the name of a file in the dataset, but other content.
        gone: in the dataset and no longer in the source, as recorded.
    """

    new: tuple[SourceFile, ...]
    changed: tuple[SourceFile, ...]
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        parts = [
            f"{len(urls)} {what} ({urls[0]}{', ...' if len(urls) > 1 else ''})"
            for what, urls in (
                ("new", [file.url for file in self.new]),
                ("gone", list(self.gone)),
                ("changed", [file.url for file in self.changed]),
            )
            if urls
        ]
        return ", ".join(parts) or "nothing"


class Digests:
    """Content hashes of local source files (xxh3-128), each computed once, however often it is asked for.

    They tell a file that was only touched or renamed from one that was changed. A file that the build has just read is
    in the page cache: 1 GB takes about 0.3 s.
    """

    def __init__(self) -> None:
        self._known: dict[SourceFile, str | None] = {}

    def of(self, file: SourceFile) -> str | None:
        """Return the hash of a file; None for a remote one."""
        if file not in self._known:
            self._known[file] = _hash(file)
        return self._known[file]

    def of_all(self, files: Sequence[SourceFile]) -> list[str | None]:
        """Return the hashes of many files, computed in parallel."""
        with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
            return list(pool.map(self.of, files))


def record_files(plan: Plan, digests: Digests, transport: Transport) -> list[FileRecord]:
    """Return the plan's files as they are recorded in a dataset, local ones with a hash of their content.

    Raises:
        SourceChanged: a file was changed since it was planned.
    """
    hashes = digests.of_all(plan.files)
    for file in plan.files:
        check_unchanged(file, transport)  # what was hashed is what was read
    return [FileRecord(**asdict(file), hash=digest) for file, digest in zip(plan.files, hashes, strict=True)]


def compare(then: Iterable[FileRecord], plan: Plan, digests: Digests) -> Changes:
    """Compare the recorded files of a dataset with the plan's, by content and number of copies.

    A renamed or touched file is the same file. A second copy is a new one, because a fresh build would read both. A
    file with the place, size and time of a record is taken to be unchanged. Others are hashed, if a record that is
    left has their size.
    """
    records = list(then)
    left = list(records)
    rest = _match(left, plan.files, lambda r: (_place(r.url), r.size, r.identity), _state)
    sizes = {record.size for record in left}
    hashes = {file.url: digests.of(file) for file in rest if file.size in sizes}
    # Blob ids of the Hub and ETags depend on the content, wherever the file is.
    rest = _match(
        left, rest, lambda r: r.hash or (r.size, r.identity), lambda f: hashes.get(f.url) or (f.size, f.identity)
    )
    # If every record has its file, what is left over is new, wherever it is: a log that was rotated, for example.
    places = {_place(record.url) for record in records} if left else set()
    changed = tuple(file for file in rest if _place(file.url) in places)
    new = tuple(file for file in rest if _place(file.url) not in places)
    elsewhere = {_place(file.url) for file in changed}
    return Changes(new, changed, tuple(record.url for record in left if _place(record.url) not in elsewhere))


def _match(
    left: list[FileRecord],
    files: Iterable[SourceFile],
    of_record: Callable[[FileRecord], Hashable],
    of_file: Callable[[SourceFile], Hashable],
) -> list[SourceFile]:
    """Take the record of each file out of `left`, one record for one file, and return the files without one."""
    records: dict[Hashable, list[FileRecord]] = {}
    for record in reversed(left):
        records.setdefault(of_record(record), []).append(record)
    rest, found = [], set()
    for file in files:
        if same := records.get(of_file(file)):
            found.add(id(same.pop()))
        else:
            rest.append(file)
    left[:] = [record for record in left if id(record) not in found]
    return rest


def _state(file: SourceFile) -> Hashable:
    return _place(file.url), file.size, file.identity


def _place(url: str) -> str:
    """Return the URL of a file without the commit."""
    return re.sub(r"(?<=^hf://datasets/)([^@]+)@[^/]+", r"\1", url)


def _hash(file: SourceFile) -> str | None:
    path = Path(file.url)
    return hash_file(path) if is_local(file.url) and path.is_file() else None
