"""`JsonlDataset`: items, order, workers, and files that changed since they were indexed."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lance_prep.cli.main import run
from lance_prep.dataset import index_jsonl
from lance_prep.errors import BadFile, DatasetError, SourceChanged, SourceNotFound, UsageError
from lance_prep.train import JsonlDataset, LanceDataset, Mixture, TakeSampler, TokenLoader, jsonl_files
from lance_prep.train.samples import Batch
from tests.train.made import Made

Records = list[dict[str, Any]]


def write(folder: Path, *, files: int = 3, rows: int = 40, seed: int = 0) -> Records:
    """Write files whose lines end in different ways; return their records."""
    draw, all_of_them = random.Random(seed), []
    folder.mkdir(exist_ok=True)
    for number in range(files):
        records = [
            {"id": number * 1000 + i, "text": "é" * draw.randint(0, 30), "tags": ["a"] * (i % 3), "score": i / 7}
            for i in range(rows)
        ]
        ends = [draw.choice(["\n", "\r\n", "\n\n", "\n  \n"]) for _ in records]
        text = "".join(json.dumps(record) + end for record, end in zip(records, ends, strict=True))
        (folder / f"part-{number}.jsonl").write_text(text.rstrip() if number == 1 else text, newline="")
        all_of_them += records
    return all_of_them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jsonl") / "d"
    write(path)
    index_jsonl(path)
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return write(tmp_path_factory.mktemp("again") / "d")


def test_items_are_the_records_of_all_files_in_order(folder: Path, records: Records) -> None:
    ds = JsonlDataset(folder)
    assert len(ds) == 120
    assert [ds[i] for i in range(120)] == records
    assert [ds[-i] for i in range(1, 121)] == records[::-1]
    for outside in (120, -121):
        with pytest.raises(IndexError, match="out of range for 120 samples"):
            ds[outside]
    assert isinstance(ds[10:20], Batch)
    assert ds[3:5]["text"] == [record["text"] for record in records[3:5]]


@settings(max_examples=60, deadline=None)
@given(start=st.none() | st.integers(-130, 130), stop=st.none() | st.integers(-130, 130), step=st.integers(-50, 50))
def test_slices_are_those_of_a_list(
    folder: Path, records: Records, start: int | None, stop: int | None, step: int
) -> None:
    part = slice(start, stop, step or None)
    assert list(JsonlDataset(folder)[part]) == records[part]


@settings(max_examples=60, deadline=None)
@given(
    indices=st.lists(st.integers(-120, 119), max_size=60), gap=st.sampled_from([0, 5, 4096]), run=st.integers(1, 999)
)
def test_take_returns_them_in_any_order(folder: Path, records: Records, indices: list[int], gap: int, run: int) -> None:
    expected = [records[i] for i in indices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl_files, "_GAP_BYTES", gap)
        patch.setattr(jsonl_files, "_RUN_BYTES", run)
        for ds in (JsonlDataset(folder), JsonlDataset(folder, access="pread")):
            for given_ in (indices, np.array(indices, np.int32), torch.tensor(indices, dtype=torch.int64)):
                assert list(ds.take(given_)) == expected


@pytest.mark.parametrize(("context", "batch_size"), [(None, 7), (None, 64), ("fork", 7), ("spawn", 64)])
def test_a_plain_dataloader(folder: Path, records: Records, context: str | None, batch_size: int) -> None:
    ds = JsonlDataset(folder)
    ds[0]  # the parent has read
    texts = {record["id"]: record["text"] for record in records}
    workers: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    got: list[int] = []
    for batch in DataLoader(ds, batch_size=batch_size, shuffle=True, **workers):
        assert isinstance(batch, dict)
        assert batch["text"] == [texts[number] for number in batch["id"]]
        got += batch["id"]
    assert sorted(got) == sorted(texts)
    assert got != sorted(got)
    if context != "spawn":  # starting two interpreters takes seconds
        plain = [item for batch in DataLoader(ds, batch_size=9, collate_fn=list, **workers) for item in batch]
        assert plain == records


def lengths(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {"length": torch.tensor(len(record["text"])), "id": torch.tensor([record["id"], 1])}


def as_tensor(record: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([record["id"], len(record["text"])])


def test_a_transform_makes_the_items(folder: Path, records: Records) -> None:
    (batch,) = DataLoader(JsonlDataset(folder, transform=lengths), batch_size=200)
    assert batch["length"].tolist() == [len(record["text"]) for record in records]
    assert batch["id"].shape == (120, 2)
    ds = JsonlDataset(folder, transform=as_tensor)
    (batch,) = DataLoader(ds, batch_size=200, num_workers=1, multiprocessing_context="spawn")
    assert batch[:, 0].tolist() == [record["id"] for record in records]
    assert torch.equal(ds[-1], as_tensor(records[-1]))
    assert [item.tolist() for item in ds[0:10:3]] == [as_tensor(record).tolist() for record in records[0:10:3]]


def test_a_loader_collates_what_a_transform_makes_as_torch_does(folder: Path, records: Records) -> None:
    ds = JsonlDataset(folder, transform=as_tensor)
    for workers in (0, 1):
        with TokenLoader(ds, global_batch_size=16, shuffle=False, num_workers=workers) as loader:
            assert torch.equal(torch.cat(list(loader)), torch.stack([as_tensor(r) for r in records[:112]]))


def ids(record: dict[str, Any]) -> list[int]:
    return [record["id"] % 97] * 16


def with_mask(record: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": np.full(16, record["id"] % 97, np.uint16), "attention_mask": torch.ones(16, dtype=torch.bool)}


def test_a_transform_with_a_block_size_makes_samples_of_tokens(folder: Path, records: Records) -> None:
    ds = JsonlDataset(folder, transform=ids, block_size=16)
    batch = ds.take([3, -1])
    assert batch["input_ids"].tolist() == [ids(records[3]), ids(records[-1])]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert ds.take([])["labels"].shape == (0, 16)
    (last,) = list(DataLoader(ds, batch_sampler=TakeSampler(ds, 119, shuffle=False, tail="pad")))[1:]
    assert last["input_ids"].tolist() == [ids(records[-1])] + [[0] * 16] * 118
    assert (last["labels"][1:] == -100).all()
    for rank in (0, 1):  # the second rank gets only padding
        with TokenLoader(ds, 118, tail="pad", shuffle=False, rank=rank, world_size=2) as loader:
            assert list(loader)[-1]["labels"].shape == (59, 16)
    ds = JsonlDataset(folder, transform=with_mask, block_size=16)
    assert ds[7].keys() == {"input_ids", "attention_mask"}
    assert {tensor.dtype for tensor in ds[7].values()} == {torch.int64}


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (
            lambda record: [1] * (record["id"] + 15),
            r"input_ids of shape \[15\] and type torch.int64 for record 0, not 16",
        ),
        (lambda record: [0.5] * 16, r"of shape \[16\] and type torch.float32 for record 0"),
        (lambda record: {"ids": [1] * 16}, "returned 'ids' for record 0"),
        (lambda record: {"input_ids": [1] * 16} | ({"x": [1] * 16} if record["id"] else {}), "'x' for record 1"),
    ],
)
def test_a_transform_that_does_not_make_blocks_is_refused(folder: Path, transform: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        JsonlDataset(folder, transform=transform, block_size=16).take([0, 1])


def test_block_size_needs_a_transform(folder: Path) -> None:
    with pytest.raises(UsageError, match="block_size=16 needs a transform"):
        JsonlDataset(folder, block_size=16)


def test_a_mixture_of_records_and_of_tokens(folder: Path, records: Records, make: Callable[..., Made]) -> None:
    raw = make("raw", [30], name="raw.lance")
    mix = Mixture({"j": 3, "r": 1}, by="rows", datasets={"j": JsonlDataset(folder), "r": LanceDataset(raw.path)})
    items = list(mix[:40])
    assert sum("id" in item and item["id"] is not None for item in items) == 30
    blocks = make("blocks", [40], block_size=128)
    sources = {
        "j": JsonlDataset(folder, transform=lambda record: [record["id"]] * 128, block_size=128),
        "b": LanceDataset(blocks.path),
    }
    mix = Mixture({"j": 0.5, "b": 0.5}, datasets=sources)
    with TokenLoader(mix, global_batch_size=8) as loader:
        steps = [next(iter(loader)) for _ in range(1)]
    assert steps[0]["input_ids"].shape == steps[0]["labels"].shape == (8, 128)
    assert {origin.source for origin in mix.trace(0, global_batch_size=8)} == {"j", "b"}
    sources["j"] = JsonlDataset(folder, transform=lambda r: {"input_ids": [1] * 128}, block_size=128)
    with pytest.raises(UsageError, match="the samples of the sources differ: input_ids; input_ids, labels"):
        Mixture({"j": 0.5, "b": 0.5}, datasets=sources)[:8]


def test_sampler_and_loader_deliver_each_record_once(folder: Path, records: Records) -> None:
    ds = JsonlDataset(folder)
    sampler = TakeSampler(ds, global_batch_size=8, seed=3)
    first = [batch["id"] for batch in DataLoader(ds, batch_sampler=sampler, num_workers=2)]
    assert sorted(number for batch in first for number in batch) == sorted(record["id"] for record in records)
    loader = TokenLoader(ds, global_batch_size=8, seed=3)
    assert [batch["id"] for batch in loader] == first
    # A checkpoint continues, and is refused once the content is another.
    loader = TokenLoader(ds, global_batch_size=8, seed=3)
    for _, _batch in zip(range(5), loader, strict=False):
        state = loader.state_dict()
    again = TokenLoader(ds, global_batch_size=8, seed=3, num_workers=2)
    again.load_state_dict(state)
    with again:
        assert [batch["id"] for batch in again] == first[5:]
    assert [Path(origin.source).name for origin in loader.trace(0)] == [f"part-{i // 1000}.jsonl" for i in first[0]]
    with pytest.raises(UsageError, match="cannot be padding"):
        list(TokenLoader(ds, global_batch_size=50, tail="pad"))


@pytest.mark.parametrize("way", ["mmap", "pread"])
def test_it_pickles_small_and_threads_share_it(
    folder: Path, records: Records, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    monkeypatch.setattr(jsonl_files, "_most_open", lambda: 1)  # each read may close a file that another thread reads
    ds = JsonlDataset(folder, access=way)
    assert len(pickle.dumps(ds)) < 10_000
    assert pickle.loads(pickle.dumps(ds))[5] == records[5]
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            i = draw.randrange(120)
            if ds[i] != records[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def grown(path: Path) -> None:
    with path.open("a") as file:
        file.write("{}\n")


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            grown,
            r"part-1.jsonl changed since it was indexed: it had [\d,]+ bytes, last changed at 20.*now it has [\d,]+",
        ),
        (rewritten, r"now it has [\d,]+ bytes, last changed at 1970-01-01T00:00:00.000000001Z"),
        (Path.unlink, r"part-1.jsonl was removed since it was indexed: it had"),
    ],
)
def test_a_file_that_changed_is_refused(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "d")
    index_jsonl(tmp_path / "d")
    ds = JsonlDataset(tmp_path / "d")
    change(tmp_path / "d" / "part-1.jsonl")
    assert ds[0]["id"] == 0  # of another file
    with pytest.raises(SourceChanged, match=said) as caught:
        ds[50]
    assert "lance-prep index" in caught.value.advice
    assert run(["index", str(tmp_path / "d")]) == 0
    assert JsonlDataset(tmp_path / "d")[50] is not None


@pytest.mark.parametrize("way", ["mmap", "pread"])
def test_a_file_that_is_cut_short_while_it_is_open_is_refused(tmp_path: Path, way: Any) -> None:
    write(tmp_path / "d")
    index_jsonl(tmp_path / "d")
    ds = JsonlDataset(tmp_path / "d", access=way)
    ds[50]
    os.truncate(tmp_path / "d" / "part-1.jsonl", 100)
    with pytest.raises(SourceChanged, match=r"part-1.jsonl changed"):
        ds[60:70]


def test_a_file_that_became_a_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d")
    index_jsonl(tmp_path / "d")
    file = tmp_path / "d" / "part-0.jsonl"
    file.rename(tmp_path / "moved.jsonl")
    file.symlink_to(tmp_path / "moved.jsonl")
    with pytest.raises(DatasetError, match="symbolic link"):
        JsonlDataset(tmp_path / "d")[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1, 2]", "is not a JSON object"),
        ("{'a': 1}", "is not valid JSON"),
        ('{"a": 1', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"a": 0}}\n{line}\n')
    index_jsonl(tmp_path)
    ds = JsonlDataset(tmp_path)
    assert ds[0] == {"a": 0}
    with pytest.raises(BadFile, match=f"a.jsonl: the line at byte 9 {said}"):
        ds[1]
    with pytest.raises(BadFile, match=f"a.jsonl: the line at byte 9 {said}"):
        JsonlDataset(tmp_path, access="pread")[0:2]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(st.text(st.characters()), _JSON, max_size=4), min_size=1, max_size=30), st.booleans())
def test_values_are_those_of_python_s_json(tmp_path_factory: Any, records: Records, ascii_only: bool) -> None:
    lines = [json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for record in records]
    file = tmp_path_factory.mktemp("one") / "a.jsonl"
    file.write_bytes(b"\n".join(lines))
    index_jsonl(file)
    assert [repr(item) for item in JsonlDataset(file)[:]] == [repr(json.loads(line)) for line in lines]  # NaN != NaN


def test_files_that_memory_cannot_hold_are_not_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = JsonlDataset(folder)
    assert str(ds.access).startswith("mmap: the files (")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    ds = JsonlDataset(folder)
    assert str(ds.access).endswith("need more than half of the memory (10,000 bytes)")
    assert pickle.loads(pickle.dumps(ds)).access.way == "pread"
    with pytest.raises(UsageError, match="invalid access 'fast'"):
        JsonlDataset(folder, access="fast")  # type: ignore[arg-type]


def test_a_batch_of_different_records_has_none_for_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": [2], "a": null}\n{"c": NaN}\n')
    index_jsonl(tmp_path)
    ds = JsonlDataset(tmp_path)
    (batch,) = DataLoader(ds, batch_size=3)
    assert (batch["a"], batch["b"]) == ([1, None, None], [None, [2], None])
    assert math.isnan(batch["c"][2])
    assert ds[0] == {"a": 1}


def test_files_without_an_index_and_with_one_of_others(tmp_path: Path) -> None:
    write(tmp_path / "d")
    with pytest.raises(SourceNotFound, match="nowhere: no such file or folder"):
        JsonlDataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="has no index") as caught:
        JsonlDataset(tmp_path / "d")
    assert caught.value.advice == f"run `lance-prep index {tmp_path}/d`"
    index_jsonl(tmp_path / "d" / "part-*.jsonl", output=tmp_path / "i.lance")
    with pytest.raises(DatasetError, match=r"is the index of 'part-\*.jsonl'"):
        JsonlDataset(tmp_path / "d", index=tmp_path / "i.lance")
    assert len(JsonlDataset(tmp_path / "d" / "part-*.jsonl", index=tmp_path / "i.lance")) == 120


def test_an_index_from_a_stranger_leads_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"password": 1}\n')
    (tmp_path / "d").mkdir()
    state = secret.stat()
    (tmp_path / "d" / "a.jsonl").write_text('{"password": 0}\n')
    os.utime(tmp_path / "d" / "a.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))
    index_jsonl(tmp_path / "d")
    ds = JsonlDataset(tmp_path / "d")
    ds._records._files = [replace(ds._records.files[0], path="../secret.jsonl")]
    with pytest.raises(DatasetError, match="points outside"):
        ds[0]


def test_an_index_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "d")
    index_jsonl(tmp_path / "d")
    sent = pickle.dumps(JsonlDataset(tmp_path / "d"))
    index_jsonl(tmp_path / "d", rescan=True)
    with pytest.raises(DatasetError, match="was replaced since it was opened"):
        pickle.loads(sent)[0]


def test_an_index_that_is_not_flat_is_read_through_lance(
    folder: Path, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_jsonl(folder, output=tmp_path / "i.lance").index
    dataset = lance.dataset(index)
    lance.write_dataset(dataset.to_table(), index, mode="overwrite", data_storage_version="2.1")
    ds = JsonlDataset(folder, index=index)
    assert [ds[i] for i in (0, -1)] == [records[0], records[-1]]
    assert [batch["id"] for batch in DataLoader(ds, batch_size=60, num_workers=2)][1] == [r["id"] for r in records[60:]]


@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_a_file_that_is_rewritten_in_place_at_the_same_size_is_refused_while_it_is_open(
    tmp_path: Path, access: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"a":"old"}\n')
    index_jsonl(tmp_path)
    records = JsonlDataset(tmp_path, access=access)
    assert records[0] == {"a": "old"}
    (tmp_path / "a.jsonl").write_text('{"a":"new"}\n')
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))  # a clock that is too coarse must not hide the change
    with pytest.raises(SourceChanged, match="changed since it was indexed"):
        records[0]
