"""`lance-prep sql`: rows of a query as a table, JSON or CSV, or in a file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from lance_prep.cli.common import columns, command, dataset_options, json_option, pairs, printable, printable_json
from lance_prep.errors import OutputExists, UsageError, counted
from lance_prep.transport import in_home

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a table, and characters of a value on a terminal.
LIMIT, WIDTH = 100, 60
#: Rows beyond the limit that are counted exactly.
COUNTED = 1_000_000


def _tables(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str] | None:
    """Return the datasets of --with by their names."""
    found = pairs(ctx, param, value)
    if found is not None and len(found) < len(value):
        raise click.BadParameter("two datasets have the same name")
    return found


def _limit(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the number, -1 for `all`, or None if it is not given."""
    if value is None or value == "all":
        return None if value is None else -1
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"{value!r} is not a number of rows; write one, or all")
    return int(value)


@command(
    'sql sample.lance "select count(*) as n, sum(num_tokens) as tokens from dataset"',
    'sql sample.lance "select count(*) as same from dataset join b using (doc_id)" --with b=sample.lance',
    'sql sample.lance "select doc_id, num_tokens from dataset order by num_tokens desc limit 10" -o longest.parquet',
    about="""QUERY is one SELECT or WITH query, in the SQL of DataFusion. The dataset is the table `dataset`.
It may be any Lance dataset: local, s3:// or hf://. Nothing is written except the file that -o names. Put names with
capitals or spaces in double quotes.

With --with, the query may join several datasets. duckdb runs it then, in its own SQL: pip install 'lance-prep[sql]'.

Binary values are printed in hexadecimal. NaN and infinity are text in JSON. Lists are JSON in CSV.""",
)
@dataset_options
@click.argument("query")
@click.option(
    "--limit", metavar="N|all", callback=_limit, help=f"Rows to print or write.  [default: {LIMIT} in a table, or all]"
)
@click.option(
    "--with",
    "tables",
    metavar="NAME=DATASET",
    multiple=True,
    callback=_tables,
    help="A dataset to join; may be repeated.",
)
@click.option("--engine", type=click.Choice(["datafusion", "duckdb"]), help="[default: datafusion; duckdb with --with]")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header line.")
@click.option("-o", "--output", metavar="FILE", help="Write a new file: .parquet, .csv or .json, by its extension.")
@json_option
def sql(
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    query: str,
    limit: int | None,
    tables: dict[str, str] | None,
    engine: str | None,
    as_csv: bool,
    output: str | None,
    as_json: bool,
) -> None:
    if as_csv + as_json + (output is not None) > 1:
        raise click.UsageError("--json, --csv and -o cannot be combined: use one of them")
    target = _new_file(output, uri) if output is not None else None
    from lance_prep import dataset

    reader = dataset.query(uri, query, version, storage_options, tables=tables, engine=engine)
    is_table = not (as_csv or as_json or target)
    if is_table:
        _print_table(reader, LIMIT if limit is None else limit)
        return
    batches = _first(reader, -1 if limit is None else limit)
    if target is not None:
        rows = _write_file(target, reader.schema, batches)
        click.echo(f"wrote {counted(rows, 'row')} to {printable(str(target))}", err=True)
    elif as_json:
        _write_json(sys.stdout, batches)
    else:
        _write_csv(sys.stdout, reader.schema, batches, shown=sys.stdout.isatty())


def _new_file(output: str, uri: str) -> Path:
    """Check the name of the output before the query runs."""
    path = in_home(output)
    if path.suffix not in (".parquet", ".csv", ".json"):
        raise UsageError(f"{output}: the extension is not .parquet, .csv or .json", "use one of these extensions")
    if path.exists() or path.is_symlink():
        raise OutputExists(f"{output} exists already", "name another file, or remove it first")
    if not path.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {path.parent}", "create it first, or name another file")
    if "://" not in uri and path.resolve().is_relative_to(Path(uri).resolve()):
        raise UsageError(f"{output} is inside the dataset", "name a file outside it")
    return path


def _first(reader: pa.RecordBatchReader, most: int) -> Iterator[pa.RecordBatch]:
    """Yield at most that many rows; -1 for all."""
    left = most
    while left:
        batch = next(reader, None)
        if batch is None:
            return
        batch = batch if most < 0 else batch.slice(0, left)
        left -= 0 if most < 0 else batch.num_rows
        yield batch


def _print_table(reader: pa.RecordBatchReader, most: int) -> None:
    rows: list[list[Any]] = []
    more = 0
    for batch in reader:
        kept = batch if most < 0 else batch.slice(0, most - len(rows))
        rows += [list(row) for row in zip(*(column.to_pylist() for column in kept.columns), strict=True)]
        more += batch.num_rows - kept.num_rows
        if more > COUNTED:  # the rest of a large dataset is not read for a number
            break
    names = [_cell(name) for name in reader.schema.names]
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_is_number(field.type) for field in reader.schema]
    if sys.stdout.isatty():
        _print_rich(names, cells, right)
    else:
        click.echo(columns([names, *cells]))
    if more:
        said = counted(more, "more row") if more <= COUNTED else f"more than {COUNTED:,} more rows"
        click.echo(f"{said}; print them with --limit all", err=True)
    elif not rows:
        click.echo("no rows", err=True)


def _print_rich(names: list[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD)
    for name, is_right in zip(names, right, strict=True):
        shown.add_column(Text(name), justify="right" if is_right else "left", no_wrap=True, overflow="ellipsis")
    for row in cells:
        shown.add_row(*(Text(value if len(value) <= WIDTH else value[: WIDTH - 1] + "…") for value in row))
    Console().print(shown)


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: bytes in hexadecimal, other types as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, list | dict | bool):
        return json.dumps(plain, ensure_ascii=False)
    return str(plain)


def _cell(value: Any) -> str:
    """Return a value on one line of a table."""
    text = "null" if value is None else _text(value)
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def _write_json(out: TextIO, batches: Iterator[pa.RecordBatch]) -> int:
    """Write an array of records, one on each line."""
    rows = 0
    out.write("[")
    for batch in batches:
        for record in batch.to_pylist():
            text = json.dumps(_plain(record), ensure_ascii=False)
            out.write((",\n" if rows else "\n") + printable_json(text))
            rows += 1
    out.write("\n]\n")
    return rows


def _write_csv(out: TextIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch], *, shown: bool = False) -> int:
    """Write CSV, with control characters escaped if it is shown on a terminal. A null is an empty field."""
    rows, part = 0, io.StringIO()
    writer = csv.writer(part, lineterminator="\n")
    writer.writerow(schema.names)
    for batch in batches:
        for record in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow(["" if value is None else _text(value) for value in record])
            rows += 1
        _flush(part, out, shown)
    _flush(part, out, shown)
    return rows


def _flush(part: io.StringIO, out: TextIO, shown: bool) -> None:
    out.write(printable(part.getvalue()) if shown else part.getvalue())
    part.seek(0)
    part.truncate()


def _write_file(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write a temporary file and rename it, so that the file is complete if it exists."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            rows = _write_parquet(temporary, schema, batches)
        else:
            with temporary.open("x", encoding="utf-8", newline="") as out:
                rows = _write_json(out, batches) if path.suffix == ".json" else _write_csv(out, schema, batches)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _write_parquet(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows
