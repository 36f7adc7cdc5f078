"""Code points that gigatoken and `tokenizers` treat differently, and the texts that contain one.

The two libraries carry tables of different Unicode versions, so a newly assigned letter may be a letter to one of them
and a symbol to the other. The pattern that cuts a text into words sees code points only through such classes. Asking
both libraries about all 1,112,064 code points in all neighbourhoods would take minutes, so the question is divided:

1. `tokenizers` answers for each class in the pattern (`\\p{L}`, `\\s`, ...) which code points belong to it.
2. gigatoken cuts each code point in each of a dozen neighbourhoods. Its vocabulary for this holds pairs of bytes, so
   that its ids show where it cuts.
3. Code points with the same two answers behave alike. A few of each such group are encoded by both libraries in more
   than a hundred neighbourhoods. If the ids differ, so do all code points of the group.

That takes one to two seconds, once for each pattern and pair of versions: the result is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.tokenizer.lists import call_gigatoken

CodePoints = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]

# Part of the key of what is cached: change it with anything below that could change the result.
_METHOD = 1
#: The pattern of `ByteLevel` with `use_regex`, which its JSON does not spell out.
BYTE_LEVEL = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# gigatoken is asked about a code point between each of these pairs. Each class that a pattern can tell apart is cut in
# its own way: letters (by case), marks, digits, punctuation, white space. In planes with few characters or none, it is
# asked between the first two pairs only, which differ for all but punctuation and unassigned code points.
_AROUND = (("a", "1"), ("..", "."), ("1", "a"), ("A", "Aa"), (" ", " "))
_SPARSE_AROUND = 2
_FULL_PLANES = (0, 1, 2, 3, 14)
_PER_TEXT = 64
_BEFORE = ("", "a", "A", "12", ".", "..", " ", "  ", "\n", "a'", "中", "\u0301", "½")
_AFTER = ("", "a", "Aa", "1", ".", " ", "  a", "\n", "s", "中", "\u0301", "½")
_EACH = 3  # code points of a group that both libraries encode
# Under `(?i)` these fold to ASCII letters.
_FOLDED = (0x17F, 0x212A)
_CLASS = re.compile(r"\\[pP]\{\^?\w+\}|\\[sSwWdDhH]|\[:\^?\w+:\]")
_ESCAPED = re.compile(r"\\x\{([0-9a-fA-F]+)\}|\\u([0-9a-fA-F]{4})")


def _all() -> CodePoints:
    points = np.arange(0x110000, dtype=np.uint32)
    return points[(points < 0xD800) | (points > 0xDFFF)]


def _text(points: CodePoints) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le")


def _points(text: str) -> CodePoints:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def patterns_of(pre_tokenizer: Any) -> list[str]:
    """Return the regular expressions of a `tokenizer.json`'s `pre_tokenizer`, in order."""
    if not isinstance(pre_tokenizer, dict):
        return []
    found = []
    if pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True):
        found.append(BYTE_LEVEL)
    if pre_tokenizer.get("type") == "Split":
        found.append((pre_tokenizer.get("pattern") or {}).get("Regex") or "")
    for child in pre_tokenizer.get("pretokenizers") or ():
        found += patterns_of(child)
    return found


