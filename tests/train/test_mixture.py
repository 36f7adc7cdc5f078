"""`Mixture` and the shares below it: within one of the exact share, at any position, and the same for everyone."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lance_prep.errors import StateMismatch, UsageError
from lance_prep.train import KeyedPermutation, LanceDataset, Mixture, Phase, TakeSampler, TokenLoader
from lance_prep.train.dataset import DatasetOptions
from lance_prep.train.order import PAD_ROW
from lance_prep.train.shares import PeriodShares, make_shares
from tests.train.made import BLOCK, Made

weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=10).filter(any)


@settings(max_examples=60, deadline=None)
@given(weights, st.sampled_from([0, 1, 10**6, 10**9, 10**15]))
def test_counts_are_within_one_of_the_exact_share(given_weights: list[int], start: int) -> None:
    shares = make_shares([Fraction(w) for w in given_weights])
    positions = np.arange(start, start + 3000)
    source, ordinal = shares.locate(positions)
    counts = shares.counts(start)
    for i, found, number in zip(positions.tolist(), source.tolist(), ordinal.tolist(), strict=True):
        assert counts[found] == number
        counts[found] += 1
        if i % 97 == 0:
            assert all(abs(c - s * (i + 1)) <= 1 for c, s in zip(counts, shares.exact, strict=True))
    assert counts == shares.counts(start + 3000)
    total = sum(given_weights)
    for share, weight in zip(shares.exact, given_weights, strict=True):
        assert share == Fraction(weight, total) or isinstance(shares, PeriodShares)
        assert abs(share - Fraction(weight, total)) <= Fraction(len(given_weights), 65536)


@pytest.fixture
def three(make: Callable[..., Made]) -> dict[str, Made]:
    made = [make("blocks", [n], name=f"{n}.lance", block_size=BLOCK, seed=n) for n in (30, 50, 20)]
    return {str(m.path): m for m in made}


def mixed(three: dict[str, Made], *parts: float, **options: Any) -> Mixture:
    return Mixture(dict(zip(three, parts, strict=True)), by="rows", **options)


def test_each_source_in_its_own_order_again_and_again(three: dict[str, Made]) -> None:
    mix = mixed(three, 0.5, 0.3, 0.2, seed=4)
    source, sample = mix.locate(np.arange(500))
    for i, path in enumerate(three):
        data = mix.sources[i]
        got = sample[source == i].tolist()
        times = -(-len(got) // len(data))
        orders = [
            KeyedPermutation(len(data), 4, t, stream=f"{i}/{data._facts.content_hash}")[np.arange(len(data))]
            for t in range(times)
        ]
        assert got == np.concatenate(orders)[: len(got)].tolist()
        rows = mix.take(np.flatnonzero(source == i))["input_ids"].tolist()
        ds = LanceDataset(path)
        assert rows == ds.take(got)["input_ids"].tolist()


def test_an_epoch_ends_as_stopping_says(three: dict[str, Made]) -> None:
    repeat = mixed(three, 0.5, 0.3, 0.2)
    counts = list(repeat.counts(len(repeat)).values())
    assert all(c >= n for c, n in zip(counts, (30, 50, 20), strict=True))
    assert any(c < n for c, n in zip(repeat.counts(len(repeat) - 1).values(), (30, 50, 20), strict=True))
    stop = mixed(three, 0.5, 0.3, 0.2, stopping="stop")
    assert all(c <= n for c, n in zip(stop.counts(len(stop)).values(), (30, 50, 20), strict=True))
    assert any(c > n for c, n in zip(stop.counts(len(stop) + 1).values(), (30, 50, 20), strict=True))
    source, sample = stop.locate(np.arange(2 * len(stop)))
    for half in (slice(0, len(stop)), slice(len(stop), None)):
        pairs = list(zip(source[half].tolist(), sample[half].tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)


def test_weights_by_tokens_allow_for_padding(make: Callable[..., Made]) -> None:
    a = make("blocks", [1], name="a.lance", block_size=BLOCK, seed=11)  # one block, padded
    b = make("blocks", [40], name="b.lance", block_size=BLOCK, seed=12)
    mix = Mixture({str(a.path): 0.5, str(b.path): 0.5})
    share = list(mix.shares().values())
    means = [source._mean_tokens for source in mix.sources]
    assert float(share[0]) * means[0] == pytest.approx(float(share[1]) * means[1], rel=1e-4)
    assert means[0] == len(a.rows[0])
    assert means[1] == pytest.approx(np.mean([len(row) for row in b.rows]))


def test_phases_change_nothing_before_them(three: dict[str, Made]) -> None:
    names = list(three)
    first = dict(zip(names, (0.6, 0.4, 0.0), strict=True))
    then = dict(zip(names, (0.1, 0.1, 0.8), strict=True))
    alone = Mixture(first, by="rows")
    both = Mixture([Phase(first, until_tokens=100 * BLOCK), Phase(then)], by="rows")
    for a, b in zip(alone.locate(np.arange(100)), both.locate(np.arange(100)), strict=True):
        assert a.tolist() == b.tolist()
    source, _ = both.locate(np.arange(100, 200))
    assert np.bincount(source).tolist() == [10, 10, 80]
    assert list(both.counts(200).values()) == [70, 50, 80]
    with pytest.raises(UsageError, match="phases"):
        Mixture([Phase(first), Phase(then)])
    with pytest.raises(UsageError, match="weights"):
        Phase({"a": 0.0})


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_sampler_and_loader_work_on_it(three: dict[str, Made], world: int, workers: int) -> None:
    mix = mixed(three, 0.5, 0.3, 0.2)
    n = len(mix) // 6 * 6
    want = mix.take(range(n))["input_ids"].tolist()
    samplers = [TakeSampler(mix, 6, rank=r, world_size=world) for r in range(world)]
    loaders = [TokenLoader(mix, 6, rank=r, world_size=world, num_workers=workers) for r in range(world)]
    plain = [DataLoader(mix, batch_sampler=sampler, num_workers=workers) for sampler in samplers]
    for some in (plain, loaders):
        got = [row for step in zip(*some, strict=True) for part in step for row in part["input_ids"].tolist()]
        assert got == want
    again = [row for step in zip(*loaders, strict=True) for part in step for row in part["input_ids"].tolist()]
    assert again == mix.take(range(len(mix), len(mix) + n))["input_ids"].tolist()


def test_padding_and_pickles_read_the_same(three: dict[str, Made]) -> None:
    mix = mixed(three, 0.5, 0.3, 0.2)
    batch = mix.take([0, PAD_ROW, 2])
    assert (batch["labels"][1] == -100).all()
    assert len(pickle.dumps(mix)) < 10_000
    assert pickle.loads(pickle.dumps(mix)).take([7])["input_ids"].tolist() == mix.take([7])["input_ids"].tolist()


def test_trace_names_the_source_and_its_documents(three: dict[str, Made]) -> None:
    mix = mixed(three, 0.5, 0.3, 0.2)
    loader = TokenLoader(mix, 6, rank=1, world_size=2)
    source, sample = mix.locate(np.arange(4 * 6 + 3, 5 * 6))
    names = list(three)
    want = []
    for s, row in zip(source.tolist(), sample.tolist(), strict=True):
        want.append((names[s], row, tuple(three[names[s]].columns["doc_ids"][row])))
    assert [tuple(t) for t in loader.trace(4)] == want
    assert [tuple(t) for t in mix.trace(4, 1, global_batch_size=6, world_size=2)] == want


def test_a_state_binds_to_sources_shares_and_seed(three: dict[str, Made]) -> None:
    names = list(three)
    first = dict(zip(names, (0.6, 0.4, 0.0), strict=True))
    then = dict(zip(names, (0.1, 0.1, 0.8), strict=True))
    loader = TokenLoader(Mixture(first, by="rows"), 5)
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    # A phase that begins later may be added under way; one that begins before may not.
    later = TokenLoader(Mixture([Phase(first, until_tokens=45 * BLOCK), Phase(then)], by="rows"), 5)
    later.load_state_dict(state)
    assert next(iter(later))["input_ids"].tolist() == next(batches)["input_ids"].tolist()
    for other in (Mixture([Phase(first, until_tokens=20 * BLOCK), Phase(then)], by="rows"), Mixture(then, by="rows")):
        with pytest.raises(StateMismatch, match="phases: "):
            TokenLoader(other, 5).load_state_dict(state)
    with pytest.raises(StateMismatch, match="mixture_seed: 1337 in the checkpoint, 1 here"):
        TokenLoader(Mixture(first, by="rows", seed=1), 5).load_state_dict(state)


def test_an_empty_source_is_refused_before_reading(three: dict[str, Made], lines: Made) -> None:
    name = next(iter(three))
    empty = LanceDataset(name, filter="num_tokens > 1000000")
    mix = Mixture(dict.fromkeys(three, 1.0), datasets={name: empty})
    with pytest.raises(UsageError, match=f"{name} has a weight but no samples"):
        TokenLoader(mix, 4)
    unused = Mixture({**dict.fromkeys(three, 1.0), name: 0.0}, datasets={name: empty}, by="rows")
    assert len(next(iter(TokenLoader(unused, 4)))["input_ids"]) == 4


def test_a_seed_of_the_loader_is_refused(three: dict[str, Made]) -> None:
    """The order is the mixture's own, so a seed of the loader would do nothing but refuse checkpoints."""
    mix = mixed(three, 0.5, 0.3, 0.2)
    for make in (TakeSampler, TokenLoader):
        with pytest.raises(UsageError, match="seed=7 has no effect") as error:
            make(mix, 4, seed=7)
        assert "Mixture" in error.value.advice


