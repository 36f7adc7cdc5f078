"""The receipt of a finished shard, and how it is named in the journal.

On a local disk a shard has one receipt, `shard-000000.json`, which a new one replaces: the output's lock keeps other
processes away. An object store cannot stop a builder that has lost its lease while it was suspended and goes on. There
the name also has a hash of the content, so no builder replaces what another has written, and each version records
which receipts are its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lance_prep.ledger import Ledger, LengthRecord, as_plain
from lance_prep.recipe import Limit
from lance_prep.store.metadata import decode
from lance_prep.store.seal import checked, hash_bytes, with_checksum

#: What Lance calls its data files. A receipt of a stranger must not name a file outside `data/`.
_DATA_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.lance")
_NAME = re.compile(r"shard-\d{6,}(-[0-9a-f]{16})?\.json")
_DIGITS = 16


@dataclass(frozen=True)
class Receipt:
    """What a finished shard leaves.

    Attributes:
        shard: its index.
        limit: that it was built under.
        rows, tokens: written.
        ledger: of this shard.
        content_hash: of its rows.
        text_bytes: bytes of text that were read for it.
        fragment: Lance fragment metadata as JSON; None for a shard without rows.
        backend: name of the encoder whose ids were written; None for `raw`.
        retries: number of requests retried.
        quarantine_hash: xxh3-128 of its rejected rows, as JSON lines.
        file_hashes: xxh3-128 of the data files, by path in `data/`; empty for a registered store.
        lengths: of its documents in tokens; None for `raw`.
    """

    shard: int
    limit: Limit
    rows: int
    tokens: int
    ledger: Ledger
    content_hash: str
    text_bytes: int
    fragment: dict[str, Any] | None
    backend: str | None
    retries: int = 0
    quarantine_hash: str = ""
    file_hashes: dict[str, str] = field(default_factory=dict)
    lengths: LengthRecord | None = None

    def to_bytes(self) -> bytes:
        """Return JSON with a checksum of the other fields."""
        return with_checksum(as_plain(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Return the receipt that `to_bytes` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            fields = checked(data)
            if not isinstance(fields.get("limit"), dict):  # once, only rows were limited
                fields["limit"] = {"rows": fields.get("limit")}
            receipt = decode(cls, fields)
            receipt.check()
            return receipt
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    def data_files(self) -> list[str]:
        """Return the names of its data files in `data/`."""
        return [file["path"] for file in self.fragment["files"]] if self.fragment is not None else []

    def sizes(self) -> dict[str, int | None]:
        """Return the size of each data file in bytes, by its name in `data/`; None if Lance did not say."""
        return {file["path"]: file.get("file_size_bytes") for file in (self.fragment or {"files": []})["files"]}

    def check(self) -> None:
        """Check that it names only data files of its own, as Lance names them.

        Raises:
            ValueError: it does not.
        """
        try:
            names = [*self.data_files(), *self.file_hashes]
            fragment = self.fragment or {"files": []}
            # Lance can also read files of other places: a build never writes that.
            other = [fragment.get("deletion_file"), *(file.get("base_id") for file in fragment["files"])]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its fragment is invalid ({type(error).__name__}: {error})") from error
        for name in names:
            if not isinstance(name, str) or not _DATA_FILE.fullmatch(name):
                raise ValueError(f"{ascii(name)[:80]} is not a valid name of a data file")
        if any(value is not None for value in other) or fragment.get("overlays"):
            raise ValueError("its fragment names files that no build writes")


@dataclass(frozen=True)
class ReceiptRecord:
    """Which receipt of a shard belongs to a version.

    Attributes:
        shard: its index.
        name: of the receipt's file in the journal.
    """

    shard: int
    name: str

    def __post_init__(self) -> None:
        if not is_receipt_name(self.name):  # it becomes part of a path
            raise ValueError(f"{ascii(self.name)[:80]} is not the name of a receipt")


def is_receipt_name(name: str) -> bool:
    """Return whether a file of a journal is named like a receipt."""
    return _NAME.fullmatch(name) is not None


def receipt_name(shard: int, data: bytes | None = None) -> str:
    """Return the name of a shard's receipt.

    Args:
        data: the receipt's content, which the name then depends on.
    """
    return f"shard-{shard:06d}.json" if data is None else f"shard-{shard:06d}-{hash_bytes(data)[:_DIGITS]}.json"


def rejected_name(shard: int, digest: str | None = None) -> str:
    """Return the name of the file with a shard's rejected rows.

    Args:
        digest: `Receipt.quarantine_hash`, which the name then contains.
    """
    return f"rejected-{shard:06d}.jsonl" if not digest else f"rejected-{shard:06d}-{digest[:_DIGITS]}.jsonl"
