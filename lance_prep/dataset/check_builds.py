"""Check the records of a version's builds: plans, receipts, ledgers, lists and the tokenizer's file.

Every check adds its problems to a `Verification`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from lance_prep.errors import one_line
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Ledger
from lance_prep.model import Plan, Shard
from lance_prep.store import (
    BUILDS_FOLDER,
    COMMITTED,
    LOADER,
    LOADER_FILE,
    ArrayHeap,
    BuildRecord,
    DatasetVersion,
    Journal,
    Metadata,
    Receipt,
    combine,
    hash_bytes,
    read_committed,
    receipt_paths,
)
from lance_prep.text import Dropped, ShardScan, find_later, needs_scan

MOST_PROBLEMS = 100
#: Memory for comparing the keys of texts.
COMPARE_BYTES = 1 << 28


@dataclass
class Verification:
    """The result of checking a dataset.

    Attributes:
        problems: one sentence each, which names the file, or the shard and the row; at most 100. Empty if the dataset
            is whole.
        more: number of further problems.
        checks: number of things checked, by kind.
    """

    problems: list[str] = field(default_factory=list)
    more: int = 0
    checks: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def wrong(self, problem: str) -> None:
        """Add a problem."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1

    def count(self, what: str, number: int = 1) -> None:
        """Count what was checked."""
        self.checks[what] = self.checks.get(what, 0) + number

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Record any exception of the block as a problem of `what`: a damaged file may make a library fail in any way.

        Lance and tokenizers panic on some of them, which arrives as a `BaseException`.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as error:  # damage can raise anything, also a panic of Lance
            self.wrong(f"{what}: {one_line(error)}")


@dataclass
class BuildJournal:
    """The journal of one build of a version.

    Attributes:
        key: of the build.
        plan: None if it is missing or damaged.
        receipts: the readable receipts of the version's shards, by shard.
        missing: shards whose receipt is missing or damaged.
    """

    key: str
    plan: Plan | None = None
    receipts: dict[int, Receipt] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    def shard(self, index: int) -> Shard | None:
        """Return a shard of the plan, or None if the plan is unknown."""
        shards = self.plan.shards if self.plan else ()
        place = index - shards[0].index if shards else 0
        return shards[place] if 0 <= place < len(shards) else None


def read_journals(opened: DatasetVersion, found: Verification) -> list[BuildJournal]:
    """Return the journals of all builds in the version, in order, and record what is wrong with them."""
    journals = []
    for build in opened.builds:
        journals.append(_read_journal(opened, build, found))
        _check_committed(opened, build, found)
    found.count("shards", sum(len(journal.receipts) for journal in journals))
    return journals


def _check_committed(opened: DatasetVersion, build: BuildRecord, found: Verification) -> None:
    path = f"{BUILDS_FOLDER}/{build.key}/{COMMITTED}"
    with found.reading(path):
        data = opened.files.read(path)
        if data is not None and build.version not in read_committed(data):
            raise ValueError(f"it does not name version {build.version}")
        _check_form(data)


def _read_journal(opened: DatasetVersion, build: BuildRecord, found: Verification) -> BuildJournal:
    journal, folder = BuildJournal(build.key), f"{BUILDS_FOLDER}/{build.key}"
    with found.reading(f"{folder}/plan.json"):
        journal.plan = Journal(opened.files, build.key).plan(opened.uri, opened.metadata.tokenizer_key)
        _check_form(opened.files.read(f"{folder}/plan.json"))
    paths: dict[int, str] = {}
    with found.reading(f"the list of receipts of build {build.key}"):
        paths = receipt_paths(opened.files, build)
    for index, path in paths.items():
        with found.reading(f"{path}, the receipt of shard {index}"):
            data = opened.files.read(path)
            if data is None:
                raise ValueError("it is missing")
            receipt = Receipt.from_bytes(data)
            if receipt.shard != index:
                raise ValueError(f"it says shard {receipt.shard}")
            journal.receipts[index] = receipt
            _check_form(data)
    shards = range(build.first_shard, build.first_shard + build.shards)
    journal.missing = [index for index in shards if index not in journal.receipts]
    return journal


def check_dropped(opened: DatasetVersion, journals: list[BuildJournal], found: Verification) -> None:
    """Check the lists of what is dropped because of its text: compare the keys of all texts once more."""
    shards = [
        (journal, index)
        for journal in journals
        if journal.plan is not None and needs_scan(journal.plan.recipe)
        for index in sorted(journal.receipts)
    ]
    scans, lists = [], []
    keys = {journal.key for journal, _ in shards}
    heap = ArrayHeap.if_many(len(shards), lambda: sum(Journal(opened.files, key).scan_bytes() for key in keys))
    for journal, index in shards:
        files = Journal(opened.files, journal.key)
        with found.reading(f"build {journal.key}, shard {index}"):
            arrays = files.scan(index)
            scan = ShardScan.from_arrays(heap.add(arrays) if heap is not None else arrays)
            dropped = Dropped.from_arrays(files.dropped(index))
            scans.append(scan)
            lists.append(dropped.as_arrays())
    if not shards or len(scans) < len(shards):
        return  # it cannot be said what was there before a shard that is damaged
    for (journal, index), scan, units, stated in zip(
        shards, scans, find_later([scan.keys for scan in scans], COMPARE_BYTES), lists, strict=True
    ):
        assert journal.plan is not None
        actual = scan.dropped(journal.plan.recipe, units).as_arrays()
        if actual.keys() != stated.keys() or any(not np.array_equal(actual[name], stated[name]) for name in actual):
            found.wrong(f"build {journal.key}, shard {index}: the list of what is dropped is not what its texts give")
    found.count("shards by the keys of their texts", len(shards))


