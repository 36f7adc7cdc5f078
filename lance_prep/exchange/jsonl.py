"""The `jsonl` target: one record per line, with text decoded by the version's own tokenizer.

    {"text": "...", "doc_ids": [3, 4]}          a block
    {"text": "...", "doc_id": 3, ...}           a line or a document, with its kept columns
    {...}                                       the record of a raw dataset

A block may begin or end within a character. Such bytes become U+FFFD, as in `lance-prep show`.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.errors import UsageError
from lance_prep.exchange.base import Encoder, ExportOptions, Piece, Source
from lance_prep.exchange.decode import TextDecoder, decoder_of
from lance_prep.keyed import Indices
from lance_prep.layouts import LAYOUTS

#: Tokens, or raw records, that are decoded together.
_TOKENS, _RECORDS = 1 << 18, 1024


class JsonlEncoder(Encoder):
    """Encodes rows as lines; see `Encoder`."""

    def __init__(self, source: Source, options: ExportOptions) -> None:
        opened = source.opened
        layout = LAYOUTS[opened.metadata.layout]
        self._decoder: TextDecoder | None = None
        self.columns: Sequence[str] = opened.dataset.schema.names
        self.batch_rows = _RECORDS
        if options.by == "document" and layout.unit != "document":
            raise UsageError(
                f"by='document': a row of {opened.uri} is {layout.row}, and documents cannot be put together from them",
                "use by='row'",
            )
        if not layout.tokens:
            if options.skip_special_tokens or options.by == "document":
                name = "skip_special_tokens" if options.skip_special_tokens else "by"
                raise UsageError(f"{name} has no effect: {opened.uri} holds records, not tokens", f"leave `{name}` out")
            return
        self._decoder = decoder_of(opened.tokenizer_file(), skip_special_tokens=options.skip_special_tokens)
        mean = opened.metadata.tokens // max(source.rows, 1)
        self.batch_rows = min(max(_TOKENS // max(mean, 1), 1), 8192)
        self.columns = [name for name in self.columns if name != "seq_lengths"]

    def encode(self, batch: pa.RecordBatch) -> Piece:
        tokens = np.zeros(batch.num_rows, np.int64)
        if self._decoder is None:
            records = batch.to_pylist()
        else:
            tokens = batch["num_tokens"].to_numpy().astype(np.int64)
            texts = self._decoder.decode(batch["input_ids"], tokens)
            kept = batch.drop_columns(["input_ids", "num_tokens"])
            # `text` is the decoded text. A column of that name was kept from the source.
            kept = kept.rename_columns([f"source_{name}" if name == "text" else name for name in kept.schema.names])
            records = [{"text": text, **record} for text, record in zip(texts, kept.to_pylist(), strict=True)]
        lines = [_line(record) for record in records]
        data = b"".join(lines)
        ends: Indices = np.cumsum([len(line) for line in lines])
        return Piece([data], len(data), len(lines), int(tokens.sum()), ends=ends, row_tokens=tokens)


def _line(record: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, default=_plain)
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a value that JSON has no type for as text: bytes as Base64, others as they print."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    """Return a value with null in place of the numbers that JSON lacks: NaN and infinities."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
