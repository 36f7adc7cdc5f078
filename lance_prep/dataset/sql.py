"""SQL over datasets: checks that a text is one query and nothing else, then runs it.

Lance's own DataFusion runs a query on one dataset, and duckdb (`dataset/joins.py`) one on several.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import LancePrepError, UsageError, one_line, reading_dataset
from lance_prep.filter import describe
from lance_prep.hub_path import pinned_uri
from lance_prep.store import open_any
from lance_prep.transport import Transport, absolute_uri

#: The name of the dataset in a query.
TABLE = "dataset"
#: engine -> dialects of sqlglot. Two know between them what DataFusion does, such as EXCLUDE and x'00'.
DIALECTS = {"datafusion": ("duckdb", "postgres"), "duckdb": ("duckdb",)}
#: Functions that a query may read from, beside `unnest`. They read no file.
_SERIES = ("GenerateSeries", "ExplodingGenerateSeries")
#: DataFusion overflows the stack on an expression of 6,000 terms.
_DEEPEST = 1000
_ADVICE = f"write one query that starts with SELECT or WITH, such as `select count(*) from {TABLE}`"
_WHERE_IN_LANCE = re.compile(r"(, /\S+\.rs:\d+:\d+)+$")


def query(
    path: str | Path,
    sql: str,
    version: int | str | None = None,
    storage_options: Mapping[str, str] | None = None,
    *,
    tables: Mapping[str, str | Path] | None = None,
    engine: str | None = None,
) -> pa.RecordBatchReader:
    """Run a query on a dataset, whichever program built it, or on several.

    Lance reads only the columns that the query uses, and skips data that its WHERE rules out. Rows arrive as they are
    read, so errors in the data, such as a failed cast, are raised by the reader.

    Args:
        path: of the dataset, or its URI.
        sql: one SELECT or WITH query, in the dialect of the engine. The dataset is the table `dataset`.
        version: number or tag of `path`; the latest by default.
        storage_options: for an object store.
        tables: more datasets, by their names in the query, at their latest versions.
        engine: "datafusion", or "duckdb", which can join. By default duckdb if there are `tables`.

    Raises:
        UsageError: the text is not one query, or the engine refuses it: unknown column, function or table.
        DatasetError: there is no dataset, it has no such version, or it is damaged (`DamagedDataset`).
    """
    tables = _named(tables or {})
    engine = engine or ("duckdb" if tables else "datafusion")
    if engine not in DIALECTS or (tables and engine != "duckdb"):
        said = f"engine {engine!r}" + (" cannot join datasets" if engine in DIALECTS else " is unknown")
        raise UsageError(said, "use engine='duckdb'" + ("" if tables else " or engine='datafusion'"))
    check_query(sql, tables, DIALECTS[engine])
    transport = Transport.of(storage_options)
    opened = {}
    for name, place in {TABLE: path, **tables}.items():
        uri = pinned_uri(absolute_uri(place), transport)
        opened[name] = uri, open_any(uri, version if name == TABLE else None, transport)
    uri, dataset = opened[TABLE]
    if engine == "duckdb":
        from lance_prep.dataset.joins import run_join

        reader = run_join(sql, opened)
    else:
        with reading_dataset(uri), _explaining(dataset.schema):
            reader = dataset.sql(sql).build().to_stream_reader()
    names = reader.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"the result has two columns named {twice[0]!r}", "name one of them with AS")
    schema = pa.schema([field.with_type(_stored(field.type)) for field in reader.schema])
    return pa.RecordBatchReader.from_batches(schema, _batches(reader, schema, uri, dataset.schema))


def _named(tables: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return datasets by their names, in lower case as SQL reads them.

    Raises:
        UsageError: a name is invalid, or there twice.
    """
    found: dict[str, str | Path] = {}
    for name, place in tables.items():
        lower = name.lower()
        if not re.fullmatch("[a-z_][a-z0-9_]{0,59}", lower) or lower.startswith("__"):
            raise UsageError(f"invalid table name {name!r}", "use letters, digits and _, such as b=other.lance")
        if lower == TABLE or lower in found:
            raise UsageError(f"two datasets are named {lower!r}", "give each a name of its own")
        found[lower] = place
    return found


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return a type that files can hold and readers know.

    DataFusion's text functions return views, and duckdb's sums 128-bit integers.
    """
    if pa.types.is_decimal(kind) and (kind.precision, kind.scale) == (38, 0):
        return pa.int64()
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _batches(reader: Any, schema: pa.Schema, uri: str, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    with reading_dataset(uri), _explaining(columns):
        for batch in reader:
            yield batch.cast(schema)


def check_query(sql: str, tables: Container[str] = (), dialects: Sequence[str] = DIALECTS["datafusion"]) -> None:
    """Refuse everything but one SELECT or WITH query on the table `dataset` and `tables`.

    DataFusion runs CREATE EXTERNAL TABLE, which reads any file, and COPY, which writes files. The text must also start
    with the keyword itself: a comment that two parsers read differently could hide another statement behind it.

    Raises:
        UsageError: says what else it is, or where it cannot be read.
    """
    from sqlglot import exp

    if not re.match(r"[\s(]*(select|with)\b", sql, re.IGNORECASE):
        first = sql.split(None, 1)[0] if sql.strip() else ""
        said = f"the query starts with {first[:40]!r}; only SELECT and WITH are run" if first else "the query is empty"
        raise UsageError(said, _ADVICE)
    statements = [statement for statement in _parsed(sql, dialects) if statement is not None]
    if len(statements) != 1:
        raise UsageError(f"the text holds {len(statements)} statements, and only one query is run", _ADVICE)
    tree = statements[0]
    writes = (exp.DML, exp.DDL, exp.Into, exp.Command, exp.Copy, exp.Drop, exp.Set)
    depth = {id(None): 0}
    for node in tree.walk():
        depth[id(node)] = depth.get(id(node.parent), 0) + 1
        if depth[id(node)] > _DEEPEST:
            raise UsageError(f"the query is nested more than {_DEEPEST:,} deep", "write a shorter expression")
        if isinstance(node, writes) and not isinstance(node, exp.Query):
            raise UsageError(f"the query holds {node.key.upper()}, and only queries are run", _ADVICE)
    if not isinstance(tree, exp.Query):
        raise UsageError(f"the text is a {tree.key.upper()} statement, and only queries are run", _ADVICE)
    _check_tables(tree, tables)


def _check_tables(tree: Any, tables: Container[str]) -> None:
    from sqlglot import exp

    known = {TABLE, *(cte.alias.lower() for cte in tree.find_all(exp.CTE))}
    for table in tree.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier):
            if type(table.this).__name__ not in _SERIES:
                name = table.sql()[:60]
                raise UsageError(f"the query reads from {name}, which is not a table", f"use FROM {TABLE}")
        elif table.db or (table.name.lower() not in known and table.name.lower() not in tables):
            name = ".".join(part.name for part in table.parts)[:60]
            raise UsageError(f"unknown table {name!r}", f"use FROM {TABLE}, or name the dataset with `tables`")


def _parsed(sql: str, dialects: Sequence[str]) -> list[Any]:
    import sqlglot

    failed: Any = None
    for dialect in dialects:
        try:
            return list(sqlglot.parse(sql, dialect=dialect))
        except sqlglot.errors.SqlglotError as error:
            failed = failed or error
        except RecursionError as error:
            raise UsageError("the query is nested too deeply", "replace a chain of OR by IN (...)") from error
    found = (getattr(failed, "errors", None) or [{}])[0]
    if "line" not in found:
        raise UsageError(f"the query is not valid SQL: {one_line(failed)}", _ADVICE) from failed
    near = str(found.get("highlight") or "")
    column = max(1, found["col"] - len(near) + 1)
    said = f"the query is not valid SQL at line {found['line']}, column {column}, near {near[:40]!r}"
    raise UsageError(said, "check for a missing comma, bracket or keyword there") from failed


@contextmanager
def _explaining(schema: pa.Schema) -> Iterator[None]:
    """Raise what DataFusion says about a query as a UsageError; other errors pass through."""
    try:
        yield
    except (OSError, ValueError) as error:
        if (ours := _of_query(str(error), schema)) is None:
            raise
        raise ours from error


def _of_query(text: str, schema: pa.Schema) -> LancePrepError | None:
    said = _WHERE_IN_LANCE.sub("", " ".join(text.split()))
    columns = f"columns: {describe(schema)}"
    if (unknown := re.search(r'No field named (?:"([^"]+)"|(\S+?))\.(?: |$)', said)) is not None:
        name = (unknown[1] or unknown[2]).replace('"', "")
        return UsageError(f"unknown column {name!r}", f"{_hint(name.split('.')[-1], schema.names)}{columns}")
    if (invalid := re.search(r"Invalid user input: (?:[\w ]+ error: |Error during planning: )*(.*)", said)) is not None:
        position = re.search(r'ParserError\("(.*)"\)', invalid[1])
        return UsageError(f"the query is invalid: {(position or invalid)[1][:300].rstrip('. ')}", columns)
    failures = r"(?:Cast error|Divide by zero|Arithmetic overflow|Overflow|Parser error).*"
    if (failed := re.search(failures, said)) is not None:
        return UsageError(f"the query failed: {failed[0][:300]}", f"change the expression; {columns}")
    return None


def _hint(name: str, names: list[str]) -> str:
    """Suggest a column. DataFusion folds names without quotes to lower case."""
    lower = {known.lower(): known for known in names}
    if known := lower.get(name.lower()) or next(iter(difflib.get_close_matches(name, names, 1)), ""):
        plain = re.fullmatch("[a-z_][a-z0-9_]*", known)
        return f"did you mean {known}? " if plain else f'did you mean "{known}", in double quotes? '
    return ""
