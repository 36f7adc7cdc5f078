"""Rejected rows: collected shard by shard, then written to a quarantine file beside the dataset.

    NAME.rejected.jsonl                         rejected rows of the whole latest version
    NAME.lance/.lance_prep/quarantine.json      its name and hash: only a file that still has this hash is overwritten

The file invites the user to fix its rows and to build from it, so it may be somebody's work, or the source itself.
"""

from __future__ import annotations

import base64
import codecs
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path

from lance_prep.errors import DatasetError, RowRejected, UsageError
from lance_prep.ledger import Rejected
from lance_prep.model import SourceFile
from lance_prep.store import (
    BuildRecord,
    Files,
    Journal,
    QuarantineNote,
    files_of,
    hash_bytes,
    read_quarantine_note,
    receipts_of,
    write_quarantine_note,
)
from lance_prep.transport import Transport, is_local

QUARANTINE_BYTES = 4 << 10


class Quarantine:
    """Collects a shard's rejected rows as JSON lines; under `strict`, the first one stops the build.

    Each line has `file`, `row` or `byte` (whichever tells where), `reason`, and the row's bytes as `text`, or as
    `text_base64` if they are not valid UTF-8, cut at 4 KiB (then `bytes` says how many there were). Once its rows are
    fixed, the file is a source itself.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._lines: list[bytes] = []

    @property
    def lines(self) -> bytes:
        return b"".join(self._lines)

    def add(self, rejected: Rejected) -> None:
        where = f"{rejected.file}, {rejected.unit} {rejected.position}"
        if self._strict:
            raise RowRejected(
                f"{where}: {rejected.reason}", "mend the row, or leave out --strict to set such rows aside"
            )
        record = {"file": rejected.file, rejected.unit: rejected.position, "reason": rejected.reason}
        data = rejected.data[:QUARANTINE_BYTES]
        try:
            # A character that the cut divides is left out.
            record["text"] = codecs.utf_8_decode(data, "strict", rejected.size <= len(data))[0]
        except UnicodeDecodeError:
            record["text_base64"] = base64.b64encode(data).decode()
        if rejected.size > QUARANTINE_BYTES:
            record["bytes"] = rejected.size
        self._lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def refuse_own_source(uri: str, files: Iterable[SourceFile]) -> None:
    """Refuse an output that would be written over its source, or whose quarantine file would be.

    Raises:
        UsageError: names the file.
    """
    if not is_local(uri):
        for file in files:
            if file.url in (uri, _default_path(uri)):
                raise UsageError(f"{file.url} is the source itself", "choose another output")
        return
    output, quarantine = _identity(uri), _identity(_default_path(uri))
    roots = (f"{uri}/", f"{os.path.realpath(uri)}/")
    for file in files:
        if not is_local(file.url):
            continue
        if output and (_identity(file.url) == output or file.url.startswith(roots)):
            raise UsageError(f"{file.url} is the source itself, or is inside it", "choose another output")
        if quarantine and _identity(file.url) == quarantine:
            raise UsageError(
                f"{file.url} is a source, and the rejected rows of {uri} would be written over it",
                "choose another output, or rename the source",
            )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def published(uri: str, files: Files, builds: str) -> str | None:
    """Return the path of the quarantine file that was written for a version, if it was.

    Args:
        builds: hash of the version's builds, from its metadata.
    """
    note = read_quarantine_note(files)
    return _beside(uri, note.file) if note is not None and note.builds == builds else None


def publish(uri: str, files: Files, builds: Iterable[BuildRecord], digest: str, transport: Transport) -> str:
    """Write the rejected rows of a version beside the dataset, and return the path of the file.

    A file that this dataset did not write, or that was changed since, is left alone: the new one gets a number.

    Args:
        builds: of the version, in order.
        digest: their hash, from the version's metadata.
    """
    lines = b"".join(
        Journal(files, build.key).rejected(receipt.shard)
        for build in builds
        for receipt in receipts_of(files, build)
        if receipt.ledger.rejected
    )
    folder = uri.rpartition("/")[0]
    beside = files_of(folder or "/", transport)
    name = _free_name(uri, beside, lines, read_quarantine_note(files))
    beside.write(name, lines)
    # After the file: one of the same content is known as ours without a note.
    write_quarantine_note(files, QuarantineNote(name, hash_bytes(lines), digest))
    return _beside(uri, name)


def _free_name(uri: str, beside: Files, lines: bytes, note: QuarantineNote | None) -> str:
    base = uri.rpartition("/")[2].removesuffix(".lance")
    for number in itertools.count(1):
        name = f"{base}.{number}.rejected.jsonl" if number > 1 else f"{base}.rejected.jsonl"
        try:
            there = beside.read(name)
        except DatasetError:  # a link
            continue
        ours = note is not None and note.file == name and there is not None and hash_bytes(there) == note.hash
        if there is None or there == lines or ours:
            return name
    raise AssertionError("the numbers have no end")


def _default_path(uri: str) -> str:
    return f"{uri.removesuffix('.lance')}.rejected.jsonl"


def _beside(uri: str, name: str) -> str:
    return f"{uri.rpartition('/')[0]}/{name}"
