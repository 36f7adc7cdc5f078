"""The journal of a build: its plan, the receipts of its shards, and what else they leave.

    NAME.lance/.lance_prep/builds/<key>/plan.json
    NAME.lance/.lance_prep/builds/<key>/shard-000000.json       the receipt of a finished shard
    NAME.lance/.lance_prep/builds/<key>/rejected-000000.jsonl   the shard's rejected rows, if there are any
    NAME.lance/.lance_prep/builds/<key>/scan-000000.bin         keys of the shard's texts, if they are compared
    NAME.lance/.lance_prep/builds/<key>/hits-000000.jsonl       what the shard's texts have in common with a benchmark
    NAME.lance/.lance_prep/builds/<key>/dropped-000000.bin      what is dropped from the shard because of its texts
    NAME.lance/.lance_prep/builds/<key>/committed.json          the versions that it became

`<key>` is the hash of what decides the rows: recipe, pinned files, tokenizer. So a build that is run again finds its
own journal, and nobody else's. In an object store, receipts and rejected rows have other names: see `store.receipt`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lance_prep.errors import DamagedDataset, DatasetError, OutputError, SourceNotFound
from lance_prep.keyed import U64
from lance_prep.layouts import PATH_FIELDS
from lance_prep.model import Plan
from lance_prep.store.arrays import read_arrays, write_arrays
from lance_prep.store.metadata import BUILDS_FOLDER, BuildRecord, check_key
from lance_prep.store.receipt import Receipt, ReceiptRecord, is_receipt_name, receipt_name, rejected_name
from lance_prep.store.seal import checked, hash_files, is_sealed, seal, with_checksum
from lance_prep.store.sidecar import Files
from lance_prep.store.version import (
    portable_path,
    portable_url,
    read_list,
    resolved_path,
    resolved_recipe,
    write_list,
)
from lance_prep.transport import in_home

COMMITTED = "committed.json"

#: Names of sources that metadata and messages list.
MOST_NAMES = 20

T = TypeVar("T")


def recipe_as_json(plan: Plan, uri: str) -> dict[str, Any]:
    """Return the plan's recipe as it is written into the dataset at `uri`, with paths that can be moved with it."""
    recipe = plan.recipe.as_json()
    source = recipe["source"]
    if any(file.url.startswith("/") for file in plan.files):  # not a Hub id, and not the sample's text
        recipe["source"] = (
            _portable_name(source, uri) if isinstance(source, str) else [_portable_name(name, uri) for name in source]
        )
    for name in PATH_FIELDS[1:]:
        if (path := recipe.get(name)) is not None and Path(path).exists():
            recipe[name] = portable_path(path, uri)
    return recipe


def _portable_name(name: str, uri: str) -> str:
    return name if "://" in name else portable_path(str(in_home(name)), uri)


def plan_as_json(plan: Plan, uri: str) -> dict[str, Any]:
    """Return the plan as it is written into the dataset at `uri`; see `recipe_as_json`."""
    data, recipe = plan.as_json(), recipe_as_json(plan, uri)
    for file in data["files"]:
        file["url"] = portable_url(file["url"], uri)
    return {**data, "recipe": recipe, "source": {**data["source"], "asked": asked(recipe)}}


def asked(recipe: dict[str, Any]) -> str:
    """Return the source of a recipe as one line."""
    source = recipe["source"]
    if isinstance(source, str):
        return source
    more = f" and {len(source) - MOST_NAMES:,} more" if len(source) > MOST_NAMES else ""
    return ", ".join(source[:MOST_NAMES]) + more


def plan_from_json(data: dict[str, Any], uri: str) -> Plan:
    """Return the plan that `plan_as_json` wrote, for the place where the dataset is now."""
    files = [{**file, "url": resolved_path(file["url"], uri)} for file in data["files"]]
    return Plan.from_json({**data, "files": files, "recipe": resolved_recipe(data["recipe"], uri)})


