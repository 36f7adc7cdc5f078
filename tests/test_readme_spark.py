"""The tutorial about Spark, literally, against the loopback Hub."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.documents import DOCS, given_to
from tests.helpers import check_whole
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.spark import needs_spark
from tests.tokenizers_made import byte_level

needs_spark()

#: What `HfFileSystem` reads ahead, whatever is asked for.
READ_AHEAD = 5 << 20
#: What Arrow reads of a file's end first.
FOOTER = 64 << 10
#: Rows of a row group, and bytes of the column that nothing asks for in each.
ROWS, BALLAST = 500, 8 << 20
LANGUAGES = ("en", "de", "fr")


def section() -> list[tuple[str, str]]:
    """Return language and text of the tutorial's blocks."""
    return given_to("test_readme_spark", DOCS / "tutorials/spark.md")


def wide_parquet() -> bytes:
    """Return a row group in each language. In each, another column has more than is read ahead."""
    draw = np.random.default_rng(0)
    columns = {
        "text": [f"{lang}: document {number} says so." for lang in LANGUAGES for number in range(ROWS)],
        "lang": [lang for lang in LANGUAGES for _ in range(ROWS)],
        "image": [draw.bytes(BALLAST // ROWS) for _ in range(ROWS * len(LANGUAGES))],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=ROWS)
    return sink.getvalue().to_pybytes()


def run_python(block: str, scope: dict[str, Any]) -> None:
    """Run a block as a reader does. No expression in it may be False."""
    for node in ast.parse(block).body:
        if isinstance(node, ast.Expr):
            assert eval(compile(ast.Expression(node.value), "README", "eval"), scope) is not False, ast.unparse(node)
        else:
            exec(compile(ast.Module([node], []), "README", "exec"), scope)


def run_shell(block: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], env={**os.environ, "PATH": path}, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_the_pages_about_spark_say(
    spark: Any, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark_huggingface")
    blocks = section()
    assert [language for language, _ in blocks] == ["sh", "python"] * 3
    data = wide_parquet()
    hub.add_dataset("owner/pages", {"data/train-00000-of-00001.parquet": data})
    hub.add_model("openai-community/gpt2", {"tokenizer.json": byte_level()})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    printed = [run_shell(block) if language == "sh" else run_python(block, scope) for language, block in blocks]

    hashes = re.findall(r"content hash +(\w+)", str(printed[0]))
    assert len(hashes) >= 2
    assert len(set(hashes)) == 1
    check_whole(tmp_path / "spark.lance")
    for name in ("pages", "pages-tokens"):
        check_whole(tmp_path / f"{name}.lance")
    assert len(hub.history("owner/pages-en")) == 2  # that of the new repository, and one
    check_what_was_read(hub, data)


def check_what_was_read(hub: LoopbackHub, data: bytes) -> None:
    """Check that of the source only its footer was read, and two columns of the row group in English."""
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    wanted = {column.dictionary_page_offset or column.data_page_offset for column in map(group.column, (0, 1))}
    read = 0
    for request in hub.requests(r"GET /datasets/owner/pages/resolve/.*\.parquet"):
        start, last = map(int, re.findall(r"\d+", request["range"]))
        read += last + 1 - start
        assert start >= len(data) - FOOTER or start in wanted, request["range"]
    # Two jobs read it, and each asks for the footer twice.
    assert 0 < read <= 2 * READ_AHEAD + 4 * FOOTER
    assert len(data) > 2 * read
