"""`read_lance`: reads a dataset as a DataFrame with Spark's own types, one partition for each fragment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.engine import ExecutorSetup
from lance_prep.errors import ColumnNotFound, UsageError, one_line, reading_dataset
from lance_prep.hub_path import pinned_uri
from lance_prep.store import open_any, open_at
from lance_prep.transport import Transport, absolute_uri

#: Rows in a batch: 8 MB of tokens in blocks of 1024.
BATCH_ROWS = 2048


def read_lance(
    spark: Any,
    uri: str | Path,
    *,
    columns: Sequence[str] | None = None,
    filter: str | None = None,
    version: int | str | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Any:
    """Return a dataset, of lance-prep or any other program, as a DataFrame.

    The version is pinned when this is called. Spark has no unsigned integers and no lists of a fixed length: uint16
    becomes int, uint32 and uint64 become bigint, and `input_ids` array<int> or array<bigint>.

    Args:
        spark: the session.
        uri: path or URI, which all executors see.
        columns: to read; by default all.
        filter: SQL condition such as `num_tokens > 100`, which Lance evaluates while it reads.
        version: number or tag; by default the latest.
        storage_options: for object stores.

    Raises:
        DatasetError: there is no dataset, or no such version.
        ColumnNotFound: lists the columns.
        UsageError: the filter is invalid.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    transport = Transport.of(storage_options)
    at = pinned_uri(absolute_uri(uri), transport)
    dataset = open_any(at, version, transport) if isinstance(version, int) else open_at(at, version, transport).dataset
    missing = [name for name in columns or () if name not in dataset.schema.names]
    if missing:
        raise ColumnNotFound(f"{at} has no column {missing[0]!r}", f"it has {', '.join(dataset.schema.names)}")
    try:
        schema = dataset.scanner(columns=list(columns) if columns else None, filter=filter).projected_schema
    except (ValueError, OSError) as error:
        said = str(error).splitlines()[0][:200]
        raise UsageError(f"invalid filter {filter!r}: {said}", "use a condition such as num_tokens > 100") from error
    schema = pa.schema([pa.field(field.name, spark_type(field.type), field.nullable) for field in schema])
    numbers = [fragment.fragment_id for fragment in dataset.get_fragments()]
    work = _work(at, int(dataset.version), transport, numbers, schema, filter)
    # Partition i of a range holds the number i.
    places = spark.range(0, len(numbers), 1, max(1, len(numbers)))
    return places.mapInArrow(work, from_arrow_schema(schema))


def spark_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of Spark that holds the same values."""
    types = pa.types
    if types.is_dictionary(kind):
        return spark_type(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", spark_type(kind.value_type), kind.value_field.nullable))
    if types.is_struct(kind):
        return pa.struct(
            [pa.field(f.name, spark_type(f.type), f.nullable) for f in map(kind.field, range(kind.num_fields))]
        )
    if types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32()}.get(kind.bit_width, pa.int64())
    if types.is_float16(kind):
        return pa.float32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    return kind


def _work(
    uri: str, version: int, transport: Transport, numbers: Sequence[int], schema: pa.Schema, filter: str | None
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function that reads the fragment of a partition."""
    setup = ExecutorSetup.of_driver()

    def work(places: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        setup.apply()
        for batch in places:
            for place in batch.column(0).to_pylist():
                for rows in _fragment(uri, version, transport, numbers[place], schema.names, filter):
                    arrays = [_cast(rows.column(field.name), field) for field in schema]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return work


def _fragment(
    uri: str, version: int, transport: Transport, number: int, columns: list[str], filter: str | None
) -> Iterator[pa.RecordBatch]:
    with reading_dataset(uri):
        fragment = open_any(uri, version, transport).get_fragment(number)
        yield from fragment.to_batches(columns=columns, filter=filter, batch_size=BATCH_ROWS)


def _cast(array: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return array.cast(field.type)
    except pa.ArrowInvalid as error:
        said = f"`{field.name}` has a value that Spark cannot hold: {one_line(error)}"
        raise UsageError(said, "name the other columns with columns") from error
