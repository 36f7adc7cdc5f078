"""The values of a JSON file that is no JSON Lines: an array of records, or records one after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from lance_prep.errors import BadFile

_READ = 1 << 20
_SPACE = re.compile(r"[\s,]*")


def iter_values(stream: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each element of the top-level array, or of each top-level value.

    Holds one element at a time. A byte that is no UTF-8 becomes a lone surrogate, which the caller finds.

    Raises:
        BadFile: not JSON from some place on; says where, with `name`.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    text, at, number, done = "", 0, 0, 0
    array: bool | None = None
    final = False
    while True:
        match = _SPACE.match(text, at)
        at = match.end() if match else at
        if array is None and at < len(text):
            text = text.removeprefix("\ufeff") if at == 0 else text
            array = text[at] == "["
            at += array
            continue
        if at < len(text) and not (array and text[at] == "]"):
            try:
                value, end = parse(text, at)
                # A number at the end of what is read may go on; anything else is closed by its last character.
                if final or end < len(text) or isinstance(value, dict | list | str):
                    yield number, value
                    number, at = number + 1, end
                    continue
            except ValueError as error:
                if final:
                    raise BadFile(
                        f"{name}: not JSON at character {done + at}: {error}", "see the file at this place"
                    ) from error
        elif final or (array and at < len(text)):
            if array and at >= len(text):
                raise BadFile(
                    f"{name}: the array is not closed at character {done + at}: cut short", "get the file again"
                )
            return
        # Read as much again as is waiting, so that one long record is parsed a few times only.
        data = stream.read(max(_READ, len(text) - at))
        final = not data
        done, text, at = done + at, text[at:] + decode(data, final), 0
