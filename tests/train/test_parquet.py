"""`ParquetDataset`: what `lance-prep export` writes reads as the dataset that it was made of."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from lance_prep.errors import BadFile, DatasetError, UsageError
from lance_prep.exchange import ExportOptions, export
from lance_prep.store import read_manifest
from lance_prep.train import LanceDataset, Mixture, ParquetDataset, TokenLoader, varlen_collate
from lance_prep.train.order import PAD_ROW
from tests.train.collections_made import make_collection
from tests.train.made import BLOCK, Made

KEYS = ("input_ids", "labels", "attention_mask")


def exported(made: Made, folder: Path, **options: Any) -> Path:
    """Export one dataset; return the folder of its shards."""
    export(made.path, folder, options=ExportOptions(**options))
    (name,) = read_manifest(folder).splits
    return folder / name


def assert_equal(got: Any, want: Any) -> None:
    assert got.tensors.keys() == want.tensors.keys()
    for name in want.tensors:
        assert torch.equal(got[name], want[name]), name
        assert got[name].dtype == torch.int64


@pytest.mark.parametrize("labels", ["same", "shifted", None])
@pytest.mark.parametrize("mask_boundaries", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_an_export_of_blocks_reads_as_the_dataset(
    make: Callable[..., Made], tmp_path: Path, labels: Any, mask_boundaries: bool, dtype: str
) -> None:
    if mask_boundaries and labels is None:
        pytest.skip("refused by LanceDataset")
    made = make("blocks", [40, 23, 1, 9], block_size=BLOCK, dtype=dtype)
    folder = exported(made, tmp_path / "out", mask_boundaries=mask_boundaries)
    ours = ParquetDataset(folder, labels=labels, attention_mask=True)
    theirs = LanceDataset(made.path, labels=labels, attention_mask=True, mask_boundaries=mask_boundaries)
    everything = range(len(theirs))
    assert len(ours) == len(theirs)
    assert ours.block_size == BLOCK
    assert ours._mean_tokens == theirs._mean_tokens
    want = theirs.take(everything)
    if mask_boundaries and labels == "same":
        # The first token of a block is the model's to ignore: no earlier one predicts it.
        want.tensors["labels"][:, 0] = want["input_ids"][:, 0]
    assert_equal(ours.take(everything), want)
    assert_equal(ours.take([3, -1, 70, 3, PAD_ROW]), _at(want, theirs, [3, -1, 70, 3, PAD_ROW]))
    assert_equal(ours[10:2:-3], _at(want, theirs, [10, 7, 4]))
    assert ours[5]["input_ids"].tolist() == theirs[5]["input_ids"].tolist()


def _at(want: Any, theirs: LanceDataset, indices: list[int]) -> Any:
    found = theirs.take(indices)
    if "labels" in found.tensors:
        inside = np.array(indices) != PAD_ROW
        found.tensors["labels"][inside] = want["labels"][np.array(indices)[inside]]
    return found


@pytest.mark.parametrize("layout", ["lines", "documents"])
def test_an_export_of_rows_reads_as_their_stream(make: Callable[..., Made], tmp_path: Path, layout: str) -> None:
    made = make(layout, [50, 3, 1, 47])
    folder = exported(made, tmp_path / "out", max_seq_length=16)
    for labels in ("same", "shifted"):
        theirs = LanceDataset(made.path, block_size=16, labels=labels)  # type: ignore[arg-type]
        ours = ParquetDataset(folder, labels=labels)  # type: ignore[arg-type]
        assert_equal(ours.take(range(len(theirs))), theirs.take(range(len(theirs))))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_copy_of_their_parent(make: Callable[..., Made], tmp_path: Path, context: str) -> None:
    made = make("blocks", [40, 23], block_size=BLOCK)
    ds = ParquetDataset(exported(made, tmp_path / "out"))
    len(ds)
    for shard in Path(ds.uri).glob("*.parquet"):
        shard.unlink()  # nobody needs them any more
    assert len(pickle.dumps(ds)) < 5_000
    want = LanceDataset(made.path).take(range(63))["input_ids"].tolist()
    loader = DataLoader(ds, batch_size=7, num_workers=2, multiprocessing_context=context)
    assert [row for batch in loader for row in batch["input_ids"].tolist()] == want
    assert pickle.loads(pickle.dumps(ds)).take([4])["input_ids"].tolist() == want[4:5]


def write(folder: Path, name: str = "shard_0.parquet", metadata: Any = None, **columns: Any) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), folder / name, row_group_size=3, store_schema=False)
    return folder


def test_shards_of_other_programs(tmp_path: Path) -> None:
    """Plain lists, no mask, no labels, ids beyond 65,535, shards in the order of their numbers."""
    rows = [[10 * i + j for j in range(4)] for i in range(8)]
    folder = write(tmp_path / "a", "part-10.parquet", input_ids=[[70_000, 1, 2, 3]])
    write(folder, "part-9.parquet", input_ids=rows)
    ds = ParquetDataset(folder, labels="shifted", attention_mask=True)
    assert ds.take(range(9))["input_ids"].tolist() == [*rows, [70_000, 1, 2, 3]]
    assert ds[8]["labels"].tolist() == [1, 2, 3, -100]
    assert ds[0]["attention_mask"].tolist() == [1, 1, 1, 1]
    assert [tuple(origin) for origin in ds.origins(np.array([8, PAD_ROW]))] == [(str(folder), 8, ())]
    # Labels that are the next token, the next sample's first, or ignored.
    labels = [[row[1], -100, row[3], 99] for row in rows]
    masked = write(tmp_path / "b", input_ids=rows, labels=labels)
    assert ParquetDataset(masked, labels="shifted").take(range(8))["labels"].tolist() == labels
    same = ParquetDataset(masked).take(range(8))["labels"].tolist()
    assert same == [[row[0], row[1], -100, row[3]] for row in rows]
    padded = write(
        tmp_path / "c",
        input_ids=[[5, 6, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]],
        attention_mask=[[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        labels=[[6, 7, -100, -100], [-100] * 4, [2, 3, 4, -100]],
    )
    got = ParquetDataset(padded, labels="shifted", attention_mask=True).take([0, 1, 2])
    assert got["labels"].tolist() == [[6, 7, -100, -100], [-100] * 4, [2, 3, 4, -100]]
    assert got["attention_mask"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert [sample.valid for sample in got] == [2, 0, 4]


def test_a_changed_shard_is_converted_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", input_ids=[[1, 2], [3, 4]])
    first = ParquetDataset(folder)
    assert first.take([0, 1])["input_ids"].tolist() == [[1, 2], [3, 4]]
    write(folder, input_ids=[[5, 6], [7, 8], [9, 9]])
    second = ParquetDataset(folder)
    assert second.take([0, 1, 2])["input_ids"].tolist() == [[5, 6], [7, 8], [9, 9]]
    assert first._content_hash != second._content_hash
    tokens = next(folder.glob(".lance_prep/cache/*/tokens.bin"))
    for copy in folder.glob(".lance_prep/cache/*/tokens.bin"):
        copy.write_bytes(b"\0" * tokens.stat().st_size)  # damaged, or of somebody else
    assert ParquetDataset(folder).take([2])["input_ids"].tolist() == [[9, 9]]


REFUSED = [
    ({"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3, 4]]}, "neither the next token nor -100"),
    ({"input_ids": [[1, 2]], "attention_mask": [[0, 1]]}, "must be ones, then zeros"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, "must be ones, then zeros"),
    ({"input_ids": [[1, 2], [3]]}, "lists of 2 integers"),
    ({"input_ids": [[1, 2], [3, None]]}, "lists of 2 integers"),
    ({"input_ids": [[1, 2], None]}, "null rows"),
    ({"input_ids": [[1.0, 2.0]]}, "lists of 2 integers"),
    ({"input_ids": [[1, -2]]}, "negative token"),
    ({"input_ids": [[1, 2]], "labels": [[2]]}, "labels must be lists of 2"),
    ({"input_ids": ["ab"]}, "not lists of integers"),
    ({"text": ["ab"]}, "no column input_ids"),
]


@pytest.mark.parametrize(("columns", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_columns_that_are_not_tokens_are_refused(tmp_path: Path, columns: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        len(ParquetDataset(write(tmp_path / "a", **columns)))
    assert error.value.advice


def test_files_are_in_natural_order(tmp_path: Path) -> None:
    for i, name in enumerate(["2", "10", "²", "x1"]):
        write(tmp_path / "a", f"{name}.parquet", input_ids=[[i]])
    assert [int(ids) for ids in ParquetDataset(tmp_path / "a")[:]["input_ids"].flatten()] == [0, 1, 3, 2]


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.parquet files"):
        len(ParquetDataset(tmp_path / "nowhere"))
    folder = write(tmp_path / "a", input_ids=[[1, 2]])
    (folder / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BadFile, match=r"b\.parquet"):
        len(ParquetDataset(folder))
    (folder / "b.parquet").unlink()
    write(folder, "c.parquet", input_ids=[[1, 2, 3]])
    with pytest.raises(DatasetError, match=r"rows of \[2, 3\] tokens"):
        len(ParquetDataset(folder))
    (folder / "c.parquet").unlink()
    (folder / "c.parquet").symlink_to(folder / "shard_0.parquet")
    with pytest.raises(DatasetError, match=r"c\.parquet is a link"):
        len(ParquetDataset(folder))
    (folder / "c.parquet").unlink()
    (tmp_path / "elsewhere").mkdir()
    (folder / ".lance_prep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="symbolic link"):
        len(ParquetDataset(folder))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_the_copy_needs_room(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", input_ids=[[1, 2], [3, 4]])
    with pytest.raises(DatasetError, match=r"\(8 bytes\) exceeds cache_bytes=7"):
        len(ParquetDataset(folder, cache_bytes=7))
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written") as error:
        len(ParquetDataset(folder, cache_dir=tmp_path / "file"))
    assert "cache_dir" in error.value.advice
    assert len(ParquetDataset(folder, cache_dir=tmp_path / "chosen")) == 2
    assert not (folder / ".lance_prep").exists()


def test_document_boundaries_are_not_made_up(tmp_path: Path) -> None:
    ds = ParquetDataset(write(tmp_path / "a", input_ids=[[1, 2], [3, 4]]))
    with pytest.raises(UsageError, match="boundaries of documents"):
        varlen_collate(ds.take([0, 1]))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> tuple[Path, Path]:
    """A collection and its export."""
    folder = tmp_path_factory.mktemp("collection")
    make_collection(folder / "lance", tokenizer)
    export(folder / "lance", folder / "parquet")
    return folder / "lance", folder / "parquet"


@pytest.mark.parametrize("weights", ["target", "tokens"])
def test_a_mixture_of_an_export_is_that_of_the_collection(collection: tuple[Path, Path], weights: Any) -> None:
    lance, parquet = (Mixture.from_manifest(folder, weights=weights, labels="shifted") for folder in collection)
    assert {type(source).__name__ for source in parquet.sources} == {"ParquetDataset"}
    assert parquet.shares() == lance.shares()
    n = len(lance)
    assert len(parquet) == n
    assert_equal(parquet.take(range(n)), lance.take(range(n)))
    for ours, theirs in zip(TokenLoader(parquet, 8, num_workers=2), TokenLoader(lance, 8), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    validation = Mixture.from_manifest(collection[1], validation=True)
    assert (
        validation[0]["input_ids"].tolist()
        == Mixture.from_manifest(collection[0], validation=True)[0]["input_ids"].tolist()
    )


def test_a_checkpoint_resumes_on_an_export(collection: tuple[Path, Path]) -> None:
    loader = TokenLoader(Mixture.from_manifest(collection[1]), 8)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    want = next(batches)["input_ids"].tolist()
    again = TokenLoader(Mixture.from_manifest(collection[1]), 8)
    again.load_state_dict(state)
    assert next(iter(again))["input_ids"].tolist() == want


def test_what_an_export_does_not_hold_is_refused(collection: tuple[Path, Path], tmp_path: Path) -> None:
    folder = collection[1]
    for options in ({"position_ids": True}, {"filter": "num_tokens > 3"}, {"access": "take"}, {"block_size": 7}):
        with pytest.raises(UsageError, match=f"cannot be read with {next(iter(options))}"):
            Mixture.from_manifest(folder, **options)  # type: ignore[arg-type]
    shard = next((folder / "chat").glob("*.parquet"))
    data = shard.read_bytes()
    write(folder / "chat", shard.name, input_ids=[[1, 2]])
    with pytest.raises(DatasetError, match=r"split 'chat' has content .* in the manifest"):
        len(Mixture.from_manifest(folder, ["chat"]))
    shard.write_bytes(data)
    (folder / "chat" / "shard_0001.parquet").write_bytes(data)
    with pytest.raises(DatasetError, match=r"has \d+ sequences in 1 shards in the manifest, and \d+ in 2 on disk"):
        len(Mixture.from_manifest(folder, ["chat"]))
    (folder / "chat" / "shard_0001.parquet").unlink()
    export(collection[0], tmp_path / "jsonl", format="jsonl")
    with pytest.raises(UsageError, match="lists jsonl files"):
        Mixture.from_manifest(tmp_path / "jsonl")
