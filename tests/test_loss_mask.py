"""The column `loss_mask`: bits to runs and back, for any bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.loss_mask import MASK_TYPE, mask_to_runs, runs_to_spans

runs = st.lists(st.tuples(st.booleans(), st.sampled_from([1, 2, 3, 50, 65_535, 65_536, 131_070, 200_000])), max_size=5)


@settings(deadline=None, max_examples=60)
@given(st.lists(runs, max_size=5))
def test_bits_come_back(rows: list[list[tuple[bool, int]]]) -> None:
    bits = [np.concatenate([np.empty(0, bool), *(np.full(n, bit) for bit, n in row)]) for row in rows]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(each) for each in bits])]).astype(np.int64)
    column = mask_to_runs(np.concatenate([np.empty(0, bool), *bits]), offsets)
    assert column.type == MASK_TYPE
    assert len(column) == len(rows)
    starts, stops, bounds = runs_to_spans(column.flatten().to_numpy(), column.offsets.to_numpy().astype(np.int64))
    for row, each in enumerate(bits):
        found = np.zeros(len(each), bool)
        for i in range(bounds[row], bounds[row + 1]):
            found[starts[i] : stops[i]] = True
        assert np.array_equal(found, each)
        runs = column[row].as_py()
        assert len(runs) % 2 == 0
        assert not runs or runs[-1] > 0  # nothing is written after the last learned token


def test_a_row_with_an_odd_number_of_runs_is_damaged() -> None:
    with pytest.raises(ValueError, match="odd number"):
        runs_to_spans(np.array([3, 4, 5]), np.array([0, 3]))
