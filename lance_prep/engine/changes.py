"""What has changed in a source since a dataset was made of it: files are known by what they hold, not by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from lance_prep.plan import Plan, SourceFile
from lance_prep.source import check_unchanged
from lance_prep.store.metadata import FileRecord

_HASH_THREADS = 4
_HASH_CHUNK = 8 << 20


@dataclass(frozen=True)
class Changes:
    """Files of the source now against those that a dataset was made of.

    Attributes:
        new: not in the dataset.
        changed: under the name of a file in the dataset, but with other content.
        gone: in the dataset, and no longer in the source; as they were recorded.
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


def record_files(plan: Plan, storage_options: Mapping[str, str] | None = None) -> list[FileRecord]:
    """The plan's files as they are written in a dataset; local ones with a hash of their content.

    The hash (xxh3-128) tells a file that was only touched, copied or renamed from one that was changed. A file that the
    build has just read is in the page cache: 1 GB takes about 0.3 s.

    Raises:
        SourceChanged: a file was changed since it was planned.
    """
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        hashes = list(pool.map(_hash, plan.files))
    for file in plan.files:
        check_unchanged(file, storage_options)  # what was hashed is what was read
    return [FileRecord(**asdict(file), hash=digest) for file, digest in zip(plan.files, hashes, strict=True)]


def compare(then: Iterable[FileRecord], plan: Plan) -> Changes:
    """What the plan's source has that `then`, the recorded files of a dataset, has not, and the reverse."""
    records = list(then)
    by_state = {(_place(r.url), r.size, r.identity) for r in records}
    by_place = {_place(record.url): record for record in records}
    content: set[Any] = {record.hash for record in records if record.hash}
    # Blob ids of the Hub and ETags depend on the content, wherever the file is.
    content |= {(r.size, r.identity) for r in records if not r.hash}
    sizes = {record.size for record in records}
    new: list[SourceFile] = []
    changed: list[SourceFile] = []
    seen, digests = set(), set()
    for file in plan.files:
        place = _place(file.url)
        seen.add(place)
        if (place, file.size, file.identity) in by_state:
            continue
        digest = _hash(file) if file.size in sizes else None
        digests.add(digest)
        if (digest or (file.size, file.identity)) in content:
            continue
        (changed if place in by_place else new).append(file)
    kept = {(file.size, file.identity) for file in plan.files}
    gone = [
        record.url
        for place, record in by_place.items()
        if place not in seen
        and (record.size, record.identity) not in kept
        and (not record.hash or record.hash not in digests)
    ]
    return Changes(tuple(new), tuple(changed), tuple(gone))


def _place(url: str) -> str:
    """Where a file lies, whatever the commit."""
    return re.sub(r"(?<=^hf://datasets/)([^@]+)@[^/]+", r"\1", url)


def _hash(file: SourceFile) -> str | None:
    path = Path(file.url)
    if "://" in file.url or not path.is_file():
        return None
    digest = xxhash.xxh3_128()
    with path.open("rb") as data:
        while chunk := data.read(_HASH_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
