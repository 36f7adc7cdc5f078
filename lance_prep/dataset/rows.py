"""What rows say: token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lance_prep.errors import UsageError
from lance_prep.layout import ROW_BITS
from lance_prep.store.version import DatasetVersion
from lance_prep.tokenizer import load_reference


@dataclass(frozen=True)
class ShownDocument:
    """A document in a row: the shard and the source row that it came from, and its tokens in the row."""

    shard: int
    source_row: int
    num_tokens: int


@dataclass(frozen=True)
class ShownRow:
    """One row.

    Attributes:
        row: its number in the dataset.
        num_tokens: real tokens; None for `raw`.
        documents: the documents in the row, in order; empty for `raw`.
        text: decoded, special tokens included; None for `raw`.
        ids: token ids, without padding; empty for `raw`.
        columns: kept columns; for `raw`, all.
    """

    row: int
    num_tokens: int | None
    documents: tuple[ShownDocument, ...]
    text: str | None
    ids: list[int]
    columns: dict[str, Any]


def show_rows(opened: DatasetVersion, rows: Sequence[int]) -> list[ShownRow]:
    """Rows by number, negative from the end.

    Raises:
        UsageError: a row beyond the dataset.
    """
    total = opened.dataset.count_rows()
    for row in rows:
        if not -total <= row < total:
            raise UsageError(f"there is no row {row}: the dataset has {total:,} rows", "give a smaller number")
    wanted = [row % total for row in rows]
    records = opened.dataset.take(wanted).to_pylist() if wanted else []
    if opened.metadata.layout == "raw":
        return [ShownRow(i, None, (), None, [], record) for i, record in zip(wanted, records, strict=True)]
    tokenizer = load_reference(opened.tokenizer_file())
    shown = []
    for i, record in zip(wanted, records, strict=True):
        ids, n = record.pop("input_ids"), record.pop("num_tokens")
        blocks = "doc_ids" in record
        docs = record.pop("doc_ids") if blocks else [record.pop("doc_id")]
        lengths = record.pop("seq_lengths") if blocks else [n]
        documents = tuple(_document(doc, length) for doc, length in zip(docs, lengths, strict=True))
        text = tokenizer.decode(ids[:n], skip_special_tokens=False)
        shown.append(ShownRow(i, n, documents, text, ids[:n], record))
    return shown


def _document(doc_id: int, num_tokens: int) -> ShownDocument:
    return ShownDocument(doc_id >> ROW_BITS, doc_id & ((1 << ROW_BITS) - 1), num_tokens)
