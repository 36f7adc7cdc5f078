"""Small or hostile inputs take neither much memory nor much time. Peaks are measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import lance_prep
from lance_prep.cli.main import run
from lance_prep.recipe import Recipe
from lance_prep.source.prepare import _longest_word
from tests import tokenizers_made as made
from tests.helpers import rows_of

# Runs the command and prints its exit code and the peak of its memory in MiB. (ru_maxrss would count what the process
# of the tests held when it forked.)
_MEASURED = """
import pathlib, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # or a failing test takes the machine's memory
from lance_prep.cli.main import run
code = run(sys.argv[1:])
print("peak", code, int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) >> 10)
"""
_LINE = (json.dumps({"text": "the same words again and again"}) + "\n").encode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.save(tmp_path_factory.mktemp("tokenizer"), made.byte_level(), eos_token="<|endoftext|>")


def measured(*arguments: object) -> tuple[int, int, str]:
    """Return the exit code of a command, the peak of its memory in MiB, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "peak " in done.stdout, done.stderr[-2000:]
    said, _, peak = done.stdout.rpartition("peak ")
    code, size = peak.split()
    return int(code), int(size), said or done.stderr


def build(source: Path, tokenizer: Path, *more: object) -> list[object]:
    fields = ["--layout", "documents", "--workers", 1, "--json", *more]
    return ["build", source, "--tokenizer", tokenizer, "-o", source.with_name("o.lance"), *fields]


def packed(path: Path, pieces: Iterable[bytes], level: int = 3, **parameters: int) -> Path:
    """Write a zstd file of pieces."""
    chosen = zstandard.ZstdCompressionParameters.from_level(level, **parameters)
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=chosen).stream_writer(file) as writer:
        for piece in pieces:
            writer.write(piece)
    return path


def test_a_zstd_file_is_inflated_in_steps(tmp_path: Path, tokenizer: Path) -> None:
    """80 KiB that hold 500 MB. The first read inflated all of it."""
    source = packed(tmp_path / "x.jsonl.zst", (_LINE * 10_000 for _ in range(1100)))
    assert source.stat().st_size < 100_000
    code, peak, said = measured(*build(source, tokenizer, "--max-rows", 10))
    assert (code, json.loads(said)["rows"]) == (0, 10)
    assert peak < 500


@pytest.mark.parametrize("window", [28, 31])
def test_a_long_window_is_read(tmp_path: Path, tokenizer: Path, window: int) -> None:
    """As `zstd --long=28` and `--long=31` write it. The decoder's default stops at 27."""
    rows = 20
    source = packed(tmp_path / "x.jsonl.zst", [_LINE] * rows, window_log=window, write_content_size=0)
    assert zstandard.get_frame_parameters(source.read_bytes()).window_size == 1 << window
    assert run([str(word) for word in build(source, tokenizer)]) == 0
    assert len(rows_of(source.with_name("o.lance"))) == rows


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("x.txt.zst", ["--text-unit", "file"]),
        ("x.txt.zst", ["--text-unit", "line"]),
        ("x.txt.zst", ["--text-unit", "paragraph"]),
        ("x.jsonl.zst", []),
        ("x.json.zst", []),
        ("x.csv.zst", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value[1:]),
)
def test_a_compressed_stream_without_line_ends(tmp_path: Path, tokenizer: Path, name: str, more: list[str]) -> None:
    """24 KiB that hold 700 MB of one letter, after a row. A text file of 2 GB took 22 GB."""
    begins = {"txt": b"a row\n\n", "jsonl": _LINE + b'{"text": "', "json": b'[{"text": "', "csv": b'text,n\na row,1\n"'}
    begin = begins[name.split(".")[1]]
    source = packed(tmp_path / name, [begin, *[b"x" * (1 << 20)] * 700])
    assert source.stat().st_size < 30_000
    code, peak, said = measured(*build(source, tokenizer, *more))
    assert peak < 2000
    if name.startswith(("x.json.", "x.csv.")):  # the end of the value is nowhere, so no other row can follow
        assert code == 1
        assert "  try: " in said
        assert "defect" not in said
    else:
        ledger = json.loads(said)["ledger"]
        kept = 0 if "file" in more else 1
        assert (code, ledger["rows_used"], ledger["rejected"]) == (0, kept, 1)


