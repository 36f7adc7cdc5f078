"""A small collection, built from JSONL files as a user builds it."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

import lance_prep
from lance_prep.collection import build_collection
from lance_prep.store import Manifest, Split, read_manifest, split_of

BLOCK = 128
#: source -> category, share in it, and which of the texts it has
SOURCES: dict[str, tuple[str, int | None, slice]] = {
    "chat": ("talk", None, slice(0, None, 30)),
    "code": ("tech", 75, slice(1, None, 12)),
    "maths": ("tech", 25, slice(2, None, 20)),
}


def make_collection(folder: Path, tokenizer: str, **fields: Any) -> Manifest:
    """Build a collection of three sources in two categories, with validation sets; return its manifest."""
    texts = [part for text in sorted(topics.values()) for part in text.split("\n\n")]
    categories: dict[str, Any] = {"talk": {"share": 25, "sources": {}}, "tech": {"share": 75, "sources": {}}}
    for name, (category, share, which) in SOURCES.items():
        source: dict[str, Any] = {"source": str(_write(folder / "raw" / f"{name}.jsonl", texts[which]))}
        categories[category]["sources"][name] = source if share is None else {**source, "share": share}
    defaults = {"tokenizer": tokenizer, "block_size": BLOCK, "val_fraction": 0.2, **fields}
    recipe = folder / "raw" / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "small", "defaults": defaults, "categories": categories}))
    report = build_collection(recipe, output=folder)
    assert not report.failed
    return read_manifest(folder)


def build_split(folder: Path, name: str, texts: list[str], tokenizer: str, **fields: Any) -> Split:
    """Build one source, and return what a manifest says of it."""
    source, output = _write(folder / "raw" / f"{name}.jsonl", texts), folder / f"{name}.lance"
    lance_prep.build(source, output=output, tokenizer=tokenizer, **{"block_size": BLOCK, **fields})
    return split_of(lance_prep.info(output))


def _write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
