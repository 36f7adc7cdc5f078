"""`Recipe.filter`: an SQL condition as an Arrow expression, and as a test of Parquet statistics.

Conditions follow SQL: a comparison with a null is unknown, and so is NOT of it; a row is kept if the condition is true.
Numbers follow IEEE 754, in every form of a comparison: -0.0 equals 0, and NaN differs from every number, itself
included. So `f > 0`, `f IN (1)` and `f BETWEEN 0 AND 1` are false for NaN, and `f != 1`, `NOT f > 0` and `f NOT IN (1)`
are true. (PostgreSQL and DuckDB order NaN after all numbers; `score > 0.5` would keep it.)

Negations are pushed down to the comparisons while the condition is read. So a null makes its comparison false at the
place where SQL says "unknown", and under AND and OR alone that keeps the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.errors import ColumnNotFound, UsageError

_ADVICE = "filters take =, !=, <, <=, >, >=, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT over columns and literals"
# Columns that a message names, and characters of their types. 20,000 columns filled the screen.
_SHOWN, _TYPE = 50, 200
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


#: Below this share of rows, Lance's `take` asks for less than a scan. Of 28 MB in paragraphs, it asks for 3 MB to get
#: 0.1 % of the rows from random places, 20 MB for 1 to 30 %, and 0.5 MB for 2,000 rows in one place.
FEW = 0.1
_PLACE = "\0place"


@dataclass(frozen=True)
class Statistics:
    """The statistics of a column in a row group; None for those that are missing."""

    rows: int
    nulls: int | None
    low: Any
    high: Any


Lookup = Callable[[tuple[str, ...]], Statistics | None]


@dataclass(frozen=True)
class Leaf:
    """A comparison of one column with literals: `==`, `<`, ..., `in`, `like`, `null`."""

    path: tuple[str, ...]
    op: str
    values: tuple[Any, ...] = ()
    type: pa.DataType | None = None
    negated: bool = False

    def expression(self) -> pc.Expression:
        column = pc.field(*self.path) if len(self.path) > 1 else pc.field(self.path[0])
        if self.op == "null":
            return column.is_valid() if self.negated else column.is_null()
        if self.op == "like":
            # In SQL without ESCAPE, a backslash is an ordinary character. In Arrow it is an escape.
            matched = pc.match_like(column, self.values[0].replace("\\", "\\\\"))
            return ~matched if self.negated else matched
        if self.op == "in":
            found = pc.is_in(column, value_set=pa.array(_with_both_zeros(self.values), self.type))
            return ~found & column.is_valid() if self.negated else found & column.is_valid()
        value = pa.scalar(self.values[0], self.type)
        compare = {"==": pc.equal, "!=": pc.not_equal, "<": pc.less}
        compare |= {"<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
        compared = compare[self.op](column, pc.scalar(value))
        return ~compared if self.negated else compared

    def can_match(self, lookup: Lookup) -> bool:
        """Return False if the statistics rule out every row."""
        known = lookup(self.path)
        if known is None:
            return True
        if self.op == "null":
            return known.nulls is None or (known.nulls < known.rows if self.negated else known.nulls > 0)
        if known.nulls is not None and known.nulls == known.rows:
            return False  # only nulls: no comparison holds
        if known.low is None or known.high is None or self.negated or self.op == "like":
            return True
        if known.low != known.low or known.high != known.high:  # NaN, from writers that do not leave it out
            return True
        try:
            return any(_in_range(self.op, value, known.low, known.high) for value in self.values)
        except TypeError:  # such as a time with a zone against one without
            return True


def _with_both_zeros(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add the other zero: Arrow's `is_in` tells -0.0 from 0.0."""
    return (*values, 0.0, -0.0) if any(isinstance(value, float) and value == 0 for value in values) else values


def _in_range(op: str, value: Any, low: Any, high: Any) -> bool:
    """Return True if a value in `[low, high]` can have the relation `op` to `value`."""
    if op in ("==", "in"):
        return bool(low <= value <= high)
    if op in ("<", "<="):
        return bool(low < value or (op == "<=" and low == value))
    if op in (">", ">="):
        return bool(high > value or (op == ">=" and high == value))
    return True  # != : bounds may be cut or leave out NaN, so they rule nothing out


@dataclass(frozen=True)
class Branch:
    """Both (`and`) or either (`or`) of two conditions."""

    op: Literal["and", "or"]
    left: Leaf | Branch
    right: Leaf | Branch

    def expression(self) -> pc.Expression:
        left, right = self.left.expression(), self.right.expression()
        return left & right if self.op == "and" else left | right

    def can_match(self, lookup: Lookup) -> bool:
        left, right = self.left.can_match(lookup), self.right.can_match(lookup)
        return left and right if self.op == "and" else left or right