def _check_form(data: bytes | None) -> None:
    """Check that JSON is byte for byte what was written: a flipped bit may change white space only.

    Raises:
        ValueError: it is not.
    """
    if data is not None and json.dumps(json.loads(data)).encode() != data:
        raise ValueError("it has changed since it was written")


def check_ledgers(opened: DatasetVersion, journals: list[BuildJournal], found: Verification) -> None:
    """Check that each shard's ledger balances and agrees with its receipt and plan; check their sum."""
    metadata, total = opened.metadata, Ledger()
    for journal in journals:
        for receipt in journal.receipts.values():
            for wrong in [*receipt.ledger.imbalance(), *_against_plan(opened, journal, receipt)]:
                found.wrong(f"build {journal.key}, shard {receipt.shard}: {wrong}")
            total.add(receipt.ledger)
    with found.reading("the ledger in the metadata"):
        stated = metadata.ledger
        found.count("source rows in the ledger", stated.rows_in)
        for wrong in stated.imbalance():
            found.wrong(f"the ledger in the metadata: {wrong}")
        if not any(journal.missing for journal in journals):
            if stated != total:
                found.wrong("the ledger in the metadata is not the sum of the shards' ledgers")
            _check_totals(metadata, [r for journal in journals for r in journal.receipts.values()], found)


def _against_plan(opened: DatasetVersion, journal: BuildJournal, receipt: Receipt) -> list[str]:
    ledger: Ledger = receipt.ledger
    wrong: list[str] = []
    shard = journal.shard(receipt.shard)
    if shard and shard.rows is not None and not receipt.limit.limits and ledger.rows_in != shard.rows:
        wrong.append(f"the ledger has {ledger.rows_in:,} source rows, the plan {shard.rows:,}")
    if shard and shard.rows is not None and ledger.rows_in > shard.rows:
        wrong.append(f"the ledger has {ledger.rows_in:,} source rows, of {shard.rows:,} in the plan")
    rows, counted = LAYOUTS[opened.metadata.layout].rows_of(ledger, opened.metadata.block_size)
    if receipt.rows != rows:
        wrong.append(f"the receipt has {receipt.rows:,} rows, but its ledger's {counted} make {rows:,}")
    if receipt.tokens != ledger.tokens_written:
        wrong.append(f"the receipt has {receipt.tokens:,} tokens, but its ledger {ledger.tokens_written:,}")
    rejected = Journal(opened.files, journal.key).rejected(receipt)
    if (lines := rejected.count(b"\n")) != ledger.rejected:
        wrong.append(f"the ledger has {ledger.rejected:,} rejected rows, the journal {lines:,}")
    elif hash_bytes(rejected) != receipt.quarantine_hash:
        wrong.append("the rejected rows in the journal are not what was written")
    return wrong


def _check_totals(metadata: Metadata, receipts: list[Receipt], found: Verification) -> None:
    content = combine(receipt.content_hash for receipt in receipts if receipt.rows)
    if content != metadata.content_hash:
        found.wrong(f"content hash is {metadata.content_hash}, but the shards' receipts give {content}")
    for name in ("rows", "tokens"):
        total, stated = sum(getattr(receipt, name) for receipt in receipts), getattr(metadata, name)
        if total != stated:
            found.wrong(f"the metadata says {stated:,} {name}, the shards' receipts {total:,}")


def check_lists(opened: DatasetVersion, found: Verification) -> None:
    """Check the tokenizer's file and the lists of source files: whole, and as long as the metadata says."""
    if opened.metadata.tokenizer is not None:
        with found.reading("the tokenizer"):
            opened.tokenizer_record()
            opened.chat_file()
    with found.reading(LOADER_FILE):
        if opened.files.read(LOADER_FILE) not in (None, LOADER):
            raise ValueError("it has changed since it was written, so `datasets` may load other files")
    with found.reading("the list of source files"):
        files, stated = len(opened.source_files), opened.metadata.files
        found.count("source files in the lists", files)
        if files != stated or files != sum(build.files for build in opened.builds):
            raise ValueError(f"the metadata says {stated:,} source files, the lists have {files:,}")
    with found.reading("the list of builds"):
        if opened.builds[-1:] != (opened.metadata.build,):
            raise ValueError("its last build is not the one in the metadata")
