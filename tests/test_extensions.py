"""Extensions from outside the package: one file and one registration each."""

from __future__ import annotations

import codecs
import gzip
import multiprocessing
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck, show_rows
from lance_prep.engine import Hooks, Schedule, build_shard, register_engine, schedule
from lance_prep.engine.shard import BuildJob
from lance_prep.errors import DatasetError, SourceError, UsageError
from lance_prep.exchange import TARGETS, Encoder, ExportOptions, Piece, Source, Target, register_target
from lance_prep.fetch import open_stream
from lance_prep.formats import Chunk, Format, PartJob, register_format, registry, row_chunks
from lance_prep.keyed import Indices
from lance_prep.layout import LayoutJob, RowMaker
from lance_prep.layout.rows import text_columns, text_rows
from lance_prep.layouts import LAYOUTS, Layout, register_layout
from lance_prep.model import SourceFile
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe, load_recipe
from lance_prep.source import SourceBatch
from lance_prep.store.output import Output
from lance_prep.tokenizer import load_tokenizer
from lance_prep.train import LanceDataset, TokenLoader
from lance_prep.transport import Transport
from tests import tokenizers_made as made


class Rot13(Format):
    """Lines of text, each letter moved 13 places through the alphabet."""

    def peek(self, files: Sequence[SourceFile], recipe: Recipe, transport: Transport) -> pa.Schema:
        return pa.schema([("line", pa.string()), ("number", pa.int64())])

    def read(self, job: PartJob) -> Iterator[Chunk]:
        with open_stream(job.file, job.transport) as stream:
            lines = [codecs.decode(line.decode().rstrip("\n"), "rot13") for line in stream]
        yield from row_chunks(iter([pa.RecordBatch.from_pydict({"line": lines, "number": range(len(lines))})]), job)


@pytest.fixture
def rot13() -> Iterator[None]:
    with mock.patch.dict(registry._FORMATS), mock.patch.dict(registry._by_extension):
        register_format("rot13", Rot13(), (".rot13",), compressible=True)
        yield


TEXTS = ["the first line", "a second one", "", "Zürich"]


def _write(folder: Path) -> None:
    folder.mkdir()
    data = "".join(codecs.encode(text, "rot13") + "\n" for text in TEXTS).encode()
    (folder / "a.rot13").write_bytes(data)
    (folder / "b.rot13.gz").write_bytes(gzip.compress(data))


@pytest.mark.usefixtures("rot13")
def test_a_format_from_outside_is_built_and_verified(tmp_path: Path) -> None:
    _write(tmp_path / "src")
    output = tmp_path / "o.lance"
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "keep_columns": ("number",)}
    report = lance_prep.build(tmp_path / "src", output=output, filter="number != 1", **fields)
    assert report.ledger.rows_in == 8
    assert report.ledger.filtered == 2
    assert lance_prep.verify(output, against=SourceCheck()).ok
    batches = lance_prep.stream(tmp_path / "src", layout="raw", shuffle=False)
    assert batches.read_all().column("line").to_pylist() == TEXTS * 2


@pytest.mark.usefixtures("rot13")
def test_a_format_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'rot13' is registered already"):
        register_format("rot13", Rot13(), (".r13",))
    with pytest.raises(ValueError, match=r"'\.csv' is registered already"):
        register_format("other", Rot13(), (".csv",))


def test_an_unregistered_format_is_refused_by_name(tmp_path: Path) -> None:
    _write(tmp_path / "src")
    with pytest.raises(SourceError, match=r"unknown file extension"):
        lance_prep.build(tmp_path / "src" / "a.rot13", output=tmp_path / "o.lance")
    with pytest.raises(SourceError, match="unknown format 'rot13'"):
        registry.format_named("rot13")


def _sentences(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, Indices, int]:
    """Split texts after each full stop."""
    found = [[part + "." for part in text.split(".")[:-1]] for text in texts.to_pylist()]
    parents = np.repeat(np.arange(len(texts)), [len(parts) for parts in found])
    flat = pa.array([part for parts in found for part in parts], pa.large_string())
    return flat, parents, len(flat)


#: A layout that shares the code of `lines`.
SENTENCES = RowMaker(partial(text_rows, split=_sentences), text_columns)


def _backwards(batches: Iterable[SourceBatch], job: LayoutJob) -> Iterator[pa.RecordBatch]:
    """Write each document's tokens in reverse, with their number in a column of its own."""
    ledger = job.tally.ledger
    for batch in batches:
        tokens = job.encode(batch.columns.column(0).fill_null(""))
        kept = np.flatnonzero(tokens.lengths)
        order = kept[job.order(len(kept))]
        rows = [tokens.slice(i, i + 1).ids[::-1] for i in order.tolist()]
        job.tally.lengths.add(tokens.lengths[kept], job.doc_ids(batch.rows[kept]))
        ledger.rows_used += len(order)
        ledger.over_limit += len(kept) - len(order)
        ledger.empty += len(batch.rows) - len(kept)
        ledger.tokens_in += len(tokens.ids)
        ledger.tokens_written += sum(map(len, rows))
        ledger.tokens_over_limit += len(tokens.ids) - sum(map(len, rows))
        numbers = [len(row) for row in rows]
        columns = [rows, numbers, job.doc_ids(batch.rows[order]), [row[-1] for row in rows]]
        yield pa.RecordBatch.from_pydict(dict(zip(job.schema.names, columns, strict=True)), schema=job.schema)


