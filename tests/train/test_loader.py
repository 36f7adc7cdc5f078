"""`TokenLoader`: exact, elastic, resumable; what it refuses, and that it reads ahead without counting it."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lance_prep.errors import LancePrepError, StateMismatch, UsageError
from lance_prep.train import LanceDataset, TakeSampler, TokenLoader, pad_collate
from lance_prep.train.samples import Batch
from tests.train.made import BLOCK, Made

WAYS: list[dict[str, Any]] = [{}, {"prefetch": 0}, {"num_workers": 1}, {"num_workers": 4}]


def rows(loader: TokenLoader, epochs: int = 1) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for _ in range(epochs) for batch in loader]


def reference(made: Made, batch: int, epochs: int, **options: Any) -> list[list[list[int]]]:
    ds = LanceDataset(made.path)
    return [
        ds.take(indices)["input_ids"].tolist()
        for epoch in range(epochs)
        for indices in TakeSampler(ds, batch, epoch=epoch, rank=0, world_size=1, **options)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("access", ["auto", "take"])
def test_each_epoch_delivers_the_rows_of_its_order(blocks: Made, way: dict[str, Any], access: Any) -> None:
    loader = TokenLoader(LanceDataset(blocks.path, access=access), 8, seed=3, tail="pad", **way)
    assert rows(loader, 2) == reference(blocks, 8, 2, seed=3, tail="pad")
    assert (loader.epoch, loader.step) == (2, 0)


@pytest.mark.parametrize("way", WAYS[:3])
def test_elastic_and_resumed_anywhere(blocks: Made, way: dict[str, Any]) -> None:
    """Stop at each step in one world, go on in another: the global batches are those of one run."""
    ds = LanceDataset(blocks.path)
    want = reference(blocks, 8, 1, seed=3)
    steps = range(len(want)) if not way else (0, 5)
    for stop in steps:
        first = TokenLoader(ds, 8, seed=3, rank=0, world_size=1, **way)
        got = [batch["input_ids"].tolist() for _, batch in zip(range(stop), first, strict=False)]
        state = json.loads(json.dumps(first.state_dict()))
        assert state["step"] == stop
        for world in (1, 2, 3, 8) if not way else (3,):
            ranks = []
            for rank in range(world):
                loader = TokenLoader(LanceDataset(blocks.path), 8, seed=3, rank=rank, world_size=world)
                loader.load_state_dict(state)
                ranks.append(rows(loader))
            assert got + [[r for part in step for r in part] for step in zip(*ranks, strict=True)] == want


def test_state_is_small_and_only_of_what_was_delivered(blocks: Made) -> None:
    loader = TokenLoader(LanceDataset(blocks.path), 4, prefetch=8)
    batches = iter(loader)
    for k in range(5):
        assert loader.state_dict()["step"] == k
        next(batches)
    assert len(json.dumps(loader.state_dict())) < 1000
    assert len(pickle.dumps(loader.data)) < 10_000


def test_stopped_at_the_very_end_of_an_epoch(blocks: Made) -> None:
    ds = LanceDataset(blocks.path)
    loader = TokenLoader(ds, 8, seed=3)
    batches = iter(loader)
    for _ in range(loader.order.steps):
        next(batches)
    state = loader.state_dict()
    assert state["epoch"] == 0
    resumed = TokenLoader(ds, 8, seed=3)
    resumed.load_state_dict(state)
    assert len(resumed) == resumed.order.steps
    assert rows(resumed) == reference(blocks, 8, 2, seed=3)[loader.order.steps :]


@pytest.mark.parametrize("way", WAYS[:3])
def test_breaking_off_goes_on(blocks: Made, way: dict[str, Any]) -> None:
    loader = TokenLoader(LanceDataset(blocks.path), 8, seed=3, **way)
    got = []
    for batch in loader:
        got.append(batch["input_ids"].tolist())
        if len(got) == 4:
            break
    assert loader.step == 4
    assert got + rows(loader) == reference(blocks, 8, 1, seed=3)
    loader.set_epoch(1)
    assert loader.step == 0
    loader.set_epoch(0)
    assert rows(loader) == reference(blocks, 8, 1, seed=3)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("move", ["again", "set_epoch", "load_state_dict"])
def test_a_pass_that_was_overtaken_says_so(blocks: Made, way: dict[str, Any], move: str) -> None:
    """Its batches would be counted as steps of the other pass."""
    loader = TokenLoader(LanceDataset(blocks.path), 8, seed=3, **way)
    state = loader.state_dict()
    overtaken = iter(loader)
    next(overtaken)
    if move == "again":
        next(iter(loader))
    elif move == "set_epoch":
        loader.set_epoch(5)
    else:
        loader.load_state_dict(state)
    with pytest.raises(UsageError, match="this pass over the loader cannot continue"):
        next(overtaken)


def test_a_state_loaded_between_iter_and_the_first_batch_counts(blocks: Made) -> None:
    """Trainers make the iterator before they restore the checkpoint."""
    loader = TokenLoader(LanceDataset(blocks.path), 8, seed=3)
    state = {**loader.state_dict(), "step": 5}
    batches = iter(loader)
    loader.load_state_dict(state)
    assert [batch["input_ids"].tolist() for batch in batches] == reference(blocks, 8, 1, seed=3)[5:]


@pytest.mark.parametrize("step", [1.5, True, "7", None, float("nan"), -1, [], 10**9])
@pytest.mark.parametrize("name", ["step", "epoch"])
def test_refuses_a_damaged_state(blocks: Made, name: str, step: Any) -> None:
    loader = TokenLoader(LanceDataset(blocks.path), 8)
    good = loader.state_dict()
    if (name, step) != ("epoch", 10**9):
        with pytest.raises(StateMismatch, match=f"damaged: its {name} "):
            loader.load_state_dict({**good, name: step})
    for bad in ([], None, "state", 7, float("nan")):
        with pytest.raises(StateMismatch, match="expected a dict"):
            loader.load_state_dict(bad)  # type: ignore[arg-type]
        with pytest.raises(StateMismatch, match="its order must be a dict"):
            loader.load_state_dict({**good, "order": bad})
    with pytest.raises(StateMismatch):
        loader.load_state_dict({})
    loader.load_state_dict(good)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prefetch": 0, "num_workers": 1}, "prefetch=0 cannot be combined with num_workers=1"),
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context='spawn' has no effect without workers"),
        ({"window": 4}, "window=4 has no effect without locality"),
        ({"seed": 1, "shuffle": False}, "seed=1 has no effect"),
        ({"prefetch": -1}, "at least 0"),
        ({"rank": 1}, "rank=1 and world_size=None"),
    ],
)
def test_refuses_options_without_effect(blocks: Made, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TokenLoader(LanceDataset(blocks.path), 8, **options)


def test_close_ends_worker_processes_and_the_reading_thread(blocks: Made) -> None:
    for options in ({"num_workers": 2}, {"prefetch": 2}):
        with TokenLoader(LanceDataset(blocks.path, access="take"), 8, seed=3, **options) as loader:
            batches = iter(loader)
            got = [next(batches)["input_ids"].tolist() for _ in range(3)]
            if "num_workers" in options:
                assert len(multiprocessing.active_children()) == 2
        assert not multiprocessing.active_children()
        assert not [thread for thread in threading.enumerate() if "read-ahead" in thread.name]
        assert next(batches, None) is None
        # It can be used again, and continues.
        assert got + rows(loader) == reference(blocks, 8, 1, seed=3)
        loader.close()
        assert not multiprocessing.active_children()


@pytest.mark.parametrize("options", ["", "num_workers=1"])
def test_a_loop_that_breaks_off_ends_the_program_quietly(blocks: Made, options: str) -> None:
    script = f"""
