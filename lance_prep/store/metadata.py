"""What is written in a dataset about itself: one JSON object in the schema's metadata, under the key `lance_prep`.

It is there rather than in a file beside the data because Lance then carries it to every version: an append, a restore
and a compaction keep or replace it in the same commit as the rows.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

import pyarrow as pa

from lance_prep.errors import DatasetError

KEY = b"lance_prep"
FORMAT = 1
FOLDER = ".lance_prep"
TOKENIZER_FILE = f"{FOLDER}/tokenizer.json"
BUILDS_FOLDER = f"{FOLDER}/builds"


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """The metadata of a dataset's schema.

    Raises:
        DatasetError: there is none, or it is of a later format than this program knows.
    """
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise DatasetError(
            "this Lance dataset was not made by lance-prep: its schema has no metadata 'lance_prep'",
            "build it with lance-prep, or read it with layout 'raw'",
        )
    data: dict[str, Any] = json.loads(text)
    if data.get("format", 0) > FORMAT:
        raise DatasetError(
            f"the dataset's metadata is of format {data['format']}, this lance-prep knows up to {FORMAT}",
            "upgrade lance-prep",
        )
    return data


def with_metadata(schema: pa.Schema, data: dict[str, Any]) -> pa.Schema:
    """The schema with this metadata in it."""
    return schema.with_metadata({**(schema.metadata or {}), KEY: json.dumps(data, sort_keys=True)})


def versions_in_use() -> dict[str, str]:
    """Versions of what decides a dataset's bytes."""
    names = ("lance-prep", "pylance", "pyarrow", "tokenizers", "gigatoken", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
