"""Simulated epoching: a small run repeats every source as often as the large run that it is to predict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lance_prep.errors import StateMismatch, UsageError
from lance_prep.train import LanceDataset, Mixture, TokenLoader
from lance_prep.train.positions import FAR, Lookup, Pool, Positions, Simulated
from tests.train.made import BLOCK, Made

tokens = st.integers(1, 10**15)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**12), tokens, tokens)
def test_the_number_of_samples_is_the_nearest_to_the_fraction(samples: int, a: int, b: int) -> None:
    simulated = Simulated(min(a, b), max(a, b))
    exact = Fraction(samples) * min(a, b) / max(a, b)
    size = simulated.size(samples)
    assert abs(size - exact) <= Fraction(1, 2)
    assert 0 <= size <= samples
    assert simulated.size(samples + 1) >= size
    assert Simulated(a, a).size(samples) == samples
    if exact.denominator == 1:
        assert size == exact


sources = st.lists(st.tuples(st.integers(20, 400), st.integers(1, 50)), min_size=1, max_size=6)


def laid_out(sizes: list[int], used: list[int], weights: list[int]) -> Positions:
    pools = [Pool(size, part, str(i)) for i, (size, part) in enumerate(zip(sizes, used, strict=True))]
    return Positions.lay_out([([Fraction(w) for w in weights], FAR)], pools, 7, restart=False)


@settings(max_examples=30, deadline=None)
@given(sources, st.integers(2, 20), st.integers(200, 3000))
def test_the_small_run_repeats_every_source_as_often_as_the_large_one(
    given_sources: list[tuple[int, int]], factor: int, steps: int
) -> None:
    sizes, weights = [size for size, _ in given_sources], [weight for _, weight in given_sources]
    used = [Simulated(steps, steps * factor).size(size) for size in sizes]
    assume(all(used))
    small, large = laid_out(sizes, used, weights), laid_out(sizes, sizes, weights)
    source, sample = small.locate(np.arange(steps))
    for i, (size, part) in enumerate(zip(sizes, used, strict=True)):
        seen = Counter(sample[source == i].tolist())
        # Counted in the run itself: each sample as often as any other, and none but the first of the large run's order.
        assert max(seen.values(), default=0) - (min(seen.values()) if len(seen) == part else 0) <= 1
        first = large.pools[i].samples(7, 0, np.arange(part)).tolist()
        assert set(seen) <= set(first)
        assert list(dict.fromkeys(sample[source == i].tolist())) == first[: len(seen)]
        # Counts are within one of the exact share, and the number of samples within half of the exact fraction.
        in_small = Fraction(small.counts(steps)[i], part)
        in_large = Fraction(large.counts(steps * factor)[i], size)
        error = Fraction(1, part) + Fraction(1, size) + in_large * Fraction(1, 2 * part)
        assert abs(in_small - in_large) <= error


requests = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 40_000), st.integers(1, 300)).map(lambda run: list(range(run[0], run[0] + run[1]))),
        st.lists(st.integers(0, 40_000), max_size=20),
        st.lists(st.integers(0, 10**15), max_size=5),
    ),
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(st.booleans(), st.sampled_from([900, 9000]), requests)
def test_what_is_remembered_is_what_was_looked_up(restart: bool, size: int, asked: list[list[int]]) -> None:
    pools = [Pool(size, size, "a"), Pool(700, 500, "b")]
    phases = [([Fraction(1), Fraction(2)], 500), ([Fraction(3), Fraction(1)], FAR)]
    positions = Positions.lay_out(phases, pools, 7, restart=restart)
    remembered = Lookup(positions)
    for some in asked:
        array = np.array(some, np.int64)
        for got, want in zip(remembered.locate(array), positions.locate(array), strict=True):
            assert got.tolist() == want.tolist()


@pytest.fixture
def two(make: Callable[..., Made]) -> dict[str, Made]:
    made = [make("blocks", [n], name=f"{n}.lance", block_size=BLOCK, seed=n) for n in (40, 120)]
    return {str(m.path): m for m in made}


def test_a_mixture_shows_a_small_run_the_repetition_of_the_large(two: dict[str, Made]) -> None:
    weights = dict.fromkeys(two, 1.0)
    options: dict[str, Any] = {"by": "rows", "experiment_tokens": 80 * BLOCK, "target_tokens": 320 * BLOCK}
    small = Mixture(weights, **options)
    source, sample = small.locate(np.arange(80))
    # The large run shows 160 samples of each: all of the 40 four times, and the 120 once and a third.
    seen = [Counter(sample[source == i].tolist()) for i in range(2)]
    assert [len(s) for s in seen] == [10, 30]
    assert set(seen[0].values()) == {4}
    assert sorted(seen[1].values()) == [1] * 20 + [2] * 10
    large = Mixture(weights, by="rows")
    for i in range(2):
        where = np.flatnonzero(large.locate(np.arange(320))[0] == i)[: len(seen[i])]
        assert set(large.locate(where)[1].tolist()) == set(seen[i])
    path = next(iter(two))
    rows = small.take(np.flatnonzero(source == 0))["input_ids"].tolist()
    assert rows == LanceDataset(path).take(sample[source == 0])["input_ids"].tolist()
    # An epoch ends when each sample in use was shown once.
    assert len(small) == 60
    assert len(Mixture(weights, stopping="stop", **options)) == 20
    same = Mixture(weights, by="rows", experiment_tokens=5, target_tokens=5)
    assert all(
        np.array_equal(a, b) for a, b in zip(same.locate(np.arange(400)), large.locate(np.arange(400)), strict=True)
    )


def test_a_checkpoint_knows_the_lengths_of_the_runs(two: dict[str, Made]) -> None:
    weights = dict.fromkeys(two, 1.0)

    def loader(**options: int) -> TokenLoader:
        return TokenLoader(Mixture(weights, by="rows", **options), 4)  # type: ignore[arg-type]

    ours = loader(experiment_tokens=1000, target_tokens=4000)
    batches = iter(ours)
    next(batches)
    state = json.loads(json.dumps(ours.state_dict()))
    again = loader(experiment_tokens=1000, target_tokens=4000)
    again.load_state_dict(state)
    assert next(iter(again))["input_ids"].tolist() == next(batches)["input_ids"].tolist()
    for other in (loader(), loader(experiment_tokens=1000, target_tokens=2000)):
        with pytest.raises(StateMismatch, match="target_tokens: 4000 in the checkpoint"):
            other.load_state_dict(state)


def test_lengths_that_make_no_sense_are_refused(two: dict[str, Made]) -> None:
    weights = dict.fromkeys(two, 1.0)
    for lengths in ((5, None), (None, 5), (0, 5), (6, 5), (1.5, 5), (True, 5), ("1", 5)):
        with pytest.raises(UsageError, match="experiment_tokens=") as error:
            Mixture(weights, experiment_tokens=lengths[0], target_tokens=lengths[1])  # type: ignore[arg-type]
        assert error.value.advice
    with pytest.raises(UsageError, match=r"has 40 samples, and .* leaves less than half a sample") as error:
        len(Mixture(weights, experiment_tokens=1, target_tokens=100))
    assert "larger experiment_tokens" in error.value.advice
    unused = {**weights, next(iter(two)): 0.0}
    assert len(Mixture(unused, experiment_tokens=1, target_tokens=100)) == 1
