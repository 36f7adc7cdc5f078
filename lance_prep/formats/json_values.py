"""Values in the text of a `.json` file: an array of records, one record, or several one after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from lance_prep.errors import BadFile

_READ = 1 << 20
_BOM = b"\xef\xbb\xbf"
# Commas and byte order marks between top-level values are ignored.
_OUTSIDE = re.compile(r"[ \t\r\n,\ufeff]*")
_INSIDE = re.compile(r"[ \t\r\n]*")
# Longest token other than a string that the end of the text can cut.
_TOKEN = 32
# Numbers are not converted, since only the end of each value is needed.
_scan = json.JSONDecoder(parse_float=str, parse_int=str).raw_decode


def holds_lines(stream: BinaryIO) -> bool:
    """Return True if a `.json` file has one record per line: its first line with text is exactly one object."""
    line = stream.readline(_READ).removeprefix(_BOM)
    while line and not line.strip():
        line = stream.readline(_READ)
    if not line.lstrip().startswith(b"{"):
        return False
    ended = line.endswith(b"\n")
    while True:
        try:
            text = line.decode(errors="surrogateescape").strip()
            end = _scan(text)[1]
            if text[end:].strip():
                return False
            if ended:
                return True
        except (ValueError, RecursionError):
            if ended:
                return False
        more = stream.readline(max(_READ, len(line)))
        line, ended = line + more, not more or more.endswith(b"\n")


def iter_values(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield number and text of each record: each element of a top-level array, and each other top-level value.

    Holds one element at a time. The text is as in the file, also where it is not valid UTF-8.

    Raises:
        BadFile: invalid JSON; says where, with `name`.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    text, at, number, done = "", 0, 0, 0
    in_array = after_element = final = False

    def bad(place: int, said: str) -> BadFile:
        return BadFile(f"{name}: not JSON at character {done + place}: {said}", "fix the file at this place")

    while True:
        match = (_INSIDE if in_array else _OUTSIDE).match(text, at)
        at = match.end() if match else at
        if at < len(text):
            if not in_array and text[at] == "[":
                in_array, after_element, at = True, False, at + 1
                continue
            if in_array and text[at] == "]":
                in_array, at = False, at + 1
                continue
            if in_array and after_element:
                if text[at] != ",":
                    raise bad(at, "expected a comma or the array's end")
                after_element, at = False, at + 1
                continue
            try:
                end = _scan(text, at)[1]
                # A number at the end of the text may go on. Other values are closed by their last character.
                if final or end < len(text) or text[end - 1] in '}]"':
                    yield number, text[at:end].encode("utf-8", "surrogateescape")
                    number, at, after_element = number + 1, end, True
                    continue
            except RecursionError as error:
                raise bad(at, "nested too deep") from error
            except json.JSONDecodeError as error:
                cut = error.pos + _TOKEN >= len(text) or error.msg.startswith("Unterminated string")
                if final or not cut:
                    raise bad(error.pos, error.msg) from error
        elif final:
            if in_array:
                raise BadFile(
                    f"{name}: the array is not closed at character {done + at}: cut short", "get the file again"
                )
            return
        # Read as much again as is waiting, so that one long record is parsed a few times only.
        data = stream.read(max(_READ, len(text) - at))
        final = not data
        done, text, at = done + at, text[at:] + decode(data, final), 0
