"""An iterator run ahead on a thread, and packages that load their exports on first use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_prep.process import read_ahead


@given(st.lists(st.integers(0, 20)), st.integers(0, 30))
def test_items_come_in_order_and_never_more_are_held_than_the_budget(costs: list[int], budget: int) -> None:
    taken, made = 0, 0

    def items() -> Iterator[int]:
        nonlocal made
        for i, cost in enumerate(costs):
            # Everything made earlier was taken, except what waits in the queue and this thread's last item.
            assert sum(costs[taken + 1 : max(i - 1, 0)]) <= max(budget, max(costs))
            made = i + 1
            yield cost

    for item in read_ahead(items(), budget, cost=lambda cost: cost):
        assert item == costs[taken]
        taken += 1
    assert taken == made == len(costs)


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("broken")

    ahead = read_ahead(items(), 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(RuntimeError, match="broken"):
        next(ahead)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_closing_interrupts_and_closes_the_items_and_ends_the_thread(budget: int) -> None:
    stopped, closed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield 1
            assert stopped.wait(60)  # as a request that waits for an answer
            yield 2
        finally:
            closed.set()

    before = threading.active_count()
    ahead = read_ahead(items(), budget, on_stop=stopped.set)
    assert next(ahead) == 1
    ahead.close()
    assert closed.is_set()
    assert threading.active_count() == before
