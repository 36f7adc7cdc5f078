"""Words of texts, and hashes of words and of runs of them, from Arrow's buffers and without an object per word.

A word is a run of letters, digits and characters beyond Latin-1 punctuation; each character from U+3000 to U+9FFF (kana
and Chinese characters) is a word of its own, since nothing separates words there. Words are compared in lower case.
`WORD` says the same to `re`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import bytes_of, offsets_of
from lance_prep.keyed import U64, Indices, hashes, key

#: What a word is, in a text that is not yet in lower case.
WORD = re.compile(r"[\u3000-\u9fff]|[0-9A-Za-z\u00c0-\u1fff\u2080-\u2fff\ua000-\U0010ffff]+")
#: Texts are hashed this many bytes at a time: the arrays of a piece take 60 times as much.
PIECE_BYTES = 2 << 20

_BYTE_VALUES = hashes(key(1), np.arange(256, dtype=np.uint64))
_FACTOR = 0x9E3779B97F4A7C15 | 1
_RUN_FACTOR = np.uint64(0xD1342543DE82EF95)

_PLAIN = np.zeros(256, bool)
_PLAIN[[*range(ord("0"), ord("9") + 1), *range(ord("a"), ord("z") + 1), *range(0x80, 0x100)]] = True


@dataclass(frozen=True)
class Words:
    """The words of several texts.

    Attributes:
        hashes: of each word.
        offsets: int64 `[texts + 1]`, the first word of each text.
    """

    hashes: U64
    offsets: Indices


def spell_words(text: str) -> list[str]:
    """Return the words of a text in lower case. Python's own lower case differs, in 1 of 1,400 letters."""
    return WORD.findall(pc.utf8_lower(pa.scalar(text)).as_py())


def hash_words(texts: pa.LargeStringArray) -> Words:
    """Return the words of texts without nulls. Takes 25 ns a byte."""
    lower = pc.utf8_lower(texts)
    ends = offsets_of(lower)
    parts, counts, start = [np.empty(0, np.uint64)], [np.zeros(1, np.int64)], 0
    while start < len(lower):
        stop = int(np.searchsorted(ends, ends[start] + PIECE_BYTES, side="right")) - 1
        stop = max(start + 1, min(stop, len(lower)))
        data = bytes_of(lower)[ends[start] : ends[stop]]
        first, last = _bounds(data, ends[start : stop + 1] - ends[start])
        parts.append(_hashes(data, first, last))
        counts.append(np.diff(np.searchsorted(first, ends[start : stop + 1] - ends[start])))
        start = stop
    return Words(np.concatenate(parts), np.cumsum(np.concatenate(counts)))


def hash_runs(words: Words, length: int) -> tuple[U64, Indices]:
    """Return the hash of every run of `length` words in a text, and the first run of each text, int64 `[texts + 1]`.

    The runs of a text are in order. A text with fewer words has none.
    """
    counts = np.maximum(np.diff(words.offsets) - length + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    starts = np.arange(offsets[-1]) + np.repeat(words.offsets[:-1] - offsets[:-1], counts)
    total = np.zeros(len(starts), np.uint64)
    with np.errstate(over="ignore"):
        for place in range(length):
            total = total * _RUN_FACTOR + words.hashes[starts + place]
    return hashes(key(2, length), total), offsets


def _bounds(data: npt.NDArray[np.uint8], offsets: Indices) -> tuple[Indices, Indices]:
    """Return where each word begins and ends in the bytes of lower-case texts."""
    inside = np.append(_PLAIN[data], False)
    lead = np.append(data, 0)
    # U+0080 to U+00BF, and U+2000 to U+207F: quotation marks, dashes and spaces
    latin = np.flatnonzero(lead == 0xC2)
    general = np.flatnonzero(lead == 0xE2)
    general = general[lead[np.minimum(general + 1, len(data))] <= 0x81]
    inside[np.concatenate([latin, latin + 1, general, general + 1, general + 2])] = False
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    single = np.flatnonzero((lead >= 0xE3) & (lead <= 0xE9))
    begins[np.concatenate([single, single + 3, offsets])] = True
    begins &= inside
    first = np.flatnonzero(begins)
    stops = ~inside
    stops[first] = True
    stops[offsets] = True
    stops = np.flatnonzero(stops)
    return first, stops[np.searchsorted(stops, first, side="right")]


def _hashes(data: npt.NDArray[np.uint8], first: Indices, last: Indices) -> U64:
    """Hash words as polynomials of their bytes, modulo 2^64, from sums over the whole text."""
    with np.errstate(over="ignore"):
        powers = np.full(len(data) + 1, _FACTOR, np.uint64)
        powers[0] = 1
        np.multiply.accumulate(powers, out=powers)
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(_BYTE_VALUES[data] * powers[:-1], out=sums[1:])
        back = np.full(len(data) + 1, pow(_FACTOR, -1, 1 << 64), np.uint64)
        back[0] = 1
        np.multiply.accumulate(back, out=back)
        return hashes(key(3), (sums[last] - sums[first]) * back[first])
