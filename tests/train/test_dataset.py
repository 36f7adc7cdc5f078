"""`LanceDataset`: every layout, access and option gives what a naive loop over the rows as written gives."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lance
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lance_prep.errors import DatasetError, UsageError
from lance_prep.train import LanceDataset, Mixture, TakeSampler, TokenLoader, pad_collate
from lance_prep.train.order import PAD_ROW
from tests.train.made import BLOCK, PAD, Made

ACCESS = ["mmap", "take"]


def padded(row: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([row, np.full(size - len(row), PAD)])


def naive_annotations(row: np.ndarray, owners: list[int], size: int) -> dict[str, list[int]]:
    """A sample token by token, the slow and obvious way; `owners` names the document of each token."""
    out: dict[str, list[int]] = {k: [] for k in ("input_ids", "same", "shifted", "position", "document")}
    for i in range(size):
        if i >= len(row):
            for name, value in zip(out, (PAD, -100, -100, i - len(row), -1), strict=True):
                out[name].append(value)
            continue
        first, last = owners.index(owners[i]), len(row) - 1 - owners[::-1].index(owners[i])
        out["input_ids"].append(int(row[i]))
        out["same"].append(-100 if i == first else int(row[i]))
        out["shifted"].append(-100 if i == last else int(row[i + 1]))
        out["position"].append(i - first)
        out["document"].append(sorted(set(owners)).index(owners[i]))
    return out


@pytest.mark.parametrize("access", ACCESS)
def test_blocks_are_rows(blocks: Made, access: Any) -> None:
    ds = LanceDataset(blocks.path, access=access)
    assert ds.access.way == access
    assert len(ds) == len(blocks.rows)
    for i in (0, 39, 40, 62, 63, 64, 102, -1, -103):
        assert ds[i]["input_ids"].tolist() == padded(blocks.rows[i], BLOCK).tolist()
    assert ds[0]["input_ids"].dtype == torch.int64
    got = ds.take(list(range(len(ds))))
    assert got["input_ids"].tolist() == [padded(row, BLOCK).tolist() for row in blocks.rows]
    labels = [np.concatenate([row, np.full(BLOCK - len(row), -100)]).tolist() for row in blocks.rows]
    assert got["labels"].tolist() == labels


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("layout", ["lines", "documents"])
@pytest.mark.parametrize("size", [1, 5, 16, 1000])
def test_stream_cut_into_blocks(request: Any, layout: str, size: int, access: Any) -> None:
    made: Made = request.getfixturevalue(layout)
    stream = made.stream()
    ds = LanceDataset(made.path, block_size=size, access=access, labels="shifted")
    assert ds.access.way == access
    assert len(ds) == -(-len(stream) // size)
    got = ds.take(np.random.default_rng(0).permutation(len(ds)))
    order = np.random.default_rng(0).permutation(len(ds))
    for k, ids, labels in zip(order.tolist(), got["input_ids"].tolist(), got["labels"].tolist(), strict=True):
        part, after = stream[k * size : (k + 1) * size], stream[k * size + 1 : (k + 1) * size + 1]
        assert ids == padded(part, size).tolist()
        assert labels == after.tolist() + [-100] * (size - len(after))


@pytest.mark.parametrize("access", ACCESS)
def test_ragged_rows_are_samples_of_their_own_length(lines: Made, access: Any) -> None:
    ds = LanceDataset(lines.path, access=access, columns=["title", "doc_id"])
    assert len(ds) == len(lines.rows)
    for i, sample in enumerate(ds.take(range(len(ds)))):
        assert sample["input_ids"].tolist() == lines.rows[i].tolist()
        assert sample["title"] == lines.columns["title"][i]
        assert sample["doc_id"] == lines.columns["doc_id"][i]
    batches = list(DataLoader(ds, batch_size=10, collate_fn=pad_collate))
    ids = [
        row[mask.bool()].tolist()
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    assert ids == [row.tolist() for row in lines.rows]
    assert all((b["labels"][b["attention_mask"] == 0] == -100).all() for b in batches)
    with pytest.raises(UsageError, match="samples of different lengths"):
        next(iter(DataLoader(ds, batch_size=4)))


def test_raw_rows_are_records_of_python_values(raw: Made) -> None:
    ds = LanceDataset(raw.path)
    assert len(ds) == 37
    assert dict(ds[5]) == {name: values[5] for name, values in raw.columns.items()}
    seen = [text for batch in DataLoader(ds, batch_size=8, shuffle=True) for text in batch["text"]]
    assert sorted(seen) == sorted(raw.columns["text"])
    assert dict(LanceDataset(raw.path, columns=["score"])[0]) == {"score": None}


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("layout", ["blocks", "lines"])
@pytest.mark.parametrize("labels", ["same", "shifted"])
def test_annotations_equal_a_naive_loop(request: Any, layout: str, labels: Any, access: Any) -> None:
    made: Made = request.getfixturevalue(layout)
    size = BLOCK if layout == "blocks" else 16
    ds = LanceDataset(
        made.path,
        block_size=size,
        labels=labels,
        access=access,
        position_ids=True,
        document_ids=True,
        mask_boundaries=True,
    )
    order = np.random.default_rng(3).permutation(len(ds))
    got = ds.take([*order, PAD_ROW])
    stream, owners = (made.stream(), made.owners()) if layout == "lines" else (None, None)
    for i, k in enumerate([*order.tolist(), None]):
        if k is None:
            row, of = np.empty(0, np.int64), []
        elif stream is None or owners is None:
            row, of = made.rows[k], made.documents(k)
        else:
            row, of = stream[size * k : size * k + size], owners[size * k : size * k + size].tolist()
        want = naive_annotations(row, of, size)
        assert got["input_ids"][i].tolist() == want["input_ids"]
        assert got["labels"][i].tolist() == want[labels]
        assert got["position_ids"][i].tolist() == want["position"]
        assert got["document_ids"][i].tolist() == want["document"]
    masked = LanceDataset(made.path, block_size=size, access=access, attention_mask=True, document_ids=True)
    assert torch.equal(masked.take([*order, PAD_ROW])["attention_mask"], (got["document_ids"] >= 0).long())


@pytest.mark.parametrize("layout", ["blocks", "lines"])
def test_attention_mask_beside_packed_positions_is_refused(request: Any, layout: str) -> None:
    made: Made = request.getfixturevalue(layout)
    with pytest.raises(UsageError, match="only without an attention_mask"):
        len(LanceDataset(made.path, block_size=BLOCK, attention_mask=True, position_ids=True))
    packed = LanceDataset(made.path, block_size=BLOCK, position_ids=True)
    with pytest.raises(UsageError, match="only without an attention_mask"):
        pad_collate(packed.take([0, 1]))
    if layout == "lines":  # a row is one document: both make sense
        assert len(LanceDataset(made.path, attention_mask=True, position_ids=True)[1]) == 4


def test_labels_none_and_no_aliasing(blocks: Made) -> None:
    assert set(LanceDataset(blocks.path, labels=None)[0]) == {"input_ids"}
    batch = LanceDataset(blocks.path).take([1, 2]).collated()
    batch["input_ids"].zero_()
    assert batch["labels"].any()


def test_slices_negatives_and_bounds(blocks: Made) -> None:
    ds = LanceDataset(blocks.path)
    assert [s["input_ids"].tolist() for s in ds[10:20:2]] == [ds[i]["input_ids"].tolist() for i in range(10, 20, 2)]
    assert len(ds[5:5]) == 0
    assert ds[::-1]["input_ids"].tolist() == ds.take(range(len(ds) - 1, -1, -1))["input_ids"].tolist()
    for bad in (len(ds), -len(ds) - 1):
        with pytest.raises(IndexError):
            ds[bad]
    with pytest.raises(IndexError):
        ds.take([0, len(ds)])


def test_a_padding_row_is_all_padding(blocks: Made, lines: Made) -> None:
    for ds in (LanceDataset(blocks.path), LanceDataset(lines.path, block_size=16)):
        batch = ds.take([3, PAD_ROW, 4])
        assert (batch["input_ids"][1] == PAD).all()
        assert (batch["labels"][1] == -100).all()
        assert batch["input_ids"][2].tolist() == ds[4]["input_ids"].tolist()
    ragged = pad_collate(LanceDataset(lines.path).take([5, PAD_ROW]))
    assert ragged["attention_mask"][1].sum() == 0


@pytest.mark.parametrize("access", ACCESS)
def test_a_filter_keeps_the_rows_that_pass(lines: Made, access: Any) -> None:
    keep = [i for i, row in enumerate(lines.rows) if len(row) > 10]
    ds = LanceDataset(lines.path, filter="num_tokens > 10", access=access)
    assert [s["input_ids"].tolist() for s in ds.take(range(len(ds)))] == [lines.rows[i].tolist() for i in keep]
    stream = lines.stream(keep)
    cut = LanceDataset(lines.path, filter="num_tokens > 10", block_size=13, access=access)
    assert torch.cat(list(cut.take(range(len(cut)))["input_ids"])).tolist()[: len(stream)] == stream.tolist()
    with pytest.raises(DatasetError, match="nonsense"):
        len(LanceDataset(lines.path, filter="nonsense = 3"))


def test_versions_and_tags(make: Callable[..., Made]) -> None:
    first = make("blocks", [5], block_size=BLOCK, seed=1)
    lance.dataset(str(first.path)).tags.create("one", 1)
    second = make("blocks", [7], block_size=BLOCK, seed=2)
    assert LanceDataset(first.path).version == 2
    for version in (1, "one"):
        ds = LanceDataset(first.path, version=version)
        assert ds.version == 1
        assert ds[0]["input_ids"].tolist() == padded(first.rows[0], BLOCK).tolist()
    assert LanceDataset(first.path)[0]["input_ids"].tolist() == padded(second.rows[0], BLOCK).tolist()
    with pytest.raises(DatasetError, match="no version two"):
        len(LanceDataset(first.path, version="two"))
    with pytest.raises(DatasetError, match="version 9"):
        len(LanceDataset(first.path, version=9))


def test_text_is_that_of_the_tokenizer(blocks: Made, lines: Made) -> None:
    assert LanceDataset(blocks.path).text(39).split() == [f"w{i}" for i in blocks.rows[39]]
    assert LanceDataset(lines.path).text(3).split() == [f"w{i}" for i in lines.rows[3]]


def test_deleted_rows_and_other_encodings_are_read_otherwise(make: Callable[..., Made]) -> None:
    made = make("blocks", [20, 20], block_size=BLOCK)
    lance.dataset(str(made.path)).delete("doc_ids[1] % 50 = 10")
    alive = [row for row, docs in zip(made.rows, made.columns["doc_ids"], strict=True) if docs[0] % 50 != 10]
    assert 0 < len(alive) < len(made.rows)
    ds = LanceDataset(made.path)
    assert ds.access.way == "take"
    assert "deleted" in ds.access.why
    assert [s["input_ids"].tolist() for s in ds.take(range(len(ds)))] == [padded(row, BLOCK).tolist() for row in alive]
    with pytest.raises(DatasetError, match="deleted"):
        len(LanceDataset(made.path, access="mmap"))


def test_ragged_rows_that_are_not_flat_get_a_token_cache(make: Callable[..., Made]) -> None:
    made = make("lines", [40, 30], file_version="2.1")
    ds = LanceDataset(made.path, block_size=9)
    assert ds.access.way == "cache"
    stream = made.stream()
    assert ds.take(range(len(ds)))["input_ids"].reshape(-1).tolist()[: len(stream)] == stream.tolist()
    small = LanceDataset(made.path, block_size=9, cache_bytes=10, cache_dir=made.path.parent / "elsewhere")
    assert small.access.way == "take"
    assert "cache_bytes=10" in small.access.why
    assert small.take(range(len(ds)))["input_ids"].tolist() == ds.take(range(len(ds)))["input_ids"].tolist()


def test_options_that_contradict_the_dataset_are_refused(blocks: Made, lines: Made, raw: Made, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="block_size=8 differs from the dataset's blocks of 128"):
        len(LanceDataset(blocks.path, block_size=8))
    with pytest.raises(UsageError, match="raw"):
        len(LanceDataset(raw.path, block_size=8))
    with pytest.raises(UsageError, match="labels"):
        LanceDataset(blocks.path, labels="other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="columns cannot be combined with block_size"):
        len(LanceDataset(lines.path, block_size=8, columns=["title"]))
    with pytest.raises(UsageError, match="unknown columns: nope"):
        len(LanceDataset(lines.path, columns=["nope"]))
    with pytest.raises(DatasetError, match="there is no dataset at"):
        len(LanceDataset(tmp_path / "nope.lance"))


def test_pickles_small_and_opens_nothing_early(lines: Made) -> None:
    ds = LanceDataset(lines.path, block_size=16)
    assert ds._reader is None
    fresh = pickle.loads(pickle.dumps(ds))
    assert len(fresh) == len(ds)
    used = pickle.dumps(ds)
    assert len(used) < 10_000
    assert pickle.loads(used).take([3, 1])["input_ids"].tolist() == ds.take([3, 1])["input_ids"].tolist()


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_plain_dataloader_with_workers(blocks: Made, context: str) -> None:
    want = sorted(padded(row, BLOCK).tolist() for row in blocks.rows)
    for access in ACCESS if context == "fork" else ["auto"]:
        ds = LanceDataset(blocks.path, access=access)  # type: ignore[arg-type]
        assert ds[0]  # opened here too
        loader = DataLoader(
            ds, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=context, persistent_workers=True
        )
        for _ in range(2):
            assert sorted(row for batch in loader for row in batch["input_ids"].tolist()) == want
        del loader


def test_forked_children_read_through_lance(lines: Made, raw: Made) -> None:
    """Lance itself hangs in one of ten of these."""
    ragged = LanceDataset(lines.path, access="take", columns=["title"], filter="num_tokens > 3")
    want = [sample["title"] for sample in ragged.take(range(len(ragged)))]
    for _ in range(2):
        loader = DataLoader(
            ragged, batch_size=16, num_workers=2, multiprocessing_context="fork", collate_fn=pad_collate
        )
        assert [title for batch in loader for title in batch["title"]] == want
        fresh = LanceDataset(raw.path)  # opened in the child
        got = [t for b in DataLoader(_Fixed(fresh, 37), batch_size=8, num_workers=1) for t in b["text"]]
        assert got == raw.columns["text"]


class _Fixed(torch.utils.data.Dataset[Any]):
    """A dataset of a length known beforehand, so that the parent opens nothing."""

    def __init__(self, data: LanceDataset, length: int) -> None:
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> Any:
        return self.data.take(indices)


def test_default_collate_of_single_samples(blocks: Made) -> None:
    ds = LanceDataset(blocks.path)
    batch = torch.utils.data.default_collate([ds[0], ds[1]])
    assert batch["input_ids"].tolist() == ds.take([0, 1])["input_ids"].tolist()


def test_many_fragments_are_read_as_one(make: Callable[..., Made]) -> None:
    made = make("lines", [2] * 300)
    ds = LanceDataset(made.path, block_size=11)
    assert ds.access.way == "mmap"
    stream = made.stream()
    assert ds.take(range(len(ds)))["input_ids"].reshape(-1).tolist()[: len(stream)] == stream.tolist()


def test_object_stores_are_read_by_take(
    blocks: Made, lines: Made, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lance's object store over local files: nothing is mapped, and the index lies in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for made, size in ((blocks, None), (lines, 16)):
        ds = LanceDataset(f"file-object-store://{made.path}", block_size=size)
        assert str(ds.access).startswith("take: the dataset is not on a local disk")
        local = LanceDataset(made.path, block_size=size)
        indices = np.random.default_rng(1).integers(0, len(ds), 50)
        assert ds.take(indices)["labels"].tolist() == local.take(indices)["labels"].tolist()
    assert list((tmp_path / "lance-prep").rglob("index.npz"))


def test_only_local_data_is_copied_unasked(make: Callable[..., Made], tmp_path: Any) -> None:
    made = make("lines", [40, 30], file_version="2.1")
    remote = f"file-object-store://{made.path}"
    ds = LanceDataset(remote, block_size=9, cache_dir=tmp_path / "cache")
    assert ds.access.way == "take"
    assert "ask for it with cache_bytes" in ds.access.why
    assert not list((tmp_path / "cache").rglob("tokens.bin"))
    asked = LanceDataset(remote, block_size=9, cache_dir=tmp_path / "cache", cache_bytes=1 << 20)
    assert asked.access.way == "cache"
    assert asked.take(range(len(ds)))["input_ids"].tolist() == ds.take(range(len(ds)))["input_ids"].tolist()


def test_threads_may_share_one(lines: Made) -> None:
    ds = LanceDataset(lines.path, block_size=16)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: ds[i]["input_ids"].tolist(), range(len(ds))))
    assert got == ds.take(range(len(ds)))["input_ids"].tolist()


@pytest.mark.parametrize("mixed", [False, True])
def test_an_index_that_is_not_an_integer_is_refused_as_numpy_does(blocks: Made, mixed: bool) -> None:
    ds = Mixture({str(blocks.path): 1.0}) if mixed else LanceDataset(blocks.path)
    for wrong in ([True], [1.5], np.array([True, False]), torch.tensor([1.0]), ["a"], [None]):
        with pytest.raises(TypeError, match="indices must be integers, got"):
            ds.take(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="flatnonzero"):
        ds.take(np.array([True, False]))  # type: ignore[arg-type]
    for wrong in (True, 1.5, "a", None):
        with pytest.raises(TypeError, match="indices must be integers, got"):
            ds[wrong]  # type: ignore[call-overload]
    assert len(ds.take([])) == 0
    want = ds.take([3, 1])["input_ids"].tolist()
    for right in ((3, 1), np.array([3, 1], np.uint64), torch.tensor([3, 1]), [np.int32(3), torch.tensor(1)]):
        assert ds.take(right)["input_ids"].tolist() == want  # type: ignore[arg-type]
    assert ds[3:0:-2]["input_ids"].tolist() == want
    assert ds[1:1]["input_ids"].shape == (0, BLOCK)
    assert ds[np.int16(3)]["input_ids"].tolist() == want[0]  # type: ignore[call-overload]


def test_a_version_is_a_number_from_1_or_a_tag(blocks: Made) -> None:
    for wrong in (-1, 0, True, 1.0, [1]):
        with pytest.raises(UsageError, match="invalid version"):
            LanceDataset(blocks.path, version=wrong)  # type: ignore[arg-type]
    for right in (1, "1", np.int64(1), None):
        assert LanceDataset(blocks.path, version=right).version == 1  # type: ignore[arg-type]


def test_the_options_of_sampler_and_loader_are_in_their_help() -> None:
    order = {"seed", "rank", "world_size", "tail", "drop_last", "shuffle", "locality", "window"}
    for described in (TakeSampler, TokenLoader):
        assert order <= inspect.signature(described).parameters.keys()
        assert all(re.search(rf"\b{name}\b.*:", described.__doc__ or "") for name in order)
