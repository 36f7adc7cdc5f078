"""SQL over several datasets, through duckdb, which `lance-prep[sql]` installs.

DataFusion in pylance runs a query on one dataset only. duckdb asks each dataset for columns and a filter. Lance cannot
take duckdb's filters on unsigned columns, which `num_tokens` and `doc_id` are, so they are evaluated here: the columns
of the filter are read first, and of few matching rows only, the others.

duckdb may touch nothing but the datasets: no file, no network, no variable of this process, no extension, and no
setting can be changed by a query. It spills large joins into a temporary folder of its own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from lance_prep.errors import LancePrepError, UsageError, one_line, reading_dataset
from lance_prep.filter import FEW, describe, matching_places
from lance_prep.process import install_advice

#: Prefix of what duckdb knows a dataset as; the name in the query is a view of it.
_RAW = "__lance_"
_ROWS = 8192
_SETTINGS = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}


def run_join(sql: str, datasets: Mapping[str, tuple[str, Any]]) -> pa.RecordBatchReader:
    """Run a query that was checked.

    Args:
        datasets: name in the query -> URI for messages, and the Lance dataset.

    Raises:
        UsageError: duckdb is not installed, or refuses the query. While rows are read, too.
        DatasetError: a dataset cannot be read.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise UsageError(
            "a query on several datasets needs duckdb, which is not installed",
            install_advice("sql"),
        ) from error
    tables = [_Table(uri, dataset) for uri, dataset in datasets.values()]
    columns = "; ".join(f"{name}: {describe(table.stored)}" for name, table in zip(datasets, tables, strict=True))
    with ExitStack() as stack:
        spilled = stack.enter_context(tempfile.TemporaryDirectory(prefix="lance-prep-sql-"))
        connection = stack.enter_context(duckdb.connect(":memory:", config={**_SETTINGS, "temp_directory": spilled}))
        for name, table in zip(datasets, tables, strict=True):
            connection.register(f"{_RAW}{name}", table)
            order = ", ".join('"' + column.replace('"', '""') + '"' for column in table.stored.names)
            connection.execute(f'create view "{name}" as select {order} from "{_RAW}{name}"')
        connection.execute("set lock_configuration = true")
        try:
            reader: Any = connection.sql(sql).to_arrow_reader(_ROWS)
        except duckdb.Error as error:
            raise _explained(error, tables, columns) from error
        return pa.RecordBatchReader.from_batches(reader.schema, _rows(reader, stack.pop_all(), tables, columns))


def _rows(reader: Any, held: ExitStack, tables: Sequence[_Table], columns: str) -> Iterator[pa.RecordBatch]:
    import duckdb

    with held:
        try:
            yield from reader
        except (duckdb.Error, OSError, ValueError) as error:
            raise _explained(error, tables, columns) from error


def _explained(error: Exception, tables: Sequence[_Table], columns: str) -> LancePrepError:
    """Translate an error of duckdb into one about the dataset that could not be read, or about the query."""
    for table in tables:
        if table.failed is not None:
            return table.failed
    said = one_line(error).partition(" Error: ")
    return UsageError(f"the query is invalid: {(said[2] or said[0]).rstrip('. ')}", f"columns are {columns}")


class _Table(pads.Dataset):  # type: ignore[misc]
    """A Lance dataset as duckdb reads it.

    To count rows, duckdb reads the first column, so the narrowest one is the first; a view restores their order.
    """

    def __init__(self, uri: str, dataset: Any) -> None:
        self.failed: LancePrepError | None = None
        self.stored: pa.Schema = dataset.schema
        self._uri = uri
        self._dataset = dataset
        self._schema = pa.schema(sorted(self.stored, key=lambda field: _width(field.type)))

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> Any:
        names = self._schema.names if columns is None else list(columns)
        schema = pa.schema([self._schema.field(name) for name in names])
        return pads.Scanner.from_batches(self._kept(names, filter, schema), schema=schema)

    def _kept(self, names: list[str], filter: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            with reading_dataset(self._uri):
                for batch in self._scan(names) if filter is None else self._filtered(names, filter):
                    yield batch.cast(schema)
        except LancePrepError as error:
            self.failed = error
            raise

    def _scan(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._dataset.scanner(columns=names, scan_in_order=True, batch_size=_ROWS).to_batches()

    def _filtered(self, names: list[str], filter: Any) -> Iterator[pa.RecordBatch]:
        # The text of an expression holds the names of its columns. A name too many costs reading that column.
        said = str(filter)
        tested = [name for name in self._schema.names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
        places = matching_places(self._scan(tested), filter)
        if len(places) < FEW * self._dataset.count_rows():
            for start in range(0, len(places), _ROWS):
                chosen = pa.array(places[start : start + _ROWS])
                yield from self._dataset.take(chosen, columns=names).to_batches()
            return
        for batch in self._scan(list(dict.fromkeys([*names, *tested]))):
            yield from pa.table(batch).filter(filter).select(names).to_batches()


def _width(kind: pa.DataType) -> int:
    """Return the bits of a value; a large number for types without a fixed width."""
    try:
        return int(kind.bit_width)
    except ValueError:
        return 1 << 30
