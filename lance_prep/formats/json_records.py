"""JSON records against the planned columns, one by one in Python: the reference for what a record becomes.

`formats.json_blocks` reads whole blocks with Arrow's parser. Records that this parser refuses, and those that it cannot
be trusted with, are read here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe

# The largest number of different keys named in reasons. Each reason is counted by itself, and keys may be as many as
# rows.
_NAMED_KEYS = 20
# Characters that JSON may escape by a backslash and one character.
_SHORT = {"\b": b"b", "\f": b"f", "\n": b"n", "\r": b"r", "\t": b"t", **{char: char.encode() for char in '"\\/'}}
# Arrow's parser and Arrow's strings count bytes in 32 bits.
LONGEST = 1 << 30


class _Unfit(Exception):
    """A value that cannot be stored. The message is the reason, or empty if the type is wrong."""


@dataclass(frozen=True)
class Row:
    """A record as the planned columns hold it.

    Attributes:
        values: one value per column of the read schema, None where the record has none.
        missing: the record has no text column at all. A null is not missing.
    """

    values: list[Any]
    missing: bool


class Planned:
    """The planned columns, and how a JSON record fits them.

    Args:
        schema, read_schema: as in `Plan`.

    Attributes:
        text: the column that a record must have; None with a template or messages, and for layout `raw`.
        all_keys: every key of a record must be a column, because all are kept (layout `raw`).
        structs: columns with fields of their own that are delivered, or hold a conversation. The fields must be known.
        texts: string columns that take any value as its JSON text: all but the text column.
    """

    def __init__(self, recipe: Recipe, schema: pa.Schema, read_schema: pa.Schema) -> None:
        raw = not LAYOUTS[recipe.layout].tokens
        self.schema = read_schema
        self.all_keys = raw and not recipe.keep_columns
        kept = schema if raw else list(schema)[1:]
        turns = [field for field in read_schema if field.name in (recipe.messages or ()) and field not in kept]
        self.structs = [field for field in (*kept, *turns) if _has_struct(field.type)]
        self.text = None if raw or recipe.makes_text else str(schema.names[0])
        self.texts = frozenset(f.name for f in self.schema if pa.types.is_string(f.type) and f.name != self.text)
        self._names = frozenset(self.schema.names)
        self._converters = [_converter(field.type) for field in self.schema]
        self._quick = [(field.name, _quick_types(field.type)) for field in self.schema]
        self._named: set[str] = set()
        self._loses = self.all_keys or bool(self.structs)
        self._repeats = 0
        self._decode = json.JSONDecoder(object_pairs_hook=self._object, parse_float=_Float, parse_int=_integer).decode

    def row(self, line: bytes) -> Row | str:
        """Return the record in a line as a row, or the reason why it cannot be one."""
        if len(line) > LONGEST:
            return "line over 1 GiB"
        self._repeats = 0
        try:
            record = self._decode(line.decode())
        except UnicodeDecodeError:
            return "invalid UTF-8"
        except ValueError:
            return "invalid JSON"
        except RecursionError:
            return "nested too deep"
        if not isinstance(record, dict):
            return "not a JSON object"
        if (reason := self._lost(record)) is not None:
            return reason
        if self._repeats and self._repeated(record):
            return "duplicate key"
        try:
            values = [self._value(record.get(f.name), f, i) for i, f in enumerate(self.schema)]
        except _Unfit as error:
            return str(error)
        return Row(values, self.text is not None and self.text not in record)

    def fits(self, record: Any) -> bool:
        """Return True if Arrow's parser will most likely accept a record, and lose nothing of it."""
        if type(record) is not dict or (self._loses and self._lost(record) is not None):
            return False
        for name, types in self._quick:  # noqa: SIM110 (a generator takes twice as long)
            if type(record.get(name)) not in types:
                return False
        return True

    def batch(self, rows: list[Row]) -> pa.RecordBatch:
        """Return the rows as a batch of the read schema."""
        columns = [_array([row.values[i] for row in rows], field) for i, field in enumerate(self.schema)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _value(self, value: Any, field: pa.Field, column: int) -> Any:
        if value is None:
            return None
        try:
            if field.name in self.texts and type(value) is not str:
                value = json_text(value)
            convert = self._converters[column]
            return convert(value) if convert is not None else _by_arrow(value, field)
        except _Unfit as error:
            raise _Unfit(str(error) or f"column {field.name} is not {field.type}") from None
        except RecursionError:
            raise _Unfit("nested too deep") from None

    def _lost(self, record: dict[str, Any]) -> str | None:
        """Return why a record would lose something; None if it would not. Losing a key with a null does not count."""
        if self.all_keys:
            for key, value in record.items():
                if key not in self._names and value is not None:
                    if len(self._named) < _NAMED_KEYS or key in self._named:
                        self._named.add(key)
                        return f"key {key[:60]!r} is not among the planned columns"
                    return "a key is not among the planned columns"
        for field in self.structs:
            if _lost(record.get(field.name), field.type):
                return f"column {field.name} has a key that is not among its planned fields"
        return None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        self._repeats += 1
        repeated = _Repeated(made)
        keys = [key for key, _ in pairs]
        repeated.keys_twice = {key for key in made if keys.count(key) > 1}
        return repeated

    def _repeated(self, record: dict[str, Any]) -> bool:
        """Return True if a record has a column twice, or a key twice within a column."""
        if isinstance(record, _Repeated) and record.keys_twice & self._names:
            return True
        return any(_holds_repeated(record.get(name)) for name in self._names)


class _Repeated(dict[str, Any]):
    """An object with a repeated key. It holds the key's last value."""

    keys_twice: set[str]


class _Float(float):
    """A number with a fraction or an exponent that keeps its text: as a version, 1.10 is not 1.1."""

    written: str

    def __new__(cls, written: str) -> _Float:
        made = super().__new__(cls, written)
        made.written = written
        return made


class _Digits(str):
    """An integer with more digits than Python converts."""


def _integer(written: str) -> int | _Digits:
    return int(written) if len(written) < 4300 else _Digits(written)


def json_text(value: Any) -> str:
    """Return a value as JSON, with numbers as they were written."""
    if isinstance(value, _Float):
        return value.written
    return str.__str__(value) if isinstance(value, _Digits) else json.dumps(value, ensure_ascii=False)


def scalars(key: str) -> re.Pattern[bytes]:
    """Return a pattern whose group 1 is a number or a boolean under a key.

    It also finds them in nested objects, and under keys that end in this one after an escaped quote. It does not find
    a number that JSON text writes otherwise (-0).
    """
    name = re.escape(json.dumps(key, ensure_ascii=False).encode())
    number = rb"(?!-0[ \t\r\n]*[,}])-?(?:0|[1-9][0-9]{0,4000})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
    return re.compile(name + rb"[ \t\r\n]*:[ \t\r\n]*(" + number + rb"|true|false)(?=[ \t\r\n]*[,}])")


def fractions(keys: list[str]) -> re.Pattern[bytes]:
    """Return a pattern for numbers under these keys that may not be integers of 64 bits."""
    names = b"|".join(re.escape(json.dumps(key, ensure_ascii=False).encode()) for key in keys)
    return re.compile(rb"(?:" + names + rb")[ \t\r\n]*:[ \t\r\n]*-?[0-9]+(?:[.eE]|(?<=[0-9]{19}))")


def nested_value(keys: list[str]) -> re.Pattern[bytes]:
    """Return a pattern for lists and objects under these keys."""
    names = b"|".join(re.escape(json.dumps(key, ensure_ascii=False).encode()) for key in keys)
    return re.compile(rb"(?:" + names + rb")[ \t\r\n]*:[ \t\r\n]*[\[{]")


def null_key(name: str) -> re.Pattern[bytes]:
    """Return a pattern for a key, however it is escaped, with null as its value."""
    return re.compile(rb'"' + b"".join(map(_spellings, name)) + rb'"[ \t\r\n]*:[ \t\r\n]*null')


def _spellings(char: str) -> bytes:
    units = char.encode("utf-16-be")
    codes = (units[at : at + 2].hex() for at in range(0, len(units), 2))
    found = [b"".join(rb"\\u(?i:" + code.encode() + rb")" for code in codes)]
    if char in _SHORT:
        found.append(re.escape(b"\\" + _SHORT[char]))
    if char not in '"\\' and char >= " ":
        found.append(re.escape(char.encode()))
    return b"(?:" + b"|".join(found) + b")"


def nested_names(kinds: list[pa.DataType]) -> set[str]:
    """Return the names of all struct fields within some types."""
    found: set[str] = set()
    for kind in kinds:
        inner = [kind.field(i) for i in range(kind.num_fields)]
        if pa.types.is_struct(kind):
            found |= {field.name for field in inner}
        found |= nested_names([field.type for field in inner])
    return found


def _has_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or any(_has_struct(kind.field(i).type) for i in range(kind.num_fields))


def _lost(value: Any, kind: pa.DataType) -> bool:
    """Return True if a value holds a key that its type lacks."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        return any(_lost(inner, types[key]) if key in types else inner is not None for key, inner in value.items())
    if isinstance(value, list) and kind.num_fields == 1 and _has_struct(kind):
        return any(_lost(inner, kind.field(0).type) for inner in value)
    return False


def _holds_repeated(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value, _Repeated) or any(map(_holds_repeated, value.values()))
    return isinstance(value, list) and any(map(_holds_repeated, value))


def _quick_types(kind: pa.DataType) -> frozenset[type]:
    """Return the Python types of the JSON values that a column may hold, not looking inside them."""
    none = type(None)
    if pa.types.is_integer(kind):
        return frozenset({int, none})
    if pa.types.is_floating(kind):
        return frozenset({int, float, none})
    if pa.types.is_boolean(kind):
        return frozenset({bool, none})
    if pa.types.is_struct(kind):
        return frozenset({dict, none})
    if pa.types.is_list(kind):
        return frozenset({list, none})
    return frozenset({str, none}) if pa.types.is_string(kind) else frozenset({str, int, float, bool, none})


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return a function from a JSON value to what `pa.array` stores as this type; None if only Arrow can convert it.

    The value is not null. The function accepts what Arrow's parser accepts, and NaN and Infinity as Python writes them.
    """
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _string
    if pa.types.is_int64(kind):
        return lambda value: _whole(value, -(1 << 63), 1 << 63)
    if pa.types.is_uint64(kind):
        return lambda value: _whole(value, 0, 1 << 64)
    if pa.types.is_float64(kind):
        return _double
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_list(kind):
        inner = _converter(kind.value_type)
        return None if inner is None else lambda value: _list(value, inner)
    if pa.types.is_struct(kind):
        fields = {field.name: _converter(field.type) for field in kind}
        known = {name: convert for name, convert in fields.items() if convert is not None}
        return None if len(known) < len(fields) else lambda value: _struct(value, known)
    return None


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _Unfit
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Unfit("lone surrogate") from None
    return value


def _whole(value: Any, least: int, beyond: int) -> int:
    if type(value) is not int or not least <= value < beyond:
        raise _Unfit
    return value


def _double(value: Any) -> float:
    if type(value) is not int and not isinstance(value, float):
        raise _Unfit
    try:
        made = float(value)
    except OverflowError:
        raise _Unfit from None
    if math.isinf(made) and (isinstance(value, _Float) or type(value) is int):
        raise _Unfit
    return made


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit
    return value


def _list(value: Any, convert: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(value, list):
        raise _Unfit
    return [None if inner is None else convert(inner) for inner in value]


def _struct(value: Any, fields: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unfit
    inner = {name: value.get(name) for name in fields}
    return {name: None if inner[name] is None else convert(inner[name]) for name, convert in fields.items()}


def _by_arrow(value: Any, field: pa.Field) -> Any:
    """Return a value of a type that JSON alone never has: one planned from another format's file."""
    if _parsed([value], field) is None:
        raise _Unfit
    return value


def _parsed(values: list[Any], field: pa.Field) -> pa.Array | None:
    import pyarrow.json as pj

    try:
        data = b"\n".join(json.dumps({field.name: value}).encode() for value in values)
        read = pj.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1024))
        table = pj.read_json(pa.BufferReader(data), read, pj.ParseOptions(explicit_schema=pa.schema([field])))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, RecursionError):
        return None
    return table.combine_chunks().to_batches()[0].column(field.name)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    if _converter(field.type) is not None or all(value is None for value in values):
        return pa.array(values, field.type)
    made = _parsed(values, field)
    assert made is not None, "each of the values was parsed before"
    return made