import warnings
warnings.simplefilter("ignore")
from lance_prep.train import LanceDataset, TokenLoader
loader = TokenLoader(LanceDataset({str(blocks.path)!r}, access="take"), 4, {options})
batches = iter(loader)
print(len(next(batches)["input_ids"]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


class Pair(NamedTuple):
    ids: Any
    rest: Any


@pytest.mark.parametrize(
    ("collate", "tensors"),
    [
        (lambda batch: batch["input_ids"], lambda b: [b]),
        (lambda batch: (batch["input_ids"], batch["labels"]), lambda b: [b[0], b[1]]),
        (lambda batch: [{"a": [batch["input_ids"]]}, "name"], lambda b: [b[0]["a"][0]]),
        (lambda batch: Pair(batch["input_ids"], {"x": (batch["labels"], 3)}), lambda b: [b.ids, b.rest["x"][0]]),
        (lambda batch: UserDict(ids=batch["input_ids"]), lambda b: [b["ids"]]),
    ],
    ids=["tensor", "tuple", "nested list", "named tuple", "mapping"],
)
def test_batches_of_any_shape_reach_the_device(blocks: Made, collate: Any, tensors: Any) -> None:
    plain = next(iter(TokenLoader(LanceDataset(blocks.path), 4, collate_fn=collate)))
    moved = next(iter(TokenLoader(LanceDataset(blocks.path), 4, collate_fn=collate, device="meta")))
    assert type(moved) is type(plain)
    assert [(t.device.type, t.shape) for t in tensors(moved)] == [("meta", t.shape) for t in tensors(plain)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu(blocks: Made) -> None:
    want = reference(blocks, 8, 1, seed=3)
    ds = LanceDataset(blocks.path)
    assert [b["input_ids"].tolist() for b in TokenLoader(ds, 8, seed=3, device="cuda")] == want
    pairs = TokenLoader(ds, 8, seed=3, device="cuda", collate_fn=lambda b: (b["input_ids"], [b["labels"]]))
    got = list(pairs)
    assert all(ids.is_cuda and labels.is_cuda for ids, (labels,) in got)
    assert [ids.tolist() for ids, _ in got] == want


@pytest.mark.parametrize(
    ("options", "data", "named"),
    [
        ({"seed": 4}, {}, "seed: 3 in the checkpoint, 4 here"),
        ({"global_batch_size": 4}, {}, "global_batch_size: 8 in the checkpoint, 4 here"),
        ({"tail": "pad"}, {}, "tail: 'drop' in the checkpoint, 'pad' here"),
        ({"locality": 4}, {}, "locality: None in the checkpoint, 4 here"),
        ({}, {"filter": "num_tokens > 5"}, "filter: None in the checkpoint, 'num_tokens > 5' here"),
        ({}, {"block_size": 20}, "block_size: 16 in the checkpoint, 20 here"),
    ],
)
def test_refuses_another_state(lines: Made, options: dict[str, Any], data: dict[str, Any], named: str) -> None:
    state = TokenLoader(LanceDataset(lines.path, block_size=16), 8, seed=3).state_dict()
    here = {"global_batch_size": 8, "seed": 3, **options}
    other = TokenLoader(LanceDataset(lines.path, **{"block_size": 16, **data}), here.pop("global_batch_size"), **here)
    with pytest.raises(StateMismatch) as error:
        other.load_state_dict(state)
    assert named in str(error.value)
    assert error.value.advice


def test_binds_to_the_content_and_refuses_another_or_another_format(make: Callable[..., Made]) -> None:
    first = make("blocks", [30], block_size=BLOCK, seed=1)
    loader = TokenLoader(LanceDataset(first.path), 8)
    state = loader.state_dict()
    make("blocks", [30], block_size=BLOCK, seed=1)
    for version in (1, 2):  # the same rows, as after a restore or a compaction
        TokenLoader(LanceDataset(first.path, version=version), 8).load_state_dict(state)
    other = make("blocks", [30], name="other.lance", block_size=BLOCK, seed=2)
    with pytest.raises(StateMismatch, match="content_hash: 'hash-blocks-1' in the checkpoint, 'hash-blocks-2' here"):
        TokenLoader(LanceDataset(other.path), 8).load_state_dict(state)
    with pytest.raises(StateMismatch, match="format 7, this loader reads format 1"):
        loader.load_state_dict({**state, "format": 7})


def test_ragged_rows_with_a_collate_fn(lines: Made) -> None:
    ds = LanceDataset(lines.path)
    for way in WAYS[:3]:
        loader = TokenLoader(ds, 8, collate_fn=pad_collate, **way)
        for batch, indices in zip(loader, TakeSampler(ds, 8), strict=True):
            want = pad_collate([ds[i] for i in indices])
            assert batch.keys() == want.keys()
            assert all(torch.equal(batch[name], want[name]) for name in want)
    with pytest.raises(UsageError, match="samples of different lengths"):
        next(iter(TokenLoader(ds, 8)))


def test_raw_records_are_batches_of_lists(raw: Made) -> None:
    seen = [text for batch in TokenLoader(LanceDataset(raw.path), 8, tail="repeat") for text in batch["text"]]
    assert set(seen) == set(raw.columns["text"])


def test_errors_of_the_reading_thread_come_up(blocks: Made) -> None:
    class Broken(LanceDataset):
        def __getitems__(self, indices: Any) -> Batch:
            raise LancePrepError("the disk is gone")

    with pytest.raises(LancePrepError, match="the disk is gone"):
        next(iter(TokenLoader(Broken(blocks.path), 8)))


def test_stats_count_what_was_delivered_to_the_device(blocks: Made) -> None:
    loader = TokenLoader(LanceDataset(blocks.path), 8, device="cpu")
    for batch in loader:
        assert batch["input_ids"].device.type == "cpu"
    stats = loader.stats()
    assert stats.steps == len(blocks.rows) // 8
    assert stats.tokens == stats.steps * 8 * BLOCK
    assert stats.tokens_per_second > 0
    assert 0 <= stats.waited <= stats.seconds


def test_trace_names_the_rows_of_a_step(lines: Made) -> None:
    ds = LanceDataset(lines.path)
    loader = TokenLoader(ds, 8, rank=1, world_size=2, seed=5, collate_fn=pad_collate)
    indices = list(TakeSampler(ds, 8, rank=1, world_size=2, seed=5))[3]
    traced = loader.trace(3)
    assert [t.row for t in traced] == indices
    assert [t.documents for t in traced] == [(lines.columns["doc_id"][i],) for i in indices]
    stream = TokenLoader(LanceDataset(lines.path, block_size=16), 8)
    starts = np.cumsum([0] + [len(row) + 1 for row in lines.rows])
    samples = next(iter(TakeSampler(stream.data, 8)))  # type: ignore[arg-type]
    assert [t.row for t in stream.trace(0)] == [int(np.searchsorted(starts, i * 16, "right")) - 1 for i in samples]


class Huge(LanceDataset):
    """Samples without end, all the same."""

    def __len__(self) -> int:
        return 10**9

    def __getitems__(self, indices: Any) -> Batch:
        return self.take(np.asarray(indices) % 100)

    def _identity(self, position: int = 0) -> dict[str, Any]:
        return {}


def test_resume_in_the_middle_of_a_billion_rows_at_once(blocks: Made) -> None:
    ds = Huge(blocks.path)
    ds[0]
    state = {**TokenLoader(ds, 8).state_dict(), "step": 10**8}
    started = time.process_time()
    loader = TokenLoader(ds, 8)
    loader.load_state_dict(state)
    next(iter(loader))
    assert time.process_time() - started < 0.05
    assert loader.step == 10**8 + 1


def test_a_killed_and_resumed_process_delivers_the_same_batches(blocks: Made, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch, then another process with workers goes on with the very next row."""
    script = f"""
import json, os, signal, sys
from pathlib import Path
from lance_prep.train import LanceDataset, TokenLoader
loader = TokenLoader(LanceDataset({str(blocks.path)!r}), 4, seed=9, num_workers=int(sys.argv[1]))
state = Path({str(tmp_path / "state.json")!r})
if state.exists():
    loader.load_state_dict(json.loads(state.read_text()))
with open({str(tmp_path / "rows.jsonl")!r}, "a") as out:
    for batch in loader:
        out.write(json.dumps(batch["input_ids"].tolist()) + "\\n")
        out.flush()
        state.write_text(json.dumps(loader.state_dict()))
        if sys.argv[2] == str(loader.step):
            os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, "0", "7"], check=False)
    assert killed.returncode == -9
    subprocess.run([sys.executable, "-c", script, "1", "never"], check=True)
    got = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert got == reference(blocks, 4, 1, seed=9)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("labels", ["same", None])
def test_long_runs_by_take(make: Callable[..., Made], way: dict[str, Any], labels: Any) -> None:
    """Runs of thousands of rows stay as small as on disk until a step asks for its part."""
    made = make("blocks", [3000, 200], block_size=BLOCK, batch=500)
    loader = TokenLoader(LanceDataset(made.path, access="take", labels=labels), 7, seed=3, **way)
    mapped = LanceDataset(made.path, access="mmap", labels=labels)
    for batch, indices in zip(loader, TakeSampler(mapped, 7, seed=3), strict=True):
        want = mapped.take(indices).collated()
        assert batch.keys() == want.keys()
        assert all(torch.equal(batch[name], want[name]) for name in want)
