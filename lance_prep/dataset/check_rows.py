"""Read every row of a version again, and check hashes shard by shard, ids, lengths, counts and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.dataset.check_builds import BuildJournal, Verification
from lance_prep.dataset.check_stored import StoredFragment
from lance_prep.layouts import LAYOUTS, ROW_BITS
from lance_prep.loss_mask import MASK_COLUMN
from lance_prep.store import DatasetVersion, Receipt, ShardHash

SCAN_ROWS = 8192

Wrong = npt.NDArray[np.bool_]
#: Report the first of the rows that are wrong, in the words of the second argument.
Report = Callable[[Wrong, Callable[[int], str]], None]


@dataclass
class ShardRows:
    """The rows of one shard in the dataset.

    Attributes:
        first, rows: number of the first row in the dataset, and number of rows.
        receipt: None if receipts are missing; then all rows of the dataset are one run.
        source_rows: of the shard; None if the plan does not know.
    """

    first: int
    rows: int
    receipt: Receipt | None
    source_rows: int | None = None

    @property
    def name(self) -> str:
        return f"shard {self.receipt.shard}" if self.receipt else "shard unknown"

    def __str__(self) -> str:
        return f"{self.name} (rows {self.first:,} to {self.first + self.rows - 1:,})"


def shards_of(journals: list[BuildJournal], total: int) -> list[ShardRows]:
    """Return which rows came from which shard. Shards follow each other, also after fragments were merged."""
    if any(journal.missing for journal in journals):
        return [ShardRows(0, total, None)]
    runs, first = [], 0
    for journal in journals:
        for receipt in journal.receipts.values():
            shard = journal.shard(receipt.shard)
            if receipt.rows:
                runs.append(ShardRows(first, receipt.rows, receipt, shard.rows if shard else None))
            first += receipt.rows
    return runs


def check_rows(
    opened: DatasetVersion,
    stored: list[StoredFragment],
    shards: list[ShardRows],
    found: Verification,
    on_rows: Callable[[int, int], None],
) -> None:
    """Check the rows of all fragments whose files are whole, in order."""
    check = _Check(opened, shards, found)
    total, done = sum(one.rows for one in stored if one.whole), 0
    for one in stored:
        if not one.whole:
            continue
        with found.reading(f"{one} cannot be read"):
            at = one.first
            scanner = opened.dataset.scanner(fragments=[one.fragment], batch_size=SCAN_ROWS, scan_in_order=True)
            for batch in scanner.to_reader():
                check.add(at, batch)
                at += len(batch)
                done += len(batch)
                on_rows(done, total)
            if at != one.first + one.rows:
                raise ValueError(f"it gave {at - one.first:,} rows of {one.rows:,}")
    check.finish()


class _Check:
    """Takes rows in ascending order, with gaps where files are damaged; cuts them at the shards' bounds."""

    def __init__(self, opened: DatasetVersion, shards: list[ShardRows], found: Verification) -> None:
        self._metadata = opened.metadata
        self._shards = shards
        self._found = found
        self._at = -1  # shard in work
        self._start_next()

    def add(self, first: int, batch: pa.RecordBatch) -> None:
        while len(batch):
            while self._at < len(self._shards) and first >= self._end:
                self._close()
            if self._at == len(self._shards):
                return
            piece = batch.slice(0, self._end - first)
            self._piece(first, piece)
            first += len(piece)
            batch = batch.slice(len(piece))

    def finish(self) -> None:
        while self._at < len(self._shards):
            self._close()

    @property
    def _end(self) -> int:
        shard = self._shards[self._at]
        return shard.first + shard.rows

    def _close(self) -> None:
        self._compare(self._shards[self._at])
        self._start_next()

    def _start_next(self) -> None:
        self._at += 1
        self._hash = ShardHash()
        self._seen = self._tokens = self._padding = self._learned = 0

    def _compare(self, shard: ShardRows) -> None:
        self._found.count("rows", self._seen)
        if LAYOUTS[self._metadata.layout].tokens:
            self._found.count("tokens", self._tokens)
        receipt = shard.receipt
        if receipt is None:
            return
        if self._seen < shard.rows:
            if self._found.ok:
                self._found.wrong(f"{shard}: only {self._seen:,} rows are there")
            return
        self._found.count("shards by content hash")
        actual = self._hash.hexdigest()
        if actual != receipt.content_hash:
            self._found.wrong(f"{shard}: content hash is {actual}, its receipt says {receipt.content_hash}")
        for name, number, stated in (
            ("tokens", self._tokens, receipt.tokens),
            ("padding tokens", self._padding, receipt.ledger.padding),
            ("learned tokens", self._learned, receipt.ledger.tokens_learned),
        ):
            if number != stated and LAYOUTS[self._metadata.layout].tokens:
                self._found.wrong(f"{shard}: its rows hold {number:,} {name}, its receipt says {stated:,}")

    def _piece(self, first: int, batch: pa.RecordBatch) -> None:
        self._hash.update(batch)
        self._seen += len(batch)
        if LAYOUTS[self._metadata.layout].tokens:
            self._check_tokens(first, batch)

    def _check_tokens(self, first: int, batch: pa.RecordBatch) -> None:
        shard, tokenizer = self._shards[self._at], self._metadata.tokenizer
        assert tokenizer is not None
        ids, stated = batch.column("input_ids"), batch.column("num_tokens").to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
        flat = ids.flatten().to_numpy(zero_copy_only=False)
        block = self._metadata.block_size

        def report(wrong: Wrong, say: Callable[[int], str]) -> None:
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                more = int(np.count_nonzero(wrong)) - 1
                also = f" (and {more:,} more rows nearby)" if more else ""
                self._found.wrong(f"{shard.name}, row {first + i:,}: {say(i)}{also}")

        bad_count = (stated > block) | (stated == 0) if block else stated != lengths
        report(bad_count, lambda i: f"num_tokens is {stated[i]}, of {lengths[i]} ids")
        vocabulary = tokenizer.vocab_size
        report(_any_by_row(flat >= vocabulary, lengths), lambda i: f"an id is beyond the vocabulary of {vocabulary:,}")
        self._check_documents(batch, stated, report)
        if tokenizer.chat is not None:
            self._check_mask(batch, stated, report)
        self._tokens += int(stated.sum())
        if block:
            self._padding += block * len(batch) - int(stated.sum())
            pad = tokenizer.padding_id
            padded = np.arange(block)[None, :] >= stated[:, None]
            wrong = (flat.reshape(-1, block) != pad) & padded
            report(wrong.any(axis=1), lambda i: f"its padding holds other ids than {pad}")

    def _check_mask(self, batch: pa.RecordBatch, stated: npt.NDArray[Any], report: Report) -> None:
        """Check that the runs of learned tokens are inside of their rows, and count the tokens."""
        values, counts = _list_column(batch, MASK_COLUMN)
        totals = np.bincount(_row_of(counts), weights=values, minlength=len(batch)).astype(np.int64)
        report(totals > stated, lambda i: f"its {MASK_COLUMN} names {totals[i]} tokens, num_tokens is {stated[i]}")
        odd = counts % 2 == 1
        report(odd, lambda i: f"its {MASK_COLUMN} has an odd number of runs, {counts[i]}")
        place = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._learned += int(values[place % 2 == 1].sum())

    def _check_documents(self, batch: pa.RecordBatch, stated: npt.NDArray[Any], report: Report) -> None:
        """Check the document ids, and for blocks the boundaries of documents."""
        shard = self._shards[self._at]
        if LAYOUTS[self._metadata.layout].packed:
            docs, per_row = _list_column(batch, "doc_ids")
            lengths, pieces = _list_column(batch, "seq_lengths")
            totals = np.bincount(_row_of(pieces), weights=lengths, minlength=len(batch)).astype(np.int64)
            report(totals != stated, lambda i: f"its seq_lengths add up to {totals[i]}, num_tokens is {stated[i]}")
            report(_any_by_row(lengths == 0, pieces), lambda i: "its seq_lengths name an empty document")
            report(pieces != per_row, lambda i: f"{per_row[i]} doc_ids for {pieces[i]} seq_lengths")
        else:
            docs, per_row = batch.column("doc_id").to_numpy(zero_copy_only=False), np.ones(len(batch), np.int64)
        first = np.cumsum(per_row) - per_row

        def wrong_doc(i: int, wrong: Wrong) -> int:
            row = slice(first[i], first[i] + per_row[i])
            return int(docs[row][wrong[row]][0])

        if shard.receipt is not None:
            other = docs >> np.uint64(ROW_BITS) != shard.receipt.shard
            report(_any_by_row(other, per_row), lambda i: f"doc_id {wrong_doc(i, other)} is not of this shard")
        if shard.source_rows is not None:
            mask, last = np.uint64((1 << ROW_BITS) - 1), shard.source_rows
            beyond = (docs & mask) >= last
            report(
                _any_by_row(beyond, per_row),
                lambda i: f"doc_id says source row {wrong_doc(i, beyond) & int(mask):,}, but the shard has {last:,}",
            )


def _list_column(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the values of a list column, one row after the other, and the number of values in each row."""
    column = batch.column(name)
    counts = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten().to_numpy(zero_copy_only=False), counts


def _row_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(lengths)), lengths)


def _any_by_row(values: npt.NDArray[np.bool_], lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each row whether any of its values is true. `values` holds rows of `lengths`, one after the other."""
    if not values.any():
        return np.zeros(len(lengths), np.bool_)
    return np.bincount(_row_of(lengths)[values], minlength=len(lengths)) > 0