def _backward_columns(token: pa.DataType, block_size: int) -> dict[str, pa.DataType]:
    return {**text_columns(token, block_size), "first": token}


#: A layout of its own.
BACKWARDS = RowMaker(_backwards, _backward_columns)

STORIES = [f"Once there were {i} cats. They saw {i * 7} dogs. The end." if i % 9 else None for i in range(300)]


@pytest.fixture
def toy_layouts() -> Iterator[None]:
    with mock.patch.dict(LAYOUTS):
        register_layout(Layout("sentences", "a sentence", "tests.test_extensions:SENTENCES", unit="sentence"))
        register_layout(Layout("backwards", "a document in reverse", BACKWARDS))
        yield


def _build_stories(folder: Path, layout: str) -> str:
    folder.mkdir()
    batch = pa.table({"text": pa.array(STORIES, pa.string())})
    pq.write_table(batch, folder / "a.parquet", row_group_size=100, compression="none", use_dictionary=False)
    tokenizer = made.save(folder / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    flags = ["--tokenizer", tokenizer, "--shard-size", "4000", "--shuffle-batch-size", "40", "--layout", layout]
    assert run(["build", str(folder / "a.parquet"), *flags, "-o", str(folder / "o.lance")]) == 0
    return str(folder / "o.lance")


@pytest.mark.usefixtures("toy_layouts")
@pytest.mark.parametrize("layout", ["sentences", "backwards"])
def test_a_layout_from_outside_is_built_shown_and_verified(tmp_path: Path, layout: str, capsys: Any) -> None:
    uri = _build_stories(tmp_path / "x", layout)
    said = capsys.readouterr().out
    whole = [text for text in STORIES if text]
    if layout == "sentences":
        assert "sentences  " in said
        assert f"{3 * len(whole)} = {3 * len(whole)} used + 0 empty + 0 over limit" in said
        assert "sentence tokens  median" in said
        expected = [part + "." for text in whole for part in text.split(".")[:-1]]
        want = sorted(made.reference_ids(made.byte_level(), expected))
    else:
        want = sorted(ids[::-1] for ids in made.reference_ids(made.byte_level(), whole))
    opened = lance_prep.info(uri)
    assert opened.metadata.layout == layout
    assert opened.metadata.shards > 1
    assert run(["info", uri]) == 0
    assert f"layout           {layout}\n" in capsys.readouterr().out
    assert sorted(row.ids for row in show_rows(opened, range(opened.metadata.rows))) == want
    assert run(["verify", uri, "--against-source", "--sample-rows", "all"]) == 0
    # Verify has no rule of its own for it, and still finds what differs.
    source = tmp_path / "x" / "a.parquet"
    stat, data = source.stat(), source.read_bytes()
    source.write_bytes(data.replace(b"were 250 cats", b"were 250 rats"))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (problem,) = lance_prep.verify(uri, against=SourceCheck()).problems
    assert "source row " in problem
    assert "input_ids has [" in problem


@pytest.mark.usefixtures("toy_layouts")
@pytest.mark.parametrize("layout", ["sentences", "backwards"])
def test_training_from_a_layout_from_outside(tmp_path: Path, layout: str) -> None:
    uri = _build_stories(tmp_path / "x", layout)
    rows = [row.ids for row in show_rows(lance_prep.info(uri), range(lance_prep.info(uri).metadata.rows))]
    dataset = LanceDataset(uri)
    assert [dataset[i]["input_ids"].tolist() for i in range(20)] == rows[:20]
    blocks = LanceDataset(uri, block_size=16)
    loader = TokenLoader(blocks, global_batch_size=4, seed=1, num_workers=2)
    seen = [tuple(block.tolist()) for batch in loader for block in batch["input_ids"]]
    plain = [
        tuple(block.tolist())
        for batch in DataLoader(blocks, batch_size=1, num_workers=1)
        for block in batch["input_ids"]
    ]
    eos = lance_prep.info(uri).metadata.tokenizer.eos_id  # type: ignore[union-attr]
    stream = [token for ids in rows for token in [*ids, eos]]
    stream += [eos] * (-len(stream) % 16)  # the last block is padded
    assert plain == [tuple(stream[i : i + 16]) for i in range(0, len(stream), 16)]
    assert len(seen) == len(plain) // 4 * 4
    assert not Counter(seen) - Counter(plain)


def test_a_layout_that_is_not_registered_is_refused_by_name(tmp_path: Path) -> None:
    with mock.patch.dict(LAYOUTS):
        register_layout(Layout("sentences", "a sentence", SENTENCES, unit="sentence"))
        with pytest.raises(ValueError, match="'sentences' is registered already"):
            register_layout(Layout("sentences", "another", SENTENCES))
        uri = _build_stories(tmp_path / "x", "sentences")
    with pytest.raises(DatasetError, match="layout is 'sentences', not one of lines, documents") as refusal:
        lance_prep.info(uri)
    assert "import the module that registers" in refusal.value.advice
    with pytest.raises(UsageError, match="layout: use one of lines, documents, blocks, raw"):
        load_recipe("sample", {"layout": "sentences"})


class SpawnedInReverse:
    """Builds shards in a fresh process, the last one first."""

    def __init__(self, workers: int | None) -> None:
        self.built = 0

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            while not schedule.done:
                jobs = list(iter(schedule.next, None))
                for receipt in pool.starmap(build_shard, reversed(jobs), chunksize=len(jobs)):
                    self.built += 1
                    schedule.add(receipt)
                    hooks.progress.finished(receipt)


class CountedIds(Encoder):
    """Token ids as they are stored, after a word and before their number."""

    def __init__(self, source: Source, options: ExportOptions) -> None:
        self.columns = ["input_ids", "num_tokens"]
        self.batch_rows = 10
        self._word = b"ids%d" % (options.max_seq_length or 0)

    def encode(self, batch: pa.RecordBatch) -> Piece:
        data = batch["input_ids"].flatten().to_numpy().tobytes()
        tokens = int(batch["num_tokens"].to_numpy().sum())
        return Piece([data], len(data), batch.num_rows, tokens, note=batch.num_rows)

    def begin(self, pieces: Sequence[Piece]) -> bytes:
        return self._word

    def end(self, notes: Sequence[int]) -> bytes:
        return sum(notes).to_bytes(4, "little")


COUNTED_IDS = Target("counted", ".ids", CountedIds, reads=("max_seq_length",), fixed=True)


def test_an_export_target_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(400)))
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    uri = tmp_path / "a.lance"
    lance_prep.build(tmp_path / "a.txt", output=uri, tokenizer=tokenizer, layout="lines")
    command = ["export", str(uri), "-o", str(tmp_path / "out"), "--format", "counted", "--max-seq-length", "16"]
    with mock.patch.dict(TARGETS):
        register_target(COUNTED_IDS)
        assert run([*command, "--shard-size", "1kB"]) == 0
        with pytest.raises(ValueError, match="'counted' is registered already"):
            register_target(COUNTED_IDS)
        assert run([*command, "--shard-size", "1kB", "--mask-boundaries"]) == 2
        assert "--mask-boundaries has no effect with --format 'counted'" in capsys.readouterr().err
    rows = LanceDataset(uri, block_size=16)[:]["input_ids"].numpy()
    found = [path.read_bytes() for path in sorted((tmp_path / "out" / "a").glob("shard_*.ids"))]
    assert len(found) > 3
    assert max(map(len, found)) <= 1000
    assert b"".join(data[5:-4] for data in found) == rows.astype(np.uint16).tobytes()
    assert sum(int.from_bytes(data[-4:], "little") for data in found) == len(rows)
    assert run(command) == 2
    assert "unknown format 'counted'" in capsys.readouterr().err


