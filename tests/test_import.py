"""`import`: ids of other programs become a dataset, and datasets come back as they went out."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck
from lance_prep.exchange import ImportOptions, import_ids
from lance_prep.store import open_version
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made
from tests.processes import PROGRAM, make_killer
from tests.train.made import EOS, make_tokens

Import = Callable[..., dict[str, Any]]


@pytest.fixture
def importing(capsys: pytest.CaptureFixture[str]) -> Import:
    """Run `lance-prep import`, check the dataset against its source, and return the report."""

    def call(source: object, output: object, *options: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run(["import", str(source), "-o", str(output), "--json", *map(str, options)])
        out, err = capsys.readouterr()
        assert code == 0, err
        found = lance_prep.verify(output, against=SourceCheck())
        assert found.ok, found.problems
        return dict(json.loads(out))

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lance-prep import`, which must fail with advice, and return what it says."""

    def call(source: object, *options: object) -> str:
        capsys.readouterr()
        output = Path(str(source)).parent / f"{Path(str(source)).stem}-refused.lance"
        assert run(["import", str(source), "-o", str(output), *map(str, options)]) in (1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert "\n  try: " in err
        assert not (output / "_versions").exists()
        return err

    return call


def rows_of(path: Path) -> list[list[int]]:
    """The ids of each row, without padding."""
    table = lance.dataset(str(path)).to_table()
    pairs = zip(table["input_ids"].to_pylist(), table["num_tokens"].to_pylist(), strict=True)
    return [ids[:n] for ids, n in pairs]


def write_flat(path: Path, documents: list[list[int]], dtype: str = "uint16") -> None:
    np.array([token for row in documents for token in [*row, EOS]], dtype).tofile(path)


def some_documents(count: int = 300, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, rng.integers(1, 60)).tolist() for _ in range(count)]


