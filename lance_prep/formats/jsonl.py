"""JSON: a record per line, or a `.json` file with an array of records, one record, or several.

Records become rows in `json_blocks`, and those that Arrow's parser does not take in `json_records`. Here is where
records are found, and what columns they have.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, BinaryIO

import pyarrow as pa

from lance_prep.errors import BadFile, translating
from lance_prep.fetch import open_stream
from lance_prep.formats.base import (
    ADVICE,
    DATA_BYTES,
    LONGEST_LINE,
    Chunk,
    CutJob,
    Format,
    PartJob,
    Piece,
    require_utf8,
)
from lance_prep.formats.json_blocks import RecordReader, Records
from lance_prep.formats.text import BOM, line_blocks, line_pieces, sample_lines
from lance_prep.model import Part, SourceFile
from lance_prep.process import read_ahead
from lance_prep.recipe import TOOLS_COLUMN, Recipe
from lance_prep.transport import Transport

_CHUNK_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 20
_SAMPLE_BYTES_MORE = 64 << 10
_SAMPLE_VALUES = 1000
_SAMPLED_FILES = 256
_THREADS = 16
_NAMES = ("jsonl", "json")
_READ_BYTES = 1 << 20
# Commas and byte order marks between top-level values are ignored.
_OUTSIDE = re.compile(r"[ \t\r\n,\ufeff]*")
_INSIDE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'["\\]')
# White space and commas end a number, and mean nothing else outside strings.
_OUTSIDE_STRING = re.compile(r'["{}\[\]]|[ \t\r\n,]')
# Longest token other than a string that the end of the text can cut.
_TOKEN = 32
# Numbers are not converted, since only the end of each value is needed.
_scan = json.JSONDecoder(parse_float=str, parse_int=str).raw_decode


class JsonLines(Format):
    """Files with a JSON object per line. Blank lines are no rows, and bad ones are rejected."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the columns of the first records. See `_infer_schema`."""
        return _with_chat(_infer_schema(files, transport), recipe)

    def pieces(self, job: CutJob) -> Iterator[Piece]:
        """Yield ranges of bytes."""
        return line_pieces(job)

    def sample(self, job: CutJob, part: Part, place: float) -> Piece | None:
        """Return a range of bytes."""
        return sample_lines(job, part, place)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the records of the lines that begin in a range of bytes."""
        reader = RecordReader(job, "byte")
        first = job.first
        blocks = line_blocks(job)
        if job.file.compression is not None:
            blocks = read_ahead(blocks, 2)  # decompression leaves the interpreter's lock, and so does Arrow
        with closing(blocks):
            for offset, block, size in blocks:
                if size > len(block):
                    chunk = job.too_long("line", offset, first, block, size)
                else:
                    chunk = reader.read(Records.of_lines(offset, block), first)
                first = chunk.end
                yield chunk


class Json(Format):
    """`.json` files. One with a record per line is read as `JsonLines`, and others value by value."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        """Return the columns of the first records. See `_infer_schema`."""
        return _with_chat(_infer_schema(files, transport), recipe)

    def whole_records(self, data: bytes) -> bytes:
        """Return the first values, one after the other."""
        found: list[bytes] = []
        with suppress(BadFile):  # the last one is cut
            found.extend(value for _, value, _ in _iter_values(io.BytesIO(data), ""))
        return b"\n".join(found)

    def read(self, job: PartJob) -> Iterator[Chunk]:
        """Yield the records of a file."""
        with open_stream(job.file, job.transport, ahead=False) as stream:
            lines = _holds_lines(stream)
        return JsonLines().read(job) if lines else self._read_values(job)

    def _read_values(self, job: PartJob) -> Iterator[Chunk]:
        reader = RecordReader(job, "row")
        waiting: list[bytes] = []
        held = first = 0
        with open_stream(job.file, job.transport) as stream:
            for number, value, size in _iter_values(stream, job.file.url, job.longest_line):
                too_long = size > len(value)
                if not too_long:
                    waiting.append(value)
                    held += len(value)
                if waiting and (too_long or held >= _CHUNK_BYTES):
                    yield reader.read(Records.of(waiting, first), job.first + first)
                    waiting, held, first = [], 0, number + 1
                if too_long:
                    yield job.too_long("value", number, job.first + number, value, size, "row")
                    first = number + 1
        if waiting:
            yield reader.read(Records.of(waiting, first), job.first + first)


def _with_chat(schema: pa.Schema, recipe: Recipe) -> pa.Schema:
    """Return the columns, with conversations and tools as JSON text.

    Messages have different fields, such as `tool_calls`, and none may be lost because the samples lack it. A prompt and
    its completion keep their type, since their text may look like JSON; so do columns that are kept. A record with
    other fields in them is rejected.
    """
    if recipe.messages is None:
        return schema
    read = [name for name in recipe.messages if name in schema.names and len(recipe.messages) == 1]
    text = {name: pa.field(name, pa.string()) for name in (*read, TOOLS_COLUMN) if name not in recipe.keep_columns}
    return pa.schema(list(({field.name: field for field in schema} | text).values()))


def _infer_schema(files: Sequence[SourceFile], transport: Transport) -> pa.Schema:
    """Return the columns in samples of the files: the first MiB of the first, and 64 KiB of at most 255 others.

    Integers with floats become floats. Columns that are null in all samples, or of several types, become strings,
    which hold the JSON text of any other value.

    Raises:
        BadFile: no JSON object in the samples.
    """
    files = [file for file in files if file.format in _NAMES]
    chosen = files[:: max(1, -(-len(files) // _SAMPLED_FILES))]

    def sample(at: int) -> list[dict[str, Any]]:
        with translating(f"reading {chosen[at].url}"):
            return _sample(chosen[at], transport, _SAMPLE_BYTES if at == 0 else _SAMPLE_BYTES_MORE)

    with ThreadPoolExecutor(min(len(chosen), _THREADS)) as pool:
        records = [record for some in pool.map(sample, range(len(chosen))) for record in some]
    if not records and any(_holds_something(file, transport) for file in chosen):
        raise BadFile(f"{files[0].url}: no JSON object in its first lines", ADVICE)
    if not records and files[0].format == "json":
        raise BadFile(f"{files[0].url}: holds no record", "name a source with something in it")
    columns: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return pa.schema([(name, _infer(values)) for name, values in columns.items() if _is_unicode(name)])


def _sample(file: SourceFile, transport: Transport, size: int) -> list[dict[str, Any]]:
    """Return the first records of a file."""
    lines = file.format == "jsonl"
    with open_stream(file, transport, ahead=False) as stream:
        require_utf8(stream.read(4), file)
    if not lines:
        with open_stream(file, transport, ahead=False) as stream:
            lines = _holds_lines(stream)
    with open_stream(file, transport, ahead=False) as stream:  # opened again, since compressed streams cannot seek back
        found = _lines(stream, size) if lines else _values(stream, file.url, size)
        return [record for record in found if isinstance(record, dict)]


def _lines(stream: BinaryIO, size: int) -> Iterator[Any]:
    """Yield the values among the first lines."""
    seen = 0
    while seen < size and (line := stream.readline(LONGEST_LINE)):
        seen += len(line)
        try:
            yield json.loads(line.removeprefix(BOM).decode())
        except (ValueError, RecursionError):
            continue


def _values(stream: BinaryIO, name: str, size: int) -> Iterator[Any]:
    """Yield the first elements of an array, or values that span lines."""
    most = size * _SAMPLE_VALUES // _SAMPLE_BYTES
    for seen, (_, value, _) in enumerate(_iter_values(stream, name), 1):
        try:
            yield json.loads(value.decode(errors="surrogateescape"))
        except (ValueError, RecursionError):
            continue
        if seen >= most:
            return


def _holds_something(file: SourceFile, transport: Transport) -> bool:
    """Return True unless a file is blank, or an array without elements."""
    with open_stream(file, transport, ahead=False) as stream:
        if file.format == "json":
            return next(_iter_values(stream, file.url), None) is not None
        return bool(stream.read(1))


def _infer(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except UnicodeEncodeError:  # a lone surrogate: those rows will be rejected, and the others tell
        return _infer([value for value in values if _is_unicode(value)])
    except OverflowError:
        whole = all(value is None or (type(value) is int and 0 <= value < 1 << 64) for value in values)
        return pa.uint64() if whole else pa.string()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()
    return pa.string() if _is_empty(kind) else kind


def _is_empty(kind: pa.DataType) -> bool:
    """Return True for a struct without fields, or a type that contains one. Lance cannot hold it."""
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_is_empty(kind.field(i).type) for i in range(kind.num_fields))


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _holds_lines(stream: BinaryIO) -> bool:
    """Return True if a `.json` file has one record per line: its first line with text is exactly one object."""
    line = stream.readline(_READ_BYTES).removeprefix(BOM)
    while line and not line.strip():
        line = stream.readline(_READ_BYTES)
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
        more = stream.readline(max(_READ_BYTES, len(line)))
        line, ended = line + more, not more or more.endswith(b"\n")


def _iter_values(stream: BinaryIO, name: str, most: int = LONGEST_LINE) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, text and size of each record: each element of a top-level array, and each other top-level value.

    Holds one element at a time. The text is as in the file, also where it is not valid UTF-8. Of a value of more than
    `most` characters, the text is the beginning only, which is shorter than the size.

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
                end = _end_of_value(text, at, final)
            except RecursionError as error:
                raise bad(at, "nested too deep") from error
            except json.JSONDecodeError as error:
                raise bad(error.pos, error.msg) from error
            if end is not None:
                value = text[at:end].encode("utf-8", "surrogateescape")
                yield number, value, len(value)
                number, at, after_element = number + 1, end, True
                continue
        elif final:
            if in_array:
                raise BadFile(
                    f"{name}: the array is not closed at character {done + at}: cut short", "get the file again"
                )
            return
        if len(text) - at > most:
            begin, skipped = text[at : at + DATA_BYTES].encode("utf-8", "surrogateescape"), _LongValue()
            while (end := skipped.end(text, at)) is None and not final:
                data = stream.read(_READ_BYTES)
                final = not data
                done, text, at = done + len(text), decode(data, final), 0
            if end is None:
                raise BadFile(f"{name}: the last value is not closed: cut short", "get the file again")
            yield number, begin, skipped.size
            number, at, after_element = number + 1, end, True
            continue
        # Read as much again as is waiting, so that one long record is parsed a few times only.
        data = stream.read(max(_READ_BYTES, min(len(text) - at, most + 1 - len(text) + at)))
        final = not data
        done, text, at = done + at, text[at:] + decode(data, final), 0


class _LongValue:
    """A value that is too long to be held: finds its end, one piece of text after the other.

    Counts brackets outside strings. Whether the value is valid JSON besides is not checked.

    Attributes:
        size: bytes of the value that were passed.
    """

    def __init__(self) -> None:
        self.size = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str, at: int) -> int | None:
        """Return where the value ends in its next piece of text; None if it goes on after that."""
        place = self._find(text, at)
        self.size += len(text[at:place].encode("utf-8", "surrogateescape"))
        return place

    def _find(self, text: str, at: int) -> int | None:
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            match = (_IN_STRING if self._in_string else _OUTSIDE_STRING).search(text, at)
            if match is None:
                return None
            mark, at = match[0], match.end()
            if mark == "\\":
                self._escaped = True
            elif mark == '"':
                self._in_string = not self._in_string
            elif mark in "{[":
                self._depth += 1
            elif self._depth == 0:  # the end of a number, or of the array that it is in
                return at - 1
            elif mark in "}]":
                self._depth -= 1
            if self._depth == 0 and not self._in_string and mark in '"}]':
                return at
        return None


def _end_of_value(text: str, at: int, final: bool) -> int | None:
    """Return the end of the value that begins at `at`; None if it may go on after the text.

    Args:
        final: nothing follows the text.

    Raises:
        json.JSONDecodeError: invalid JSON.
        RecursionError: nested too deep.
    """
    try:
        end = _scan(text, at)[1]
    except json.JSONDecodeError as error:
        if final or not (error.pos + _TOKEN >= len(text) or error.msg.startswith("Unterminated string")):
            raise
        return None
    # A number at the end of the text may go on. Other values are closed by their last character.
    return end if final or end < len(text) or text[end - 1] in '}]"' else None
