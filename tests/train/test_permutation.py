"""`KeyedPermutation` and `RunOrder`: bijections, at any position, that look like real random permutations."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.train import KeyedPermutation
from lance_prep.train.order import RunOrder


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return KeyedPermutation(n, seed, epoch)[np.arange(n)]


def test_bijective_for_every_small_n() -> None:
    for n in range(1, 4097):
        assert np.array_equal(np.sort(whole(n, seed=n)), np.arange(n)), n


@pytest.mark.parametrize("n", [65_536, 65_537, 262_145, 1_048_575, 1_048_577])
def test_a_whole_permutation_is_a_bijection(n: int) -> None:
    assert np.bincount(whole(n), minlength=n).max() == 1


@pytest.mark.parametrize("bits", range(12, 64))
def test_bijective_around_powers_of_two(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for n in (2**bits - 1, 2**bits, 2**bits + 1):
        if n > 2**63 - 1:
            continue
        perm = KeyedPermutation(n, seed=bits)
        positions = np.unique(np.concatenate([rng.integers(0, n, 2000), [0, n - 1]]))
        values = perm[positions]
        assert values.min() >= 0
        assert values.max() < n
        assert len(np.unique(values)) == len(positions)
        assert np.array_equal(perm.inverse(values), positions)


@settings(deadline=None)
@given(st.integers(1, 2**63 - 1), st.integers(), st.integers(0, 10**6), st.data())
def test_inverse_and_scalars_agree(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    perm = KeyedPermutation(n, seed, epoch)
    i = data.draw(st.integers(0, n - 1))
    value = perm[i]
    assert isinstance(value, int)
    assert 0 <= value < n
    assert perm.inverse(value) == i
    assert perm[np.array([i, i])].tolist() == [value, value]


def test_arguments_matter_and_nothing_else() -> None:
    a = whole(1000, 1, 1)
    assert np.array_equal(a, KeyedPermutation(1000, 1, 1)[np.arange(1000)])
    for other in (whole(1000, 2, 1), whole(1000, 1, 2), KeyedPermutation(1000, 1, 1, stream="x")[np.arange(1000)]):
        assert (a == other).mean() < 0.02
    # Pinned: a change of these is a change of every user's order.
    assert whole(10, 1337).tolist() == PINNED
    assert KeyedPermutation(10**12, 1337)[10**11] == PINNED_FAR


PINNED = [3, 2, 5, 8, 0, 1, 9, 6, 7, 4]
PINNED_FAR = 509260151194


def test_positions_out_of_range_are_refused() -> None:
    for n in (0, -1, 2**63):
        with pytest.raises(ValueError, match="between 1 and 2"):
            KeyedPermutation(n)
    perm = KeyedPermutation(5)
    for bad in (5, -1):
        with pytest.raises(IndexError):
            perm[bad]
    with pytest.raises(IndexError):
        perm[np.array([0.5])]
    assert perm[np.array([], np.int64)].shape == (0,)


def test_memory_does_not_depend_on_n() -> None:
    assert len(pickle.dumps(KeyedPermutation(10**18))) < 1000
    tracemalloc.start()
    perm = KeyedPermutation(10**18)
    perm[np.arange(64)]
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


# Statistics: each measure's distribution over many keys against as many real permutations; 5 sigma of the difference.


def fixed_points(p: np.ndarray) -> float:
    return float((p == np.arange(len(p))).sum())


def neighbours(p: np.ndarray) -> float:
    """How often neighbours stay neighbours."""
    return float((np.abs(np.diff(p)) == 1).sum())


def correlation(p: np.ndarray) -> float:
    return float(np.corrcoef(p[:-1], p[1:])[0, 1])


def window_spread(p: np.ndarray) -> float:
    """Variance of the means of windows of 32: what a batch sees of the data."""
    cut = p[: len(p) // 32 * 32].reshape(-1, 32)
    return float(cut.mean(1).var() / len(p) ** 2)


def residues(p: np.ndarray) -> float:
    """Chi-square of value mod 8 against position mod 8: structure of low bits."""
    table = np.zeros((8, 8))
    np.add.at(table, (np.arange(len(p)) % 8, p % 8), 1)
    return float(((table - table.mean()) ** 2 / table.mean()).sum())


def quarters(p: np.ndarray) -> float:
    """The same of high bits."""
    size = -(-len(p) // 8)
    table = np.zeros((8, 8))
    np.add.at(table, (np.arange(len(p)) // size, p // size), 1)
    return float(((table - table.mean()) ** 2 / table.mean()).sum())


def inversions_near(p: np.ndarray) -> float:
    return float((p[:-7] > p[7:]).mean())


@pytest.mark.parametrize("n", [100, 1000, 1024, 1025, 4096, 20_000])
@pytest.mark.parametrize(
    "measure", [fixed_points, neighbours, correlation, window_spread, residues, quarters, inversions_near]
)
def test_the_order_looks_random(n: int, measure: object) -> None:
    assert callable(measure)
    rng = np.random.default_rng(0)
    times = 1000 if n <= 1025 else 200
    ours = np.array([measure(whole(n, seed=3, epoch=e)) for e in range(times)])
    real = np.array([measure(rng.permutation(n)) for _ in range(times)])
    error = np.sqrt((ours.var() + real.var()) / times) + 1e-12
    assert abs(ours.mean() - real.mean()) < 5 * error
    if real.std() > 0:
        assert 0.6 < (ours.std() + 1e-12) / real.std() < 1.6


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3000), st.integers(1, 100), st.integers(1, 40), st.integers(0, 5))
def test_run_order_is_a_bijection(n: int, run: int, window: int, seed: int) -> None:
    order = RunOrder(n, seed, 1, run=run, window=window)[np.arange(n)]
    assert np.array_equal(np.sort(order), np.arange(n))


def test_run_order_keeps_runs_in_windows() -> None:
    order = RunOrder(10_000, 0, 0, run=100, window=4)
    for start in range(0, 10_000, 400):
        runs = np.unique(order[np.arange(start, start + 400)] // 100)
        assert len(runs) == 4
    assert np.array_equal(order[np.array([7, 9_999, 3])], order[np.arange(10_000)][[7, 9_999, 3]])
