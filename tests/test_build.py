"""Builds through the Python API: text in, a committed dataset out, equal to a naive loop over `tokenizers`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import lance_prep
from lance_prep.dataset import open_version
from lance_prep.errors import LancePrepError, OutputExists, RowRejected, SourceChanged, TokenizerError, UsageError
from lance_prep.layouts import LAYOUTS
from tests import tokenizers_made as made
from tests.helpers import check_whole, ids_of

WORDS = ["alpha", "beta gamma", "delta\nepsilon", "", "  ", "zeta\n\n eta", "naïve", "x" * 300]


def texts(n: int) -> list[str | None]:
    return [f"{WORDS[i % len(WORDS)]} row {i}" if i % 7 else [None, "", " \n"][i % 3] for i in range(n)]


def write_parquet(path: Path, rows: list[str | None], **columns: Any) -> str:
    pq.write_table(pa.table({"text": pa.array(rows, pa.string()), **columns}), path, row_group_size=97)
    return str(path)


def lines_of(rows: list[str | None]) -> list[str]:
    return [line for row in rows if row for line in row.split("\n") if line.strip()]


def test_a_trailing_newline_is_not_an_empty_line(tmp_path: Path) -> None:
    texts = ["one\n", "two\n\nthree\n", "four", "\n", "five\n\n"]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ledger = lance_prep.build(source, layout="lines", tokenizer="lance-prep:sample", output=tmp_path / "x.lance").ledger
    lines = [line for text in texts for line in text.splitlines()]
    assert (ledger.lines_in, ledger.lines_used, ledger.lines_empty) == (len(lines), 5, lines.count(""))


def test_lines_equal_tokenizers_run_on_the_same_lines(tmp_path: Path, tokenizer: str) -> None:
    rows = texts(1000)
    source = write_parquet(tmp_path / "a.parquet", rows)
    report = lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=tokenizer, layout="lines", shuffle=False)
    want = made.reference_ids(made.byte_level(), lines_of(rows))
    assert ids_of(report.uri) == want
    dataset = lance.dataset(report.uri)
    assert dataset.schema.field("input_ids").type == pa.list_(pa.uint16())
    assert not dataset.schema.field("input_ids").nullable
    table = dataset.to_table()
    assert table["num_tokens"].to_pylist() == [len(ids) for ids in want]
    owners = [i for i, row in enumerate(rows) for line in (row or "").split("\n") if line.strip()]
    assert table["doc_id"].to_pylist() == owners
    ledger = report.ledger
    assert (ledger.rows_in, ledger.rows_used, ledger.empty) == (1000, len(set(owners)), 1000 - len(set(owners)))
    assert ledger.imbalance() == []
    check_whole(report.uri)


def test_the_shuffle_keeps_rows_in_their_batch(tmp_path: Path, tokenizer: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", [f"row number {i}" for i in range(1000)])
    fields = {"tokenizer": tokenizer, "layout": "documents"}
    plain = ids_of(lance_prep.build(source, output=tmp_path / "p.lance", shuffle=False, **fields).uri)
    fields["shuffle_batch_size"] = 100
    shuffled = ids_of(lance_prep.build(source, output=tmp_path / "s.lance", **fields).uri)
    other = ids_of(lance_prep.build(source, output=tmp_path / "t.lance", seed=1, **fields).uri)
    assert shuffled != plain
    assert shuffled != other
    orders = set()
    for at in range(0, 1000, 100):
        assert sorted(shuffled[at : at + 100]) == sorted(plain[at : at + 100])
        orders.add(tuple(plain[at : at + 100].index(row) for row in shuffled[at : at + 100]))
    assert len(orders) == 10


def test_documents_carry_special_tokens_and_kept_columns(tmp_path: Path) -> None:
    tokenizer = made.save(tmp_path / "tokenizer", made.with_template())
    rows = ["one", None, "two\nlines", "three"]
    source = write_parquet(tmp_path / "a.parquet", rows, lang=["en", "en", None, "zh"], n=[1, 2, 3, 4])
    fields = {"tokenizer": tokenizer, "layout": "documents", "keep_columns": ("n", "lang"), "shuffle": False}
    table = lance.dataset(lance_prep.build(source, output=tmp_path / "a.lance", **fields).uri).to_table()
    kept = [row for row in rows if row]
    assert table["input_ids"].to_pylist() == made.reference_ids(made.with_template(), kept)
    assert table["n"].to_pylist() == [1, 3, 4]
    assert table["lang"].to_pylist() == ["en", None, "zh"]
    assert table.schema.names == ["input_ids", "num_tokens", "doc_id", "n", "lang"]
    bare = lance_prep.build(source, output=tmp_path / "b.lance", add_special_tokens=False, **fields)
    assert ids_of(bare.uri) == made.reference_ids(made.with_template(), kept, add_special_tokens=False)


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_blocks_hold_the_tokens_of_all_documents(tmp_path: Path, packing: str) -> None:
    tokenizer = made.save(tmp_path / "tokenizer", made.with_template(), eos_token="<|endoftext|>", bos_token="<s>")
    rows = texts(500)
    source = write_parquet(tmp_path / "a.parquet", rows)
    report = lance_prep.build(
        source,
        output=tmp_path / "o.lance",
        tokenizer=tokenizer,
        block_size=64,
        packing=packing,
        shuffle=False,
        **({"shuffle_batch_size": 50} if packing == "best-fit" else {}),
    )
    kept = [row for row in rows if row and row.strip()]
    documents = [[4096, *ids, 0] for ids in made.reference_ids(made.with_template(), kept, add_special_tokens=False)]
    table = lance.dataset(report.uri).to_table()
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16(), 64)
    got = [row[:n] for row, n in zip(table["input_ids"].to_pylist(), table["num_tokens"].to_pylist(), strict=True)]
    if packing == "concat":
        stream = [token for document in documents for token in document]
        assert got == [stream[i : i + 64] for i in range(0, len(stream), 64)]
    else:
        # Documents stand whole: between one BOS and its EOS.
        pieces = [piece for row in got for piece in _split_after(row, 0)]
        cut = [d[i : i + 64] for d in documents for i in range(0, len(d), 64)]
        assert sorted(pieces) == sorted(cut)
    assert report.tokens == sum(map(len, documents))
    assert report.ledger.padding == 64 * len(got) - report.tokens
    check_whole(report.uri)


@pytest.mark.parametrize("limit", [None, 1, 7])
@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_document_boundaries_are_on_disk(tmp_path: Path, packing: str, limit: int | None) -> None:
    """Texts contain the EOS id, so boundaries cannot be read off the ids."""
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    rows = [row and row.replace("row", "<|endoftext|>row<|endoftext|>") for row in texts(300)]
    source = write_parquet(tmp_path / "a.parquet", rows)
    report = lance_prep.build(
        source,
        output=tmp_path / "o.lance",
        tokenizer=tokenizer,
        block_size=48,
        packing=packing,
        special_tokens="parse",
        shuffle_batch_size=50,
        max_rows=limit,
    )
    source_rows = [i for i, row in enumerate(rows) if row and row.strip()]
    reference = Tokenizer.from_buffer(made.byte_level())
    encoded = [reference.encode(rows[i], add_special_tokens=False).ids for i in source_rows]
    assert all(ids.count(0) >= 2 for ids in encoded)
    documents = {i: [*ids, 0] for i, ids in zip(source_rows, encoded, strict=True)}
    pieces: dict[int, list[list[int]]] = {}
    table = lance.dataset(report.uri).to_table().to_pylist()
    for row in table:
        at = 0
        assert sum(row["seq_lengths"]) == row["num_tokens"]
        for doc, length in zip(row["doc_ids"], row["seq_lengths"], strict=True):
            pieces.setdefault(doc, []).append(row["input_ids"][at : at + length])
            at += length
    for doc, found in pieces.items():
        text = documents[doc]
        assert all(any(text[i : i + len(piece)] == piece for i in range(len(text))) for piece in found)
        assert limit or sum(map(len, found)) == len(text)
    ledger = report.ledger
    assert ledger.rows_used == len(pieces)
    # Only documents of which something was written count as cut.
    assert ledger.documents_cut == sum(len(found[0]) < len(documents[doc]) for doc, found in pieces.items())
    assert set(pieces) == set(documents) if limit is None else len(table) == limit
    check_whole(report.uri)


def _split_after(row: list[int], eos: int) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for token in row:
        pieces[-1].append(token)
        if token == eos:
            pieces.append([])
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize(
    "fields", [{"block_size": 2}, {"block_size": 64}, {"layout": "lines"}, {"layout": "documents"}]
)
def test_tokens_lie_flat_for_memory_mapping(tmp_path: Path, tokenizer: str, fields: dict[str, Any]) -> None:
    from lance_prep.train import LanceDataset

    source = write_parquet(tmp_path / "a.parquet", texts(500))
    report = lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=tokenizer, **fields)
    mapped = LanceDataset(report.uri, access="mmap")
    assert mapped[3]["input_ids"].tolist() == ids_of(report.uri)[3]


def test_blocks_need_an_eos(tmp_path: Path) -> None:
    file = made.byte_level().replace(b"<|endoftext|>", b"<|nothing|>")
    source = write_parquet(tmp_path / "a.parquet", ["a"])
    with pytest.raises(TokenizerError, match="names no end-of-text token") as caught:
        lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=made.save(tmp_path / "t", file))
    assert "eos_token" in caught.value.advice


def test_raw_keeps_records_as_they_are(tmp_path: Path) -> None:
    records = [{"a": i, "b": f"text {i}", "c": [i, None]} for i in range(300)]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    report = lance_prep.build(tmp_path / "r.jsonl", output=tmp_path / "r.lance", layout="raw", shuffle=False)
    assert lance.dataset(report.uri).to_table().to_pylist() == records
    shuffled = lance_prep.build(tmp_path / "r.jsonl", output=tmp_path / "s.lance", layout="raw")
    got = lance.dataset(shuffled.uri).to_table().to_pylist()
    assert got != records
    assert sorted(got, key=lambda record: record["a"]) == records
    check_whole(shuffled.uri)


@pytest.mark.parametrize("layout", ["lines", "documents", "blocks", "raw"])
def test_workers_do_not_change_the_result(tmp_path: Path, tokenizer: str, layout: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(5):
        write_parquet(folder / f"{i}.parquet", texts(400 + 50 * i))
    fields = {
        "layout": layout,
        "tokenizer": tokenizer,
        "block_size": 32,
        "shuffle_batch_size": 100,
        "shard_size": 20_000,
    }
    fields = {name: value for name, value in fields.items() if name not in LAYOUTS[layout].unread}
    hashes = set()
    for workers in (1, 2, 4):
        report = lance_prep.build(folder, output=tmp_path / f"{workers}.lance", workers=workers, **fields)
        assert report.shards > 4
        hashes.add(report.content_hash)
        check_whole(report.uri)
    assert len(hashes) == 1


@pytest.mark.parametrize("layout", ["lines", "documents", "blocks", "raw"])
@pytest.mark.parametrize("max_rows", [1, 99, 250, 100_000])
def test_max_rows_are_the_first_of_all(tmp_path: Path, tokenizer: str, layout: str, max_rows: int) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(_jsonl(texts(150))))
    fields = {"layout": layout, "tokenizer": tokenizer, "block_size": 16, "shuffle_batch_size": 40, "shard_size": 1}
    fields = {name: value for name, value in fields.items() if name not in LAYOUTS[layout].unread}
    everything = lance_prep.build(folder, output=tmp_path / "all.lance", **fields)
    want = lance.dataset(everything.uri).to_table().slice(0, max_rows)
    reports = [
        lance_prep.build(folder, output=tmp_path / f"{w}.lance", workers=w, max_rows=max_rows, **fields) for w in (1, 4)
    ]
    for report in reports:
        assert lance.dataset(report.uri).to_table().to_pylist() == want.to_pylist()
        assert report.ledger.imbalance() == []
        check_whole(report.uri)
    assert reports[0].ledger == reports[1].ledger


def _jsonl(rows: list[str | None]) -> bytes:
    return "\n".join(json.dumps({"text": row}) for row in rows).encode()


def test_the_same_text_in_any_format_gives_the_same_dataset(tmp_path: Path, tokenizer: str) -> None:
    rows = [row for row in texts(300) if row]
    write_parquet(tmp_path / "a.parquet", rows)
    (tmp_path / "a.jsonl").write_bytes(_jsonl(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_jsonl(rows)))
    hashes = {
        lance_prep.build(tmp_path / name, output=tmp_path / f"{name}.lance", tokenizer=tokenizer).content_hash
        for name in ("a.parquet", "a.jsonl", "a.jsonl.gz")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("backend", ["auto", "gigatoken"])
def test_a_backend_that_disagrees_is_replaced(tmp_path: Path, backend: str) -> None:
    """`auto` does not take it; when it is asked for, the check during the build turns its shards over."""
    tokenizer = made.save(tmp_path / "tokenizer", made.without_regex())
    rows = [row for row in texts(300) if row]
    source = write_parquet(tmp_path / "a.parquet", rows)
    report = lance_prep.build(
        source,
        output=tmp_path / "o.lance",
        tokenizer=tokenizer,
        tokenizer_backend=backend,
        layout="documents",
        shuffle=False,
    )
    kept = [row for row in rows if row.strip()]
    assert ids_of(report.uri) == made.reference_ids(made.without_regex(), kept)
    assert report.ledger.shards_by_reference == (report.shards if backend == "gigatoken" else 0)
    assert open_version(report.uri).metadata.tokenizer.backends == ("tokenizers",)


def test_special_tokens_as_an_error(tmp_path: Path, tokenizer: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", ["fine", "not <|endoftext|> fine"])
    with pytest.raises(LancePrepError, match=r"special token <\|endoftext\|> in a text: .*not "):
        lance_prep.build(source, output=tmp_path / "o.lance", tokenizer=tokenizer, special_tokens="error")


def test_rejected_rows_are_set_aside(tmp_path: Path, tokenizer: str) -> None:
    lines = [b'{"text": "one"}', b"not json", b'{"text": "two"}', b'{"text": "\xff"}', b'{"other": 1}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    report = lance_prep.build(
        tmp_path / "a.jsonl", output=tmp_path / "o.lance", tokenizer=tokenizer, layout="documents"
    )
    assert report.rows == 2
    assert (report.ledger.rejected, report.ledger.empty) == (3, 0)
    assert set(report.ledger.reasons) == {"invalid JSON", "invalid UTF-8", "no column text"}
    assert report.rejected_file == str(tmp_path / "o.rejected.jsonl")
    rejected = [json.loads(line) for line in Path(report.rejected_file).read_text().splitlines()]
    assert [record["reason"] for record in rejected] == ["invalid JSON", "invalid UTF-8", "no column text"]
    assert rejected[0]["text"] == "not json"
    assert rejected[0]["file"] == str(tmp_path / "a.jsonl")
    with pytest.raises(RowRejected, match="invalid JSON"):
        lance_prep.build(
            tmp_path / "a.jsonl", output=tmp_path / "s.lance", tokenizer=tokenizer, layout="documents", strict=True
        )
    assert not (tmp_path / "s.lance" / "_versions").exists()


def test_building_twice_leaves_the_dataset_alone(tmp_path: Path, tokenizer: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", texts(100))
    output = tmp_path / "o.lance"
    first = lance_prep.build(source, output=output, tokenizer=tokenizer)
    again = lance_prep.build(source, output=output, tokenizer=tokenizer)
    assert (again.status, again.version, again.content_hash) == ("unchanged", 1, first.content_hash)
    with pytest.raises(OutputExists, match="block_size was 1024, now 64"):
        lance_prep.build(source, output=output, tokenizer=tokenizer, block_size=64)
    write_parquet(tmp_path / "a.parquet", texts(101))
    with pytest.raises(SourceChanged, match=r"1 changed \(.*a.parquet\)"):
        lance_prep.build(source, output=output, tokenizer=tokenizer)
    second = lance_prep.build(source, output=output, tokenizer=tokenizer, overwrite=True)
    assert (second.status, second.version) == ("built", 2)
    assert lance.dataset(str(output), version=1).count_rows() == first.rows
    check_whole(output)


def test_the_output_holds_something_else(tmp_path: Path, tokenizer: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", ["a"])
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "other.lance"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for name in ("other.lance", "folder", "a.parquet"):
        with pytest.raises(OutputExists):
            lance_prep.build(source, output=tmp_path / name, tokenizer=tokenizer)


def test_stream_gives_the_rows_that_build_writes(tmp_path: Path, tokenizer: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", texts(500))
    for fields in ({"layout": "lines"}, {"block_size": 32}, {"layout": "documents", "max_rows": 77}):
        built = lance_prep.build(source, output=tmp_path / "b.lance", tokenizer=tokenizer, overwrite=True, **fields)
        reader = lance_prep.stream(source, tokenizer=tokenizer, **fields)
        assert isinstance(reader, pa.RecordBatchReader)
        assert reader.read_all().to_pylist() == lance.dataset(built.uri).to_table().to_pylist()
    lance.write_dataset(lance_prep.stream("sample"), str(tmp_path / "s.lance"))
    assert lance.dataset(str(tmp_path / "s.lance")).count_rows() > 5000


def test_a_stream_that_is_not_read_to_its_end_ends_its_threads(tmp_path: Path, tokenizer: str) -> None:
    import threading

    source = write_parquet(tmp_path / "a.parquet", texts(20_000))
    before = threading.active_count()
    reader = lance_prep.stream(source, tokenizer=tokenizer, shuffle_batch_size=64)
    reader.read_next_batch()
    reader.close()
    del reader
    assert threading.active_count() <= before


def test_sample_is_the_same_every_time(tmp_path: Path) -> None:
    reports = [lance_prep.build("sample", output=tmp_path / f"{i}.lance") for i in range(2)]
    assert reports[0].content_hash == reports[1].content_hash
    opened = open_version(reports[0].uri)
    assert opened.metadata.recipe["layout"] == "lines"
    assert opened.metadata.source.asked == "pydoc:topics"
    check_whole(reports[0].uri)


def test_a_row_of_many_megabytes(tmp_path: Path, tokenizer: str) -> None:
    rows = ["short", "word " * 4_000_000, "short again"]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(rows))
    report = lance_prep.build(tmp_path / "a.jsonl", output=tmp_path / "o.lance", tokenizer=tokenizer, layout="lines")
    assert report.rows == 3
    assert report.tokens > 4_000_000
    check_whole(report.uri)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9)
)
def test_any_text_any_batch(tmp_path: Path, tokenizer: str, rows: list[str | None], batch: int, group: int) -> None:
    rows = [row.encode("utf-8", "ignore").decode() if row is not None else None for row in rows]
    pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), tmp_path / "h.parquet", row_group_size=group)
    reader = lance_prep.stream(tmp_path / "h.parquet", tokenizer=tokenizer, layout="lines", shuffle_batch_size=batch)
    want = made.reference_ids(made.byte_level(), lines_of(rows))
    assert sorted(reader.read_all()["input_ids"].to_pylist()) == sorted(want)


def test_what_builds_leave_beside_their_source_is_no_source(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("x.jsonl").write_text('{"text": "a"}\nbad\n')
    for source in ("*.jsonl", "."):
        output = f"{'glob' if source != '.' else 'folder'}.lance"
        first = lance_prep.build(source, output=output, tokenizer=tokenizer, layout="documents")
        assert (first.rows, first.ledger.rejected) == (1, 1)
        again = lance_prep.build(source, output=output, tokenizer=tokenizer, layout="documents")
        assert again.status == "unchanged"
    # Named by itself, a mended quarantine file is a source like any other.
    mended = lance_prep.build("glob.rejected.jsonl", output="m.lance", tokenizer=tokenizer, layout="documents")
    assert mended.rows == 1


def test_the_output_is_never_the_source(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lance.write_dataset(pa.table({"text": ["a", "b"]}), "mine.lance")
    with pytest.raises(UsageError, match="is the source itself"):
        lance_prep.build("mine.lance", output="mine.lance", tokenizer=tokenizer, overwrite=True)
    report = lance_prep.build("mine.lance", tokenizer=tokenizer)
    assert report.uri == str(tmp_path / "mine-tokens.lance")
    assert lance.dataset("mine.lance").version == 1