@dataclass(frozen=True)
class Where:
    """A condition.

    Attributes:
        columns: top-level columns that it reads.
        tree: the condition; `tree.can_match` tests a row group's statistics.
        expression: for `filter` of a table with these columns; keeps no row for which it is null.
    """

    columns: tuple[str, ...]
    tree: Leaf | Branch
    expression: pc.Expression


def matching_places(batches: Iterable[pa.RecordBatch], expression: pc.Expression) -> npt.NDArray[np.int64]:
    """Return which of the rows in consecutive batches pass a filter, numbered from 0."""
    found, at = [np.empty(0, np.int64)], 0
    for batch in batches:
        table = pa.table(batch).append_column(_PLACE, pa.array(np.arange(at, at + len(batch))))
        found.append(table.filter(expression)[_PLACE].to_numpy())
        at += len(batch)
    return np.concatenate(found)


def compile_where(sql: str, schema: pa.Schema) -> Where:
    """Read a condition.

    Args:
        schema: of the source; literals take on the types of the columns that they are compared with.

    Raises:
        UsageError: not SQL, not a condition of the kinds listed, or a literal that does not fit its column.
        ColumnNotFound: lists the columns.
    """
    if not sql.strip():
        raise UsageError(f"filter {sql!r} is empty", "write a condition such as \"lang = 'en'\", or remove the filter")
    try:
        return _compile(sql, schema)
    except RecursionError as error:
        said = f"filter {sql[:60]!r}... nests too many conditions"
        raise UsageError(said, "replace a chain of OR by IN (...), or filter the source first") from error


def _compile(sql: str, schema: pa.Schema) -> Where:
    import sqlglot

    try:
        parsed = sqlglot.parse_one(sql)
    except sqlglot.errors.SqlglotError as error:
        raise UsageError(f"filter {sql!r} is not an SQL condition ({str(error).splitlines()[0]})", _ADVICE) from error
    reader = _Reader(sql, schema)
    tree = reader.read(parsed, negated=False)
    return Where(tuple(sorted(reader.columns)), tree, tree.expression())


def describe(schema: pa.Schema) -> str:
    """Return the columns with their types, for messages. Of very many, return the first and how many more there are."""
    said = [f"{field.name} ({str(field.type)[:_TYPE]})" for field in schema][:_SHOWN]
    more = len(schema) - len(said)
    return ", ".join([*said, *([f"and {more:,} more"] if more else [])]) or "none"


def _bounds(kind: pa.DataType) -> tuple[int, int]:
    """Return the smallest and the largest number of an integer type."""
    bits = kind.bit_width
    return (0, (1 << bits) - 1) if pa.types.is_unsigned_integer(kind) else (-(1 << bits - 1), (1 << bits - 1) - 1)