def write_pair(prefix: Path, documents: list[list[list[int]]], dtype: Any = np.int32) -> None:
    """Write a pair with Megatron's own builder: documents of one or more sequences."""
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    builder = module.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        ids = [token for sequence in document for token in sequence]
        builder.add_document(np.array(ids, dtype), [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


# Round trips.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["bin", "megatron"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_documents_come_back(tmp_path: Path, importing: Import, format: str, dtype: str) -> None:
    there = make_tokens(tmp_path / "web.lance", "documents", [40, 1, 230], dtype=dtype)
    assert run(["export", str(tmp_path / "web.lance"), "-o", str(tmp_path / "out"), "--format", format]) == 0
    options = ["--dtype", dtype] if format == "bin" else []
    importing(tmp_path / "out" / "web" / "train.bin", tmp_path / "back.lance", "--eos-id", EOS, *options)
    assert rows_of(tmp_path / "back.lance") == [row.tolist() for row in there.rows if len(row)]
    one, two = (LanceDataset(tmp_path / name, block_size=32) for name in ("web.lance", "back.lance"))
    if all(map(len, there.rows)):
        assert all(one[i]["input_ids"].tolist() == two[i]["input_ids"].tolist() for i in range(len(one)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["bin", "megatron", "parquet"])
def test_blocks_come_back(tmp_path: Path, importing: Import, format: str) -> None:
    there = make_tokens(tmp_path / "web.lance", "blocks", [40, 1, 23], block_size=128)
    assert run(["export", str(tmp_path / "web.lance"), "-o", str(tmp_path / "out"), "--format", format]) == 0
    source = tmp_path / "out" / "web" / ("" if format == "parquet" else "train.bin")
    options = {"bin": ["--dtype", "uint16", "--block-size", 128], "megatron": [], "parquet": []}[format]
    importing(source, tmp_path / "back.lance", *options)
    back = rows_of(tmp_path / "back.lance")
    if format == "parquet":
        assert back == [row.tolist() for row in there.rows]
    elif format == "bin":
        assert [token for row in back for token in row] == np.concatenate(there.rows).tolist()
        assert {len(row) for row in back[:-1]} == {128}
    else:
        parts = [part for row, sizes in zip(there.rows, there.pieces, strict=True)
                 for part in np.split(row, np.cumsum(sizes)[:-1])]  # fmt: skip
        assert back == [part.tolist() for part in parts]


def test_a_built_dataset_comes_back_decoded(tmp_path: Path, importing: Import, capsys: Any) -> None:
    texts = [f"document {i} of the source " * (i % 7 + 1) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    lance_prep.build(tmp_path / "a.jsonl", output=tmp_path / "a.lance", tokenizer=tokenizer, shuffle=False)
    assert run(["export", str(tmp_path / "a.lance"), "-o", str(tmp_path / "out"), "--format", "bin"]) == 0
    flat = tmp_path / "out" / "a" / "train.bin"
    importing(flat, tmp_path / "docs.lance", "--dtype", "uint16", "--tokenizer", tokenizer)
    capsys.readouterr()
    assert run(["show", str(tmp_path / "docs.lance"), "--limit", "200", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts
    # Packed again, they are the blocks of the first build.
    importing(flat, tmp_path / "again.lance", "--dtype", "uint16", "--tokenizer", tokenizer, "--layout", "blocks",
              "--block-size", 1024)  # fmt: skip
    assert rows_of(tmp_path / "again.lance") == rows_of(tmp_path / "a.lance")
    columns = [lance.dataset(str(tmp_path / name)).to_table()["seq_lengths"] for name in ("again.lance", "a.lance")]
    assert columns[0] == columns[1]


# Sources.


@pytest.mark.filterwarnings("ignore")
def test_a_pair_of_megatrons_own_builder(tmp_path: Path, importing: Import) -> None:
    documents = [[[i, i + 1], [i + 2] * (i % 5)] for i in range(2, 90)]
    write_pair(tmp_path / "web", documents)
    report = importing(tmp_path / "web", tmp_path / "web.lance")
    assert rows_of(tmp_path / "web.lance") == [[*one, *two] for one, two in documents]
    assert report["rows"] == 88
    opened = open_version(tmp_path / "web.lance")
    assert opened.metadata.dtype == "uint32"
    files = {Path(file.url).name: file for file in opened.source_files}
    assert {name: file.size for name, file in files.items()} == {
        name: (tmp_path / name).stat().st_size for name in ("web.idx", "web.bin")
    }
    assert all(file.hash for file in files.values())


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16())])
def test_parquet_rows_of_different_lengths(tmp_path: Path, importing: Import, kind: pa.DataType) -> None:
    documents = [*some_documents(), [], [5]]
    table = pa.table({"tokens": pa.array([*documents[:50], None, *documents[50:]], kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    report = importing(tmp_path / "a.parquet", tmp_path / "a.lance", "--column", "tokens")
    assert rows_of(tmp_path / "a.lance") == [row for row in documents if row]
    assert report["ledger"]["empty"] == 2


def test_packed_parquet_rows_keep_their_documents(tmp_path: Path, importing: Import) -> None:
    rows = [list(range(2, 34)), list(range(5, 30)), list(range(7, 39))]
    lengths = [[10, 22], [25], [1, 1, 30]]
    padded = [row + [0] * (32 - len(row)) for row in rows]
    table = pa.table({
        "input_ids": pa.array(padded, pa.list_(pa.int32(), 32)),
        "attention_mask": pa.array([[1] * len(row) + [0] * (32 - len(row)) for row in rows], pa.list_(pa.int8(), 32)),
        "seq_lengths": pa.array(lengths, pa.list_(pa.int32())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    importing(tmp_path / "a.parquet", tmp_path / "a.lance")
    assert rows_of(tmp_path / "a.lance") == rows
    assert lance.dataset(str(tmp_path / "a.lance")).to_table()["seq_lengths"].to_pylist() == lengths
    whole = ["export", str(tmp_path / "a.lance"), "-o", str(tmp_path / "x"), "--format", "bin", "--by", "document"]
    assert run(whole) == 2  # one doc_id for all documents of a row
    sample = LanceDataset(tmp_path / "a.lance", document_ids=True)[0]
    assert np.bincount(sample["document_ids"].numpy()).tolist() == [10, 22]


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(2, 60_000), max_size=40), min_size=1, max_size=60),
    ended=st.booleans(),
    shard_size=st.integers(2, 400),
)
def test_shards_of_a_flat_file_hold_each_document_once(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], ended: bool, shard_size: int
) -> None:
    folder = tmp_path_factory.mktemp("flat")
    ids = np.array([token for row in documents for token in [*row, EOS]], np.uint16)
    ids = ids if ended else ids[:-1]
    if not len(ids):
        return
    ids.tofile(folder / "a.bin")
    reader = lance_prep.stream(
        folder / "a.bin", ids_column="input_ids", ids_dtype="uint16", document_end=EOS, tokenizer=None,
        layout="documents", shuffle=False, shard_size=shard_size,
    )  # fmt: skip
    assert reader.read_all()["input_ids"].to_pylist() == [row for row in documents if row]


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    write_flat(tmp_path / "a.bin", some_documents(200_000))
    options = ImportOptions(dtype="uint16", eos_id=EOS, layout="blocks", block_size=256)
    found = {import_ids(tmp_path / "a.bin", output=tmp_path / f"{n}.lance", options=options, workers=n).content_hash
             for n in (1, 3)}  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("change", [3, 9, 14, 20])
def test_a_killed_import_continues(tmp_path: Path, importing: Import, change: int) -> None:
    for i in range(3):
        write_flat(tmp_path / "in" / f"{i}.bin", some_documents(2000, seed=i)) if i else (tmp_path / "in").mkdir()
    killer = make_killer(tmp_path)
    output = tmp_path / "killed-import.lance"
    command = [PROGRAM, "import", str(tmp_path / "in"), "-o", str(output), "--dtype", "uint16", "--eos-id", str(EOS)]
    environment = {**os.environ, "LD_PRELOAD": str(killer), "KILL_AT": str(change), "KILL_BELOW": output.name}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    importing(tmp_path / "in", output, "--dtype", "uint16", "--eos-id", EOS)
    importing(tmp_path / "in", tmp_path / "whole.lance", "--dtype", "uint16", "--eos-id", EOS)
    assert open_version(output).metadata.content_hash == open_version(tmp_path / "whole.lance").metadata.content_hash
    assert rows_of(output) == [row for i in (1, 2) for row in some_documents(2000, seed=i)]


# Damage, and what is not said.


def test_what_a_flat_file_does_not_say_is_asked_for(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_flat(tmp_path / "a.bin", some_documents())
    assert "give --eos-id" in refused(tmp_path / "a.bin", "--dtype", "uint16")
    said = refused(tmp_path / "a.bin", "--eos-id", EOS)
    assert "nothing says their type" in said
    assert "uint16, uint32 or int32" in said
    assert "no file of token ids found" in refused(tmp_path / "b.bin")
    assert "needs --block-size" in refused(tmp_path / "a.bin", "--dtype", "uint16", "--layout", "blocks")


def test_a_damaged_flat_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_flat(tmp_path / "a.bin", some_documents(), "uint32")
    with (tmp_path / "a.bin").open("rb+") as file:
        file.truncate((tmp_path / "a.bin").stat().st_size - 1)
    assert "are not a whole number of uint32" in refused(tmp_path / "a.bin", "--dtype", "uint32", "--eos-id", EOS)


def test_ids_beyond_the_vocabulary(tmp_path: Path, refused: Callable[..., str]) -> None:
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    documents = some_documents(20)
    pq.write_table(pa.table({"input_ids": [*documents, [3, 60_000], [4]]}), tmp_path / "a.parquet")
    said = refused(tmp_path / "a.parquet", "--tokenizer", tokenizer)
    assert "source row 20: id 60,000 is not in the vocabulary" in said
    pq.write_table(pa.table({"input_ids": [[1, 2], [3, -100]]}), tmp_path / "b.parquet")
    assert "row 1 has the id -100" in refused(tmp_path / "b.parquet")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_pair(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_pair(tmp_path / "a", [[row] for row in some_documents(50)])
    index, data = (tmp_path / "a.idx").read_bytes(), (tmp_path / "a.bin").read_bytes()
    for damaged, what in (
        (index[:-1], "it is cut short"),
        (b"MMIDIDY" + index[7:], "is not an index"),
        (index[:17] + b"\x06" + index[18:], "values of type 6 are not token ids"),
        (index[:34] + (10**6).to_bytes(4, "little") + index[38:], "sequence 0 is outside of a.bin"),
        (index[:-8] + (3).to_bytes(8, "little"), "documents have the sequences 0 to 3 of 50"),
    ):
        (tmp_path / "a.idx").write_bytes(damaged)
        assert what in refused(tmp_path / "a.idx")
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "a.bin").write_bytes(data[:-4])
    assert "sequence 49 is outside of a.bin" in refused(tmp_path / "a.idx")
    (tmp_path / "a.bin").write_bytes(data + b"\0" * 8)
    assert "lists" in refused(tmp_path / "a.idx")
    (tmp_path / "a.bin").unlink()
    assert "there is no a.bin beside it" in refused(tmp_path / "a.idx")


IDS = pa.array([[1, 2, 3], [1, 2, 3]], pa.list_(pa.int32()))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("input_ids", ["a", "b"], "'input_ids' is string, and not lists of token ids\n  try: choose another --column"),
        ("input_ids", [[1.5], [2.0]], "is list<element: double>, and not lists"),
        ("input_ids", [[1, None], [2]], "column 'input_ids' has null ids"),
        ("input_ids", [[1], [2**33]], "row 1 has the id 8589934592"),
        ("attention_mask", [[1, 0, 1], [1, 1, 1]], "row 0: padding is not at its end"),
        ("attention_mask", [[1, 1, 1], [0, 0, 1]], "row 1: padding is not at its end"),
        ("attention_mask", [[1, 1], [1, 1, 1, 0]], "row 0: attention_mask has another length"),
        ("attention_mask", [[1, 1, None], [1, 1, 1]], "column 'attention_mask' has nulls"),
        ("attention_mask", [None, [1, 1, 1]], "column 'attention_mask' has nulls"),
        ("attention_mask", ["x", "y"], "column 'attention_mask' is string, not lists of integers"),
        ("num_tokens", [3, None], "column 'num_tokens' has nulls"),
        ("num_tokens", [3, 9], "row 1: num_tokens is larger than the number of its ids"),
        ("num_tokens", [3, -1], "column 'num_tokens' has the value -1"),
        ("num_tokens", ["3", "x"], "column 'num_tokens' has values of type string, not integers"),
        ("seq_lengths", [[1, 2], [9]], "row 1: seq_lengths add up to more than its ids"),
        ("seq_lengths", [[4, -1], [3]], "column 'seq_lengths' has the value -1"),
        ("seq_lengths", [None, [3]], "column 'seq_lengths' has nulls"),
        ("seq_lengths", [[None, 3], [3]], "column 'seq_lengths' has nulls"),
    ],
)
def test_damaged_columns(
    tmp_path: Path, refused: Callable[..., str], column: str, values: list[Any], said: str
) -> None:
    pq.write_table(pa.table({"input_ids": IDS, column: values}), tmp_path / "a.parquet")
    options = () if column == "input_ids" else ("--block-size", 3, "--packing", "rows")
    assert said in refused(tmp_path / "a.parquet", *options)


def test_padding_is_left_out_by_a_mask(tmp_path: Path, importing: Import) -> None:
    for kind in (pa.bool_(), pa.int8(), pa.int64()):
        mask = pa.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], pa.list_(pa.int64())).cast(pa.list_(kind))
        ids = pa.array([[5, 6, 0], [0, 0, 0], [7, 8, 9]], pa.list_(pa.int32()))
        pq.write_table(pa.table({"input_ids": ids, "attention_mask": mask}), tmp_path / f"{kind}.parquet")
        output = tmp_path / f"{kind}.lance"
        importing(tmp_path / f"{kind}.parquet", output, "--block-size", 3, "--packing", "rows")
        assert rows_of(output) == [[5, 6], [7, 8, 9]]


@pytest.mark.parametrize("layout", ["documents", "blocks"])
def test_the_id_that_ends_documents_may_be_missing_or_alone(tmp_path: Path, importing: Import, layout: str) -> None:
    rows = [[5, EOS], [6], [EOS], [7, EOS, EOS], [8, 9]]
    pq.write_table(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / "a.parquet")
    blocks = () if layout == "documents" else ("--block-size", 4)
    importing(tmp_path / "a.parquet", tmp_path / "a.lance", "--eos-id", EOS, *blocks)
    if layout == "documents":
        assert rows_of(tmp_path / "a.lance") == [[5], [6], [7, EOS], [8, 9]]
        return
    assert rows_of(tmp_path / "a.lance") == [[5, EOS, 6, EOS], [EOS, 7, EOS, EOS], [8, 9, EOS]]
    found = lance.dataset(str(tmp_path / "a.lance")).to_table()["seq_lengths"].to_pylist()
    assert found == [[2, 2], [1, 3], [3]]


def write_index(path: Path, lengths: list[int], pointers: list[int], bounds: list[int], **counts: int) -> None:
    """Write an index by hand, and a `.bin` of seven uint16 beside it."""
    sequences, documents = counts.get("sequences", len(lengths)), counts.get("documents", len(bounds))
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, sequences, documents)
    arrays = (np.array(lengths, "<i4"), np.array(pointers, "<i8"), np.array(bounds, "<i8"))
    path.write_bytes(head + b"".join(array.tobytes() for array in arrays))
    np.arange(7, dtype="<u2").tofile(path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("lengths", "pointers", "bounds", "counts", "said"),
    [
        ([3, 4], [0, 6], [0, 1, 2], {"sequences": 2**63}, "it is cut short"),
        ([3, 4], [0, 6], [0, 1, 2], {"documents": 2**62}, "it is cut short"),
        ([3, 4], [0, 6], [], {}, "has no list of documents"),
        ([3, 4], [0, 2**63 - 2], [0, 1, 2], {}, "sequence 1 is outside of a.bin"),
        ([3, 4], [0, -2], [0, 1, 2], {}, "sequence 1 is outside of a.bin"),
        ([3, -4], [0, 6], [0, 1, 2], {}, "sequence 1 is outside of a.bin: -4 ids"),
        ([3, 4], [0, 5], [0, 1, 2], {}, "sequences 0 and 1 overlap, or leave a gap"),
        ([4, 3], [0, 0], [0, 1, 2], {}, "sequences 0 and 1 overlap, or leave a gap"),
        ([3, 4], [0, 6], [0, 2, 1, 2], {}, "document 1 begins at sequence 2 and ends at 1"),
        ([3, 4], [0, 6], [0, 9], {}, "documents have the sequences 0 to 9 of 2"),
    ],
)
def test_an_index_that_lies(
    tmp_path: Path,
    refused: Callable[..., str],
    lengths: list[int],
    pointers: list[int],
    bounds: list[int],
    counts: dict[str, int],
    said: str,
) -> None:
    write_index(tmp_path / "a.idx", lengths, pointers, bounds, **counts)
    assert said in refused(tmp_path / "a.idx")


def test_an_index_may_name_sequences_in_any_order(tmp_path: Path, importing: Import) -> None:
    write_index(tmp_path / "a.idx", [4, 0, 3], [6, 6, 0], [0, 2, 3])
    importing(tmp_path / "a.idx", tmp_path / "a.lance")
    assert rows_of(tmp_path / "a.lance") == [[3, 4, 5, 6], [0, 1, 2]]


def test_an_end_of_documents_that_the_type_of_ids_cannot_hold(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_flat(tmp_path / "a.bin", some_documents(20))
    said = refused(tmp_path / "a.bin", "--dtype", "uint16", "--eos-id", 70_000)
    assert "--eos-id 70000 cannot be an id" in said
    assert "give the --eos-id and --dtype that the file was written with" in said


def test_a_folder_of_text_ignores_files_of_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\nanother\n")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\0" * 100)
    rows = lance_prep.stream(tmp_path, layout="raw").read_all()
    assert sorted(rows["text"].to_pylist()) == ["another", "one line"]


def test_an_end_of_documents_that_does_not_occur(tmp_path: Path, capsys: Any) -> None:
    np.arange(1, 9, dtype="<u2").tofile(tmp_path / "a.bin")
    options = ["import", str(tmp_path / "a.bin"), "--dtype", "uint16", "--force", "-o", str(tmp_path / "a.lance")]
    assert run([*options, "--eos-id", "9"]) == 0
    said = capsys.readouterr().err
    assert f"warning: id 9 does not occur in {tmp_path / 'a.bin'}, so the whole file became one document" in said
    assert "--overwrite and the --eos-id and --dtype" in said
    for end in ("8", "3"):  # one document that ends, and two of which the last does not
        assert run([*options, "--eos-id", end]) == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--block-size", "99999999999"]])
def test_a_block_size_that_is_out_of_range(tmp_path: Path, refused: Callable[..., str], options: list[str]) -> None:
    pq.write_table(pa.table({"input_ids": pa.array([[1], [2]], pa.list_(pa.int32(), 1))}), tmp_path / "a.parquet")
    said = refused(tmp_path / "a.parquet", *options)
    assert "--block-size: Input should be" in said
    assert "lance-prep import --help" in said
