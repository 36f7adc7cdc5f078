"""Hostile files: JSON, CSV, text, columnar formats and compressed streams."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.hostile.case import Case, Theme, build

_MIB = 1 << 20
_ROW = b'{"text": "a row"}\n'


def pieces(piece: bytes, times: int, begin: bytes = b"", end: bytes = b"") -> Callable[[Path], None]:
    """Write a file of `piece` repeated, in whatever compression its name says."""

    def write(path: Path) -> None:
        openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        if path.suffix == ".zst":
            with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
                for each in (begin, *[piece] * times, end):
                    file.write(each)
            return
        fast = {".gz": {"compresslevel": 1}, ".bz2": {"compresslevel": 1}, ".xz": {"preset": 0}}.get(path.suffix, {})
        opened = openers[path.suffix](path, "wb", **fast) if path.suffix in openers else path.open("wb")
        with opened as file:
            for each in (begin, *[piece] * times, end):
                file.write(each)

    return write


def spoiled(data: bytes, *, cut: int = 0, flip: int | None = None, after: bytes = b"") -> bytes:
    """Return data that is cut by some bytes, has a flipped bit, or is followed by something."""
    changed = bytearray(data[: len(data) - cut])
    if flip is not None:
        changed[flip] ^= 1
    return bytes(changed) + after


def parquet(columns: dict[str, object], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def _arrow(columns: dict[str, object]) -> bytes:
    table, sink = pa.table(columns), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue()


def _rejected(reason: str, used: int = 1) -> str:
    """Match a summary in which some rows were used and one was rejected for a reason."""
    return rf"(?s)= {used} used .*rejected for +.*{reason}"


def _one(name: str, record: str | bytes, reason: str, **more: object) -> Case:
    """A JSON Lines file with a good row and a bad one, which is rejected."""
    data = _ROW + (record.encode() if isinstance(record, str) else record) + b"\n"
    return Case(name, build("x.jsonl"), _rejected(reason), {"x.jsonl": data}, code=0, **more)  # type: ignore[arg-type]


DEEP = 100_000

JSON_LINES = Theme(
    "JSON Lines",
    "A bad line is rejected under its reason, and the others are used.",
    (
        Case(
            "arrays nested 100,000 deep under a key that is not read",
            build("x.jsonl"),
            "= 2 used",
            {"x.jsonl": _ROW + b'{"text": "x", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}\n"},
            code=0,
        ),
        Case(
            "objects nested 100,000 deep under a key that is kept",
            build("x.jsonl", "--keep-columns", "a"),
            _rejected("nested too deep"),
            {
                "x.jsonl": b'{"text": "a", "a": "b"}\n{"text": "x", "a": '
                + b'{"a":' * DEEP
                + b"1"
                + b"}" * DEEP
                + b"}\n"
            },
            code=0,
        ),
        _one("a text nested 100,000 deep", '{"text": ' + "[" * DEEP + "]" * DEEP + "}", "nested too deep"),
        _one("a line that is cut", '{"text": "never end', "invalid JSON", quick=True),
        _one("two records in a line", '{"text": "a"}{"text": "b"}', "invalid JSON"),
        _one("no object", "[1, 2]", "not a JSON object"),
        _one("a number for the text", '{"text": 5}', "not string"),
        _one("an object for the text", '{"text": {"a": 1}}', "not string"),
        _one("no text", '{"other": "x"}', "no column text"),
        _one("a key twice", '{"text": "a", "text": "b"}', "duplicate key"),
        _one("a lone surrogate", r'{"text": "\ud800"}', "lone surrogate"),
        _one("bytes that are not UTF-8", b'{"text": "\xff\xfe"}', "invalid UTF-8"),
        _one("a NUL between records", b'\x00{"text": "a"}', "invalid JSON"),
        _one("a text of 300 MiB", '{"text": "' + "word " * (60 << 20) + '"}', "over", mib=1800, seconds=60),
        _one("a word of 33 MiB", '{"text": "' + "x" * (33 << 20) + '"}', "word over", mib=900),
        Case(
            "an integer of 100,000 digits beside the text",
            build("x.jsonl", "--keep-columns", "n"),
            _rejected("not int64|n is not"),
            {"x.jsonl": b'{"text": "a", "n": 1}\n{"text": "b", "n": ' + b"9" * 100_000 + b"}\n"},
            code=0,
        ),
        Case(
            "a number of 1e400 beside the text",
            build("x.jsonl", "--keep-columns", "n"),
            _rejected("n is not"),
            {"x.jsonl": b'{"text": "a", "n": 1.5}\n{"text": "b", "n": 1e400}\n'},
            code=0,
        ),
        Case(
            "a byte order mark",
            build("x.jsonl"),
            r"= 1 used",
            {"x.jsonl": b"\xef\xbb\xbf" + _ROW},
            code=0,
        ),
        Case("UTF-16", build("x.jsonl"), "UTF-16", {"x.jsonl": _ROW.decode().encode("utf-16")}),
        Case("UTF-32", build("x.jsonl"), "UTF-32", {"x.jsonl": _ROW.decode().encode("utf-32")}),
        Case("only a line that is cut", build("x.jsonl"), "x.jsonl", {"x.jsonl": '{"text": "never'}),
        Case("only bytes of zero", build("x.jsonl"), "x.jsonl", {"x.jsonl": bytes(_MIB)}),
        Case("nothing", build("x.jsonl"), "empty|no rows|no records", {"x.jsonl": b""}),
        Case("only blank lines", build("x.jsonl"), "no JSON object", {"x.jsonl": b"\n" * 1000}),
        Case(
            "10 million blank lines", build("x.jsonl"), "= 1 used", {"x.jsonl": pieces(b"\n" * _MIB, 10, _ROW)}, code=0
        ),
        Case(
            "200,000 keys in a record",
            build("x.jsonl"),
            "= 1 used",
            {"x.jsonl": json.dumps({"text": "a", **{f"k{i}": i for i in range(200_000)}})},
            code=0,
            mib=1500,
            seconds=60,
        ),
        Case(
            "a new key in each of 20,000 rows",
            build("x.jsonl"),
            "= 20,000 used",
            {"x.jsonl": "".join(json.dumps({"text": "a", f"k{i}": i}) + "\n" for i in range(20_000))},
            code=0,
            seconds=60,
        ),
        Case(
            "a new key in each of 20,000 rows that are all kept",
            ("build", "x.jsonl", "--layout", "raw", "-o", "x.lance"),
            "columns, and layout 'raw' keeps at most 10,000",
            {"x.jsonl": "".join(json.dumps({"text": "a", f"k{i}": i}) + "\n" for i in range(20_000))},
            code=2,
        ),
        Case(
            "escape sequences of a terminal in a bad text",
            build("x.jsonl", "--strict"),
            r"error: .*x\.jsonl",
            {"x.jsonl": _ROW + b'{"text": 5, "a": "\\u001b[2J"}\n'},
        ),
    ),
)

JSON_ARRAYS = Theme(
    "JSON arrays",
    "A value that is too long is rejected. A file that is not JSON is named, with the place of the error.",
    (
        Case("nested 100,000 deep", build("x.json"), "nest|x.json", {"x.json": "[" * DEEP + "]" * DEEP}),
        Case(
            "an element nested 100,000 deep",
            build("x.json"),
            "nest|x.json",
            {"x.json": '[{"text": "a"}, {"text": "b", "x": ' + "[" * DEEP + "]" * DEEP + "}]"},
        ),
        Case("cut inside a value", build("x.json"), "x.json", {"x.json": '[{"text": "a"}, {"text": "b'}),
        Case("cut after a comma", build("x.json"), "x.json", {"x.json": '[{"text": "a"},'}),
        Case("two arrays", build("x.json"), "= 2 used", {"x.json": '[{"text": "a"}][{"text": "b"}]'}, code=0),
        Case("rubbish after the array", build("x.json"), "x.json", {"x.json": '[{"text": "a"}] rubbish'}),
        Case("a lone number", build("x.json"), "x.json", {"x.json": "5"}),
        Case("a lone string", build("x.json"), "x.json", {"x.json": '"text"'}),
        Case("an empty array", build("x.json"), "x.json", {"x.json": "[]"}),
        Case("nothing", build("x.json"), "x.json|empty", {"x.json": b""}),
        Case("UTF-16", build("x.json"), "UTF-16", {"x.json": '[{"text": "a"}]'.encode("utf-16")}),
        Case(
            "bytes that are not UTF-8",
            build("x.json"),
            _rejected("UTF-8"),
            {"x.json": b'[{"text": "a"}, {"text": "\xff"}]'},
            code=0,
        ),
        Case(
            "numbers among the records",
            build("x.json"),
            _rejected("not a JSON object"),
            {"x.json": '[{"text": "a"}, 5]'},
            code=0,
        ),
        Case(
            "a text of 300 MiB",
            build("x.json"),
            _rejected("over", 2),
            {"x.json": pieces(b"word " * (_MIB // 5), 300, b'[{"text": "a"}, {"text": "', b'"}, {"text": "b"}]')},
            code=0,
            mib=1800,
            seconds=90,
        ),
        Case(
            "a text of 1.2 GiB in 130 KiB",
            build("x.json.zst"),
            _rejected("value over", 2),
            {"x.json.zst": pieces(b"x" * _MIB, 1200, b'[{"text": "a"}, {"text": "', b'"}, {"text": "b"}]')},
            code=0,
            mib=2000,
            seconds=90,
        ),
        Case(
            "a number of 100 MiB",
            build("x.json"),
            "x.json",
            {"x.json": pieces(b"9" * _MIB, 100, b'[{"text": "a"}, {"text": "b", "n": ')},
            mib=1500,
        ),
        Case(
            "100 MiB of white space",
            build("x.json"),
            "= 1 used",
            {"x.json": pieces(b" " * _MIB, 100, b"[", b'{"text": "a"}]')},
            code=0,
            seconds=60,
        ),
        Case(
            "100 MiB of commas",
            build("x.json"),
            "x.json",
            {"x.json": pieces(b"," * _MIB, 100, b'[{"text": "a"}', b"]")},
        ),
        Case(
            "one object of 100 MiB",
            build("x.json"),
            "no column 'text'",
            {"x.json": pieces(b'"k": {"text": "a"}, ' * 50_000, 100, b"{", b'"z": 1}')},
            mib=1500,
            seconds=60,
        ),
    ),
)

CSV = Theme(
    "CSV",
    "A row with too many or too few fields is rejected. A quote that is never closed is named with its row.",
    (
        Case(
            "a row with too many fields",
            build("x.csv"),
            _rejected("too many"),
            {"x.csv": "text,n\na,1\nb,1,2\n"},
            code=0,
        ),
        Case("a row with too few fields", build("x.csv"), _rejected("too few"), {"x.csv": "text,n\na,1\nb\n"}, code=0),
        Case("a quote that is never closed", build("x.csv"), "data row 2", {"x.csv": 'text,n\na,1\n"b,2\nc,3\n'}),
        Case("a header with an open quote", build("x.csv"), "x.csv", {"x.csv": '"text,n\na,1\n'}),
        Case("only a header", build("x.csv"), "0 = 0 used", {"x.csv": "text,n\n"}, code=0),
        Case("nothing", build("x.csv"), "empty|x.csv", {"x.csv": b""}),
        Case("only NULs", build("x.csv"), "x.csv|no column", {"x.csv": bytes(_MIB)}),
        Case("UTF-16", build("x.csv"), "UTF-16", {"x.csv": "text,n\na,1\n".encode("utf-16")}),
        Case("a column twice", build("x.csv"), "2 columns named", {"x.csv": "text,text\na,b\n"}, code=2),
        Case(
            "bytes that are not UTF-8",
            build("x.csv"),
            _rejected("UTF-8"),
            {"x.csv": b"text,n\na,1\n\xff\xfe,2\n"},
            code=0,
        ),
        Case(
            "20,000 columns",
            build("x.csv"),
            "= 1 used",
            {"x.csv": "text," + ",".join(f"c{i}" for i in range(20_000)) + "\na" + ",1" * 20_000 + "\n"},
            code=0,
            seconds=60,
        ),
        Case(
            "as many columns as the row that marks the end",
            build("x.csv"),
            "99,991 columns",
            {"x.csv": "text" + ",c" * 99_990 + "\na" + ",1" * 99_990 + "\n"},
            seconds=60,
        ),
        Case(
            "a line of 300 MiB",
            build("x.csv"),
            "over|x.csv",
            {"x.csv": pieces(b"word " * 200_000, 315, b"text,n\na,1\n", b",2\n")},
            code=0,
            mib=2200,
            seconds=90,
        ),
        Case(
            "a quoted field of 1.2 GiB in 130 KiB",
            build("x.csv.zst"),
            "x.csv.zst",
            {"x.csv.zst": pieces(b"x\n" * (_MIB // 2), 1200, b'text,n\na,1\n"', b'",2\n')},
            mib=3200,
            seconds=120,
        ),
        Case(
            "100 MiB of line ends",
            build("x.csv"),
            "= 1 used",
            {"x.csv": pieces(b"\n" * _MIB, 100, b"text,n\na,1\n")},
            code=0,
            seconds=60,
        ),
        Case(
            "100 MiB of commas in the header",
            build("x.csv"),
            "x.csv|column",
            {"x.csv": pieces(b"," * _MIB, 100, b"text")},
            mib=1500,
            seconds=60,
        ),
        Case(
            "100 MiB of quotes",
            build("x.csv"),
            "too many fields",
            {"x.csv": pieces(b'"' * _MIB, 100, b"text,n\n", b",1,\n")},
            code=0,
            mib=1500,
            seconds=60,
        ),
        Case(
            "two files with different delimiters",
            build("in"),
            "different delimiters",
            {"in/a.csv": "text,n\na,1\n", "in/b.csv": "text;n\na;1\n"},
            code=2,
        ),
    ),
)

TEXT = Theme(
    "Text files",
    "A unit that is too long or not UTF-8 is rejected. UTF-16 is named.",
    (
        Case(
            "bytes that are not UTF-8",
            build("x.txt", "--text-unit", "line"),
            _rejected("UTF-8"),
            {"x.txt": b"a\n\xff\n"},
            code=0,
        ),
        Case("UTF-16", build("x.txt"), "UTF-16", {"x.txt": "a text\n".encode("utf-16")}),
        Case("UTF-16 without a mark", build("x.txt"), "= 1 used", {"x.txt": "a text\n".encode("utf-16-le")}, code=0),
        Case("only NULs", build("x.txt"), "= 1 used|rejected|NUL", {"x.txt": bytes(1000)}, code=0),
        Case(
            "a line of 40 MiB",
            build("x.txt", "--text-unit", "line"),
            _rejected("word over"),
            {"x.txt": pieces(b"x" * _MIB, 40, b"a\n")},
            code=0,
            mib=900,
        ),
        Case(
            "300 MiB in one unit",
            build("x.txt", "--text-unit", "file"),
            "over",
            {"x.txt": pieces(b"word " * 200_000, 315)},
            code=0,
            mib=1500,
            seconds=60,
        ),
        Case(
            "50 MiB of line ends",
            build("x.txt", "--text-unit", "line"),
            "= 1 used",
            {"x.txt": pieces(b"\n" * _MIB, 50, b"a")},
            code=0,
            mib=1200,
            seconds=90,
        ),
        Case(
            "50 MiB of carriage returns",
            build("x.txt", "--text-unit", "line"),
            "= 1 used",
            {"x.txt": pieces(b"\r" * _MIB, 50, b"a\n")},
            code=0,
            mib=1200,
            seconds=90,
        ),
        Case(
            "50 MiB of blank lines as paragraphs",
            build("x.txt", "--text-unit", "paragraph"),
            "= 1 used",
            {"x.txt": pieces(b"\n" * _MIB, 50, b"a")},
            code=0,
            mib=1200,
            seconds=60,
        ),
        Case("a million words of one letter", build("x.txt"), "= 1 used", {"x.txt": b"x " * 1_000_000}, code=0),
        Case(
            "combining marks without end",
            build("x.txt"),
            "= 1 used",
            {"x.txt": "e" + "\u0301" * 200_000},
            code=0,
            mib=1000,
        ),
        Case("every control character", build("x.txt"), "= 1 used", {"x.txt": bytes(range(32)) + b"\x7f"}, code=0),
        Case(
            "special tokens in the text",
            build("x.txt", "--special-tokens", "error"),
            "special token",
            {"x.txt": "<|endoftext|>"},
        ),
        Case("right-to-left overrides in a name", build("x\u202egpj.txt"), "= 1 used", {"x\u202egpj.txt": "a"}, code=0),
    ),
)

_LINES = _ROW * 1000


def _compressed(name: str, data: bytes, message: str, **more: object) -> Case:
    return Case(f"{name}", build(f"x.jsonl{name.split()[0]}"), message, {f"x.jsonl{name.split()[0]}": data}, **more)  # type: ignore[arg-type]


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


_PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def _damaged() -> Iterable[Case]:
    for ending, pack in _PACK.items():
        good = pack(_LINES)
        where = f"x.jsonl{ending}"
        yield _compressed(f"{ending} that is cut", spoiled(good, cut=20), "damaged|cut|ends")
        yield _compressed(f"{ending} with a flipped bit", spoiled(good, flip=len(good) // 2), where)
        yield _compressed(
            f"{ending} with a second stream that is damaged", good + spoiled(good, flip=len(good) // 2), where
        )
        yield _compressed(f"{ending} with a second header that is damaged", good + spoiled(good, flip=1), where)
        yield _compressed(f"{ending} with rubbish after it", good + b"rubbish, not a stream", where)
        yield _compressed(f"{ending} of plain text", _LINES, where)
        yield _compressed(f"{ending} with two streams", good + good, "= 2,000 used", code=0)
        yield _compressed(f"{ending} of nothing", pack(b""), "empty|no rows|no column")
        yield _compressed(f"{ending} within itself", pack(good), where)
        yield Case(
            f"{ending} of 1 GiB in one line",
            build(where),
            _rejected("over"),
            {where: pieces(b"x" * _MIB, 1024, _ROW + b'{"text": "', b'"}\n')},
            code=0,
            mib=1800,
            seconds=120,
        )


COMPRESSED = Theme(
    "Compressed files",
    "Damage in any stream is an error, never an early end. A bomb is inflated in steps, and its long line rejected.",
    (
        *_damaged(),
        Case(
            "a 10-byte zstd frame that claims 2^60 bytes",
            build("x.jsonl.zst"),
            "x.jsonl.zst",
            {"x.jsonl.zst": b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\x01\x00\x00"},
        ),
        Case(
            "100,000 empty gzip members",
            build("x.jsonl.gz"),
            "= 1 used",
            {"x.jsonl.gz": gzip.compress(b"", mtime=0) * 100_000 + gzip.compress(_ROW)},
            code=0,
            seconds=60,
        ),
        Case(
            "an empty .gz before a good file of a folder",
            build("in"),
            "= 1 used",
            {"in/a.jsonl.gz": gzip.compress(b""), "in/b.jsonl": _ROW},
            code=0,
        ),
        Case(
            "an empty array before a good file of a folder",
            build("in"),
            "= 1 used",
            {"in/a.json": "[]", "in/b.json": '[{"text": "a"}]'},
            code=0,
        ),
        Case("a raw deflate stream", build("x.jsonl.gz"), "x.jsonl.gz", {"x.jsonl.gz": zlib.compress(_LINES)}),
    ),
)

_TABLE = {"text": ["a row"] * 100, "n": list(range(100))}


def _short_footer(data: bytes, length: int) -> bytes:
    return data[:-8] + struct.pack("<I", length) + b"PAR1"


COLUMNAR = Theme(
    "Parquet and Arrow",
    "A damaged file is named. Nulls and wrong types are counted.",
    (
        Case(
            "a Parquet file that is cut",
            build("x.parquet"),
            "x.parquet",
            {"x.parquet": spoiled(parquet(_TABLE), cut=30)},
        ),
        Case("a Parquet file of zeros", build("x.parquet"), "x.parquet", {"x.parquet": bytes(10_000)}),
        Case("a Parquet file of nothing", build("x.parquet"), "x.parquet|empty", {"x.parquet": b""}),
        Case(
            "a footer of 4 GB",
            build("x.parquet"),
            "x.parquet",
            {"x.parquet": _short_footer(parquet(_TABLE), 0xFFFFFFF0)},
        ),
        Case("a footer of 0 bytes", build("x.parquet"), "x.parquet", {"x.parquet": _short_footer(parquet(_TABLE), 0)}),
        Case(
            "a footer of random bytes",
            build("x.parquet"),
            "x.parquet",
            {"x.parquet": b"PAR1" + os.urandom(500) + struct.pack("<I", 500) + b"PAR1"},
        ),
        Case("an encrypted footer", build("x.parquet"), "is encrypted", {"x.parquet": parquet(_TABLE)[:-4] + b"PARE"}),
        Case(
            "a page whose checksum is wrong",
            build("x.parquet"),
            "x.parquet",
            {
                "x.parquet": spoiled(
                    (
                        data := parquet(
                            {"text": [f"a row {i}" for i in range(100)]},
                            write_page_checksum=True,
                            use_dictionary=False,
                            compression="none",
                        )
                    ),
                    flip=data.index(b"a row 50"),
                )
            },
        ),
        Case("a text column of integers", build("x.parquet"), "text", {"x.parquet": parquet({"text": [1, 2]})}),
        Case("a text column of lists", build("x.parquet"), "text", {"x.parquet": parquet({"text": [["a"], ["b"]]})}),
        Case(
            "only nulls",
            build("x.parquet"),
            "2 empty",
            {"x.parquet": parquet({"text": pa.array([None, None], pa.string())})},
            code=0,
        ),
        Case(
            "no rows",
            build("x.parquet"),
            "0 = 0 used",
            {"x.parquet": parquet({"text": pa.array([], pa.string())})},
            code=0,
        ),
        Case(
            "5 million nulls",
            build("x.parquet"),
            "= 1 used",
            {"x.parquet": parquet({"text": pa.array([None] * 5_000_000 + ["a"], pa.string())})},
            code=0,
            seconds=60,
        ),
        Case(
            "bytes that are not UTF-8 in a string column",
            build("x.parquet"),
            _rejected("UTF-8"),
            {"x.parquet": parquet({"text": pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())})},
            code=0,
        ),
        Case(
            "a column named with a control character",
            build("x.parquet", "--keep-columns", "n\x1b[2J"),
            r"= 1 used|column",
            {"x.parquet": parquet({"text": ["a"], "n\x1b[2J": [1]})},
            code=0,
        ),
        Case(
            "a bomb: 400 MB of one word in 100 KB",
            build("x.parquet"),
            "= 400 used",
            {"x.parquet": parquet({"text": ["word " * 200_000] * 400}, compression="zstd")},
            code=0,
            mib=1500,
            seconds=120,
        ),
        Case(
            "10,000 row groups",
            build("x.parquet"),
            "= 10,000 used",
            {"x.parquet": parquet({"text": ["a"] * 10_000}, row_group_size=1)},
            code=0,
            seconds=60,
        ),
        Case("an Arrow file that is cut", build("x.arrow"), "x.arrow", {"x.arrow": spoiled(_arrow(_TABLE), cut=30)}),
        Case(
            "an Arrow file of random bytes",
            build("x.arrow"),
            "x.arrow",
            {"x.arrow": b"ARROW1\0\0" + os.urandom(500) + b"ARROW1"},
        ),
        Case("a Parquet file called .arrow", build("x.arrow"), "x.arrow", {"x.arrow": parquet(_TABLE)}),
        Case("a JSON file called .parquet", build("x.parquet"), "x.parquet", {"x.parquet": _LINES}),
        Case("a page called .parquet", build("x.parquet"), "x.parquet", {"x.parquet": "<html>log in</html>"}),
        Case(
            "files with different columns",
            build("in"),
            "text|column",
            {"in/a.parquet": parquet({"text": ["a"]}), "in/b.parquet": parquet({"body": ["a"]})},
        ),
        Case(
            "a damaged file among good ones",
            build("in"),
            "b.parquet",
            {"in/a.parquet": parquet(_TABLE), "in/b.parquet": bytes(100)},
        ),
    ),
)

THEMES = {
    "json lines": JSON_LINES,
    "json": JSON_ARRAYS,
    "csv": CSV,
    "text": TEXT,
    "compressed": COMPRESSED,
    "columnar": COLUMNAR,
}