def byte_names() -> list[str]:
    """Return the characters that stand for the 256 bytes in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def _probe(data: dict[str, Any], *, normalize: bool) -> bytes:
    """Return the tokenizer with a vocabulary whose ids show where a text was cut."""
    names = byte_names()
    vocab = {name: byte for byte, name in enumerate(names)}
    merges = []
    ascii_bytes, leads, trails = b"aA12. \n'sl", range(0xC2, 0xF5), range(0x80, 0xC0)
    for left, right in (
        *itertools.product(ascii_bytes, leads),
        *itertools.product(trails, ascii_bytes),
        *itertools.product(trails, leads),
        *itertools.product(ascii_bytes, ascii_bytes),
    ):
        merges.append([names[left], names[right]])
        vocab[names[left] + names[right]] = len(vocab)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": data.get("normalizer") if normalize else None,
            "pre_tokenizer": data.get("pre_tokenizer"),
            "post_processor": None,
            "decoder": None,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        }
    ).encode()


def _reference_classes(patterns: list[str], points: CodePoints) -> npt.NDArray[np.uint64]:
    """Return a number for each code point: equal for those that no pattern tells apart in `tokenizers`."""
    from tokenizers import Regex, normalizers

    classes = sorted({found for pattern in patterns for found in _CLASS.findall(pattern)})
    literal = {ord(char) for pattern in patterns for char in pattern if ord(char) > 127}
    literal |= {int(a or b, 16) for pattern in patterns for a, b in _ESCAPED.findall(pattern)}
    bounds = np.array(sorted(literal | set(_FOLDED)), np.uint32)
    numbers = np.searchsorted(bounds, points, "left") + np.searchsorted(bounds, points, "right")
    signature = numbers.astype(np.uint64)
    text = _text(points)
    for name in classes:
        remove = normalizers.Replace(Regex(f"(?:{name})+"), "")
        member = np.ones(0x110000, bool)
        for start in range(0, len(text), 1 << 16):
            member[_points(remove.normalize_str(text[start : start + (1 << 16)]))] = False
        signature = signature * np.uint64(2) + member[points]
    return signature


def _cuts(tokenizer: Any, points: CodePoints, around: tuple[tuple[str, str], ...]) -> npt.NDArray[np.uint64]:
    """Return a number for each code point: the cuts that gigatoken makes around it, one bit each."""
    chars = _text(points)
    sizes = 1 + (points >= 0x80) + (points >= 0x800).astype(np.int64) + (points >= 0x10000)
    signature = np.zeros(len(points), np.uint64)
    for left, right in around:
        between = f"{right}\n{left}"
        pieces = (chars[at : at + _PER_TEXT] for at in range(0, len(chars), _PER_TEXT))
        texts = pa.array([f"\n{left}{between.join(piece)}{right}\n" for piece in pieces], pa.large_string())
        ids = call_gigatoken(tokenizer, texts, np.dtype(np.uint32), parallel=True).ids
        ends = np.cumsum(1 + (ids >= 256))
        joined = np.zeros(int(ends[-1]) + 2, bool)  # of each byte: whether it was joined to the next
        joined[ends[ids >= 256] - 2] = True
        # Each text begins with a newline of its own and ends with another.
        at = np.cumsum(sizes + len(between)) - sizes - len(right)
        at += np.arange(len(points)) // _PER_TEXT
        for offset in (at - 2, at - 1, at + sizes - 1, at + sizes):
            signature = signature * np.uint64(2) + joined[offset]
    return signature


def _disagree(fast: Any, reference: Any, texts: list[str]) -> npt.NDArray[np.bool_]:
    """Return for each text whether the ids of the two libraries differ."""
    have = call_gigatoken(fast, pa.array(texts, pa.large_string()), np.dtype(np.uint32))
    want = reference.encode_batch_fast(texts, add_special_tokens=False)
    lists = zip(have.offsets[:-1].tolist(), have.offsets[1:].tolist(), want, strict=True)
    return np.array([have.ids[start:stop].tolist() != each.ids for start, stop, each in lists], bool)


def _by_class(data: dict[str, Any]) -> CodePoints:
    """Return the code points that the pattern classifies differently in the two libraries."""
    import gigatoken
    from tokenizers import Tokenizer

    file = _probe(data, normalize=False)
    fast, reference = gigatoken.Tokenizer.from_json(file), Tokenizer.from_buffer(file)
    points = _all()
    classes = _reference_classes(patterns_of(data.get("pre_tokenizer")), points)
    full = np.isin(points >> 16, _FULL_PLANES)
    cuts = np.empty(len(points), np.uint64)
    cuts[full] = _cuts(fast, points[full], _AROUND) + np.uint64(1 << 63)
    cuts[~full] = _cuts(fast, points[~full], _AROUND[:_SPARSE_AROUND])
    order = np.lexsort((cuts, classes))
    same = (np.diff(classes[order]) == 0) & (np.diff(cuts[order]) == 0)
    groups = np.split(order, np.flatnonzero(~same) + 1)
    chosen = [group[np.unique(np.linspace(0, len(group) - 1, _EACH).astype(int))] for group in groups]
    texts = [list(_in_context(_text(points[few]))) for few in chosen]
    wrong = np.split(
        _disagree(fast, reference, list(itertools.chain(*texts))), np.cumsum([len(each) for each in texts])
    )
    differing = [group for group, each in zip(groups, wrong, strict=False) if each.any()]
    found: CodePoints = points[np.concatenate([np.empty(0, np.int64), *differing])]
    return found


def _in_context(chars: str) -> Iterator[str]:
    for char in chars:
        for before, after in itertools.product((*_BEFORE, char), (*_AFTER, char)):
            yield f"{before}{char}{after}"


def _by_normalizer(data: dict[str, Any]) -> CodePoints:
    """Return the code points that NFC may change differently in the two libraries.

    Characters that this Python does not know are all taken for different. For the others, both libraries are asked
    about each canonical decomposition and about each mark between marks that it would change places with.
    """
    import gigatoken
    from tokenizers import Tokenizer

    file = _probe(data, normalize=True)
    fast, reference = gigatoken.Tokenizer.from_json(file), Tokenizer.from_buffer(file)
    points = _all()
    unknown = [point for point in points.tolist() if unicodedata.category(chr(point)) == "Cn"]
    asked: list[tuple[str, str]] = []  # the code points in question, and a text
    for point in points[~((points >= 0xAC00) & (points < 0xD7A4))].tolist():  # Hangul is composed by arithmetic
        char = chr(point)
        if (apart := unicodedata.normalize("NFD", char)) != char:
            asked += [(char + apart[1:], text) for text in (char, apart, f"a{char}", f"a{apart}")]
        if unicodedata.combining(char):
            asked += [(char, f"a{text}") for text in (char, f"{char}\u0334", f"\u0345{char}", f"\u0315{char}\u0327")]
    wrong = _disagree(fast, reference, [text for _, text in asked])
    found = {ord(char) for (chars, _), differs in zip(asked, wrong, strict=True) if differs for char in chars}
    return np.array(sorted(found.union(unknown)), np.uint32)


def _compute(data: dict[str, Any]) -> CodePoints:
    found = [np.empty(0, np.uint32)]
    if not (data.get("model") or {}).get("byte_fallback"):  # such a vocabulary takes texts whole, without a pattern
        found.append(_by_class(data))
        if data.get("normalizer"):
            found.append(_by_normalizer(data))
    elif "Precompiled" in json.dumps(data.get("normalizer")):  # its table applies to grapheme clusters
        found.append(np.array([c for c in range(128, 0x110000) if unicodedata.category(chr(c)) == "Cn"], np.uint32))
    return np.unique(np.concatenate(found))


_lock = threading.Lock()
_known: dict[str, CodePoints] = {}


@lru_cache(maxsize=4)
def differing_points(file: bytes) -> CodePoints:
    """Return the code points that gigatoken and `tokenizers` treat differently, in ascending order.

    Args:
        file: contents of a `tokenizer.json` that gigatoken loads.
    """
    data = json.loads(file)
    asked = {name: data.get(name) for name in ("pre_tokenizer", "normalizer")}
    asked["byte_fallback"] = (data.get("model") or {}).get("byte_fallback")
    versions = [_METHOD, version("gigatoken"), version("tokenizers"), unicodedata.unidata_version]
    key = hashlib.sha256(json.dumps([versions, asked], sort_keys=True).encode()).hexdigest()[:32]
    with _lock:
        if key not in _known:
            path = _cache_folder() / f"unicode-{key}.json"
            found = _read(path)
            if found is None:
                found = _compute(data)
                _write(path, found)
            _known[key] = found
        return _known[key]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lance-prep"


def _read(path: Path) -> CodePoints | None:
    """Return what was written, or None if there is nothing, or anything but ascending ranges of code points."""
    try:
        bounds = np.array(json.loads(path.read_bytes()), np.int64)
    except (OSError, ValueError, OverflowError, TypeError):
        return None
    if bounds.ndim != 1 or len(bounds) % 2 or (np.diff(bounds, prepend=127, append=0x110001) <= 0).any():
        return None
    ranges = [np.arange(start, stop, dtype=np.uint32) for start, stop in bounds.reshape(-1, 2)]
    return np.concatenate([np.empty(0, np.uint32), *ranges])


def _write(path: Path, points: CodePoints) -> None:
    """Write the code points as ranges: first, end, first, end, ..."""
    ends = np.flatnonzero(np.diff(points.astype(np.int64), append=0x120000) != 1)
    starts = np.concatenate([[0], ends + 1])[: len(ends)]
    bounds = np.stack([points[starts], points[ends] + 1], axis=1).ravel() if len(points) else points
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as aside:
            json.dump(bounds.tolist(), aside)
        os.replace(aside.name, path)  # noqa: PTH105
    except OSError:  # only a memory: the next process computes it again
        pass


_CHUNK = 1 << 17  # stays in the processor's cache while it is compared several times
_RARE = 8
_FEW = 6


def _buffers(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the offsets of the texts, and the bytes up to the end of the last one."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    buffer = texts.buffers()[2]
    return offsets, np.frombuffer(buffer, np.uint8)[: offsets[-1]] if buffer is not None else np.empty(0, np.uint8)


def is_ascii(texts: pa.LargeStringArray) -> bool:
    """Return whether all texts are ASCII throughout."""
    if not len(texts):
        return True
    offsets, data = _buffers(texts)
    return bool(data[offsets[0] :].max(initial=0) < 0x80)


class PointFinder:
    """Finds the texts that contain one of some code points, at a small part of what encoding costs.

    Works on the bytes of UTF-8. A code point is looked for by its first two bytes, which most texts do not contain.
    """

    def __init__(self, points: CodePoints) -> None:
        self._points = np.unique(points)
        small, middle = self._points < 0x800, self._points < 0x10000
        lead = np.select(
            [small, middle], [0xC0 | self._points >> 6, 0xE0 | self._points >> 12], 0xF0 | self._points >> 18
        )
        shift = np.select([small, middle], [0, 6], 12).astype(np.uint32)
        #: For each two bytes, whether one of the code points begins with them; and the second bytes of each first one.
        self._table = np.zeros((256, 256), bool)
        self._table[lead, 0x80 | self._points >> shift & 0x3F] = True
        self._seconds = {int(first): np.flatnonzero(self._table[first]) for first in np.flatnonzero(self._table.any(1))}

    def rows(self, texts: pa.LargeStringArray) -> Indices:
        """Return the ascending indices of the texts that contain one of the code points."""
        if not len(texts) or not len(self._points):
            return np.empty(0, np.int64)
        offsets, data = _buffers(texts)
        found = [start + self._candidates(data, start) for start in range(int(offsets[0]), len(data), _CHUNK)]
        at = np.concatenate([np.empty(0, np.int64), *found])
        points = _decode(data, at)
        place = np.searchsorted(self._points, points)
        at = at[self._points[np.minimum(place, len(self._points) - 1)] == points]
        rows: Indices = np.unique(np.searchsorted(offsets, at, "right") - 1)
        return rows

    def _candidates(self, data: npt.NDArray[np.uint8], start: int) -> Indices:
        """Return positions in a chunk where the first two bytes are those of one of the code points."""
        first = data[start : min(start + _CHUNK, len(data) - 1)]
        second = data[start + 1 : start + 1 + len(first)]
        lowest = next(iter(self._seconds))
        top = first.max(initial=0)
        if top < lowest:
            return np.empty(0, np.int64)
        hit = first >= lowest
        if np.count_nonzero(hit) * _RARE < len(hit):
            at = np.flatnonzero(hit)
            rare: Indices = at[self._table[first[at], second[at]]]
            return rare
        found = [self._dense(first == byte, second, byte) for byte in self._seconds if byte <= top]
        return np.sort(np.concatenate(found))

    def _dense(self, hit: npt.NDArray[np.bool_], second: npt.NDArray[np.uint8], byte: int) -> Indices:
        """Return the positions among the hits of a first byte that have one of its second bytes."""
        seconds = self._seconds[byte]
        hits = np.count_nonzero(hit)
        if hits * _RARE < len(hit):
            at = np.flatnonzero(hit) if hits else np.empty(0, np.int64)
            rare: Indices = at[self._table[byte][second[at]]]
            return rare
        if len(seconds) > _FEW:
            return np.flatnonzero(hit & self._table[byte][second])
        near = second == seconds[0]
        for other in seconds[1:]:
            near |= second == other
        return np.flatnonzero(hit & near)


def _decode(data: npt.NDArray[np.uint8], at: Indices) -> CodePoints:
    """Return the code points that begin at positions in valid UTF-8, none of them ASCII."""
    first = data[at].astype(np.uint32)
    size = 2 + (first >= 0xE0).astype(np.int64) + (first >= 0xF0)
    point = first & (0xFF >> (size + 1)).astype(np.uint32)
    for i in (1, 2, 3):
        more = size > i
        byte = data[np.where(more, at + i, at)].astype(np.uint32)
        point = np.where(more, point << np.uint32(6) | byte & np.uint32(0x3F), point)
    return point