class _Reader:
    def __init__(self, sql: str, schema: pa.Schema) -> None:
        self._sql = sql
        self._schema = schema
        self.columns: set[str] = set()

    def read(self, node: Any, *, negated: bool) -> Leaf | Branch:
        from sqlglot import exp

        if node.args.get("negate"):  # NOT LIKE, in some versions of sqlglot
            negated = not negated
        if isinstance(node, exp.Paren):
            return self.read(node.this, negated=negated)
        if isinstance(node, exp.Not):
            return self.read(node.this, negated=not negated)
        if isinstance(node, exp.And | exp.Or):
            both = isinstance(node, exp.And) != negated
            left, right = self.read(node.this, negated=negated), self.read(node.expression, negated=negated)
            return Branch("and" if both else "or", left, right)
        if isinstance(node, exp.Between):
            return self._between(node, negated)
        comparisons = {exp.EQ: "==", exp.NEQ: "!=", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
        if type(node) in comparisons:
            return self._compare(node, comparisons[type(node)], negated)
        if isinstance(node, exp.In) and node.expressions and not node.args.get("query"):
            return self._in(node, negated)
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            return Leaf(self._column(node.this)[0], "null", negated=negated)
        if type(node) is exp.Like and not node.args.get("escape"):
            path, kind = self._column(node.this)
            pattern = self._literal(node.expression, kind, path)
            return Leaf(path, "like", (pattern,), kind, negated)
        if isinstance(node, exp.Column | exp.Dot):
            path, kind = self._column(node)
            if pa.types.is_boolean(kind):
                return Leaf(path, "==", (not negated,), kind)
        raise self._unknown(node)

    def _unknown(self, node: Any) -> UsageError:
        return UsageError(f"filter {self._sql!r}: {node.sql()!r} is not understood", _ADVICE)

    def _between(self, node: Any, negated: bool) -> Branch:
        path, kind = self._column(node.this)
        low, high = (self._literal(node.args[key], kind, path) for key in ("low", "high"))
        return Branch(
            "or" if negated else "and",
            self._leaf(path, ">=", low, kind, negated),
            self._leaf(path, "<=", high, kind, negated),
        )

    def _leaf(self, path: tuple[str, ...], op: str, value: Any, kind: pa.DataType, negated: bool) -> Leaf:
        """Return a comparison or its negation, which for floats is not the opposite comparison, because of NaN."""
        compared = self._type(value, kind)
        if negated and pa.types.is_floating(kind) and op in ("<", "<=", ">", ">="):
            return Leaf(path, op, (value,), compared, negated=True)
        return Leaf(path, _NEGATED[op] if negated else op, (value,), compared)

    def _compare(self, node: Any, op: str, negated: bool) -> Leaf:
        from sqlglot import exp

        left, right = node.this, node.expression
        # The column may be on either side. If neither side is a column, report the side that is not a literal.
        columns = exp.Column | exp.Dot
        if not isinstance(left, columns) and (isinstance(right, columns) or isinstance(left, exp.Literal)):
            left, right, op = right, left, _FLIPPED[op]
        path, kind = self._column(left)
        value = self._literal(right, kind, path)
        return self._leaf(path, op, value, kind, negated)

    def _in(self, node: Any, negated: bool) -> Leaf:
        path, kind = self._column(node.this)
        values = tuple(self._literal(item, kind, path) for item in node.expressions)
        types = {self._type(value, kind) for value in values}
        return Leaf(path, "in", values, kind if types == {kind} else pa.float64(), negated)

    def _column(self, node: Any) -> tuple[tuple[str, ...], pa.DataType]:
        from sqlglot import exp

        if not isinstance(node, exp.Column | exp.Dot):
            said = f"filter {self._sql!r}: {node.sql()!r} is not understood: a filter compares columns as they are"
            raise UsageError(said, _ADVICE)
        path = tuple(str(part.name) for part in node.parts)
        if ".".join(path) in self._schema.names:
            path = (".".join(path),)
        kind: Any = pa.struct(list(self._schema))
        if (count := self._schema.names.count(path[0])) > 1:
            said = f"filter {self._sql!r}: the source has {count} columns named {path[0]!r}"
            raise UsageError(said, "rename all but one in the source")
        for name in path:
            at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
            if at < 0:
                raise ColumnNotFound(
                    f"filter {self._sql!r}: no column {'.'.join(path)!r}",
                    f"use one of the source's columns: {describe(self._schema)}",
                )
            kind = kind.field(at).type
        self.columns.add(path[0])
        return path, kind.value_type if pa.types.is_dictionary(kind) else kind

    def _literal(self, node: Any, kind: pa.DataType, path: tuple[str, ...]) -> Any:
        """Return a literal as a Python value of the column's type."""
        value, written = self._value(node)
        textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if isinstance(value, str) and pa.types.is_floating(kind) and value.strip().lower().lstrip("+-") == "nan":
            name = ".".join(path)
            said = f"filter {self._sql!r}: NaN is not equal to, above or below any number, so nothing compares with it"
            raise UsageError(said, f"to keep NaN, write NOT ({name} < 0 OR {name} >= 0) AND {name} IS NOT NULL")
        try:
            if textual != isinstance(value, str) and (textual or pa.types.is_boolean(kind)):
                raise pa.ArrowInvalid("not of the column's kind")
            if self._type(value, kind) != kind:
                return value
            if type(value) is int and pa.types.is_integer(kind):
                return pa.scalar(value, kind).as_py()
            if type(value) is int and pa.types.is_floating(kind):
                return float(value)
            return pa.scalar(value).cast(kind).as_py()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError) as error:
            name = ".".join(path)
            said = f"filter {self._sql!r}: column {name!r} is {kind}, so {written} cannot be compared with it"
            advice = "write text in single quotes, and numbers and true or false without"
            if pa.types.is_integer(kind) and not isinstance(value, str | bool):
                low, high = _bounds(kind)
                advice = f"a column of {kind} holds numbers from {low} to {high}"
            raise UsageError(said, advice) from error

    def _value(self, node: Any) -> tuple[bool | int | float | str, str]:
        """Return a literal as a Python value, and as it is written."""
        from sqlglot import exp

        if isinstance(node, exp.Cast) and isinstance(node.this, exp.Literal):  # DATE '2024-01-31'
            node = node.this
        written = str(node.sql())
        negative = isinstance(node, exp.Neg)
        node = node.this if negative else node
        if isinstance(node, exp.Boolean):
            return bool(node.this), written
        if isinstance(node, exp.Literal) and node.is_string and not negative:
            return str(node.this), written
        if isinstance(node, exp.Literal) and not node.is_string:
            number = float(node.this) if any(c in node.this for c in ".eE") else int(node.this)
            return -number if negative else number, written
        raise self._unknown(node)

    @staticmethod
    def _type(value: Any, kind: pa.DataType) -> pa.DataType:
        """Return the type to compare in: float64 for a fraction with whole numbers, else the column's."""
        return pa.float64() if isinstance(value, float) and pa.types.is_integer(kind) else kind
