"""Extensions from outside the package: one file and one registration each."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest

import lance_prep
from lance_prep.dataset import SourceCheck
from lance_prep.errors import SourceError
from lance_prep.fetch import open_stream
from lance_prep.formats import Chunk, Format, PartJob, register_format, registry, row_chunks
from lance_prep.model import SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport
from tests import tokenizers_made as made


class Rot13(Format):
    """Lines of text, each letter moved 13 places through the alphabet."""

    def settle(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> Mapping[str, Any]:
        return {"text_column": recipe.text_column or "line"}

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        return pa.schema([("line", pa.string()), ("number", pa.int64())])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        with open_stream(job.file, job.transport) as stream:
            lines = [codecs.decode(line.decode().rstrip("\n"), "rot13") for line in stream]
        yield from row_chunks(iter([pa.RecordBatch.from_pydict({"line": lines, "number": range(len(lines))})]), job)


@pytest.fixture
def rot13() -> Iterator[None]:
    with mock.patch.dict(registry._FORMATS), mock.patch.dict(registry._by_extension):
        register_format("rot13", Rot13(), (".rot13",), compressible=True)
        yield


TEXTS = ["the first line", "a second one", "", "Zürich"]


def _write(folder: Path) -> None:
    folder.mkdir()
    data = "".join(codecs.encode(text, "rot13") + "\n" for text in TEXTS).encode()
    (folder / "a.rot13").write_bytes(data)
    (folder / "b.rot13.gz").write_bytes(gzip.compress(data))


@pytest.mark.usefixtures("rot13")
def test_a_format_from_outside_is_built_and_verified(tmp_path: Path) -> None:
    _write(tmp_path / "src")
    output = tmp_path / "o.lance"
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "keep_columns": ("number",)}
    report = lance_prep.build(tmp_path / "src", output=output, filter="number != 1", **fields)
    assert report.ledger.rows_in == 8
    assert report.ledger.filtered == 2
    assert lance_prep.verify(output, against=SourceCheck()).ok
    batches = lance_prep.stream(tmp_path / "src", layout="raw", shuffle=False)
    assert batches.read_all().column("line").to_pylist() == TEXTS * 2


@pytest.mark.usefixtures("rot13")
def test_a_format_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'rot13' is registered already"):
        register_format("rot13", Rot13(), (".r13",))
    with pytest.raises(ValueError, match=r"'\.csv' is registered already"):
        register_format("other", Rot13(), (".csv",))


def test_an_unregistered_format_is_refused_by_name(tmp_path: Path) -> None:
    _write(tmp_path / "src")
    with pytest.raises(SourceError, match=r"unknown file extension"):
        lance_prep.build(tmp_path / "src" / "a.rot13", output=tmp_path / "o.lance")
    with pytest.raises(SourceError, match="unknown format 'rot13'"):
        registry.format_named("rot13")
