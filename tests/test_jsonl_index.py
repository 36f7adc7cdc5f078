"""`lance-prep index`: which records are found, what a second run reads, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lance_prep.cli.main import run
from lance_prep.dataset import index_jsonl, jsonl_index
from lance_prep.errors import BadFile, DamagedDataset, OutputLocked, SourceChanged, SourceNotFound
from lance_prep.store.stores import output_lock
from tests.processes import finish, start, wait_for


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def spans(index: str | Path) -> list[tuple[int, int, int]]:
    """File number, offset and length of each record."""
    rows = lance.dataset(str(index)).to_table().to_pylist()
    return [(row["file"], row["offset"], row["length"]) for row in rows]


def lines(index: str | Path, files: list[Path]) -> list[bytes]:
    contents = [file.read_bytes() for file in files]
    return [contents[file][offset : offset + length] for file, offset, length in spans(index)]


def test_a_folder_is_indexed_in_natural_order(tmp_path: Path, capsys: Any) -> None:
    files = [write(tmp_path / f"part-{i}.jsonl", {"n": i}, {"n": -i}) for i in (1, 2, 10)]
    deeper = write(tmp_path / "z" / "more.NDJSON", {"n": 7})
    write(tmp_path / ".hidden.jsonl", {"n": 0})
    write(tmp_path / ".cache" / "a.jsonl", {"n": 0})
    (tmp_path / "notes.txt").write_text("{}\n")
    assert run(["index", str(tmp_path)]) == 0
    assert f"indexed: 7 records in 4 files (68 B): {tmp_path}/.jsonl_index.lance" in capsys.readouterr().out
    index = tmp_path / ".jsonl_index.lance"
    assert [json.loads(line)["n"] for line in lines(index, [*files, deeper])] == [1, -1, 2, -2, 10, -10, 7]


def test_a_build_of_the_folder_does_not_see_the_index(tmp_path: Path) -> None:
    write(tmp_path / "data" / "sub" / "a.jsonl", {"text": "one"}, {"text": "two"})
    assert run(["index", str(tmp_path / "data")]) == 0
    assert run(["index", str(tmp_path / "data" / "sub")]) == 0
    for source in (tmp_path / "data", tmp_path / "data" / "**" / "*.jsonl"):
        out = tmp_path / f"{source.name[0]}.lance"
        assert run(["build", str(source), "--tokenizer", "lance-prep:sample", "-o", str(out)]) == 0
        assert lance.dataset(str(out)).schema.metadata is not None


#: Pieces that lines are made of, so that every kind of end and of blank line is beside every other.
_PIECES = st.sampled_from([b"{}", b'{"a": 1}', b" ", b"\t", b"\r", b"\n", b"\r\n", b"\n\n", b' {"b": "\\n"}', b"\x0b"])


@settings(max_examples=100, deadline=None)
@given(st.lists(_PIECES, max_size=30), st.booleans(), st.integers(1, 40), st.integers(1, 9))
@example([b"{}", b"\r\n", b"\r\n", b"\n", b" ", b"\n", b"{}"], True, 3, 1)
def test_lines_are_those_that_python_finds(
    tmp_path_factory: Any, pieces: list[bytes], bom: bool, chunk: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    data = b'{"first": 1}\n' + b"".join(pieces)
    (folder / "a.jsonl").write_bytes((b"\xef\xbb\xbf" if bom else b"") + data)
    with pytest.MonkeyPatch.context() as patch:  # so that lines cross chunks and blocks
        patch.setattr(jsonl_index, "CHUNK_BYTES", chunk)
        patch.setattr(jsonl_index, "_BLOCK_BYTES", block)
        index_jsonl(folder)
    expected = [line.rstrip(b"\r") for line in data.split(b"\n") if line.strip()]
    found = lines(folder / ".jsonl_index.lance", [folder / "a.jsonl"])
    assert [line.rstrip(b"\r") for line in found] == expected


def test_it_takes_at_most_24_bytes_a_record(tmp_path: Path) -> None:
    draw = random.Random(0)
    for i in range(3):
        write(tmp_path / f"{i}.jsonl", *({"text": "x" * draw.randint(0, 90)} for _ in range(20_000)))
    index_jsonl(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / ".jsonl_index.lance").rglob("*") if path.is_file())
    assert size <= 24 * 60_000


def test_a_second_run_reads_only_what_is_new_or_changed(tmp_path: Path, capsys: Any) -> None:
    for name, n in (("a", 3), ("b", 4), ("c", 5)):
        write(tmp_path / f"{name}.jsonl", *({"n": i} for i in range(n)))
    first = index_jsonl(tmp_path)
    assert index_jsonl(tmp_path).status == "up to date"
    write(tmp_path / "b.jsonl", {"n": 1}, {"n": 2})
    write(tmp_path / "aa.jsonl", {"n": 9})
    (tmp_path / "c.jsonl").unlink()
    done = index_jsonl(tmp_path)
    assert (done.status, done.added, done.changed, done.removed) == (
        "updated",
        ["aa.jsonl"],
        ["b.jsonl"],
        ["c.jsonl"],
    )
    assert (done.files, done.rows, done.scanned_files) == (3, 6, 2)
    assert done.content_hash != first.content_hash
    whole = index_jsonl(tmp_path, output=tmp_path.parent / f"{tmp_path.name}.lance")
    assert spans(done.index) == spans(whole.index)
    assert done.content_hash == whole.content_hash
    assert run(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("up to date: 6 records in 3 files")
    # Nothing of the earlier versions is left.
    assert len(list(Path(done.index).glob("data/*.lance"))) == 1
    assert len(list(Path(done.index).glob(".lance_prep/lists/*"))) == 1


def test_a_touched_file_is_read_again_and_has_the_same_content(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"n": 1})
    first = index_jsonl(tmp_path)
    os.utime(file, ns=(5, 5))
    again = index_jsonl(tmp_path)
    assert (again.status, again.changed, again.content_hash) == ("updated", ["a.jsonl"], first.content_hash)
    assert index_jsonl(tmp_path, rescan=True).scanned_files == 1


def test_each_pattern_has_an_index_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"n": 1})
    write(tmp_path / "b.jsonl", {"n": 2}, {"n": 3})
    whole, one, some = (index_jsonl(tmp_path / name) for name in ("", "b.jsonl", "[a-b]*.jsonl"))
    assert [done.rows for done in (whole, one, some)] == [3, 2, 3]
    assert len({done.index for done in (whole, one, some)}) == 3


@pytest.mark.parametrize(
    ("name", "content", "what", "advice"),
    [
        (None, b"", "no .jsonl or .ndjson file here", "name a folder"),
        ("a.jsonl.gz", gzip.compress(b"{}\n"), "a.jsonl.gz is compressed", "gunzip"),
        ("a.jsonl", b"\n \n\r\n", "hold no records", "check that they are complete"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "is UTF-16", "iconv"),
    ],
)
def test_what_cannot_be_indexed(
    tmp_path: Path, name: str | None, content: bytes, what: str, advice: str, capsys: Any
) -> None:
    (tmp_path / "d").mkdir()
    if name:
        (tmp_path / "d" / name).write_bytes(content)
    assert run(["index", str(tmp_path / "d")]) == 1
    said = capsys.readouterr().err
    assert what in said
    assert advice in said
    with pytest.raises((SourceNotFound, BadFile)):
        index_jsonl(tmp_path / "d" / (name or "none.jsonl"))


def test_compressed_files_beside_plain_ones_are_named(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "a.jsonl", {"n": 1})
    (tmp_path / "b.jsonl.zst").write_bytes(b"")
    assert run(["index", str(tmp_path)]) == 0
    assert "left out (compressed): b.jsonl.zst" in capsys.readouterr().out


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "s.jsonl", {"n": 0})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link.jsonl").symlink_to(secret)
    (tmp_path / "d" / "folder").symlink_to(secret.parent)
    with pytest.raises(SourceNotFound, match="a link"):
        index_jsonl(tmp_path / "d")
    write(tmp_path / "d" / "a.jsonl", {"n": 1})
    for source in (tmp_path / "d", tmp_path / "d" / "**" / "*.jsonl", tmp_path / "d" / "*" / "*.jsonl"):
        if source.name == "*.jsonl" and source.parent.name == "*":
            with pytest.raises(SourceNotFound):
                index_jsonl(source)
            continue
        done = index_jsonl(source)
        assert (done.files, done.rows) == (1, 1)
        assert ("link.jsonl", "a link") in done.left_out


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"n": 1})
    write(tmp_path / "b.jsonl", {"n": 1})

    def append(done: int, total: int) -> None:
        with file.open("a") as more:
            more.write("{}\n")

    with pytest.raises(SourceChanged, match=r"a\.jsonl changed while it was being indexed: it had 9 bytes"):
        index_jsonl(tmp_path, on_bytes=append)
    assert index_jsonl(tmp_path).rows >= 3


def test_other_datasets_and_locks_are_respected(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"n": 1})
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "o.lance"))
    with pytest.raises(DamagedDataset, match="is not an index"):
        index_jsonl(tmp_path, output=tmp_path / "o.lance")
    index = index_jsonl(tmp_path).index
    with output_lock(index), pytest.raises(OutputLocked):
        index_jsonl(tmp_path, rescan=True)


def test_a_killed_run_leaves_the_earlier_index_or_the_new_one(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "d" / f"{i}.jsonl", *({"n": n} for n in range(20_000)))
    reference = index_jsonl(tmp_path / "d", output=tmp_path / "reference.lance")
    killed, lock = 0, tmp_path / "d" / ".jsonl_index.lance" / ".lance_prep" / "lock"
    for delay in (0, 0.01, 0.03, 0.06, 0.1):
        process = start("index", tmp_path / "d", "--rescan")
        wait_for(lambda: lock.exists() and lock.stat().st_size > 0, process)  # reading and writing have begun
        wait_for(lambda: False, process, seconds=delay)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        finish(process)
        index = tmp_path / "d" / ".jsonl_index.lance"
        if (index / "_versions").exists() and list((index / "_versions").glob("*.manifest")):
            assert spans(index) == spans(reference.index)
    assert killed
    done = index_jsonl(tmp_path / "d")
    assert spans(done.index) == spans(reference.index)
    assert done.content_hash == reference.content_hash
    assert len(list(Path(done.index).glob("data/*.lance"))) == 1
