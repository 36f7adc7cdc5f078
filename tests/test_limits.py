"""`max_rows`, `max_source_rows` and `max_tokens`: the first rows of the source, whatever the workers and the kills."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lance_prep
from lance_prep.dataset import SourceCheck
from lance_prep.engine import schedule
from lance_prep.engine.schedule import Schedule, register_engine
from lance_prep.engine.shard import Hooks, ShardTask, build_shard
from lance_prep.errors import Interrupted, UsageError
from lance_prep.layout import LayoutJob, RowMaker
from lance_prep.layout.rows import text_columns, text_rows
from lance_prep.layouts import LAYOUTS, Layout, register_layout
from lance_prep.recipe import Limit
from tests.helpers import check_whole, rows_of

WORDS = ["alpha", "beta gamma", "delta\nepsilon", "", "  ", "zeta\n\n eta", "naïve", "x" * 30, "\n"]


def write(folder: Path, files: int, rows: int, first: int = 0) -> str:
    """Write JSONL files in which every fourth row is empty; compressed, so that each is one shard."""
    folder.mkdir(exist_ok=True)
    for i in range(first, first + files):
        texts = [f"{WORDS[(i + j) % len(WORDS)]} row {i * rows + j}" if j % 4 else None for j in range(rows)]
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return str(folder)


def options(layout: str, tokenizer: str, **fields: Any) -> dict[str, Any]:
    fields = {"layout": layout, "tokenizer": tokenizer, "block_size": 16, "shuffle_batch_size": 20, **fields}
    return {name: value for name, value in fields.items() if name not in LAYOUTS[layout].unread}


def tokens_by_document(uri: object) -> dict[int, int]:
    """Return the number of tokens of each source row in a dataset, in the source's order."""
    found: dict[int, int] = {}
    for row in rows_of(uri):
        pieces = zip(row["doc_ids"], row["seq_lengths"], strict=True) if "doc_ids" in row else None
        for doc, tokens in pieces or [(row["doc_id"], row["num_tokens"])]:
            found[doc] = found.get(doc, 0) + tokens
    return dict(sorted(found.items()))


def first_of(documents: dict[int, int], limit: Limit) -> dict[int, int]:
    """Return the documents that the limit admits: a plain loop."""
    taken: dict[int, int] = {}
    for doc, tokens in documents.items():
        if limit.source_rows is not None and len(taken) >= limit.source_rows:
            break
        if limit.tokens is not None and sum(taken.values()) >= limit.tokens:
            break
        taken[doc] = tokens
    return taken


LIMITS = [
    {"max_source_rows": 1},
    {"max_source_rows": 37},
    {"max_tokens": 1},
    {"max_tokens": 333},
    {"max_source_rows": 70, "max_tokens": 500},
    {"max_source_rows": 10_000, "max_tokens": 1_000_000},
]


