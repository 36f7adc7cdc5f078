"""Encode texts with marks: `ChatEncoder` turns what `ChatRenderer` wrote into ids and the tokens that are learned.

Ids equal those of `apply_chat_template(..., sanitize_control_tokens=True)`. A token is learned if at least a part of it
is inside of what the assistant wrote, and so is the token that ends the turn, wherever the template puts it.

Where each token is in its text is computed from the lengths of the tokens, without an object per token. This needs a
byte-level tokenizer and texts that it leaves as they are. For other texts, `tokenizers` tells where its tokens are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.keyed import Indices
from lance_prep.loss_mask import END_LEARN, LEARN
from lance_prep.text.chat_template import CONTROL, END_CONTROL
from lance_prep.tokenizer import Encoder, TokenizerSpec, TokenLists, byte_names, encode_as_text, load_reference

_KINDS = (CONTROL, END_CONTROL, LEARN, END_LEARN)
_MARKS = np.array([list(mark.encode()) for mark in _KINDS], np.uint8)
_SIZE = _MARKS.shape[1]
_LOWEST_LEAD = int(_MARKS[:, 0].min())

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Clean:
    """Texts without their marks, one after the other, and where the marks were.

    Attributes:
        data: UTF-8 of all texts.
        offsets: int64 `[texts + 1]`.
        at, kind, row: int64 `[marks]`, the place of each mark in `data`, its index in `_KINDS` and its text; ascending.
    """

    data: Bytes
    offsets: Indices
    at: Indices
    kind: Indices
    row: Indices

    @classmethod
    def of(cls, texts: pa.LargeStringArray) -> _Clean:
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        buffer = texts.buffers()[2]
        data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
        data, offsets = data[offsets[0] : offsets[-1]], offsets - offsets[0]
        found = np.flatnonzero(data[: max(len(data) - _SIZE + 1, 0)] >= _LOWEST_LEAD)
        around = data[found[:, None] + np.arange(_SIZE)]
        same = (around[:, None, :] == _MARKS).all(axis=2)
        is_mark = same.any(axis=1)
        found, kind = found[is_mark], same[is_mark].argmax(axis=1)
        keep = np.ones(len(data), np.bool_)
        keep[(found[:, None] + np.arange(_SIZE)).reshape(-1)] = False
        moved = offsets - _SIZE * np.searchsorted(found, offsets)
        rows = np.searchsorted(offsets, found, "right") - 1
        return cls(data[keep], moved, found - _SIZE * np.arange(len(found)), kind, rows)

    def texts(self) -> pa.LargeStringArray:
        buffers = [None, pa.py_buffer(self.offsets), pa.py_buffer(np.ascontiguousarray(self.data))]
        return pa.LargeStringArray.from_buffers(len(self.offsets) - 1, buffers[1], buffers[2])


@dataclass(frozen=True)
class _Placed:
    """Tokens and where they are: three lists over the same offsets; `starts` and `stops` in `_Clean.data`."""

    ids: TokenLists
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]


class ChatTables:
    """What a tokenizer's tokens are in bytes, and the ids of control tokens as text. Threads may share one."""

    def __init__(self, spec: TokenizerSpec) -> None:
        assert spec.chat is not None
        self.reference = load_reference(spec.file, spec.name)
        self.dtype = spec.dtype
        self.newline = np.array(self.reference.encode("\n", add_special_tokens=False).ids, spec.dtype)
        self.control = {
            token.encode(): np.array(encode_as_text(self.reference, token), spec.dtype) for token in spec.chat.control
        }
        self.is_stop = np.zeros(spec.vocab_size, np.bool_)
        known = self.reference.get_vocab(with_added_tokens=True)
        self.is_stop[[known[token] for token in spec.chat.stops]] = True
        self.sizes, self._at, self._bytes = _token_bytes(self.reference, spec)
        kind = (json.loads(spec.file).get("normalizer") or {}).get("type")
        #: Whether the tokens of a text are surely its bytes if their lengths add up; None if they never are.
        self.as_written: bool | None = None if kind not in (None, "NFC") else kind is None

    def spelled(self, ids: npt.NDArray[Any]) -> Bytes:
        """Return the bytes of tokens, one after the other."""
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes)
        places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self._at[ids] - (ends - sizes), sizes)
        found: Bytes = self._bytes[places]
        return found


def _token_bytes(reference: Any, spec: TokenizerSpec) -> tuple[Indices, Indices, Bytes]:
    """Return the length of each token, where its bytes begin, and the bytes of all."""
    values = {name: byte for byte, name in enumerate(byte_names())}
    added = {number: token.content for number, token in reference.get_added_tokens_decoder().items()}
    spelled: list[bytes] = [b""] * spec.vocab_size
    for token, number in reference.get_vocab(with_added_tokens=True).items():
        if number in added:
            spelled[number] = added[number].encode()
        elif all(char in values for char in token):
            spelled[number] = bytes(values[char] for char in token)
    sizes = np.array([len(each) for each in spelled], np.int64)
    return sizes, np.cumsum(sizes) - sizes, np.frombuffer(b"".join(spelled), np.uint8)


