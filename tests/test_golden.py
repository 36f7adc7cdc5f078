"""Golden content hashes: the rows of a build never change by accident, whatever moves in the code.

A hash that changes on purpose is replaced with the output of `python -m tests.test_golden`, in a commit that says why.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import lance_prep
from tests import tokenizers_made as made

ROWS = 700
WORDS = [
    "the",
    "of",
    "and",
    "a\nto",
    "in\n\nis",
    "naïve",
    "中文",
    "token",
    "🙂",
    "x1",
    "42",
    "<|end|>",
    "it's",
    "",
    "spaced\ttab",
]
HASHES: dict[str, str] = json.loads((Path(__file__).parent / "golden_hashes.json").read_text())


@cache
def tokenizer() -> bytes:
    """A byte-level BPE written out by hand: a trained one would depend on the Python or library version."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġt", "he"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("o", "f")]
    tokens = [*alphabet, *("".join(pair) for pair in merges), "<|end|>"]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|end|>"])
    return bpe.to_str().encode()


def records() -> list[dict[str, Any]]:
    """Texts of 0 to 12 words, drawn by a linear congruential generator, with an integer and a float column."""
    state, rows = 20261124, []
    for number in range(ROWS):
        words = []
        for _ in range(number % 13):
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            words.append(WORDS[(state >> 33) % len(WORDS)])
        rows.append({"text": " ".join(words), "n": number, "score": number / 8})
    return rows


def _lines() -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in records())


def _table() -> pa.Table:
    return pa.Table.from_pylist(records())


def _write_csv(path: Path) -> None:
    pyarrow.csv.write_csv(_table(), path)


def _write_arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=100)


def _write_zstd(path: Path) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(_lines()))


FORMATS: dict[str, Callable[[Path], Any]] = {
    "parquet": lambda path: pq.write_table(_table(), path, row_group_size=97),
    "jsonl": lambda path: path.write_bytes(_lines()),
    "jsonl.gz": lambda path: path.write_bytes(gzip.compress(_lines())),
    "jsonl.zst": _write_zstd,
    "jsonl.bz2": lambda path: path.write_bytes(bz2.compress(_lines())),
    "jsonl.xz": lambda path: path.write_bytes(lzma.compress(_lines())),
    "json": lambda path: path.write_text(json.dumps(records(), indent=1)),
    "csv": _write_csv,
    "arrow": _write_arrow,
    "lance": lambda path: lance.write_dataset(_table(), str(path), max_rows_per_file=150),
    "txt": lambda path: path.write_text("\n".join(row["text"] for row in records())),
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "lines": {"layout": "lines"},
    "lines, kept columns": {"layout": "lines", "keep_columns": ("n", "score")},
    "documents": {"layout": "documents"},
    "documents, unshuffled": {"layout": "documents", "shuffle": False},
    "documents, filtered": {"layout": "documents", "filter": "n >= 100"},
    "documents, template": {"layout": "documents", "template": "{{ n }}: {{ text }}"},
    "documents, parsed": {"layout": "documents", "special_tokens": "parse"},
    "documents, first 99": {"layout": "documents", "max_rows": 99},
    "blocks, concat": {"layout": "blocks", "block_size": 64},
    "blocks, best-fit": {"layout": "blocks", "block_size": 64, "packing": "best-fit"},
    "blocks, small shards": {"layout": "blocks", "block_size": 32, "shard_size": 4000},
    "raw": {"layout": "raw"},
}


def build(folder: Path, extension: str, fields: dict[str, Any]) -> str:
    source = folder / f"a.{extension}"
    FORMATS[extension](source)
    given = {"shard_size": 10**9, **fields}
    if fields.get("shuffle", True):
        given["shuffle_batch_size"] = 100
    if fields["layout"] != "raw":
        given |= {"tokenizer": made.save(folder / "tokenizer", tokenizer()), "eos_token": "<|end|>"}
    return lance_prep.build(source, output=folder / "out.lance", **given).content_hash


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each layout from Parquet, and layout lines from each format: texts read from any format are the same."""
    layouts = {f"{name} from parquet": ("parquet", fields) for name, fields in LAYOUTS.items()}
    formats = {f"lines from {extension}": (extension, {"layout": "lines"}) for extension in FORMATS}
    return {**layouts, **formats}


@pytest.mark.parametrize("name", cases())
def test_rows_are_those_of_the_golden_build(name: str, tmp_path: Path) -> None:
    assert build(tmp_path, *cases()[name]) == HASHES[name]


def test_every_format_of_the_same_records_gives_the_same_rows() -> None:
    assert len({HASHES[f"lines from {extension}"] for extension in FORMATS if extension != "txt"}) == 1


if __name__ == "__main__":
    found = {}
    for case, arguments in cases().items():
        with tempfile.TemporaryDirectory() as scratch:
            found[case] = build(Path(scratch), *arguments)
    json.dump(found, sys.stdout, indent=1)
    print()
