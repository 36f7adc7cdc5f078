"""What a dataset holds, for people: rows decoded to text, and the recipe that builds them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.errors import UsageError, reading_dataset
from lance_prep.layout import ROW_BITS
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe
from lance_prep.store.version import DatasetVersion, tokenizer_path
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
    """Return rows by number, decoded; negative numbers count from the end.

    Raises:
        UsageError: the dataset has no such row.
    """
    with reading_dataset(opened.uri):
        total = opened.dataset.count_rows()
    for row in rows:
        if not -total <= row < total:
            raise UsageError(f"there is no row {row}: the dataset has {total:,} rows", "use a smaller number")
    wanted = [row % total for row in rows]
    with reading_dataset(opened.uri):
        records = opened.dataset.take(wanted).to_pylist() if wanted else []
    if not LAYOUTS[opened.metadata.layout].tokens:
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


def pinned_recipe(opened: DatasetVersion) -> dict[str, Any]:
    """Return the fields of the recipe that differ from the defaults, with everything pinned that was resolved.

    Local paths become absolute, so that the recipe can be built from any folder. A dataset that was built in one go and
    its recipe have the same content hash; one that was appended to may be cut into shards differently.
    """
    stored, source, tokenizer = opened.metadata.recipe, opened.metadata.source, opened.metadata.tokenizer
    always = {"source", "layout"} | ({"tokenizer"} if tokenizer else set())
    defaults = Recipe.model_validate({"source": "any"}).as_json()
    fields = {name: value for name, value in stored.items() if name in always or value != defaults.get(name)}
    if source.repo is None:
        fields["source"] = _absolute_source(opened, fields["source"])
    elif source.commit is not None:
        fields.update({name: value for name in ("config", "split") if (value := getattr(source, name)) is not None})
        pinned, found = re.subn(r"^(hf://[^@]+)@[^/]+", rf"\1@{source.commit}", str(fields["source"]))
        fields["source"] = pinned
        if not found:
            fields["revision"] = source.commit
    if tokenizer is not None and tokenizer.commit is not None:
        fields["tokenizer_revision"] = tokenizer.commit
    elif tokenizer is not None and ":" not in tokenizer.name:
        fields.update(_local_tokenizer(opened, tokenizer.name, tokenizer.eos_id))
    return fields


def _absolute_source(opened: DatasetVersion, source: str | list[str]) -> str | list[str]:
    names = [source] if isinstance(source, str) else source
    if all("://" in name or name.startswith(("/", "pydoc:")) for name in names):
        return source
    files = [file.url for file in opened.source_files]
    found = [_absolute(name, files) for name in names]
    known = [name for name in found if name is not None]
    if len(known) < len(found):  # such as `../data`: name the files themselves
        known = files
    return known[0] if len(known) == 1 else known


def _absolute(name: str, files: list[str]) -> str | None:
    """Return a relative path, folder or glob as an absolute one, from the absolute paths of the files it named."""
    if "://" in name or name.startswith("/"):
        return name
    fixed = re.split(r"[*?\[]", name)[0]
    tail = Path(name if fixed == name else fixed.rpartition("/")[0]).parts
    if not tail and "/" not in name and files:
        return str(Path(files[0]).parent / name)
    for file in map(Path, files):
        for folder in (file, *file.parents):
            if tail and folder.parts[-len(tail) :] == tail:
                return str(folder.parents[len(tail) - 1] / name)
    return None


def _local_tokenizer(opened: DatasetVersion, name: str, eos_id: int | None) -> dict[str, str]:
    assert opened.metadata.tokenizer is not None
    if Path(name).exists():
        return {"tokenizer": str(Path(name).absolute())}
    # The dataset's own copy has the same ids. The name of the end-of-text token was in a file beside the original.
    eos = load_reference(opened.tokenizer_file()).id_to_token(eos_id) if eos_id is not None else None
    copy = f"{opened.uri}/{tokenizer_path(opened.metadata.tokenizer.sha256)}"
    return {"tokenizer": copy, **({"eos_token": eos} if eos is not None else {})}