class ChatEncoder:
    """An `Encoder` for texts with marks, over one for plain texts that parses special tokens."""

    def __init__(self, encoder: Encoder, tables: ChatTables) -> None:
        self.name = encoder.name
        self._encoder = encoder
        self._tables = tables

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        """Return the ids of each text, with a mask of the tokens that are learned."""
        clean = _Clean.of(texts)
        cut = np.unique(clean.row[clean.kind < 2])
        whole = np.setdiff1d(np.arange(len(texts)), cut) if len(cut) else None
        tokens = clean.texts()
        placed = self._whole(tokens if whole is None else tokens.take(pa.array(whole)), clean, whole)
        if whole is not None:
            placed = self._with_cut(placed, clean, whole, cut)
        return TokenLists(placed.ids.offsets, placed.ids.ids, self._learned(placed, clean))

    def _learned(self, placed: _Placed, clean: _Clean) -> npt.NDArray[np.bool_]:
        begins, ends = clean.at[clean.kind == 2], clean.at[clean.kind == 3]
        count, ids = len(placed.ids.ids), placed.ids.ids
        first = np.searchsorted(placed.stops, begins, "right")
        stop = np.maximum(np.searchsorted(placed.starts, ends, "left"), first)
        stop = np.where(begins == ends, first, stop)
        change = np.bincount(first, minlength=count + 1) - np.bincount(stop, minlength=count + 1)
        learned: npt.NDArray[np.bool_] = np.cumsum(change)[:count] > 0
        if not count or not len(ends):
            return learned
        # The token that ends the turn, if the template writes it behind what it marks.
        last_of_row = placed.ids.offsets[1:][clean.row[clean.kind == 3]]
        after = np.minimum(stop, count - 1)
        ended = (stop > first) & self._tables.is_stop[ids[np.maximum(stop - 1, 0)]]
        missed = (stop < last_of_row) & (placed.starts[after] == ends) & self._tables.is_stop[ids[after]] & ~ended
        learned[after[missed]] = True
        return learned

    def _whole(self, texts: pa.LargeStringArray, clean: _Clean, rows: Indices | None) -> _Placed:
        """Encode texts without control tokens; `rows` are their numbers, None for all."""
        begins = clean.offsets[:-1] if rows is None else clean.offsets[:-1][rows]
        ends = clean.offsets[1:] if rows is None else clean.offsets[1:][rows]
        tokens = self._encoder.encode(texts)
        sizes = self._tables.sizes[tokens.ids]
        reached = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        shift = np.repeat(begins - reached[tokens.offsets[:-1]], tokens.lengths)
        placed = _Placed(tokens, reached[:-1] + shift, reached[1:] + shift)
        totals = reached[tokens.offsets[1:]] - reached[tokens.offsets[:-1]]
        asked = np.flatnonzero(self._unsure(tokens, totals, texts, begins, ends, clean))
        if not len(asked):
            return placed
        return self._asked(placed, asked, texts, begins)

    def _unsure(
        self, tokens: TokenLists, totals: Indices, texts: Any, begins: Indices, ends: Indices, clean: _Clean
    ) -> npt.NDArray[np.bool_]:
        """Return the texts whose tokens may be somewhere else than their lengths say."""
        as_written = self._tables.as_written
        if as_written is None:
            return np.ones(len(texts), np.bool_)
        unsure: npt.NDArray[np.bool_] = totals != ends - begins
        if not as_written:
            high = np.concatenate([np.zeros(1, np.int64), np.cumsum(clean.data >= 0x80)])
            rows = np.flatnonzero((high[ends] > high[begins]) & ~unsure)
            spelled = self._tables.spelled(tokens.take(rows).ids)
            text = np.concatenate([np.empty(0, np.uint8), *(clean.data[begins[row] : ends[row]] for row in rows)])
            bounds = np.cumsum(totals[rows])
            wrong = np.searchsorted(bounds, np.flatnonzero(spelled != text), "right")
            unsure[rows[wrong]] = True
        return unsure

    def _asked(self, placed: _Placed, rows: Indices, texts: Any, begins: Indices) -> _Placed:
        """Place the tokens of some texts as `tokenizers` does."""
        wanted = texts.take(pa.array(rows)).to_pylist()
        found = self._tables.reference.encode_batch(wanted, add_special_tokens=False)
        pieces = [
            _of_encoding(text, each, int(begin), self._tables.dtype)
            for text, each, begin in zip(wanted, found, begins[rows].tolist(), strict=True)
        ]
        return _replaced(placed, rows, pieces)

    def _with_cut(self, placed: _Placed, clean: _Clean, whole: Indices, cut: Indices) -> _Placed:
        """Add the texts that hold control tokens as plain text, which are encoded in pieces."""
        pieces = [list(_pieces(clean, int(row), self._tables)) for row in cut]
        texts = [each for row in pieces for each in row if isinstance(each, _Piece)]
        tokens = iter(self._of_pieces(texts))
        rows = []
        for row in pieces:
            parts = [next(tokens) if isinstance(each, _Piece) else each for each in row]
            rows.append(tuple(np.concatenate([part[i] for part in parts]) for i in range(3)))
        return _merged(placed, whole, rows, cut, self._tables.dtype)

    def _of_pieces(self, pieces: list[_Piece]) -> list[_Tokens]:
        """Encode pieces of texts: those in the middle behind a newline, which is removed, as transformers does."""
        newline = self._tables.newline
        found: list[_Tokens] = []
        first = self._encode_some([("\n" if each.middle else "") + each.text for each in pieces], pieces)
        again = []
        for i, (piece, (ids, starts, stops)) in enumerate(zip(pieces, first, strict=True)):
            n = len(newline) if piece.middle else 0
            if n and not np.array_equal(ids[:n], newline):
                again.append(i)
            found.append((ids[n:], starts[n:] - (1 if n else 0), stops[n:] - (1 if n else 0)))
        rest = [pieces[i] for i in again]
        for i, tokens in zip(again, self._encode_some([each.text for each in rest], rest), strict=True):
            found[i] = tokens
        return found

    def _encode_some(self, texts: list[str], pieces: list[_Piece]) -> list[_Tokens]:
        """Encode texts that begin at the pieces' places."""
        if not texts:
            return []
        array = pa.array(texts, pa.large_string())
        clean = _Clean.of(array)
        placed = self._whole(array, clean, None)
        bounds = placed.ids.offsets.tolist()
        shifts = [piece.at - begin for piece, begin in zip(pieces, clean.offsets[:-1].tolist(), strict=True)]
        return [
            (placed.ids.ids[i:j], placed.starts[i:j] + shift, placed.stops[i:j] + shift)
            for i, j, shift in zip(bounds[:-1], bounds[1:], shifts, strict=True)
        ]


