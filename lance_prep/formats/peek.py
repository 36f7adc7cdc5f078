"""The columns of a source file, by its metadata or, where it has none, by its first rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, BinaryIO

import pyarrow as pa

from lance_prep.errors import BadFile, SourceChanged, translating
from lance_prep.fetch import Prefetch, RangeFile, open_ranges, open_stream
from lance_prep.formats.footer import read_footer
from lance_prep.formats.values import holds_lines, iter_values
from lance_prep.model import SourceFile
from lance_prep.transport import Transport, is_local

SAMPLE_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_BYTES_MORE = 64 << 10
_SAMPLE_VALUES = 1000
_SAMPLED_FILES = 256
_THREADS = 16
_JSON = ("jsonl", "json")
_ADVICE = "get the file again, or leave it out; its extension must say what it is"


def peek_schema(files: Sequence[SourceFile], transport: Transport, *, delimiter: str = ",") -> pa.Schema:
    """Return the schema of all columns of a source, as `source` will read them before anything is dropped.

    The first file decides, unless it is JSON. JSON says nothing of its columns, so those come from samples: the first
    MiB of the first file, and the first 64 KiB of at most 255 others. Integers with floats become floats. Columns that
    are null in all samples, or of several types, become strings, which hold the JSON text of any other value.

    Args:
        files: in the source's order, none of them empty.
        delimiter: of CSV files.

    Raises:
        BadFile: not what its name says.
        SourceError: it cannot be read.
    """
    first = files[0]
    if first.format in _JSON:
        return _json([file for file in files if file.format in _JSON], transport)
    with translating(f"reading {first.url}"):
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in _peek(first, transport, delimiter)])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is delivered: dictionaries decoded, views as their offset-based twins."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _peek(file: SourceFile, transport: Transport, delimiter: str) -> pa.Schema:
    if file.format == "parquet":
        return read_footer(file, transport).schema.to_arrow_schema()
    if file.format == "text":
        return pa.schema([("text", pa.string())])
    if file.format == "topics":
        return pa.schema([("text", pa.string()), ("topic", pa.string())])
    if file.format == "lance":
        return open_lance(file, transport).schema
    if file.format == "arrow":
        with open_arrow(file, transport, ahead=False) as reader:
            return reader.schema
    return _csv(file, transport, delimiter)


def _open(file: SourceFile, transport: Transport) -> AbstractContextManager[BinaryIO]:
    return open_stream(file, transport, ahead=False)


def lance_identity(dataset: Any) -> str:
    """Return the version of a Lance dataset and the id of the transaction that made it, for `SourceFile.identity`.

    A dataset that is removed and written anew has the same version numbers, but other transactions.
    """
    with suppress(Exception):  # its transaction file may be gone, and the data whole
        return f"version {dataset.version} {dataset.read_transaction(dataset.version).uuid}"
    return f"version {dataset.version}"


def open_lance(file: SourceFile, transport: Transport) -> Any:
    """Return a Lance dataset at the planned version.

    Raises:
        SourceChanged: it has no such version any more, or another one of this number.
    """
    import lance

    version = int(file.identity.split()[1])
    advice = "run the same command again; to build from another version, use --overwrite"
    try:
        dataset = lance.dataset(file.url, version=version, storage_options=transport.for_lance)
    except ValueError as error:
        raise SourceChanged(f"{file.url}: version {version}, which was planned, is gone ({error})", advice) from error
    if lance_identity(dataset) != file.identity:
        raise SourceChanged(f"{file.url}: version {version} is another one than was planned", advice)
    return dataset


class open_arrow:  # noqa: N801  (used as a function: `with open_arrow(file) as reader`)
    """An Arrow IPC file or stream, whichever it is, as a reader with `schema`. Streams are what `datasets` writes."""

    def __init__(self, file: SourceFile, transport: Transport, *, ahead: bool) -> None:
        self._close: list[Any] = []
        if is_local(file.url):
            self._source = pa.memory_map(file.url)
        else:
            ranges = open_ranges(file, transport)
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


def find_delimiter(file: SourceFile, transport: Transport) -> str:
    """Return the delimiter of a CSV file: of comma, semicolon, tab and bar, the one that its header has most often.

    Quoted names do not count. Equal counts, such as none, give a comma, or a tab for `.tsv`.

    Raises:
        BadFile: the file is UTF-16.
    """
    with translating(f"reading {file.url}"), _open(file, transport) as stream:
        head = stream.read(SAMPLE_BYTES).lstrip(b"\r\n")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        said = f"{file.url} is UTF-16, and CSV files are read as UTF-8"
        raise BadFile(said, "convert it first: iconv -f UTF-16 -t UTF-8 OLD.csv > NEW.csv")
    usual = "\t" if ".tsv" in file.url.lower().rsplit("/", 1)[-1] else ","
    names = re.sub(rb'"[^"]*"', b"", _header(head))
    return max((usual, *_DELIMITERS), key=lambda delimiter: names.count(delimiter.encode()))


def _header(head: bytes) -> bytes:
    """Return the first line, which goes on where a quoted name holds a line end."""
    at = -1
    while (at := head.find(b"\n", at + 1)) >= 0:
        if head.count(b'"', 0, at) % 2 == 0:
            return head[:at]
    return head


def _csv(file: SourceFile, transport: Transport, delimiter: str) -> pa.Schema:
    import pyarrow.csv as pc

    with _open(file, transport) as stream:
        sample = stream.read(SAMPLE_BYTES)
        if len(sample) == SAMPLE_BYTES:  # end at a line, so that the sample's last row is whole
            sample = sample[: sample.rfind(b"\n") + 1] or sample + stream.readline()
    if not sample.strip():
        return pa.schema([])
    parse = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip")
    read = pc.ReadOptions(use_threads=False, block_size=len(sample) + 1)
    convert = pc.ConvertOptions(check_utf8=False)
    return pc.read_csv(pa.BufferReader(sample), read, parse, convert).schema


def _json(files: Sequence[SourceFile], transport: Transport) -> pa.Schema:
    """The columns in the first records of all files; of many files, of some that are evenly spread."""
    step = max(1, -(-len(files) // _SAMPLED_FILES))
    chosen = files[::step]

    def sample(at: int) -> list[dict[str, Any]]:
        with translating(f"reading {chosen[at].url}"):
            return _sample(chosen[at], transport, SAMPLE_BYTES if at == 0 else _SAMPLE_BYTES_MORE)

    with ThreadPoolExecutor(min(len(chosen), _THREADS)) as pool:
        records = [record for some in pool.map(sample, range(len(chosen))) for record in some]
    if not records and any(_holds_something(file, transport) for file in chosen):
        raise BadFile(f"{files[0].url}: no JSON object in its first lines", _ADVICE)
    if not records and files[0].format == "json":
        raise BadFile(f"{files[0].url}: holds no record", "name a source with something in it")
    columns: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return pa.schema([(name, _infer(values)) for name, values in columns.items() if _is_unicode(name)])


def _sample(file: SourceFile, transport: Transport, size: int) -> list[dict[str, Any]]:
    """The first records of a file."""
    lines = file.format == "jsonl"
    if not lines:
        with _open(file, transport) as stream:
            lines = holds_lines(stream)
    with _open(file, transport) as stream:  # opened anew, since compressed streams do not go back
        found = _lines(stream, size) if lines else _values(stream, file.url, size)
        return [record for record in found if isinstance(record, dict)]


def _lines(stream: BinaryIO, size: int) -> Iterator[Any]:
    """The values among the first lines."""
    seen = 0
    while seen < size and (line := stream.readline()):
        seen += len(line)
        try:
            yield json.loads(line.removeprefix(b"\xef\xbb\xbf").decode())
        except (ValueError, RecursionError):
            continue


def _values(stream: BinaryIO, name: str, size: int) -> Iterator[Any]:
    """The first elements of an array, or values that span lines."""
    most = size * _SAMPLE_VALUES // SAMPLE_BYTES
    for seen, (_, value) in enumerate(iter_values(stream, name), 1):
        try:
            yield json.loads(value.decode(errors="surrogateescape"))
        except (ValueError, RecursionError):
            continue
        if seen >= most:
            return


def _holds_something(file: SourceFile, transport: Transport) -> bool:
    """True unless a file is blank, or an array without elements."""
    with _open(file, transport) as stream:
        if file.format == "json":
            return next(iter_values(stream, file.url), None) is not None
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
