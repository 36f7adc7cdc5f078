"""JSON records against the planned columns, in Python: the slow way, for the rows that Arrow's parser does not take.

The columns of a JSON source are those of its first MiB. What a row holds beyond them must not be lost in silence.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from lance_prep.plan import Plan

# Keys that are named in reasons, at most: each reason is counted by itself, and keys may be as many as rows.
_SAID = 20


class Planned:
    """The columns of a plan, as JSON is read into them.

    Attributes:
        all_keys: a row's keys must all be columns, because all of them are kept (layout `raw`).
        structs: delivered columns with keys of their own, which must be known, too.
        texts: string columns that take any value as its JSON text: all but the column with the text.
    """

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        raw = recipe.layout == "raw"
        self.all_keys = raw and not recipe.keep_columns
        kept = plan.schema if raw else list(plan.schema)[1:]
        self.structs = [field for field in kept if _has_struct(field.type)]
        text = None if raw or recipe.template is not None else plan.schema.names[0]
        self.texts = frozenset(f.name for f in plan.read_schema if pa.types.is_string(f.type) and f.name != text)
        self._names = frozenset(plan.read_schema.names)
        self._said: set[str] = set()

    def lost(self, record: dict[str, Any]) -> str | None:
        """Why a record would lose something; None where it would not. A key whose value is null is no loss."""
        if self.all_keys:
            for key, value in record.items():
                if key not in self._names and value is not None:
                    if len(self._said) < _SAID or key in self._said:
                        self._said.add(key)
                        return f"key {key[:60]!r} is not among those of the first MiB"
                    return "a key is not among those of the first MiB"
        for field in self.structs:
            if _lost(record.get(field.name), field.type):
                return f"column {field.name} has a key that is not among those of the first MiB"
        return None

    def with_texts(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """The columns of a record with JSON text where a string column holds something else; None if none does."""
        other = {
            name: json_text(value)
            for name in self.texts
            if (value := record.get(name)) is not None and not isinstance(value, str)
        }
        return {k: v for k, v in record.items() if k in self._names} | other if other else None

    def repeated(self, text: str) -> bool:
        """True where a record has one of the columns twice."""
        outermost: list[tuple[str, Any]] = []

        def keep(items: list[tuple[str, Any]]) -> dict[str, Any]:
            outermost[:] = items  # the outermost object is the last to be complete
            return {}

        json.loads(text, object_pairs_hook=keep)
        names = [key for key, _ in outermost if key in self._names]
        return len(set(names)) < len(names)


class _Float(float):
    """A number with a fraction or an exponent, as it was written: 1.10 is not 1.1 where it is a version."""

    written: str

    def __new__(cls, written: str) -> _Float:
        made = super().__new__(cls, written)
        made.written = written
        return made


def parse_record(text: str) -> Any:
    """As `json.loads`; numbers remember how they were written."""
    return json.loads(text, parse_float=_Float)


def json_text(value: Any) -> str:
    return value.written if isinstance(value, _Float) else json.dumps(value, ensure_ascii=False)


def surrogate(value: Any) -> str | None:
    """Why a value is no text that can be stored, if it is because of a surrogate in it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        # Bytes that are no UTF-8 are read as these.
        return "invalid UTF-8" if "\udc80" <= error.object[error.start] <= "\udcff" else "lone surrogate"
    return None


def _has_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or any(_has_struct(kind.field(i).type) for i in range(kind.num_fields))


def _lost(value: Any, kind: pa.DataType) -> bool:
    """True where a value holds a key that its type lacks."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        return any(_lost(inner, types[key]) if key in types else inner is not None for key, inner in value.items())
    if isinstance(value, list) and kind.num_fields == 1 and _has_struct(kind):
        return any(_lost(inner, kind.field(0).type) for inner in value)
    return False
