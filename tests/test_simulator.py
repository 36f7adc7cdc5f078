"""The commit protocol in a simulated store, under ten thousand schedules of lost replies, late writes and kills.

Each schedule is a seed. A failure names its seed and prints what happened, step by step; `pytest -k seed_1234` runs
that seed again. See `tests/simulated_store.py` and `tests/simulated_builds.py`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

import lance_prep.engine.run
import lance_prep.store.leftovers
import lance_prep.store.output
from lance_prep.engine import Decision, Schedule
from lance_prep.engine.decide import Existing
from lance_prep.engine.schedule import Running
from lance_prep.store import Output, OutputLock
from lance_prep.store.leftovers import Leftovers
from lance_prep.transport import Transport
from tests.simulated_builds import SCENARIOS, run_seed, run_suspended
from tests.simulated_store import KINDS, STORE, Broken, Faults, SimulatedFiles, World

SCHEDULES, TORTURE, BLOCK = 10_000, 100_000, 500


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each block of seeds a test; with `-k seed_1234`, that seed alone."""
    if "seeds" not in metafunc.fixturenames:
        return
    asked = re.findall(r"seed_(\d+)", metafunc.config.getoption("keyword"))
    first, end = (0, SCHEDULES) if "torture" not in metafunc.function.__name__ else (SCHEDULES, TORTURE)
    blocks = [range(int(n), int(n) + 1) for n in asked] or [range(n, n + BLOCK) for n in range(first, end, BLOCK)]
    names = [f"seed_{block.start}" + (f"_to_{block.stop - 1}" if len(block) > 1 else "") for block in blocks]
    metafunc.parametrize("seeds", blocks, ids=names)