def build_key(plan: Plan, uri: str, tokenizer: str | None) -> str:
    """Return 16 hex digits that name what decides the rows, wherever the dataset and its source are.

    Args:
        tokenizer: `TokenizerSpec.key`.
    """
    return _key_of(plan_as_json(plan, uri), tokenizer)


def _key_of(plan: dict[str, Any], tokenizer: str | None) -> str:
    parts = {**plan, "tokenizer_sha256": tokenizer}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_committed(noted: bytes) -> list[int]:
    """Return the versions that a `committed.json` names.

    Raises:
        ValueError: it is damaged.
    """
    versions = checked(noted).get("versions")
    if not isinstance(versions, list) or not all(type(version) is int for version in versions):
        raise ValueError("it has no list of versions")
    return versions


def _committed_versions(noted: bytes | None) -> list[int]:
    with suppress(ValueError):
        return read_committed(noted) if noted is not None else []
    return []


def receipt_paths(files: Files, build: BuildRecord) -> dict[int, str]:
    """Return the path of the receipt of each shard of a committed build, in order.

    Raises:
        DamagedDataset: the list that names them is missing or damaged.
    """
    shards = range(build.first_shard, build.first_shard + build.shards)
    if build.receipts:
        names = {record.shard: record.name for record in read_list(files, build.receipts, ReceiptRecord)}
        if sorted(names) != list(shards):
            said = f"build {build.key}: the list of its receipts does not name those of its {build.shards:,} shards"
            raise DamagedDataset(said, "build the dataset again")
    else:
        names = {shard: receipt_name(shard) for shard in shards}
    return {shard: f"{BUILDS_FOLDER}/{build.key}/{names[shard]}" for shard in shards}


def receipts_of(files: Files, build: BuildRecord) -> list[Receipt]:
    """Return the receipts of a committed build, in order.

    Raises:
        DatasetError: some are missing.
    """
    paths = receipt_paths(files, build)
    there: dict[int, Receipt] = {}
    for (shard, path), data in zip(paths.items(), files.read_many(list(paths.values())), strict=True):
        if (receipt := _parsed(path, data)) is not None:
            there[shard] = receipt
    missing = [shard for shard in paths if shard not in there]
    if missing:
        raise DatasetError(
            f"build {build.key}: receipts of {len(missing)} shards are missing, the first is {missing[0]}",
            f"copy {BUILDS_FOLDER}/{build.key} from a backup, or build again with overwrite=True",
        )
    return list(there.values())


def _parsed(path: str, data: bytes | None) -> Receipt | None:
    """Return the receipt in a file; None if it is missing, damaged or of another shard."""
    name = path.rpartition("/")[2]
    if data is None or not is_receipt_name(name):
        return None
    with suppress(ValueError):
        receipt = Receipt.from_bytes(data)
        return receipt if name.startswith(receipt_name(receipt.shard).removesuffix(".json")) else None
    return None


def unfinished_builds(files: Files) -> dict[str, dict[str, Any]]:
    """Return the recipes (as JSON) of builds that were begun and not committed, by key.

    Raises:
        DatasetError: a plan is damaged.
    """
    names: dict[str, set[str]] = {}
    for path in files.list(BUILDS_FOLDER):
        key, _, name = path.removeprefix(f"{BUILDS_FOLDER}/").partition("/")
        names.setdefault(key, set()).add(name)
    found = {}
    for key, there in names.items():
        if "plan.json" in there and COMMITTED not in there:
            found[key] = Journal(files, key).recipe()
    return found


