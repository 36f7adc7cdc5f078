"""`.json` files: whether one holds a record per line, and the records of one that does not.

Such a file holds an array of records, one record, or several values one after the other.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from lance_prep.errors import BadFile

_READ = 1 << 20
_BOM = b"\xef\xbb\xbf"
# Between top-level values, a comma or a byte order mark does no harm.
_OUTSIDE = re.compile(r"[ \t\r\n,\ufeff]*")
_INSIDE = re.compile(r"[ \t\r\n]*")
# No token that the end of the text cuts is longer than this, but for strings.
_TOKEN = 32
# Numbers are not converted: only where a value ends is asked for.
_scan = json.JSONDecoder(parse_float=str, parse_int=str).raw_decode


def holds_lines(stream: BinaryIO) -> bool:
    """Decide if a `.json` file has one record per line: its first line with text is one object, and nothing else."""
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
        BadFile: not JSON from some place on; says where, with `name`.
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