def test_no_shard_is_lost_or_doubled(seeds: range) -> None:
    for seed in seeds:
        run_seed(seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_torture_no_shard_is_lost_or_doubled(seeds: range) -> None:
    for seed in seeds:
        run_seed(seed)


def test_a_seed_gives_one_schedule() -> None:
    def story(seed: int) -> str:
        return re.sub(r"lists/\w+", "lists/*", run_seed(seed).story())  # their hashes cover the time of the commit

    for seed in range(20):
        assert story(seed) == story(seed)


def test_the_schedules_reach_what_can_go_wrong() -> None:
    """Each scenario, fault and outcome of a command occurs in the first hundreds of seeds."""
    worlds = [run_seed(seed) for seed in range(400)]
    seen = " ".join(world.story() for world in worlds)
    for expected in (*SCENARIOS, *KINDS, "late:", "fails after its first batch"):
        assert expected in seen, expected
    for outcome in ("built", "resumed", "unchanged", "OutputLocked", "OutputExists", "OutputError"):
        assert re.search(f"(reports|fails:) {outcome}", seen), outcome


# What has gone wrong in this program or in others, each as a schedule of its own.


def scripted(scenario: str, *script: tuple[str, int, str], seed: int = 1, sticky: float = 1) -> World:
    return run_seed(seed, scenario=scenario, faults=Faults(0, 0, KINDS, sticky, script=script))


def test_rows_of_a_half_read_batch_are_not_dropped() -> None:
    """lance-ray #5290: a write failed in the middle, and its retry went on with the batches that were left."""
    world = scripted("once", ("read rows", 1, "refused"))
    story = world.story()
    assert "fails after its first batch" in story
    # The task runs again from its first row, in the same command.
    assert story.index("fails after its first batch") < story.index("reports built version 1")
    assert story.count("write rows data/") == 2


def test_a_crash_between_commit_and_marker_does_not_build_twice() -> None:
    """NeMo Curator #2112: the data was committed, its marker was not, and the next run did all of it again."""
    world = scripted("once", ("commit", 1, "kill after"))
    assert list(world.versions()) == [1]
    story = world.story().partition("is dead")[2]
    assert "write rows" not in story
    assert "reports unchanged version 1" in story


def test_a_lost_reply_to_the_commit_is_not_a_second_commit() -> None:
    world = scripted("once", ("commit", 1, "lost reply"))
    assert list(world.versions()) == [1]
    assert "fails:" in world.story()


def test_a_commit_that_arrives_after_its_process_died() -> None:
    world = scripted("once", ("commit", 1, "late"))
    assert list(world.versions()) == [1]


#: Schedules in which a builder that had been suspended replaced receipts of the version that another had committed.
WAKES_UP = (313, 361, 867, 1477)


@pytest.mark.parametrize("seed", WAKES_UP)
def test_a_builder_that_wakes_up_replaces_no_receipt(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run_seed(seed)
    monkeypatch.setattr(SimulatedFiles, "shared", False)  # names receipts by their shard alone
    with pytest.raises(Broken, match="its receipts name other data files"):
        run_seed(seed)


def test_a_builder_that_is_suspended_before_it_writes_a_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (r"write \.lance_prep/builds/\w+/shard-", 1, "stalled")
    world = scripted("twice", script, seed=37, sticky=0.9)
    receipts = [name for name in world.objects if "/shard-000000-" in name]
    assert list(world.versions()) == [1]
    assert len(receipts) == 2
    monkeypatch.setattr(SimulatedFiles, "shared", False)
    with pytest.raises(Broken, match="its receipts name other data files"):
        scripted("twice", script, seed=37, sticky=0.9)


@pytest.mark.parametrize("where", ["write .lance_prep/seals/1", "delete data/"])
def test_a_builder_that_wakes_up_deletes_nothing_of_a_build_that_was_resumed(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that it discarded with its commit belong to the next version now."""
    assert 2 in [len(run_suspended(seed, where).versions()) for seed in range(12)]  # the other build was committed
    remove = Leftovers.remove
    monkeypatch.setattr(Leftovers, "remove", lambda self, lock: remove(self, OutputLock()))
    if where == "delete data/":  # its receipts are gone, so the other build makes new files
        assert 2 in [len(run_suspended(seed, where).versions()) for seed in range(12)]
        return
    with pytest.raises(Broken, match="missing"):
        [run_suspended(seed, where) for seed in range(12)]


def test_a_store_that_ignores_conditions_is_refused() -> None:
    """Lance #6595: in such a store, two commits of the same version replace each other without an error."""
    stories = [run_seed(seed, faults=Faults(0.01, 3, KINDS, 0.5, conditional=False)).story() for seed in range(300)]
    assert sum("does not refuse to replace an object" in story for story in stories) > 250


# The guards: without any one of them, a schedule fails.


def fails(first: int = 0, count: int = SCHEDULES) -> str:
    """Return what the first failing schedule says, without its story."""
    for seed in range(first, first + count):
        try:
            run_seed(seed)
        except Broken as error:
            return str(error).partition("\n")[0]
    raise AssertionError(f"{count} schedules found nothing")


def test_without_the_version_that_a_commit_was_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Output.commit

    def commit(self: Output, *args: Any, on: int, **kwargs: Any) -> int:
        return real(self, *args, on=max(STORE.world.versions(), default=0), **kwargs)

    monkeypatch.setattr(Output, "commit", commit)
    assert re.search("has rows|there are versions|reported|succeed", fails())


def test_without_a_look_at_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(job: Any, **kwargs: Any) -> Decision:
        there = max(STORE.world.versions(), default=0)
        return Decision(job, Existing(there))

    monkeypatch.setattr(lance_prep.engine.run, "decide", decide)
    assert re.search("has rows|there are versions", fails())


def test_with_results_of_both_copies_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver takes each result as one more shard, as a list of receipts would."""

    class Counting(Schedule):
        def add(self, receipt: Any) -> None:
            self.taken = [*getattr(self, "taken", []), receipt]
            super().add(receipt)

        def result(self) -> list[Any]:
            return sorted(self.taken, key=lambda receipt: int(receipt.shard))

    monkeypatch.setattr(lance_prep.engine.run, "Schedule", Counting)
    monkeypatch.setattr(Running, "awaits", lambda self, shard: True)
    monkeypatch.setattr(Running, "keep", lambda self, built: built.receipt)
    assert re.search("has rows|do not end", fails())


def test_with_removals_by_whoever_takes_the_lease_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found here, as seed 1691: the lists of a commit that was still on its way were removed."""

    def tidy(uri: str, transport: Transport) -> None:
        lance_prep.store.leftovers.tidy(uri, transport, OutputLock())

    monkeypatch.setattr(lance_prep.store.output, "complete", tidy)
    assert fails(1600, 200)


def test_with_leftovers_removed_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Output.leftovers

    def leftovers(self: Output, *args: Any, **kwargs: Any) -> Any:
        found = real(self, *args, **kwargs)
        found.remove(OutputLock())
        return found

    monkeypatch.setattr(Output, "leftovers", leftovers)
    assert fails(2400, 600)