@pytest.mark.parametrize("layout", ["lines", "documents", "blocks"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_first_source_rows_are_used(tmp_path: Path, tokenizer: str, layout: str, limits: dict[str, int]) -> None:
    source = write(tmp_path / "source", files=4, rows=45)
    fields = options(layout, tokenizer, shard_size=1)
    want = first_of(
        tokens_by_document(lance_prep.build(source, output=tmp_path / "all.lance", **fields).uri),
        Limit(source_rows=limits.get("max_source_rows"), tokens=limits.get("max_tokens")),
    )
    report = lance_prep.build(source, output=tmp_path / "o.lance", workers=4, **fields, **limits)
    assert tokens_by_document(report.uri) == want
    assert report.tokens == sum(want.values())
    assert report.ledger.rows_used == len(want)
    check_whole(report.uri)
    assert lance_prep.verify(report.uri, against=SourceCheck()).problems == []


def test_a_limited_source_gives_the_rows_of_a_shorter_one(tmp_path: Path, tokenizer: str) -> None:
    """Packing and shuffling do not look beyond the limit."""
    whole, short = tmp_path / "whole.jsonl", tmp_path / "short.jsonl"
    lines = [json.dumps({"text": f"row {i} " * (i % 5)}) for i in range(200)]
    whole.write_text("\n".join(lines))
    used = [i for i in range(200) if i % 5][:77]
    short.write_text("\n".join(lines[: used[-1] + 1]))
    for packing in ("concat", "best-fit"):
        fields = options("blocks", tokenizer, packing=packing)
        limited = lance_prep.build(whole, output=tmp_path / f"{packing}-1.lance", max_source_rows=77, **fields)
        all_of_it = lance_prep.build(short, output=tmp_path / f"{packing}-2.lance", **fields)
        assert limited.content_hash == all_of_it.content_hash
        assert limited.ledger.rows_used == 77


def test_records_are_counted_as_they_are(tmp_path: Path) -> None:
    source = write(tmp_path / "source", files=3, rows=30)
    report = lance_prep.build(source, output=tmp_path / "o.lance", layout="raw", shard_size=1, max_source_rows=50)
    assert (report.rows, report.ledger.rows_used) == (50, 50)
    check_whole(report.uri)
    with pytest.raises(UsageError, match="max_tokens has no effect with layout='raw'"):
        lance_prep.build(source, output=tmp_path / "p.lance", layout="raw", max_tokens=50)


class Erratic:
    """Builds up to `workers` shards at once in one thread, ends them in random order, and dies after `dies` shards."""

    def __init__(self, seed: int, workers: int, dies: int | None) -> None:
        self._random, self._workers, self._dies = random.Random(seed), workers, dies

    def run(self, schedule: Schedule, hooks: Hooks) -> None:
        running: list[tuple[ShardTask, Limit]] = []
        while not schedule.done:
            while len(running) < self._workers and (job := schedule.next()) is not None:
                running.append(job)
            if self._dies == 0:
                raise Interrupted("killed")
            self._dies = self._dies - 1 if self._dies is not None else None
            job = running.pop(self._random.randrange(len(running)))
            schedule.add(build_shard(*job, hooks))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_neither_workers_nor_kills_change_the_result(tmp_path: Path, tokenizer: str, data: Any) -> None:
    draw = data.draw
    layout = draw(st.sampled_from(["lines", "documents", "blocks"]))
    names = draw(st.lists(st.sampled_from(["max_rows", "max_source_rows", "max_tokens"]), min_size=1, unique=True))
    limits: dict[str, Any] = {name: draw(st.integers(1, 200)) * (5 if name == "max_tokens" else 1) for name in names}
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    with TemporaryDirectory(dir=tmp_path) as folder, mock.patch.dict(schedule._ENGINES):
        source = Path(folder) / "source"
        for i, rows in enumerate(sizes):
            write(source, files=1, rows=rows, first=i)
        fields = {**options(layout, tokenizer, shard_size=1), **limits}
        plain = lance_prep.build(source, output=f"{folder}/plain.lance", workers=1, **fields)
        dies = iter([*draw(st.lists(st.integers(0, 3), max_size=3)), None])
        seed, workers = draw(st.integers(0, 1000)), draw(st.integers(1, 5))
        register_engine("erratic", lambda _: Erratic(seed, workers, next(dies)))
        other = None
        while other is None:
            with suppress(Interrupted):
                other = lance_prep.build(source, output=f"{folder}/other.lance", engine="erratic", **fields)
        assert other.content_hash == plain.content_hash
        assert other.ledger == plain.ledger
        assert other.rows <= limits.get("max_rows", other.rows)
        check_whole(other.uri)
        streamed = lance_prep.stream(source, **fields).read_all()
        assert streamed.to_pylist() == rows_of(plain.uri)


@pytest.mark.parametrize("limits", [{"max_source_rows": 50}, {"max_tokens": 400}, {"max_rows": 50}], ids=str)
def test_an_append_fills_up_what_is_left(tmp_path: Path, tokenizer: str, limits: dict[str, int]) -> None:
    source = write(tmp_path / "source", files=1, rows=40)
    fields = options("documents", tokenizer, shard_size=1)
    output = tmp_path / "o.lance"
    first = lance_prep.build(source, output=output, **fields, **limits)
    write(tmp_path / "source", files=3, rows=40, first=1)
    second = lance_prep.build(source, output=output, append=True, **fields, **limits)
    whole = lance_prep.build(source, output=tmp_path / "w.lance", **fields, **limits)
    assert first.rows < second.rows
    assert rows_of(output) == rows_of(whole.uri)
    check_whole(output)
    assert lance_prep.verify(output, against=SourceCheck(rows=None)).ok
    write(tmp_path / "source", files=1, rows=40, first=4)
    assert lance_prep.build(source, output=output, append=True, **fields, **limits).status == "unchanged"


@given(
    st.lists(st.integers(1, 9), max_size=30),
    st.one_of(st.none(), st.integers(1, 40)),
    st.one_of(st.none(), st.integers(1, 100)),
)
def test_admitted_rows_are_those_of_a_plain_loop(tokens: list[int], source_rows: int | None, most: int | None) -> None:
    limit = Limit(source_rows=source_rows, tokens=most)
    job = LayoutJob(None, 0, None, None, limit=limit)  # type: ignore[arg-type]
    at, taken = 0, 0
    while at < len(tokens) and not job.exhausted:
        taken += job.admit(np.array(tokens[at : at + 7], np.int64))
        at += 7
    assert taken == len(first_of(dict(enumerate(tokens)), limit))


def _greedy(batches: Any, job: LayoutJob) -> Iterator[Any]:
    job.limit = Limit()
    yield from text_rows(batches, job)


def test_a_layout_that_ignores_a_limit_is_refused(tmp_path: Path, tokenizer: str) -> None:
    source = write(tmp_path / "source", files=1, rows=40)
    with mock.patch.dict(LAYOUTS):
        register_layout(Layout("greedy", "a document", RowMaker(_greedy, text_columns)))
        with pytest.raises(UsageError, match="layout 'greedy' wrote more source rows than max_source_rows allows: 30"):
            lance_prep.build(
                source, output=tmp_path / "o.lance", layout="greedy", tokenizer=tokenizer, max_source_rows=9
            )


def test_receipts_of_row_limits_alone_are_read(tmp_path: Path) -> None:
    """Receipts once held a number of rows, or nothing."""
    from lance_prep.store.journal import Receipt
    from lance_prep.store.seal import checked, with_checksum

    report = lance_prep.build("sample", output=tmp_path / "o.lance", max_rows=50)
    (path,) = (Path(report.uri) / ".lance_prep" / "builds").glob("*/shard-*.json")
    receipt = Receipt.from_bytes(path.read_bytes())
    assert receipt.limit == Limit(rows=50)
    path.write_bytes(with_checksum({**checked(path.read_bytes()), "limit": 50}))
    assert Receipt.from_bytes(path.read_bytes()) == receipt
    assert lance_prep.verify(report.uri, against=SourceCheck()).ok
    assert lance.dataset(report.uri).count_rows() == 50
