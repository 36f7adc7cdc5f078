"""Small or hostile inputs take neither much memory nor much time. Peaks are measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from lance_prep.cli.main import run
from tests import tokenizers_made as made
from tests.helpers import rows_of

# Runs the command and prints its exit code and the peak of its memory in MiB. (ru_maxrss counts KiB on Linux.)
_MEASURED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # or a failing test takes the machine's memory
from lance_prep.cli.main import run
code = run(sys.argv[1:])
print("peak", code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
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