def rejected(tmp_path: Path, tokenizer: Path, source: Path, *more: object) -> tuple[dict[str, int], list[int]]:
    """Return the reasons for which rows of a source are rejected, and the lengths in the quarantine file."""
    output = tmp_path / "o.lance"
    report = lance_prep.build(
        source, output=output, tokenizer=str(tokenizer), layout="documents", max_text_bytes=1000, **dict(more)
    )
    assert lance_prep.verify(output).problems == []
    lines = (tmp_path / "o.rejected.jsonl").read_text().splitlines()
    assert report.ledger.rows_used == 2
    return dict(report.ledger.reasons), [len(json.loads(line)["text"]) for line in lines]


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write(table)


TEXTS = ["short", "x " * 501, "é" * 500]
FORMATS: dict[str, Callable[[Path], object]] = {
    "x.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path),
    "x.arrow": lambda path: write_arrow(path, pa.table({"text": TEXTS})),
    "x.jsonl": lambda path: path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS)),
    "x.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS])),
    "x.csv": lambda path: path.write_text("text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS)),
    "x.txt": lambda path: path.write_text("\n\n".join(TEXTS)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_that_is_too_long_is_rejected(tmp_path: Path, tokenizer: Path, name: str) -> None:
    source = tmp_path / name
    FORMATS[name](source)
    more = [("text_unit", "paragraph")] if name == "x.txt" else []
    assert rejected(tmp_path, tokenizer, source, *more) == ({"text over 1,000 bytes": 1}, [1002])


def test_a_text_made_by_a_template_has_the_same_limit(tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps({"n": n}) + "\n" for n in (1, 2000, 2)))
    found = rejected(tmp_path, tokenizer, source, ("template", "{{ 'x' * n }}"))
    assert found == ({"text over 1,000 bytes": 1}, [2000])


@pytest.mark.parametrize("length", [999, 1000, 1001, 1002])
@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_the_length_at_the_limit(tmp_path: Path, tokenizer: Path, unit: str, length: int) -> None:
    source = tmp_path / "x.txt"
    source.write_bytes(b"x" * length if unit == "file" else b"a\r\n\r\n" + b"x" * length + b"\r\n\r\nb")
    report = lance_prep.build(
        source, output=tmp_path / "o.lance", tokenizer=str(tokenizer), layout="documents", max_text_bytes=1000,
        text_unit=unit,  # type: ignore[arg-type]
    )  # fmt: skip
    assert report.ledger.rejected == (length > 1000)


def test_a_word_that_is_too_long_is_rejected(tmp_path: Path, tokenizer: Path) -> None:
    """Of 40 MB, the tokenizer took 1.2 GB. Words that are only next to each other are none."""
    most = 32 << 20
    texts = ["a " + "x" * most, "b " + "x" * (most + 1) + " c", " " * (most + 1) + "d", ("x" * (most - 1) + " ") * 2]
    words = [_longest_word(memoryview(text.encode())) for text in texts]
    assert words == [most, most + 1, most + 1, most - 1]
    source = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["short", texts[1], texts[2], "short too"]}), source)
    report = lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=str(tokenizer), layout="documents")
    assert report.ledger.reasons == {f"word over {most:,} bytes": 2}
    assert report.ledger.rows_used == 2


def test_the_default_leaves_keys_as_they_are() -> None:
    assert "max_text_bytes" not in Recipe(source="x").as_json()
    assert Recipe(source="x", max_text_bytes="1KiB").as_json()["max_text_bytes"] == 1024


def test_a_tokenizer_with_a_huge_id_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    """gigatoken asked for 64 GB, and the process was aborted."""
    data = json.loads((Path(tokenizer) / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary[list(vocabulary)[-1]] = 4_000_000_000
    (tmp_path / "t.json").write_text(json.dumps(data))
    (tmp_path / "x.txt").write_text("a text")
    code, _, said = measured(*build(tmp_path / "x.txt", tmp_path / "t.json"))
    assert code == 1
    assert "the id 4,000,000,000, and ids may be at most 16,777,215" in said
