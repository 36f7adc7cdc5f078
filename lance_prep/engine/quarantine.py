"""Rejected rows, as lines for the quarantine file."""

from __future__ import annotations

import base64
import json

from lance_prep.errors import RowRejected
from lance_prep.ledger import Rejected

QUARANTINE_BYTES = 4 << 10


class Quarantine:
    """Collects a shard's rejected rows as JSON lines; under `strict`, the first one stops the build.

    Each line has `file`, `row` or `byte` (whichever tells where), `reason`, and the row's bytes as `text`, or as
    `text_base64` where they are no UTF-8, cut at 4 KiB (then `bytes` says how many there were). Once mended, the
    file is a source itself.
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
            record["text"] = data.decode()
        except UnicodeDecodeError:
            record["text_base64"] = base64.b64encode(data).decode()
        if len(rejected.data) > QUARANTINE_BYTES:
            record["bytes"] = len(rejected.data)
        self._lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
