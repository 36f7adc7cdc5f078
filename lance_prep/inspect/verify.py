"""Is a dataset whole? Everything is read again and compared with what the receipts say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.errors import DatasetError
from lance_prep.inspect.opened import Opened
from lance_prep.ledger import Ledger
from lance_prep.store.content_hash import ShardHash, combine
from lance_prep.store.receipt import Receipt, receipts_of

SCAN_ROWS = 8192


@dataclass
class Verification:
    """What was found.

    Attributes:
        problems: one sentence each, naming the shard and the row; empty when the dataset is whole.
        checks: what was looked at, with counts.
    """

    problems: list[str] = field(default_factory=list)
    checks: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(opened: Opened, *, on_rows: Callable[[int], None] = lambda rows: None) -> Verification:
    """Read the whole dataset and check it.

    Hashes of each shard and of all, the ledger, row and token counts, ids below the vocabulary's size, block lengths,
    `num_tokens`, and the tokenizer file's sha256.

    Args:
        on_rows: told how many rows were read, as they are.
    """
    found = Verification()
    receipts = _receipts(opened, found)
    _check_ledger(opened, receipts, found)
    _check_tokenizer(opened, found)
    if receipts:
        _check_rows(opened, receipts, found, on_rows)
    return found


def _receipts(opened: Opened, found: Verification) -> list[Receipt]:
    receipts: list[Receipt] = []
    for build in opened.metadata["builds"]:
        try:
            receipts += receipts_of(opened.files, build)
        except DatasetError as error:
            found.problems.append(str(error))
            return []
    found.checks["shards"] = len(receipts)
    return receipts


def _check_ledger(opened: Opened, receipts: list[Receipt], found: Verification) -> None:
    metadata, total = opened.metadata, Ledger()
    for receipt in receipts:
        found.problems += [f"ledger of shard {receipt.shard}: {wrong}" for wrong in receipt.ledger.imbalance()]
        total.add(receipt.ledger)
    stated = Ledger(**metadata["ledger"])
    found.problems += [f"ledger: {wrong}" for wrong in stated.imbalance()]
    if receipts and stated != total:
        found.problems.append("the ledger is not the sum of the shards' ledgers")
    if receipts and combine(r.content_hash for r in receipts if r.rows) != metadata["content_hash"]:
        found.problems.append(f"content hash is {metadata['content_hash']}, but the shards' receipts give another")
    rows = opened.dataset.count_rows()
    if rows != metadata["rows"]:
        found.problems.append(f"the dataset has {rows:,} rows, but its metadata says {metadata['rows']:,}")
    found.checks["source rows in the ledger"] = stated.rows_in


def _check_tokenizer(opened: Opened, found: Verification) -> None:
    stated = opened.metadata["tokenizer"]
    if stated is None:
        return
    actual = hashlib.sha256(opened.tokenizer_file()).hexdigest()
    if actual != stated["sha256"]:
        found.problems.append(f"tokenizer.json has sha256 {actual}, but {stated['sha256']} made the dataset")


def _check_rows(opened: Opened, receipts: list[Receipt], found: Verification, on_rows: Callable[[int], None]) -> None:
    batches = _Cut(opened.dataset.scanner(batch_size=SCAN_ROWS, scan_in_order=True).to_reader())
    tokens = first = 0
    for receipt in receipts:
        content = ShardHash()
        for batch in batches.take(receipt.rows):
            content.update(batch)
            tokens += _check_batch(opened, batch, first, receipt.shard, found)
            first += len(batch)
            on_rows(len(batch))
        if receipt.rows and content.hexdigest() != receipt.content_hash:
            found.problems.append(
                f"shard {receipt.shard} (rows {first - receipt.rows:,} to {first - 1:,}): "
                f"content hash is {content.hexdigest()}, its receipt says {receipt.content_hash}"
            )
    found.checks["rows"] = first
    if opened.metadata["layout"] != "raw":
        found.checks["tokens"] = tokens
        if tokens != opened.metadata["tokens"]:
            found.problems.append(
                f"the rows hold {tokens:,} tokens, but the metadata says {opened.metadata['tokens']:,}"
            )


def _check_batch(opened: Opened, batch: pa.RecordBatch, first: int, shard: int, found: Verification) -> int:
    if opened.metadata["layout"] == "raw":
        return 0
    ids, stated = batch.column("input_ids"), batch.column("num_tokens").to_numpy()
    lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
    block = opened.metadata["block_size"]
    wrong = stated > block if block else stated != lengths
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        found.problems.append(f"shard {shard}, row {first + row:,}: num_tokens is {stated[row]}, of {lengths[row]} ids")
    vocabulary = opened.metadata["tokenizer"]["vocab_size"]
    largest = pc.max(ids.flatten()).as_py()
    if largest is not None and largest >= vocabulary:
        row = int(np.flatnonzero([max(r, default=0) >= vocabulary for r in ids.to_pylist()])[0])
        found.problems.append(
            f"shard {shard}, row {first + row:,}: id {largest} is beyond the vocabulary of {vocabulary}"
        )
    return int(stated.sum())


class _Cut:
    """Batches cut anew to given numbers of rows."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._batches: Iterator[pa.RecordBatch] = iter(reader)
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                return
            yield batch.slice(0, rows)
            self._rest = batch.slice(rows) if len(batch) > rows else None
            rows -= min(rows, len(batch))