def test_a_misspelt_option_is_the_same_error_whether_or_not_datasets_are_open(three: dict[str, Made]) -> None:
    weights = dict.fromkeys(three, 1.0)
    for datasets in (None, {path: LanceDataset(path) for path in three}):
        with pytest.raises(TypeError, match="unexpected keyword argument 'lables'"):
            Mixture(weights, datasets=datasets, lables="shifted")  # type: ignore[call-arg]


def test_a_mixture_passes_on_every_argument_of_a_dataset_but_its_path_and_block_size() -> None:
    arguments = inspect.signature(LanceDataset).parameters.keys() - {"path", "block_size"}
    assert DatasetOptions.__annotations__.keys() == arguments


def test_records_are_mixed_by_rows(make: Callable[..., Made]) -> None:
    made = [make("raw", [n], name=f"{n}.lance") for n in (12, 20)]
    weights = {str(m.path): 1.0 for m in made}
    mix = Mixture(weights, by="rows")
    assert mix.block_size is None
    source, row = mix.locate(np.arange(10))
    batch = next(iter(TokenLoader(mix, 10)))
    assert batch["text"] == [f"text {r}" for r in row]
    assert batch["tags"] == [made[s].columns["tags"][r] for s, r in zip(source, row, strict=True)]
    got = [text for batch in DataLoader(mix, batch_size=4, shuffle=True) for text in batch["text"]]
    assert sorted(got) == sorted(mix.take(range(len(mix)))["text"])
    narrow = {
        path: LanceDataset(path, columns=columns) for path, columns in zip(weights, (["text"], ["tags"]), strict=True)
    }
    batch = Mixture(weights, by="rows", datasets=narrow).take(range(10))
    assert [text is None for text in batch["text"]] == [bool(s) for s in source]
    with pytest.raises(UsageError, match="records have no tokens to mix by"):
        len(Mixture(weights))
    with pytest.raises(UsageError, match="records have no tokens to mix by"):
        len(Mixture([Phase(weights, until_tokens=100), Phase(weights)], by="rows"))
    with pytest.raises(UsageError, match="block size"):
        len(Mixture({**weights, str(make("blocks", [9], block_size=BLOCK).path): 1.0}, by="rows"))


def test_what_contradicts_a_mixture_is_refused(three: dict[str, Made], lines: Made) -> None:
    with pytest.raises(UsageError, match="block size"):
        len(Mixture({str(lines.path): 1.0}))
    other = LanceDataset(lines.path, block_size=16)
    with pytest.raises(UsageError, match="block size"):
        len(Mixture({next(iter(three)): 1.0, "lines": 1.0}, datasets={"lines": other}))
    with pytest.raises(UsageError, match="without a weight"):
        Mixture({next(iter(three)): 1.0}, datasets={"x": other})
    datasets = {path: LanceDataset(path) for path in three}
    weights = dict.fromkeys(three, 1.0)
    with pytest.raises(UsageError, match="labels would have no effect"):
        Mixture(weights, datasets=datasets, labels="shifted")
    assert len(Mixture(weights, datasets=datasets, block_size=BLOCK))
    with pytest.raises(UsageError, match="block size"):
        len(Mixture(weights, datasets=datasets, block_size=2 * BLOCK))
    with pytest.raises(UsageError, match="by='bytes'"):
        mixed(three, 1, 1, 1).__class__({"a": 1.0}, by="bytes")  # type: ignore[arg-type]
