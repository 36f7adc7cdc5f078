"""Decodes rows to text, and returns the recipe that builds the same rows again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lance_prep.errors import UsageError, reading_dataset
from lance_prep.layouts import LAYOUTS, ROW_BITS
from lance_prep.loss_mask import MASK_COLUMN, runs_to_spans
from lance_prep.recipe import Recipe
from lance_prep.store import DatasetVersion, TokenizerRecord, tokenizer_path
from lance_prep.tokenizer import Piece, load_reference, text_pieces

#: Marks around the text that is learned in a conversation.
LEARNED = ("⟦", "⟧")


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
        text: decoded, special tokens included; None for `raw`, and for ids without a `tokenizer.json`.
        ids: token ids, without padding; empty for `raw`.
        columns: kept columns; for `raw`, all.
        learned: in a conversation, the tokens that are learned, as spans of `ids`; else None.
        marked: in a conversation, the text with what is learned between ⟦ and ⟧; else None.
        pieces: the text in pieces of as few tokens as possible; empty without a text.
    """

    row: int
    num_tokens: int | None
    documents: tuple[ShownDocument, ...]
    text: str | None
    ids: list[int]
    columns: dict[str, Any]
    learned: list[tuple[int, int]] | None = None
    marked: str | None = None
    pieces: tuple[Piece, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """All fields but the pieces, which the ids and the tokenizer imply."""
        return {name: value for name, value in asdict(self).items() if name != "pieces"}


def find_rows(
    opened: DatasetVersion, text: str, limit: int, on_rows: Callable[[int], None] = lambda rows: None
) -> list[int]:
    """Return the numbers of the first rows whose decoded text contains a text; for `raw`, those with it in a column.

    Args:
        on_rows: called with the number of rows searched in each batch.
    """
    tokens = LAYOUTS[opened.metadata.layout].tokens
    tokenizer = load_reference(opened.tokenizer_file()) if tokens else None
    columns = ["input_ids", "num_tokens"] if tokens else None
    found: list[int] = []
    first = 0
    with reading_dataset(opened.uri):
        for batch in opened.dataset.to_batches(columns=columns, batch_size=1024):
            if tokenizer is None:
                texts = [json.dumps(record, default=str, ensure_ascii=False) for record in batch.to_pylist()]
            else:
                lists = zip(*(batch.column(name).to_pylist() for name in ("input_ids", "num_tokens")), strict=True)
                texts = tokenizer.decode_batch([ids[:n] for ids, n in lists], skip_special_tokens=False)
            found += [first + i for i, each in enumerate(texts) if text in each]
            first += len(batch)
            on_rows(len(batch))
            if len(found) >= limit:
                break
    return found[:limit]


def show_rows(opened: DatasetVersion, rows: Sequence[int]) -> list[ShownRow]:
    """Return decoded rows by number; negative numbers count from the end.

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
    stated = opened.metadata.tokenizer
    chat = stated is not None and stated.chat is not None
    tokenizer = None if stated is None or not stated.decodes else load_reference(opened.tokenizer_file())
    shown = []
    for i, record in zip(wanted, records, strict=True):
        ids, n = record.pop("input_ids"), record.pop("num_tokens")
        blocks = "doc_ids" in record
        docs = record.pop("doc_ids") if blocks else [record.pop("doc_id")]
        lengths = record.pop("seq_lengths") if blocks else [n]
        documents = tuple(_document(doc, length) for doc, length in zip(docs, lengths, strict=True))
        text = None if tokenizer is None else tokenizer.decode(ids[:n], skip_special_tokens=False)
        learned = marked = None
        if chat:
            starts, stops, _ = runs_to_spans(np.array(runs := record.pop(MASK_COLUMN)), np.array([0, len(runs)]))
            learned = [span for span in zip(starts.tolist(), stops.tolist(), strict=True) if span[0] < span[1]]
            marked = _with_learned(tokenizer, ids[:n], learned)
        pieces = () if tokenizer is None else tuple(text_pieces(tokenizer, ids[:n]))
        shown.append(ShownRow(i, n, documents, text, ids[:n], record, learned, marked, pieces))
    return shown


def _with_learned(tokenizer: Any, ids: list[int], learned: list[tuple[int, int]]) -> str:
    """Return the text of a conversation, with what is learned between two marks."""
    pieces: list[list[int]] = []
    at = 0
    for start, stop in learned:
        pieces += [ids[at:start], ids[start:stop]]
        at = stop
    texts = [tokenizer.decode(piece, skip_special_tokens=False) for piece in [*pieces, ids[at:]]]
    return "".join(text if i % 2 == 0 else f"{LEARNED[0]}{text}{LEARNED[1]}" for i, text in enumerate(texts))


def _document(doc_id: int, num_tokens: int) -> ShownDocument:
    return ShownDocument(doc_id >> ROW_BITS, doc_id & ((1 << ROW_BITS) - 1), num_tokens)


def pinned_recipe(opened: DatasetVersion) -> dict[str, Any]:
    """Return the fields of the recipe that differ from the defaults, with everything pinned that was resolved.

    A dataset that was built in one go and its recipe have the same content hash. One that was appended to may be cut
    into shards differently.
    """
    stored, source, tokenizer = opened.recipe, opened.metadata.source, opened.metadata.tokenizer
    always = {"source", "layout"} | ({"tokenizer"} if tokenizer else set())
    defaults = Recipe.model_validate({"source": "any"}).as_json()
    fields = {name: value for name, value in stored.items() if name in always or value != defaults.get(name)}
    if fields["source"] == []:  # too many names for the metadata
        fields["source"] = [file.url for file in opened.source_files]
    if source.repo is not None and source.commit is not None:
        fields.update({name: value for name in ("config", "split") if (value := getattr(source, name)) is not None})
        pinned, found = re.subn(r"^(hf://[^@]+)@[^/]+", rf"\1@{source.commit}", str(fields["source"]))
        fields["source"] = pinned
        if not found:
            fields["revision"] = source.commit
    if tokenizer is not None and tokenizer.commit is not None:
        fields["tokenizer_revision"] = tokenizer.commit
    elif tokenizer is not None and not tokenizer.decodes:
        pass
    elif tokenizer is not None and ":" not in tokenizer.name and not Path(str(fields["tokenizer"])).exists():
        fields.update(_own_tokenizer(opened, tokenizer))
    return fields


def _own_tokenizer(opened: DatasetVersion, tokenizer: TokenizerRecord) -> dict[str, str]:
    # The dataset's copy has the same ids. The name of the end-of-text token was in a file beside the original.
    found = {"tokenizer": f"{opened.uri}/{tokenizer_path(tokenizer.sha256)}"}
    if tokenizer.eos_id is not None:
        found["eos_token"] = str(load_reference(opened.tokenizer_file()).id_to_token(tokenizer.eos_id))
    return found
