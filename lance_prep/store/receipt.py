"""The receipt of a finished shard, and the journal that keeps a build's plan and receipts.

    NAME.lance/.lance_prep/builds/<key>/plan.json
    NAME.lance/.lance_prep/builds/<key>/tokenizer.json
    NAME.lance/.lance_prep/builds/<key>/shard-000000.json       one a finished shard
    NAME.lance/.lance_prep/builds/<key>/rejected-000000.jsonl   where rows were rejected
    NAME.lance/.lance_prep/builds/<key>/committed.json          the versions that it became

`<key>` is the hash of what decides the rows: recipe, pinned files, tokenizer. So a build that is run again finds its
own journal, and nobody else's.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import xxhash

from lance_prep.errors import DatasetError
from lance_prep.ledger import Ledger
from lance_prep.plan import Plan
from lance_prep.store.files import Files
from lance_prep.store.metadata import BUILDS_FOLDER
from lance_prep.store.seal import hash_files, seal

COMMITTED = "committed.json"


@dataclass(frozen=True)
class Receipt:
    """What a finished shard leaves.

    Attributes:
        shard: its index.
        limit: the row limit that it was built under, None for none.
        rows, tokens: written.
        ledger: of this shard.
        content_hash: of its rows.
        text_bytes: bytes of text that were read for it.
        fragment: Lance fragment metadata as JSON; None for a shard without rows.
        backend: name of the encoder whose ids were written; None for `raw`.
        retries: reads from the Hub or the store that had to be tried again.
        file_hashes: xxh3-128 of the data files, by path in `data/`; empty in an object store.
    """

    shard: int
    limit: int | None
    rows: int
    tokens: int
    ledger: Ledger
    content_hash: str
    text_bytes: int
    fragment: dict[str, Any] | None
    backend: str | None
    retries: int = 0
    file_hashes: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """JSON, with a checksum of all that it says."""
        fields = asdict(self)
        return json.dumps({**fields, "checksum": _checksum(fields)}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """The receipt that `to_bytes` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            fields = json.loads(data)
            stated = fields.pop("checksum", None)
            if stated is not None and stated != _checksum(fields):
                raise ValueError(f"its checksum is {_checksum(fields)}, not {stated}")
            return cls(**{**fields, "ledger": Ledger(**fields["ledger"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no receipt ({type(error).__name__}: {error})") from error


def _checksum(fields: dict[str, Any]) -> str:
    return str(xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode()))


def build_key(plan: Plan, tokenizer_sha256: str | None) -> str:
    """16 hex digits that name what decides the rows."""
    parts = {**plan.as_json(), "tokenizer_sha256": tokenizer_sha256}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def committed_versions(noted: bytes) -> list[int]:
    """The versions that a `committed.json` names; none where it is damaged."""
    try:
        return [int(version) for version in json.loads(noted)["versions"]]
    except (ValueError, KeyError, TypeError):
        return []


def receipts_of(files: Files, build: dict[str, Any]) -> list[Receipt]:
    """The receipts of a committed build, in order.

    Args:
        build: an entry of `builds` in a dataset's metadata.

    Raises:
        DatasetError: some are gone.
    """
    there = Journal(files, build["key"]).receipts()
    wanted = range(build["first_shard"], build["first_shard"] + build["shards"])
    missing = [i for i in wanted if i not in there]
    if missing:
        raise DatasetError(
            f"build {build['key']}: receipts of {len(missing)} shards are gone, the first is {missing[0]}",
            f"bring {BUILDS_FOLDER}/{build['key']} back, or build anew with --overwrite",
        )
    return [there[i] for i in wanted]


def unfinished_builds(files: Files) -> dict[str, dict[str, Any]]:
    """Recipes (as JSON) of builds that were begun and not committed, by key."""
    folders: dict[str, set[str]] = {}
    for path in files.list(BUILDS_FOLDER):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    found = {}
    for folder, names in folders.items():
        plan = files.read(f"{folder}/plan.json") if "plan.json" in names and COMMITTED not in names else None
        if plan is not None:
            found[folder.rpartition("/")[2]] = json.loads(plan)["recipe"]
    return found


class Journal:
    """A build's plan and receipts."""

    def __init__(self, files: Files, key: str) -> None:
        self.key = key
        self._files = files
        self._folder = f"{BUILDS_FOLDER}/{key}"

    def begin(self, plan: Plan, tokenizer: bytes | None) -> None:
        """Write the plan and the tokenizer, if they are not there."""
        if tokenizer is not None and self._files.read(f"{self._folder}/tokenizer.json") is None:
            self._files.write(f"{self._folder}/tokenizer.json", tokenizer)
        if self._files.read(f"{self._folder}/plan.json") is None:
            self._files.write(f"{self._folder}/plan.json", json.dumps(plan.as_json()).encode())

    def plan(self) -> Plan:
        """The plan.

        Raises:
            DatasetError: it is gone or damaged.
        """
        data = self._files.read(f"{self._folder}/plan.json")
        try:
            return Plan.from_json(json.loads(data or b""))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self._folder}/plan.json is gone or damaged ({error})",
                "bring it back, or build anew with --overwrite",
            ) from error

    def receipts(self) -> dict[int, Receipt]:
        """The receipts that are there, by shard. A damaged one counts as not there: its shard is built again."""
        found = {}
        for path in self._files.list(self._folder):
            if path.rpartition("/")[2].startswith("shard-"):
                data = self._files.read(path)
                with suppress(ValueError):
                    if data is not None:
                        receipt = Receipt.from_bytes(data)
                        found[receipt.shard] = receipt
        return found

    def add(self, receipt: Receipt) -> None:
        """Make a shard's receipt durable; its fragment's file first."""
        if receipt.fragment is not None:
            for file in receipt.fragment["files"]:
                self._files.sync(f"data/{file['path']}")
            receipt = replace(receipt, file_hashes=hash_files(self._files, [receipt.fragment]))
        self._files.write(f"{self._folder}/shard-{receipt.shard:06d}.json", receipt.to_bytes())

    def forget_others(self, data_files: set[str]) -> None:
        """Delete receipts of shards whose data files are not among these: built for nothing, under a row limit."""
        for shard, receipt in self.receipts().items():
            if receipt.fragment and not {file["path"] for file in receipt.fragment["files"]} <= data_files:
                self._files.delete(f"{self._folder}/shard-{shard:06d}.json")

    def close(self, version: int) -> None:
        """Seal the version that the build became and note its number, if that is not noted.

        A build may become several: it was overwritten by another, and then overwrote that one.
        """
        noted = self._files.read(f"{self._folder}/{COMMITTED}")
        versions = committed_versions(noted) if noted is not None else []
        if version not in versions:
            seal(self._files, version)
            self._files.write(f"{self._folder}/{COMMITTED}", json.dumps({"versions": [*versions, version]}).encode())

    def discard(self) -> None:
        """Delete the journal: its shards' files belong to nothing then."""
        for path in self._files.list(self._folder):
            self._files.delete(path)

    def write_rejected(self, shard: int, lines: bytes) -> None:
        """Keep a shard's rejected rows (JSON lines), or remove what an earlier try left."""
        path = f"{self._folder}/rejected-{shard:06d}.jsonl"
        if lines:
            self._files.write(path, lines)
        else:
            self._files.delete(path)

    def rejected(self, shard: int) -> bytes:
        """A shard's rejected rows as JSON lines."""
        return self._files.read(f"{self._folder}/rejected-{shard:06d}.jsonl") or b""
