"""The columns of a source file, by its metadata or, where it has none, by its first rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import pyarrow as pa

from lance_prep.errors import BadFile, translating
from lance_prep.fetch import Prefetch, RangeFile, is_local, open_ranges, open_stream, read_footer
from lance_prep.fetch.retry import Retries
from lance_prep.fetch.values import iter_values
from lance_prep.plan.model import SourceFile

SAMPLE_BYTES = 1 << 20
_ADVICE = "get the file again, or leave it out; its extension must say what it is"


def peek_schema(file: SourceFile, options: Mapping[str, str] | None = None) -> pa.Schema:
    """Schema of all columns of a file, as `source` will read them before anything is dropped.

    Line formats say nothing of their types: those come from the first MiB. Columns that are null throughout it, or of
    several types, count as strings, which then hold the JSON text of what is no string.

    Raises:
        BadFile: not what its name says.
        SourceError: it cannot be read.
    """
    with translating(f"reading {file.url}"):
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in _peek(file, options)])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is delivered: dictionaries decoded, views as their offset-based twins."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _peek(file: SourceFile, options: Mapping[str, str] | None) -> pa.Schema:
    if file.format == "parquet":
        return read_footer(file.url, file.size, file.identity, options).schema.to_arrow_schema()
    if file.format == "text":
        return pa.schema([("text", pa.string())])
    if file.format == "topics":
        return pa.schema([("text", pa.string()), ("topic", pa.string())])
    if file.format == "lance":
        import lance

        return lance.dataset(file.url, storage_options=dict(options) if options else None).schema
    if file.format == "arrow":
        with open_arrow(file, options, ahead=False) as reader:
            return reader.schema
    return _csv(file, options) if file.format == "csv" else _json(file, options)


def _open(file: SourceFile, options: Mapping[str, str] | None) -> AbstractContextManager[BinaryIO]:
    return open_stream(
        file.url, file.size, compression=file.compression, options=options, identity=file.identity, ahead=False
    )


class open_arrow:  # noqa: N801  (used as a function: `with open_arrow(file) as reader`)
    """An Arrow IPC file or stream, whichever it is, as a reader with `schema`. Streams are what `datasets` writes."""

    def __init__(
        self, file: SourceFile, options: Mapping[str, str] | None, *, ahead: bool, retries: Retries | None = None
    ) -> None:
        self._close: list[Any] = []
        if is_local(file.url):
            self._source = pa.memory_map(file.url)
        else:
            ranges = open_ranges(file.url, file.size, options, retries or Retries(), identity=file.identity)
            pieces = [(at, min(at + (4 << 20), file.size)) for at in range(0, file.size, 4 << 20)] if ahead else []
            prefetch = Prefetch(ranges, pieces)
            self._close.append(prefetch)
            self._source = pa.PythonFile(RangeFile(prefetch), mode="r")

    def __enter__(self) -> Any:
        magic = self._source.read(6)
        self._source.seek(0)
        return pa.ipc.open_file(self._source) if magic == b"ARROW1" else pa.ipc.open_stream(self._source)

    def __exit__(self, *_: object) -> None:
        self._source.close()
        for each in self._close:
            each.close()


def csv_delimiter(url: str) -> str:
    return "\t" if ".tsv" in url.lower().rsplit("/", 1)[-1] else ","


def _csv(file: SourceFile, options: Mapping[str, str] | None) -> pa.Schema:
    import pyarrow.csv as pc

    with _open(file, options) as stream:
        sample = stream.read(SAMPLE_BYTES)
        if len(sample) == SAMPLE_BYTES:  # end at a line, so that the sample's last row is whole
            sample = sample[: sample.rfind(b"\n") + 1] or sample + stream.readline()
    if not sample.strip():
        return pa.schema([])
    parse = pc.ParseOptions(
        delimiter=csv_delimiter(file.url), newlines_in_values=True, invalid_row_handler=lambda row: "skip"
    )
    read = pc.ReadOptions(use_threads=False, block_size=len(sample) + 1)
    convert = pc.ConvertOptions(check_utf8=False)
    return pc.read_csv(pa.BufferReader(sample), read, parse, convert).schema


def _json(file: SourceFile, options: Mapping[str, str] | None) -> pa.Schema:
    # Opened anew each time: compressed streams do not go back.
    records: list[dict[str, Any]] = []
    with _open(file, options) as stream:
        empty = not stream.read(1)
    if file.format == "jsonl" or not _is_array(file, options):
        with _open(file, options) as stream:
            records = list(_records(stream))
    if file.format == "json" and not records:
        with _open(file, options) as stream:
            records = list(_array_records(stream, file.url))
    if not records and not empty:
        if file.format == "json" and _holds_nothing(file, options):
            raise BadFile(f"{file.url}: holds no record", "name a source with something in it")
        raise BadFile(f"{file.url}: no JSON object in its first lines", _ADVICE)
    columns: dict[str, list[Any]] = {}
    for at, record in enumerate(records):
        for name, value in record.items():
            column = columns.setdefault(name, [])
            column.extend([None] * (at - len(column)))
            column.append(value)
    return pa.schema([(name, _infer(values)) for name, values in columns.items() if _is_unicode(name)])


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
    """True for a struct without fields, or anything with one inside: what Lance cannot hold, and says nothing."""
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_is_empty(kind.field(i).type) for i in range(kind.num_fields))


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_array(file: SourceFile, options: Mapping[str, str] | None) -> bool:
    with _open(file, options) as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _holds_nothing(file: SourceFile, options: Mapping[str, str] | None) -> bool:
    """True for an array without elements, or blank."""
    with _open(file, options) as stream:
        return next(iter_values(stream, file.url), None) is None


def _records(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """The objects among the first lines."""
    seen = 0
    while seen < SAMPLE_BYTES and (line := stream.readline()):
        seen += len(line)
        try:
            record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _array_records(stream: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """The first objects of an array, or of objects that span lines."""
    for seen, (_, value) in enumerate(iter_values(stream, name)):
        if isinstance(value, dict):
            yield value
        if seen >= 1000:
            return
