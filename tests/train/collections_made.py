"""A small collection, built from real JSONL files, with its manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import lance_prep
from lance_prep.store import Manifest, Split

BLOCK = 128
#: source -> category, share in it, every how many-th topic it has
SOURCES = {"chat": ("talk", None, 9), "code": ("tech", 3.0, 5), "maths": ("tech", 1.0, 7)}
CATEGORIES = {"talk": 0.25, "tech": 0.75}


def make_collection(folder: Path, tokenizer: str, **fields: Any) -> Manifest:
    """Build the sources and their validation sets into `folder`, and write the manifest."""
    splits, validation = {}, {}
    texts = sorted(topics.values())
    for number, (name, (category, share, step)) in enumerate(SOURCES.items()):
        for suffix, start, found in (("", number, splits), (".val", number + 3, validation)):
            split = build_split(
                folder, f"{name}{suffix}", texts[start :: step * (4 if suffix else 1)], tokenizer, **fields
            )
            found[name] = replace(split, category=category, share=share)
    manifest = Manifest(
        tokenizer=tokenizer,
        max_seq_length=fields.get("block_size", BLOCK),
        input_path="data",
        output_path=str(folder),
        files_processed=len(splits),
        splits=splits,
        validation=validation,
        categories=CATEGORIES,
    )
    manifest.write(folder)
    return manifest


def build_split(folder: Path, name: str, texts: list[str], tokenizer: str, **fields: Any) -> Split:
    """Build one source, and return what a manifest says of it."""
    source, output = folder / "raw" / f"{name}.jsonl", folder / f"{name}.lance"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    lance_prep.build(source, output=output, tokenizer=tokenizer, **{"block_size": BLOCK, **fields})
    built = lance_prep.info(output)
    ledger = built.metadata.ledger
    return Split(
        path=output.name,
        shards=len(built.dataset.get_fragments()),
        sequences=built.dataset.count_rows(),
        samples=ledger.rows_used,
        tokens=ledger.tokens_written,
        version=built.number,
        content_hash=built.metadata.content_hash,
    )