@pytest.mark.parametrize("max_rows", [None, 700])
def test_an_engine_from_outside_gives_the_same_rows(tmp_path: Path, max_rows: int | None) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(2000)))
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    fields: dict[str, Any] = {"tokenizer": tokenizer, "layout": "lines", "shard_size": "8KB", "max_rows": max_rows}
    here = lance_prep.build(tmp_path / "a.txt", output=tmp_path / "here.lance", **fields)
    engine = SpawnedInReverse(None)
    with mock.patch.dict(schedule._ENGINES):
        register_engine("reverse", lambda workers: engine)
        there = lance_prep.build(tmp_path / "a.txt", output=tmp_path / "there.lance", engine="reverse", **fields)
    assert there.content_hash == here.content_hash
    assert there.rows == (max_rows or 2000)
    assert engine.built >= there.shards > 1
    assert lance_prep.verify(tmp_path / "there.lance", against=SourceCheck()).ok


def test_an_unregistered_engine_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine 'ray'"):
        lance_prep.build("sample", output=tmp_path / "o.lance", engine="ray")
    assert not (tmp_path / "o.lance").exists()


def test_a_task_of_a_build_of_ten_thousand_files_is_small(tmp_path: Path) -> None:
    for i in range(10_000):
        (tmp_path / f"{i:05}.txt").write_text("some text\n" * 20)
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    names = [str(path) for path in sorted(tmp_path.glob("*.txt"))]
    recipe = load_recipe(names, {"tokenizer": tokenizer, "layout": "blocks", "shard_size": "4KB"})
    plan = make_plan(recipe, Transport())
    assert len(plan.files) == 10_000
    output = Output(str(tmp_path / "o.lance"))
    tasks = BuildJob(plan, load_tokenizer(recipe), Transport(), output, key="0" * 16).tasks()
    assert len(tasks) == len(plan.shards) > 400
    assert max(len(pickle.dumps(task)) for task in tasks) < 20_000
    assert [task.shard.index for task in tasks] == list(range(len(tasks)))
    read = [task.plan.files[part.file].url for task in tasks for part in task.shard.parts]
    assert read == names