class Journal:
    """A build's plan and receipts."""

    def __init__(self, files: Files, key: str) -> None:
        try:
            self.key = check_key(key)
        except ValueError as error:
            raise DatasetError(f"invalid build: {error}", "remove what other programs wrote there") from error
        self._files = files
        self._folder = f"{BUILDS_FOLDER}/{key}"
        self._names: dict[int, tuple[Receipt, str]] = {}

    def begin(self, plan: Plan, uri: str) -> None:
        """Write the plan of a build into the dataset at `uri`, if it is not there."""
        if self._files.read(f"{self._folder}/plan.json") is None:
            self._files.write(f"{self._folder}/plan.json", json.dumps(plan_as_json(plan, uri)).encode())

    def plan(self, uri: str, tokenizer: str | None) -> Plan:
        """Return the plan of a build into the dataset at `uri`.

        Args:
            tokenizer: `Metadata.tokenizer_key`. With it the plan must give the build's key.

        Raises:
            DatasetError: it is missing, damaged or of another build.
        """

        def convert(data: dict[str, Any]) -> Plan:
            if (actual := _key_of(data, tokenizer)) != self.key:
                raise ValueError(f"it is not the plan of this build: its key is {actual}")
            return plan_from_json(data, uri)

        return self._read_plan(convert)

    def recipe(self) -> dict[str, Any]:
        """Return the plan's recipe as `recipe_as_json` made it.

        Raises:
            DatasetError: the plan is missing or damaged.
        """
        return self._read_plan(lambda data: dict(data["recipe"]))

    def _read_plan(self, convert: Callable[[dict[str, Any]], T]) -> T:
        data = self._files.read(f"{self._folder}/plan.json")
        try:
            if data is None:
                raise ValueError("it is missing")
            return convert(dict(json.loads(data)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise DatasetError(
                f"{self._folder}/plan.json is missing or damaged ({error})",
                f"copy it from a backup, or remove the folder {self._folder} and build again with overwrite=True",
            ) from error

    def receipts(self) -> list[Receipt]:
        """Return all receipts that exist. A damaged one counts as missing: its shard is built again.

        In an object store, a shard that several builders have made has several.
        """
        paths = [path for path in self._files.list(self._folder) if is_receipt_name(path.rpartition("/")[2])]
        found = map(_parsed, paths, self._files.read_many(paths))
        return [receipt for receipt in found if receipt is not None]

    def sync(self, receipt: Receipt) -> Receipt:
        """Make the data files of a shard durable. Return its receipt with their hashes, for `add`.

        Raises:
            OutputError: a file is gone: another process has taken the output over.
        """
        if receipt.fragment is None:
            return receipt
        for name in receipt.data_files():
            self._files.sync(f"data/{name}")
        try:
            hashes = hash_files(self._files, [receipt.fragment])
        except SourceNotFound as error:
            raise OutputError(
                f"another process has removed {', '.join(receipt.data_files())} while the dataset was being built",
                "run the same command again",
            ) from error
        return replace(receipt, file_hashes=hashes)

    def add(self, receipt: Receipt) -> None:
        """Make a shard's receipt durable. Its data files must be."""
        data = receipt.to_bytes()
        self._files.write(f"{self._folder}/{self._name(receipt, data)}", data)

    def _name(self, receipt: Receipt, data: bytes | None = None) -> str:
        if not self._files.shared:
            return receipt_name(receipt.shard)
        # Names are kept: to serialize 100,000 receipts takes 8 s, and a commit asks for each name twice.
        known = self._names.get(receipt.shard)
        if known is None or known[0] is not receipt:
            known = self._names[receipt.shard] = (receipt, receipt_name(receipt.shard, data or receipt.to_bytes()))
        return known[1]

    def record(self, receipts: Iterable[Receipt]) -> str:
        """Write down which receipts belong to the version that is about to be committed.

        Returns:
            `BuildRecord.receipts`: the hash of the list, or nothing if the shards' numbers name the receipts.
        """
        if not self._files.shared:
            return ""
        there, records = set(self._files.list(self._folder)), []
        for receipt in receipts:
            name = self._name(receipt)
            if f"{self._folder}/{name}" not in there:  # an earlier lance-prep has named it by the shard's number
                self.add(receipt)
            records.append(ReceiptRecord(receipt.shard, name))
        return write_list(self._files, records)

    def others(self, receipts: Iterable[Receipt]) -> list[str]:
        """Return the paths of all receipts but these: of shards that a limit made unneeded, or of another builder."""
        keep = {f"{self._folder}/{self._name(receipt)}" for receipt in receipts}
        paths = self._files.list(self._folder)
        return [path for path in paths if is_receipt_name(path.rpartition("/")[2]) and path not in keep]

    def close(self, version: int) -> None:
        """Seal the version that the build became and note its number, if that is not noted.

        A build may become several: it was overwritten by another, and then overwrote that one.
        """
        versions = _committed_versions(self._files.read(f"{self._folder}/{COMMITTED}"))
        if version not in versions:
            if not is_sealed(self._files, version):
                seal(self._files, version)
            self._files.write(f"{self._folder}/{COMMITTED}", with_checksum({"versions": [*versions, version]}))

    def paths(self) -> list[str]:
        """Return the paths of all its files, in the order in which they must be deleted."""
        return sorted(self._files.list(self._folder), key=self.order_of_deletion)

    @staticmethod
    def order_of_deletion(path: str) -> tuple[bool, bool]:
        """Sort the plan first and the note of the commit last, so that half a journal is not an unfinished build."""
        return path.endswith(f"/{COMMITTED}"), not path.endswith("/plan.json")

    def write_hits(self, shard: int, lines: bytes) -> None:
        """Keep what a shard's texts share with a benchmark (JSON lines), or remove what an earlier try left."""
        path = f"{self._folder}/hits-{shard:06d}.jsonl"
        if lines:
            self._files.write(path, lines)
        else:
            self._files.delete(path)

    def hits(self, shard: int) -> bytes:
        """Return what `write_hits` wrote."""
        return self._files.read(f"{self._folder}/hits-{shard:06d}.jsonl") or b""

    def write_scan(self, shard: int, arrays: Mapping[str, U64]) -> None:
        """Keep what a pass over a shard's texts found. Builds that add to this one compare their texts with it."""
        write_arrays(self._files, f"{self._folder}/scan-{shard:06d}.bin", arrays)

    def scan(self, shard: int) -> dict[str, U64]:
        """Return what `write_scan` wrote.

        Raises:
            DatasetError: it is missing or damaged.
        """
        return self._read_arrays(f"scan-{shard:06d}.bin")

    def scan_bytes(self) -> int:
        """Return the size of all files that `write_scan` wrote."""
        sizes = self._files.sizes(self._folder)
        return sum(size or 0 for path, size in sizes.items() if path.startswith(f"{self._folder}/scan-"))

    def write_dropped(self, shard: int, arrays: Mapping[str, U64]) -> None:
        """Keep what is dropped from a shard. Written for each shard, also if it is nothing."""
        write_arrays(self._files, f"{self._folder}/dropped-{shard:06d}.bin", arrays)

    def dropped(self, shard: int) -> dict[str, U64]:
        """Return what `write_dropped` wrote.

        Raises:
            DatasetError: it is missing or damaged.
        """
        return self._read_arrays(f"dropped-{shard:06d}.bin")

    def _read_arrays(self, name: str) -> dict[str, U64]:
        path = f"{self._folder}/{name}"
        try:
            if (arrays := read_arrays(self._files, path)) is not None:
                return arrays
            said = f"{path} is missing"
        except ValueError as error:
            said = f"{path} is damaged: {error}"
        raise DatasetError(said, "copy it from a backup, or build again with overwrite=True")

    def write_rejected(self, receipt: Receipt, lines: bytes) -> None:
        """Keep a shard's rejected rows (JSON lines). On a local disk, remove what an earlier try left."""
        shared = self._files.shared
        path = f"{self._folder}/{rejected_name(receipt.shard, receipt.quarantine_hash if shared else None)}"
        if lines:
            self._files.write(path, lines)
        elif not shared:
            self._files.delete(path)

    def rejected(self, receipt: Receipt) -> bytes:
        """Return a shard's rejected rows as JSON lines."""
        names = [rejected_name(receipt.shard)]
        if receipt.ledger.rejected:
            names.insert(0, rejected_name(receipt.shard, receipt.quarantine_hash))
        return next(filter(None, (self._files.read(f"{self._folder}/{name}") for name in names)), b"")
