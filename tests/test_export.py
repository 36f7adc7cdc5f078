"""`export`: every row of the files against `LanceDataset`, and folders, manifests and text as a user finds them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import lance_prep
from lance_prep.cli.main import run
from lance_prep.exchange import ExportOptions, export
from lance_prep.exchange.decode import TextDecoder
from lance_prep.exchange.parquet_pages import MAGIC, Rows, encode_row_group, footer
from lance_prep.store import Manifest, Split, read_manifest
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made
from tests.processes import write_texts
from tests.train.made import make_raw, make_tokens

COLUMNS = ["input_ids", "attention_mask", "labels"]
Export = Callable[..., dict[str, Any]]


@pytest.fixture
def exporting(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `lance-prep export` and return its report."""

    def call(source: object, output: object, *options: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run(["export", str(source), "-o", str(output), "--json", *map(str, options)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return dict(json.loads(out))

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lance-prep export`, which must fail with advice, and return what it says."""

    def call(source: object, output: object, *options: object) -> str:
        capsys.readouterr()
        assert run(["export", str(source), "-o", str(output), *map(str, options)]) in (1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert "\n  try: " in err
        return err

    return call


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard_*"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def matrix(column: pa.ChunkedArray, length: int) -> np.ndarray:
    return np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks]).reshape(-1, length)


def check_same(folder: Path, path: Path, **options: Any) -> None:
    """Check every row of a folder of shards, as pyarrow reads it, against `LanceDataset`."""
    table = pa.concat_tables([pq.read_table(path) for path in shards(folder)])
    table.validate(full=True)
    dataset = LanceDataset(path, labels="shifted", attention_mask=True, **options)
    expected = dataset.take(np.arange(len(dataset)))
    for name in COLUMNS:
        values = expected[name].numpy()
        np.testing.assert_array_equal(matrix(table[name], values.shape[1]), values, err_msg=name)


def jsonl(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in shards(folder) for line in path.read_bytes().splitlines()]


# Parquet.


@pytest.mark.parametrize("file_version", ["2.0", "2.1"])  # in 2.1, blocks of 100 uint16 are not flat
@pytest.mark.parametrize(("dtype", "size"), [("uint16", 100), ("uint32", 100), ("uint16", 300)])
def test_blocks_become_parquet(tmp_path: Path, exporting: Export, dtype: str, size: int, file_version: str) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, "blocks", [40, 1, 23], block_size=size, dtype=dtype, file_version=file_version)
    assert exporting(source, tmp_path / "out")["sources"][0]["rows"] == 64
    folder = tmp_path / "out" / "web"
    check_same(folder, source)
    table = pq.read_table(shards(folder)[0])
    assert table.schema.names == COLUMNS
    assert table.schema.types == [pa.list_(pa.int32(), size)] * 3
    assert len(table["input_ids"][0].as_py()) == size
    assert pq.ParquetFile(shards(folder)[0]).metadata.row_group(0).column(0).compression == "SNAPPY"
    loaded = datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 64
    assert loaded["train"][63]["labels"] == table["labels"][63].as_py()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("layout", "size"), [("lines", 64), ("documents", 7), ("lines", 1), ("documents", 5000)])
def test_rows_of_different_lengths_are_joined(
    tmp_path: Path, exporting: Export, layout: str, size: int, mask: bool
) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, layout, [50, 3, 1, 47], longest=100)
    flags = ["--mask-boundaries"] if mask else []
    exporting(source, tmp_path / "out", "--max-seq-length", size, "--shard-size", "200kB", *flags)
    check_same(tmp_path / "out" / "web", source, block_size=size, mask_boundaries=mask)


def test_labels_stop_at_the_end_of_documents(tmp_path: Path, exporting: Export) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, "blocks", [40, 1, 23], block_size=300)
    exporting(source, tmp_path / "out", "--mask-boundaries")
    check_same(tmp_path / "out" / "web", source, mask_boundaries=True)


def test_no_shard_is_larger_than_asked_for(tmp_path: Path, exporting: Export, refused: Callable[..., str]) -> None:
    source = tmp_path / "web.lance"
    make_tokens(source, "blocks", [400, 123], block_size=128)
    report = exporting(source, tmp_path / "out", "--shard-size", "50kB")
    sizes = [path.stat().st_size for path in shards(tmp_path / "out" / "web")]
    assert max(sizes) <= 50_000
    assert min(sizes[:-1]) > 40_000
    assert report["sources"][0]["shards"] == len(sizes) > 4
    assert report["sources"][0]["bytes"] == sum(sizes)
    check_same(tmp_path / "out" / "web", source)
    assert "too small for a row of 128 tokens" in refused(source, tmp_path / "small", "--shard-size", "5kB")


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_pages_hold_what_arrow_reads(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    length = data.draw(st.sampled_from([1, 2, 7, 8, 255, 256, 300, 1000]))
    count = data.draw(st.integers(1, 60))
    limit = data.draw(st.sampled_from([2, 20, 1000, 65_534, 65_535, 65_536, 1 << 18, (1 << 31) - 1]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    ids = rng.integers(0, limit, (count, length)).astype(np.uint16 if limit <= 1 << 16 else np.uint32)
    valid = np.where(
        rng.random(count) < data.draw(st.sampled_from([0, 0.1, 1])), rng.integers(0, length + 1, count), length
    )
    following = None
    if data.draw(st.booleans()):
        following = np.where(valid < length, -100, rng.integers(0, limit, count))
    ignored = np.sort(rng.choice(count * length, rng.integers(0, count * length), replace=False))
    rows = Rows(ids, valid, following, ignored if data.draw(st.booleans()) else None)

    cut = data.draw(st.integers(0, count))
    groups = [encode_row_group(rows.slice(*span)) for span in ((0, cut), (cut, count)) if span[1] > span[0]]
    path = tmp_path_factory.mktemp("pages") / "a.parquet"
    pages = [page for group in groups for chunk in group.chunks for page in chunk.pages]
    path.write_bytes(b"".join([MAGIC, *pages, footer(groups, length, {b"a": b"b"})]))

    table = pq.read_table(path)
    table.validate(full=True)
    assert table.schema.metadata == {b"a": b"b"}
    labels = np.full((count, length), -100, np.int64)
    labels[:, :-1] = ids[:, 1:]
    labels[:, -1] = -100 if following is None else following
    labels[np.arange(length) >= np.where(valid < length, valid - 1, length)[:, None]] = -100
    if rows.ignored is not None:
        labels.reshape(-1)[ignored] = -100
    mask = np.arange(length) < valid[:, None]
    for name, values in zip(COLUMNS, (ids, mask, labels), strict=True):
        np.testing.assert_array_equal(matrix(table[name], length), values, err_msg=name)


# JSONL.


@pytest.mark.parametrize("layout", ["blocks", "lines", "documents"])
def test_jsonl_holds_the_decoded_rows(tmp_path: Path, exporting: Export, tokenizer: str, layout: str) -> None:
    texts = [*made.TEXTS, *(f"{text} {i}" for i in range(40) for text in made.TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = tmp_path / "web.lance"
    size = {"block_size": 32} if layout == "blocks" else {}
    lance_prep.build(tmp_path / "a.jsonl", output=source, tokenizer=tokenizer, layout=layout, **size)
    exporting(source, tmp_path / "out", "--format", "jsonl", "--shard-size", "20kB")
    dataset = LanceDataset(source)
    found = jsonl(tmp_path / "out" / "web")
    assert [record["text"] for record in found] == [dataset.text(i) for i in range(len(dataset))]
    documents = [origin.documents for origin in dataset.origins(np.arange(len(dataset)))]
    assert [tuple(record["doc_ids"] if layout == "blocks" else [record["doc_id"]]) for record in found] == documents
    assert max(path.stat().st_size for path in shards(tmp_path / "out" / "web")) <= 20_000


def test_documents_of_blocks(tmp_path: Path, exporting: Export, tokenizer: str) -> None:
    texts = [f"Document {i}: " + "α word of many " * (i % 50) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = tmp_path / "web.lance"
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "blocks", "block_size": 64, "shuffle": False}
    lance_prep.build(tmp_path / "a.jsonl", output=source, **fields)
    options = ["--format", "jsonl", "--by", "document", "--skip-special-tokens"]
    report = exporting(source, tmp_path / "out", *options, "--shard-size", "10kB")
    assert [record["text"] for record in jsonl(tmp_path / "out" / "web")] == texts
    assert report["sources"][0]["rows"] == 300
    assert report["sources"][0]["shards"] > 4


def test_documents_cut_apart_by_the_shuffle(tmp_path: Path, exporting: Export, tokenizer: str) -> None:
    texts = [f"Document {i}: " + "a word of many " * 30 for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = tmp_path / "web.lance"
    lance_prep.build(tmp_path / "a.jsonl", output=source, tokenizer=tokenizer, layout="blocks", block_size=64)
    exporting(source, tmp_path / "out", "--format", "jsonl", "--by", "document", "--skip-special-tokens")
    found = jsonl(tmp_path / "out" / "web")
    assert sum(len(record["text"]) for record in found) == sum(map(len, texts))
    assert {record["doc_id"] for record in found} == set(range(100))
    assert len(found) > 100


def test_a_raw_record_becomes_a_line(tmp_path: Path, exporting: Export, refused: Callable[..., str]) -> None:
    source = tmp_path / "raw.lance"
    raw = make_raw(source, [20, 17])
    exporting(source, tmp_path / "out", "--format", "jsonl")
    found = jsonl(tmp_path / "out" / "raw")
    for name, values in raw.columns.items():
        assert [record[name] for record in found] == values
    assert "its rows hold no tokens" in refused(source, tmp_path / "p")
    assert "--skip-special-tokens has no effect" in refused(
        source, tmp_path / "p", "--format", "jsonl", "--skip-special-tokens"
    )


def test_values_that_json_lacks(tmp_path: Path, exporting: Export) -> None:
    table = pa.table(
        {
            "time": pa.array([0], pa.timestamp("us", "UTC")),
            "bytes": pa.array([b"\x00\xff"]),
            "number": pa.array([float("nan")]),
            "nested": pa.array([{"list": [1.5, float("inf")], "text": "ü\n"}]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    lance_prep.build(tmp_path / "a.parquet", output=tmp_path / "raw.lance", layout="raw")
    exporting(tmp_path / "raw.lance", tmp_path / "out", "--format", "jsonl")
    assert jsonl(tmp_path / "out" / "raw") == [
        {
            "time": "1970-01-01T00:00:00+00:00",
            "bytes": base64.b64encode(b"\x00\xff").decode(),
            "number": None,
            "nested": {"list": [1.5, None], "text": "ü\n"},
        }
    ]


def _metaspace() -> bytes:
    """BPE over words marked with `▁`, with bytes for unknown characters, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(made.TEXTS * 20, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer.to_str().encode()


def _with_odd_tokens() -> bytes:
    tokenizer = Tokenizer.from_buffer(made.with_template())
    tokenizer.add_tokens(["two words", "naïve", "中"])
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make", [made.byte_level, _with_odd_tokens, made.word_piece, _metaspace])
def test_text_is_what_tokenizers_decodes(make: Callable[[], bytes], skip: bool) -> None:
    tokenizer, rng = Tokenizer.from_buffer(make()), np.random.default_rng(7)
    size = max(tokenizer.get_vocab().values()) + 1
    rows = [rng.integers(0, size + 3, rng.integers(0, 40)).tolist() for _ in range(300)]
    rows += [tokenizer.encode(text).ids for text in made.TEXTS]
    decoder = TextDecoder(make(), skip_special_tokens=skip)
    texts = decoder.decode(pa.array(rows, pa.list_(pa.uint16())), np.array([len(row) for row in rows]))
    assert texts == [tokenizer.decode(row, skip_special_tokens=skip) for row in rows]


# Manifests.


def _write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Three sources, and a validation set of the first."""
    splits = {}
    for i, name in enumerate(["chat", "code", "chat.val", "web"]):
        make_tokens(folder / f"{name}.lance", "blocks", [10 + i], block_size=128, seed=i)
        splits[name] = Split(f"{name}.lance", 1, 10 + i, 7, 1280, "a", 0.5, 1, f"hash-blocks-{i}")
    validation = {"chat": splits.pop("chat.val")}
    manifest = Manifest("gpt2", 128, "data", "out", 3, splits, validation, {"a": 1.0}, **fields)
    manifest.write(folder)
    return manifest


def test_a_collection_becomes_a_folder_of_the_same_form(tmp_path: Path, exporting: Export) -> None:
    (tmp_path / "in").mkdir()
    stated = _write_manifest(tmp_path / "in", tokenizer_sha256="0" * 64)
    out = tmp_path / "out"
    assert len(exporting(tmp_path / "in", out, "--shard-size", "500MB")["sources"]) == 4
    manifest = read_manifest(out)
    assert (manifest.data_format, manifest.shard_size_gb, manifest.max_seq_length) == ("parquet", 0.5, 128)
    assert (manifest.tokenizer, manifest.categories) == (stated.tokenizer, stated.categories)
    assert list(manifest.splits) == ["chat", "code", "web"]
    assert manifest.validation["chat"].path == "chat.val"
    web = manifest.splits["web"]
    assert (web.path, web.shards, web.sequences, web.samples, web.category) == ("web", 1, 13, 7, "a")
    for name in ("chat", "code", "web", "chat.val"):
        check_same(out / name, tmp_path / "in" / f"{name}.lance")
        stats = json.loads((out / f"{name}_stats.json").read_text())
        assert stats["rows"] == len(LanceDataset(tmp_path / "in" / f"{name}.lance"))
        assert stats["bytes"] == sum(path.stat().st_size for path in shards(out / name))
        assert stats["shards"] == 1
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: loaded[split].num_rows for split in loaded} == {"train": 10 + 11 + 13, "validation": 12}


def test_places_may_be_file_urls(tmp_path: Path, exporting: Export) -> None:
    (tmp_path / "in").mkdir()
    _write_manifest(tmp_path / "in")
    exporting(f"file://{tmp_path}/in", f"file://{tmp_path}/out")
    exporting(tmp_path / "in", tmp_path / "plain")
    ours, plain = tree(tmp_path / "out"), tree(tmp_path / "plain")
    assert ours.pop("manifest.json") != plain.pop("manifest.json")  # it says where it was written
    assert ours == plain


def test_some_splits_and_then_all(tmp_path: Path, exporting: Export, refused: Callable[..., str]) -> None:
    (tmp_path / "in").mkdir()
    _write_manifest(tmp_path / "in")
    out = tmp_path / "out"
    assert [s["name"] for s in exporting(tmp_path / "in", out, "--splits", "chat")["sources"]] == ["chat", "chat.val"]
    assert list(read_manifest(out).splits) == ["chat"]
    exporting(tmp_path / "in", out, "--splits", "web")
    assert list(read_manifest(out).splits) == ["chat", "web"]
    statuses = {s["name"]: s["status"] for s in exporting(tmp_path / "in", out)["sources"]}
    assert statuses == {"chat": "up to date", "chat.val": "up to date", "code": "written", "web": "up to date"}
    exporting(tmp_path / "in", tmp_path / "whole")
    ours = {name: data for name, data in tree(out).items() if name != "manifest.json"}
    assert ours == {name: data for name, data in tree(tmp_path / "whole").items() if name != "manifest.json"}
    assert "lists parquet files" in refused(out, tmp_path / "again")
    assert "--version has no effect" in refused(tmp_path / "in", tmp_path / "again", "--version", "1")
    assert "no split 'books'" in refused(tmp_path / "in", out, "--splits", "books,web")


def test_exports_of_other_splits_at_the_same_time(
    tmp_path: Path, exporting: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One export ends between the other's look at the folder and its lock: the manifest names both."""
    (tmp_path / "in").mkdir()
    _write_manifest(tmp_path / "in")
    lock, out = lance_prep.exchange.run.output_lock, tmp_path / "out"

    def late(uri: str) -> Any:
        monkeypatch.undo()
        exporting(tmp_path / "in", out, "--splits", "web")
        return lock(uri)

    monkeypatch.setattr(lance_prep.exchange.run, "output_lock", late)
    exporting(tmp_path / "in", out, "--splits", "code")
    assert list(read_manifest(out).splits) == ["code", "web"]


def test_a_source_that_is_gone_is_reported(tmp_path: Path, exporting: Export, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    stated = _write_manifest(tmp_path / "in")
    exporting(tmp_path / "in", tmp_path / "out")
    fewer = {name: split for name, split in stated.splits.items() if name != "code"}
    Manifest("gpt2", 128, "data", "out", 3, fewer, stated.validation).write(tmp_path / "in")
    assert exporting(tmp_path / "in", tmp_path / "out")["left_out"] == ["code"]
    assert list(read_manifest(tmp_path / "out").splits) == ["chat", "web"]
    assert shards(tmp_path / "out" / "code")
    assert run(["export", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    assert "code      not in the manifest" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "x" * 200])
def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path: Path, refused: Callable[..., str], name: str) -> None:
    (tmp_path / "in").mkdir()
    stated = _write_manifest(tmp_path / "in")
    Manifest("gpt2", 128, "data", "out", 3, {name: stated.splits["web"]}).write(tmp_path / "in")
    assert "cannot be the name of a folder" in refused(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["splits", "validation"])
def test_a_manifest_is_checked_against_the_data(tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    (tmp_path / "in").mkdir()
    stated = _write_manifest(tmp_path / "in")
    named = getattr(stated, kind)
    replace(stated, **{kind: {**named, "chat": replace(named["chat"], content_hash="0" * 32)}}).write(tmp_path / "in")
    said = refused(tmp_path / "in", tmp_path / "out")
    assert f"'chat' has content {'0' * 32} in the manifest, and hash-blocks-" in said
    assert "`lance-prep build data -o " in said
    stated.write(tmp_path / "in")
    data, elsewhere = tmp_path / "in" / named["chat"].path, tmp_path / "elsewhere.lance"
    data.rename(elsewhere)
    data.symlink_to(elsewhere)
    assert f"'chat' is a link to {elsewhere}, outside of" in refused(tmp_path / "in", tmp_path / "out")
    data.unlink()
    assert "'chat' is missing: no folder" in refused(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The folder.


@pytest.fixture
def web(tmp_path: Path) -> Path:
    make_tokens(tmp_path / "web.lance", "blocks", [200, 61], block_size=128)
    return tmp_path / "web.lance"


def test_a_second_export_does_nothing(tmp_path: Path, exporting: Export, web: Path) -> None:
    out = tmp_path / "out"
    assert exporting(web, out)["sources"][0]["status"] == "written"
    before = {path: path.stat().st_mtime_ns for path in shards(out / "web")}
    report = exporting(web, out)
    assert report["up_to_date"]
    assert report["sources"][0]["status"] == "up to date"
    assert {path: path.stat().st_mtime_ns for path in shards(out / "web")} == before


def test_a_plan_writes_nothing(tmp_path: Path, exporting: Export, web: Path) -> None:
    report = exporting(web, tmp_path / "out", "--dry-run")
    assert report["sources"][0] | {"tokens": 0} == {
        "name": "web", "status": "planned", "rows": 261, "tokens": 0, "bytes": 0, "shards": 0, "hash": "",
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_other_rows_or_options_are_not_mixed(
    tmp_path: Path, exporting: Export, refused: Callable[..., str], web: Path
) -> None:
    out = tmp_path / "out"
    exporting(web, out, "--shard-size", "50kB")
    before = tree(out)
    assert "web was exported with --shard-size 50000B, not --shard-size 2000000000B" in refused(web, out)
    assert "was exported with --format 'parquet', not --format 'jsonl'" in refused(web, out, "--format", "jsonl")
    make_tokens(tmp_path / "code.lance", "blocks", [20], block_size=128, seed=1)
    make_tokens(tmp_path / "other" / "web.lance", "blocks", [20], block_size=128, seed=5)
    said = refused(tmp_path / "other" / "web.lance", out, "--shard-size", "50kB")
    assert "web was exported from other rows: content hash hash-blocks-0, not hash-blocks-5" in said
    assert "holds an export of web" in refused(tmp_path / "code.lance", out, "--shard-size", "50kB")
    assert tree(out) == before
    exporting(web, out, "--shard-size", "60kB", "--force")
    exporting(web, tmp_path / "fresh", "--shard-size", "60kB")
    assert {n: d for n, d in tree(out).items() if n != "manifest.json"} == {
        n: d for n, d in tree(tmp_path / "fresh").items() if n != "manifest.json"
    }


def test_files_of_others_are_neither_removed_nor_replaced(
    tmp_path: Path, exporting: Export, refused: Callable[..., str], web: Path
) -> None:
    out = tmp_path / "out"
    (out / "web").mkdir(parents=True)
    (out / "thesis.txt").write_text("mine")
    said = refused(web, out)
    assert f"{out} holds other files, such as thesis.txt" in said
    assert "--force" in said
    (out / "web" / "shard_0000.parquet").write_text("mine")
    assert "shard_0000.parquet was not written by this export" in refused(web, out, "--force")
    assert (out / "web" / "shard_0000.parquet").read_text() == "mine"
    (out / "web" / "shard_0000.parquet").unlink()
    exporting(web, out, "--force")
    check_same(out / "web", web)
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", "web_stats.json", ".huggingface.yaml"])
def test_a_file_of_our_name_is_kept(tmp_path: Path, refused: Callable[..., str], web: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert f"{name} was not written by an export" in refused(web, tmp_path / "out", "--force")
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_a_shard_that_is_missing_or_changed(
    tmp_path: Path, exporting: Export, refused: Callable[..., str], web: Path
) -> None:
    out = tmp_path / "out"
    exporting(web, out, "--shard-size", "30kB")
    before = tree(out)
    shard = shards(out / "web")[1]
    shard.unlink()
    assert exporting(web, out, "--shard-size", "30kB")["sources"][0]["status"] == "resumed"
    assert tree(out) == before
    shard.write_text("changed")
    assert "shard_0001.parquet has changed" in refused(web, out, "--shard-size", "30kB")
    assert shard.read_text() == "changed"
    exporting(web, out, "--shard-size", "30kB", "--force")
    assert tree(out) == before


def test_no_link_is_followed_out_of_the_folder(
    tmp_path: Path, exporting: Export, refused: Callable[..., str], web: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    exporting(web, tmp_path / "out")
    state = tmp_path / "out" / ".lance_prep" / "export" / "web.json"
    for shard in shards(tmp_path / "out" / "web"):
        shard.unlink()
    (tmp_path / "out" / "web").rmdir()
    (tmp_path / "out" / "web").symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in refused(web, tmp_path / "out")
    assert tree(tmp_path / "elsewhere") == {}
    state.write_text('{"format": 1}')
    assert "web.json is invalid: missing field made_from" in refused(web, tmp_path / "out")


def test_folders_that_cannot_be_exported_to(tmp_path: Path, refused: Callable[..., str], web: Path) -> None:
    before = tree(web)
    assert "is in a Lance dataset" in refused(web, web, "--force")
    assert "is in a Lance dataset" in refused(web, web / "parquet")
    assert "must be a local folder" in refused(web, "s3://bucket/out")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(web, tmp_path / "file")
    (tmp_path / "in").mkdir()
    _write_manifest(tmp_path / "in")
    assert "manifest.json was not written by an export" in refused(tmp_path / "in", tmp_path / "in", "--force")
    assert tree(web) == before


def test_options_that_make_no_sense(tmp_path: Path, refused: Callable[..., str], web: Path) -> None:
    out = tmp_path / "out"
    assert "unknown format 'csv'" in refused(web, out, "--format", "csv")
    assert "--mask-boundaries has no effect" in refused(web, out, "--format", "jsonl", "--mask-boundaries")
    assert "--by has no effect" in refused(web, out, "--by", "document")
    assert "--max-seq-length 64 differs from the 128 tokens" in refused(web, out, "--max-seq-length", "64")
    assert "--splits has no effect" in refused(web, out, "--splits", "web")
    assert "there is no dataset" in refused(tmp_path / "none.lance", out)
    make_tokens(tmp_path / "lines.lance", "lines", [10])
    assert "set --max-seq-length" in refused(tmp_path / "lines.lance", out)
    assert not out.exists()


@pytest.mark.parametrize("format", ["parquet", "trl", "jsonl", "bin", "megatron", "mds", "litdata"])
@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_an_empty_dataset(tmp_path: Path, exporting: Export, layout: str, format: str) -> None:
    make_tokens(tmp_path / "none.lance", layout, [0], **({"block_size": 128} if layout == "blocks" else {}))
    fixed = layout == "documents" and format not in ("jsonl", "bin", "megatron")
    options = ["--format", format, *(["--max-seq-length", "128"] if fixed else [])]
    report = exporting(tmp_path / "none.lance", tmp_path / "out", *options)
    assert (report["sources"][0]["rows"], report["sources"][0]["tokens"]) == (0, 0)
    beside = {"mds": "index.json", "litdata": "index.json", "bin": "train.bin", "megatron": "train.idx"}.get(format)
    assert beside is None or (tmp_path / "out" / "none" / beside).is_file()
    assert read_manifest(tmp_path / "out").splits["none"].sequences == 0


def test_a_version_by_number_or_tag(tmp_path: Path, exporting: Export, tokenizer: str) -> None:
    texts = write_texts(tmp_path / "texts", files=1, rows=50)
    output = tmp_path / "web.lance"
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "blocks", "block_size": 32}
    lance_prep.build(texts, output=output, **fields)
    assert run(["tag", str(output), "first"]) == 0
    lance_prep.build(texts, output=output, overwrite=True, seed=7, **fields)
    for version in (1, "first", 2, None):
        out = tmp_path / f"out-{version}"
        exporting(output, out, *([] if version is None else ["--version", version]))
        check_same(out / "web", output, version=version)


def test_the_same_from_python_with_any_number_of_threads(tmp_path: Path, web: Path) -> None:
    for workers in (1, 5):
        options = ExportOptions(shard_size=30_000)
        report = export(web, tmp_path / "out" / str(workers), options=options, workers=workers)
        assert report.sources[0].rows == 261
    one, five = (tree(tmp_path / "out" / name / "web") for name in ("1", "5"))
    assert one == five


@pytest.mark.parametrize("format", ["bin", "megatron", "mds", "litdata", "parquet", "trl", "jsonl"])
def test_damaged_ids_are_refused(tmp_path: Path, refused: Callable[..., str], tokenizer: str, format: str) -> None:
    (tmp_path / "a.txt").write_text("one line of text\n" * 500)
    options = {"tokenizer": tokenizer, "layout": "blocks", "block_size": 64}
    built = lance_prep.build(tmp_path / "a.txt", output=tmp_path / "a.lance", **options)
    size = 2 * 64 * built.rows
    (data,) = (tmp_path / "a.lance" / "data").iterdir()
    ids = lance.dataset(tmp_path / "a.lance").to_table(columns=["input_ids"])["input_ids"].combine_chunks()
    stored = ids.flatten().to_numpy().tobytes()
    whole = data.read_bytes()
    at = whole.index(stored[:size]) + 2 * 64 * 3 + 10
    data.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
    said = refused(tmp_path / "a.lance", tmp_path / "out", "--format", format)
    assert ": row 3 has the id 65,535, and its tokenizer has " in said
    assert "run `lance-prep verify`" in said


def test_a_path_with_a_line_break(tmp_path: Path, refused: Callable[..., str]) -> None:
    make_tokens(tmp_path / "a.lance", "blocks", [3], block_size=8)
    (tmp_path / "a.lance").rename(tmp_path / "a\nb.lance")
    said = refused(tmp_path / "a\nb.lance", tmp_path / "out")
    assert "has the control character '\\n'" in said
    assert "rename the folder" in said


def test_a_folder_that_cannot_be_made(tmp_path: Path, refused: Callable[..., str]) -> None:
    make_tokens(tmp_path / "a.lance", "blocks", [3], block_size=8)
    said = refused(tmp_path / "a.lance", "/proc/lance-prep-out")
    assert "cannot create the folder /proc/lance-prep-out" in said