#: Ids, and where each token starts and stops.
_Tokens = tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class _Piece:
    """A text between control tokens: where it begins in `_Clean.data`, and whether it begins its text."""

    text: str
    at: int
    middle: bool


def _pieces(clean: _Clean, row: int, tables: ChatTables) -> Iterator[_Piece | _Tokens]:
    """Cut a text at the marks of its control tokens; those are returned as tokens."""
    begin, end = int(clean.offsets[row]), int(clean.offsets[row + 1])
    own = slice(*np.searchsorted(clean.row, [row, row + 1]))
    marks = [(at, kind) for at, kind in zip(clean.at[own], clean.kind[own], strict=True) if kind < 2]
    at = begin

    def plain(stop: int) -> Iterator[_Piece]:
        if stop > at:
            yield _Piece(clean.data[at:stop].tobytes().decode(), at, middle=at > begin or cut)

    cut = False
    i = 0
    while i < len(marks):
        place, kind = int(marks[i][0]), marks[i][1]
        yield from plain(place)
        at, cut = place, True
        if kind == 0 and i + 1 < len(marks) and marks[i + 1][1] == 1:
            stop = int(marks[i + 1][0])
            ids = tables.control.get(clean.data[place:stop].tobytes())
            if ids is not None:
                yield ids, np.full(len(ids), place), np.full(len(ids), stop)
                at = stop
                i += 1
        i += 1
    yield from plain(end)


def _of_encoding(text: str, encoding: Any, begin: int, dtype: np.dtype[Any]) -> _Tokens:
    """Return the tokens of an encoding of `tokenizers`, whose places count characters."""
    sizes = np.array([len(char.encode()) for char in text], np.int64)
    byte_of = begin + np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return np.array(encoding.ids, dtype), byte_of[places[:, 0]], byte_of[places[:, 1]]


def _replaced(placed: _Placed, rows: Indices, by: list[_Tokens]) -> _Placed:
    others = np.setdiff1d(np.arange(len(placed.ids)), rows)
    lists = [TokenLists(placed.ids.offsets, each).take(others) for each in _three(placed)]
    kept = _Placed(lists[0], lists[1].ids, lists[2].ids)
    return _merged(kept, others, by, rows, placed.ids.ids.dtype)


def _three(placed: _Placed) -> tuple[npt.NDArray[Any], ...]:
    return placed.ids.ids, placed.starts, placed.stops


def _merged(some: _Placed, rows: Indices, others: list[Any], other_rows: Indices, dtype: np.dtype[Any]) -> _Placed:
    """Return the tokens of all rows in order: those of `some`, which are `rows`, and the others."""
    lengths = np.concatenate([some.ids.lengths, np.array([len(each[0]) for each in others], np.int64)])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    order = np.argsort(np.concatenate([rows, other_rows]))
    merged = []
    for i, own in enumerate(_three(some)):
        values = np.concatenate([own, *(each[i] for each in others)]).astype(dtype if i == 0 else np.int64)
        merged.append(TokenLists(offsets, values).take(order))
    return _Placed(merged[0], merged[1].ids, merged[2].ids)
