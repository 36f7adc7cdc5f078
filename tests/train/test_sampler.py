"""`TakeSampler`: the rows of a step depend on nothing but the step."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lance_prep.errors import UsageError
from lance_prep.train import KeyedPermutation, LanceDataset, TakeSampler
from lance_prep.train.order import PAD_ROW, Order, OrderOptions, even_split
from tests.train.made import Made


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 100))
def test_even_split_gives_the_first_parts_one_more(total: int, parts: int) -> None:
    shares = [even_split(total, parts, i) for i in range(parts)]
    assert shares[0].start == 0
    assert shares[-1].stop == total
    assert all(a.stop == b.start for a, b in itertools.pairwise(shares))
    assert {len(s) for s in shares} <= {total // parts, total // parts + 1}


def steps_of(n: int, batch: int, world: int, **options: Any) -> list[list[int]]:
    """Global batches, put together from the ranks'."""
    ranks = [list(TakeSampler(n, batch, rank=r, world_size=world, **options)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1
    return [[i for part in step for i in part] for step in zip(*ranks, strict=True)]


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(8, 40),
    st.integers(0, 3),
    st.sampled_from(["drop", "pad", "repeat"]),
    st.booleans(),
)
def test_every_world_size_gives_the_same_global_batches(n: int, batch: int, seed: int, tail: Any, local: bool) -> None:
    if tail == "drop" and n < batch:
        with pytest.raises(UsageError, match="do not fill one global batch"):
            TakeSampler(n, batch, tail=tail)
        return
    options = {"seed": seed, "tail": tail, "epoch": 2} | ({"locality": 5, "window": 3} if local else {})
    want = steps_of(n, batch, 1, **options)
    for world in range(2, 9):
        assert steps_of(n, batch, world, **options) == want
    flat = [i for step in want for i in step]
    assert all(len(step) == batch for step in want)
    real = [i for i in flat if i != PAD_ROW]
    if tail == "drop":
        assert len(flat) == n // batch * batch == len(set(flat))
    elif tail == "pad":
        assert sorted(real) == list(range(n))
    else:
        assert set(flat) == set(range(n))
        assert flat[n:] == (flat[:n] * batch)[: len(flat) - n]


def test_batches_follow_the_permutation() -> None:
    order = KeyedPermutation(100, 5, 3)[np.arange(100)].tolist()
    assert [i for b in TakeSampler(100, 10, seed=5, epoch=3) for i in b] == order


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.data())
def test_start_step_is_a_suffix(n: int, batch: int, data: st.DataObject) -> None:
    every = list(TakeSampler(n, batch, tail="pad"))
    start = data.draw(st.integers(0, len(every)))
    sampler = TakeSampler(n, batch, tail="pad", start_step=start)
    assert len(sampler) == len(every) - start
    assert list(sampler) == every[start:]
    assert list(sampler) == every  # the next pass is whole


def test_set_epoch_starts_another_epoch() -> None:
    sampler = TakeSampler(100, 10, start_step=4)
    sampler.set_epoch(0)
    assert len(sampler) == 6
    sampler.set_epoch(1)
    assert len(sampler) == 10
    assert list(sampler) != list(TakeSampler(100, 10))


def test_the_rank_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert list(TakeSampler(30, 7)) == list(TakeSampler(30, 7, rank=1, world_size=3))


@pytest.mark.parametrize(
    "options",
    [
        {"global_batch_size": 0},
        {"global_batch_size": 2, "rank": 0, "world_size": 3},
        {"global_batch_size": 4, "rank": 3, "world_size": 3},
        {"global_batch_size": 4, "rank": 1},
        {"global_batch_size": 4, "tail": "other"},
        {"global_batch_size": 4, "tail": "pad", "drop_last": True},
        {"global_batch_size": 4, "start_step": 26},
        {"global_batch_size": 4, "locality": 0},
        {"global_batch_size": 4, "locality": 4, "shuffle": False},
        {"global_batch_size": 4, "window": 4},
        {"global_batch_size": 4, "seed": 4, "shuffle": False},
        {"global_batch_size": 101},
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TakeSampler(100, **options)


def test_no_memory_and_no_time_at_any_n() -> None:
    n = 10**9
    tracemalloc.start()
    started = time.process_time()
    sampler = TakeSampler(n, 512, start_step=n // 512 // 2)
    batch = next(iter(sampler))
    took = time.process_time() - started
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(batch) == 512
    assert took < 0.05


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("tail", ["drop", "pad"])
def test_dataloader_rows_are_the_same_for_any_workers_and_ranks(blocks: Made, workers: int, tail: Any) -> None:
    ds = LanceDataset(blocks.path)
    order = Order(len(ds), OrderOptions(8, seed=1337, tail=tail))
    want = [ds.take(order.indices(0, k, 1, even_split(8, 1, 0))[0])["input_ids"].tolist() for k in range(order.steps)]
    for world in range(1, 9) if workers == 0 else (3,):
        ranks = [
            [
                batch["input_ids"].tolist()
                for batch in DataLoader(
                    ds,
                    batch_sampler=TakeSampler(ds, 8, seed=1337, rank=rank, world_size=world, tail=tail),
                    num_workers=workers,
                )
            ]
            for rank in range(world)
        ]
        assert [[row for part in step for row in part] for step in zip(*ranks, strict=True)] == want
