"""Rejected rows: collected shard by shard, then written to a quarantine file beside the dataset.

    NAME.rejected.jsonl                         rejected rows of the whole latest version
    NAME.lance/.lance_prep/quarantine.json      its name and hash: only a file that still has this hash is overwritten
    NAME.contaminated.jsonl                     what texts share with a benchmark, in the same way
    NAME.lance/.lance_prep/contaminated.json

The file invites the user to fix its rows and to build from it, so it may be somebody's work, or the source itself.
"""

from __future__ import annotations

import base64
import codecs
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from lance_prep.errors import DatasetError, RowRejected
from lance_prep.ledger import Rejected
from lance_prep.store.journal import Journal, receipts_of
from lance_prep.store.metadata import BUILDS_FOLDER, FOLDER, BuildRecord, decode
from lance_prep.store.receipt import Receipt
from lance_prep.store.seal import checked, hash_bytes, with_checksum
from lance_prep.store.sidecar import Files
from lance_prep.store.stores import files_of
from lance_prep.transport import Transport

QUARANTINE_NOTE = f"{FOLDER}/quarantine.json"
#: The note about each kind of file that is written beside a dataset.
_NOTES = {"rejected": QUARANTINE_NOTE, "contaminated": f"{FOLDER}/contaminated.json"}

Beside = Literal["rejected", "contaminated"]
QUARANTINE_BYTES = 4 << 10


@dataclass(frozen=True)
class QuarantineNote:
    """The quarantine file that was written beside a dataset.

    Attributes:
        file: its name.
        hash: xxh3-128 of its content.
        builds: hash of the builds whose rejected rows it holds, as in the metadata.
    """

    file: str
    hash: str
    builds: str

    def __post_init__(self) -> None:
        if "/" in self.file:
            raise ValueError(f"{ascii(self.file)[:80]} is not the name of a file")


def read_quarantine_note(files: Files, kind: Beside = "rejected") -> QuarantineNote | None:
    """Return the note about the quarantine file, or another kind; None if it is missing or damaged."""
    data = files.read(_NOTES[kind])
    try:
        return decode(QuarantineNote, checked(data)) if data is not None else None
    except ValueError:
        return None


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
            raise RowRejected(f"{where}: {rejected.reason}", "fix the row, or remove `strict` to set such rows aside")
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


def published(uri: str, files: Files, builds: str, kind: Beside = "rejected") -> str | None:
    """Return the path of the quarantine file, or another kind, that was written for a version, if it was.

    Args:
        builds: hash of the version's builds, from its metadata.
    """
    note = read_quarantine_note(files, kind)
    return _beside(uri, note.file) if note is not None and note.builds == builds else None


def publish(
    uri: str,
    files: Files,
    builds: Iterable[BuildRecord],
    digest: str,
    transport: Transport,
    kind: Beside = "rejected",
) -> str:
    """Write the rejected rows of a version, or another kind, beside the dataset, and return the path of the file.

    A file that this dataset did not write, or that was changed since, is left alone: the new one gets a number.

    Args:
        builds: of the version, in order.
        digest: their hash, from the version's metadata.

    Raises:
        DatasetError: what texts share with a benchmark is missing.
    """
    lines = b"".join(
        Journal(files, build.key).rejected(receipt) if kind == "rejected" else _hits(files, build, receipt)
        for build in builds
        for receipt in receipts_of(files, build)
        if getattr(receipt.ledger, kind)
    )
    folder = uri.rpartition("/")[0]
    beside = files_of(folder or "/", transport)
    name = _free_name(uri, beside, lines, read_quarantine_note(files, kind), kind)
    beside.write(name, lines)
    # After the file: one of the same content is known as ours without a note.
    files.write(_NOTES[kind], with_checksum(asdict(QuarantineNote(name, hash_bytes(lines), digest))))
    return _beside(uri, name)


def _hits(files: Files, build: BuildRecord, receipt: Receipt) -> bytes:
    """Return what a shard shares with a benchmark. A file without it would read as if nothing had been found."""
    lines = Journal(files, build.key).hits(receipt.shard)
    if not lines:
        raise DatasetError(
            f"build {build.key}, shard {receipt.shard}: {receipt.ledger.contaminated:,} source rows share text with "
            "the benchmark, and the file that says which is missing",
            f"copy hits-*.jsonl of {BUILDS_FOLDER}/{build.key} from a backup, or build again with overwrite=True",
        )
    return lines


def _free_name(uri: str, beside: Files, lines: bytes, note: QuarantineNote | None, kind: Beside) -> str:
    base = uri.rpartition("/")[2].removesuffix(".lance")
    for number in itertools.count(1):
        name = f"{base}.{number}.{kind}.jsonl" if number > 1 else f"{base}.{kind}.jsonl"
        try:
            there = beside.read(name)
        except DatasetError:  # a link
            continue
        ours = note is not None and note.file == name and there is not None and hash_bytes(there) == note.hash
        if there is None or there == lines or ours:
            return name
    raise AssertionError("the numbers have no end")


def default_path(uri: str) -> str:
    """Return the usual path of the quarantine file of a dataset."""
    return f"{uri.removesuffix('.lance')}.rejected.jsonl"


def _beside(uri: str, name: str) -> str:
    return f"{uri.rpartition('/')[0]}/{name}"
