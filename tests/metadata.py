"""Metadata of datasets that tests and benchmarks write by hand."""

from __future__ import annotations

from typing import Any

from lance_prep.ledger import Ledger
from lance_prep.store.metadata import BuildRecord, Metadata, SourceRecord

NO_LIST = "0" * 64


def metadata_of(**given: Any) -> Metadata:
    """Metadata of a dataset without a journal; `given` replaces what is stated here."""
    build = BuildRecord("0" * 16, "build", 1, "2026-01-01T00:00:00+00:00", 0, 1, 0, 0, None, 1, NO_LIST)
    stated: dict[str, Any] = {
        "recipe": {},
        "source": SourceRecord("made by hand", None, None, None, None, None),
        "tokenizer": None,
        "layout": "raw",
        "block_size": None,
        "dtype": None,
        "seed": 0,
        "ledger": Ledger(),
        "content_hash": "made by hand",
        "rows": 0,
        "tokens": 0,
        "shards": 1,
        "files": 1,
        "build": build,
        "builds": NO_LIST,
    }
    return Metadata(**{**stated, **given})
