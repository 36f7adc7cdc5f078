"""Many at once: builds that race, threads that share a dataset, training while its dataset is maintained.

Each test has a short version in `make test`; `make torture` runs the full count.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import lance_prep
from lance_prep.dataset import compact, list_versions, prune, tag
from lance_prep.errors import DatasetError
from lance_prep.recipe.model import Backend
from lance_prep.train import LanceDataset, TokenLoader
from tests import tokenizers_made as made
from tests.helpers import check_whole
from tests.processes import finish, start, write_texts
from tests.s3_server import S3

FULL = pytest.mark.torture
BACKENDS: tuple[Backend, ...] = ("auto", "tokenizers")


def _race(*arguments: object, builders: int = 3) -> None:
    """Start the same build several times at once: each makes the version, finds it, or says who builds it."""
    ends = [finish(process) for process in [start(*arguments) for _ in range(builders)]]
    assert any(code == 0 for code, _, _ in ends), ends
    for code, _, err in ends:
        assert code == 0 or "is being built by process" in err, err


@FULL
def test_twenty_races_of_local_builds(tmp_path: Path, tokenizer: str) -> None:
    """`test_stop.py` runs 3 of them in `make test`."""
    texts, output = write_texts(tmp_path / "texts", files=2, rows=500), tmp_path / "o.lance"
    for number in range(1, 21):
        _race("build", texts, "-o", output, "--overwrite", "--tokenizer", tokenizer, "--seed", number)
        assert [version.number for version in list_versions(str(output))] == list(range(1, number + 1))
    for number in range(1, 21):
        check_whole(output, number)


@FULL
def test_ten_races_of_builds_on_s3(by_environment: S3, tmp_path: Path, tokenizer: str) -> None:
    """`test_s3_builders.py` has the races in `make test`, with threads."""
    texts, output = write_texts(tmp_path / "texts", files=2, rows=240), "s3://bucket/race.lance"
    for number in range(1, 11):
        _race("build", texts, "-o", output, "--overwrite", "--tokenizer", tokenizer, "--seed", number)
        assert [version.number for version in list_versions(output)] == list(range(1, number + 1))
        assert lance_prep.verify(output).problems == []


def _some_texts(rows: int) -> list[str]:
    """Return texts of words, numbers, signs, and letters of several scripts."""
    draw = random.Random(5)
    alphabet = ["abcdefghij", "0123456789", " \t\n", "äöüßéñ", "наречие", "中文字符", "한국어", "हिन्दी", "😀“é”\u0301"]
    weights = [12, 2, 4, 1, 1, 1, 1, 1, 1]
    return [
        "a" + "".join(draw.choice(letters) for letters in draw.choices(alphabet, weights, k=draw.randint(1, 120)))
        for _ in range(rows)
    ]


@pytest.mark.parametrize(
    ("ids", "builds"),
    [
        pytest.param(10_000, [(1, "auto"), (2, "tokenizers")], id="a part"),
        pytest.param(1_000_000, list(product((1, 2, 3, 4), BACKENDS)), id="all", marks=FULL),
    ],
)
def test_every_build_has_the_ids_of_tokenizers(tmp_path: Path, ids: int, builds: list[tuple[int, Backend]]) -> None:
    """No id differs, whatever the backend and the number of workers."""
    texts, want, count = _some_texts(ids // 25), [], 0
    for row in made.reference_ids(made.across("gpt2"), texts, add_special_tokens=False):
        want.append(row)
        count += len(row)
    assert count >= ids
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = made.save(tmp_path / "t", made.across("gpt2"))
    flat = np.fromiter((number for row in want for number in row), np.int64, count)
    for workers, backend in builds:
        report = lance_prep.build(
            tmp_path / "s.jsonl",
            output=tmp_path / f"{workers}-{backend}.lance",
            tokenizer=tokenizer,
            tokenizer_backend=backend,
            layout="documents",
            add_special_tokens=False,
            shuffle=False,
            shard_size=200_000,
            workers=workers,
        )
        column = lance.dataset(report.uri).to_table(columns=["input_ids"]).column(0).combine_chunks()
        assert len(column) == len(texts)
        assert np.count_nonzero(column.flatten().to_numpy() != flat) == 0, (workers, backend)


@pytest.fixture
def blocks(tmp_path: Path, tokenizer: str) -> Callable[..., Any]:
    """Return a function that builds blocks of 64 tokens into one dataset."""
    texts = write_texts(tmp_path / "texts", files=3, rows=150)

    def build(**options: Any) -> Any:
        fields: dict[str, Any] = {"tokenizer": tokenizer, "block_size": 64, "shard_size": 30_000, "workers": 1}
        return lance_prep.build(texts, output=tmp_path / "d.lance", **{**fields, **options})

    return build


@pytest.mark.parametrize("access", ["mmap", "take"])
@pytest.mark.parametrize("reads", [8, pytest.param(1000, marks=FULL)])
def test_sixty_four_threads_read_one_dataset(blocks: Callable[..., Any], access: Any, reads: int) -> None:
    data = LanceDataset(blocks().uri, access=access)
    want = data.take(range(len(data)))["input_ids"].numpy()
    together = threading.Barrier(64)

    def read(seed: int) -> int:
        draw, wrong = np.random.default_rng(seed), 0
        together.wait()
        for _ in range(reads):
            rows = draw.integers(0, len(data), 8)
            wrong += not np.array_equal(data.take(rows.tolist())["input_ids"].numpy(), want[rows])
        return wrong

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(read, range(64))) == [0] * 64


def _maintain(uri: str, blocks: Callable[..., Any], rounds: int, ended: threading.Event) -> int:
    """Overwrite, compact and prune a dataset; return how many versions were removed."""
    removed = 0
    try:
        for seed in range(1, rounds + 1):
            blocks(overwrite=True, seed=seed)
            compact(uri)
            removed += len(prune(uri, timedelta(0)).removed)
    finally:
        ended.set()
    return removed


@pytest.mark.parametrize("access", ["mmap", "take"])
@pytest.mark.parametrize(
    ("rounds", "workers"), [(2, 0), pytest.param(30, 0, marks=FULL), pytest.param(30, 2, marks=FULL)]
)
def test_training_goes_on_while_the_dataset_is_maintained(
    blocks: Callable[..., Any], access: Any, rounds: int, workers: int
) -> None:
    """A version with a tag is read to the end. One that is pruned gives its own rows or an error, never others."""
    uri = blocks(seed=100).uri
    tag(uri, "train")
    blocks(overwrite=True, seed=101)
    tagged, pruned = (LanceDataset(uri, version=version, access=access) for version in ("train", 2))

    def batches(data: LanceDataset) -> Iterator[Any]:
        return (batch["input_ids"].tolist() for batch in TokenLoader(data, global_batch_size=8, num_workers=workers))

    want, other = list(batches(tagged)), list(batches(pruned))
    assert want != other
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        maintenance = pool.submit(_maintain, uri, blocks, rounds, ended)
        passes = 0
        while not passes or not ended.is_set():
            assert list(batches(tagged)) == want
            passes += 1
            with suppress(DatasetError):
                for got, expected in zip(batches(pruned), other, strict=False):
                    assert got == expected
        assert maintenance.result() >= rounds
    check_whole(uri, "train")
    check_whole(uri)
