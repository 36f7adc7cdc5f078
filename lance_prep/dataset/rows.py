"""What rows say: token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lance_prep.dataset.opened import Opened
from lance_prep.errors import UsageError
from lance_prep.layout import ROW_BITS
from lance_prep.tokenizer import load_reference


@dataclass(frozen=True)
class ShownRow:
    """One row.

    Attributes:
        row: its number in the dataset.
        num_tokens: real tokens; None for `raw`.
        shard, source_row: where its first document came from; None for `raw`.
        text: decoded, special tokens included; None for `raw`.
        ids: token ids, without padding; empty for `raw`.
        columns: kept columns; for `raw`, all.
    """

    row: int
    num_tokens: int | None
    shard: int | None
    source_row: int | None
    text: str | None
    ids: list[int]
    columns: dict[str, Any]


def show_rows(opened: Opened, rows: Sequence[int]) -> list[ShownRow]:
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
    if opened.metadata["layout"] == "raw":
        return [ShownRow(i, None, None, None, None, [], record) for i, record in zip(wanted, records, strict=True)]
    tokenizer = load_reference(opened.tokenizer_file())
    shown = []
    for i, record in zip(wanted, records, strict=True):
        ids, n, doc = record.pop("input_ids"), record.pop("num_tokens"), record.pop("doc_id")
        text = tokenizer.decode(ids[:n], skip_special_tokens=False)
        shown.append(ShownRow(i, n, doc >> ROW_BITS, doc & ((1 << ROW_BITS) - 1), text, ids[:n], record))
    return shown
