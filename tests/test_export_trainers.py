"""`export` to other trainers, each read back by the format's own reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lance
import numpy as np
import pytest

from lance_prep.cli.main import run
from lance_prep.store import Manifest, Split
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made_tokenizers
from tests.processes import PROGRAM, make_killer
from tests.train.made import EOS, Made, make_tokens

Export = Callable[..., dict[str, Any]]


@pytest.fixture
def exporting(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `lance-prep export` and return its report."""

    def call(source: object, output: object, *options: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run(["export", str(source), "-o", str(output), "--json", *map(str, options)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return dict(json.loads(out))

    return call


def tokens_of(made: Made) -> np.ndarray:
    """What a flat file holds: blocks without padding, other rows each followed by EOS."""
    return np.concatenate(made.rows) if made.layout == "blocks" else made.stream()


# nanoGPT.


def nanogpt_batches(path: Path, dtype: type, block_size: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw batches as `get_batch` of nanoGPT's train.py does."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        data = np.memmap(path, dtype=dtype, mode="r")
        starts = rng.integers(0, len(data) - block_size, 8)
        x = np.stack([data[i : i + block_size].astype(np.int64) for i in starts])
        y = np.stack([data[i + 1 : i + 1 + block_size].astype(np.int64) for i in starts])
        batches.append((x, y))
    return batches


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize(("layout", "size"), [("blocks", 128), ("blocks", 100), ("documents", None), ("lines", None)])
def test_nanogpt_reads_a_flat_file(
    tmp_path: Path, exporting: Export, layout: str, size: int | None, dtype: str
) -> None:
    made = make_tokens(tmp_path / "web.lance", layout, [40, 1, 23], block_size=size, dtype=dtype)
    report = exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "bin")
    path = tmp_path / "out" / "web" / "train.bin"
    np.testing.assert_array_equal(np.memmap(path, dtype=dtype, mode="r"), tokens_of(made))
    assert report["sources"][0]["tokens"] == len(tokens_of(made))
    stats = json.loads((tmp_path / "out" / "web_stats.json").read_text())
    assert (stats["dtype"], stats["eos_id"], stats["files"][0]["file"]) == (dtype, EOS, "train.bin")
    for x, y in nanogpt_batches(path, np.dtype(dtype).type, 64, 3):
        assert x.shape == y.shape == (8, 64)
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])


def test_a_validation_set_is_val_bin_beside_train_bin(tmp_path: Path, exporting: Export) -> None:
    made = {name: make_tokens(tmp_path / f"{name}.lance", "blocks", [9], block_size=64) for name in ("web", "web.val")}
    train, val = (Split(f"{name}.lance", 1, 9, 9, 9 * 64, version=1) for name in made)
    Manifest("test", 64, "data", "out", 1, {"web": train}, {"web": val}).write(tmp_path)
    exporting(tmp_path, tmp_path / "out", "--format", "bin")
    for name, file in (("web", "train.bin"), ("web.val", "val.bin")):
        found = np.fromfile(tmp_path / "out" / "web" / file, np.uint16)
        np.testing.assert_array_equal(found, tokens_of(made[name]))
    assert exporting(tmp_path, tmp_path / "out", "--format", "bin")["up_to_date"]


def test_a_flat_file_in_shards(tmp_path: Path, exporting: Export) -> None:
    made = make_tokens(tmp_path / "web.lance", "documents", [300, 7])
    exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "bin", "--shard-size", "2kB")
    files = sorted((tmp_path / "out" / "web").glob("shard_*.bin"))
    assert len(files) > 3
    assert all(path.stat().st_size <= 2000 for path in files)
    np.testing.assert_array_equal(np.concatenate([np.fromfile(path, np.uint16) for path in files]), tokens_of(made))


#: An export whose large files are made durable every 20 kB.
SMALL_STEPS = """
import sys
import lance_prep.exchange.flat as flat
import lance_prep.exchange.run as export_run
from lance_prep.cli.main import run
export_run.CHECKPOINT_BYTES, flat.rows_per_piece = 20_000, lambda source, tokens: 100
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("change", "begun"), [(3, 0), (14, 1), (17, 2), (24, 4)])
def test_a_killed_export_continues_in_the_middle_of_a_file(
    tmp_path: Path, exporting: Export, change: int, begun: int
) -> None:
    """Killed at a change on disk below the output, when at least `begun` parts of the file were durable."""
    killer = make_killer(tmp_path)
    make_tokens(tmp_path / "web.lance", "documents", [6000], batch=1000)
    command = ["export", tmp_path / "web.lance", "-o", tmp_path / "killed-export", "--format", "bin", "--json"]
    arguments = [sys.executable, "-c", SMALL_STEPS, *map(str, command)]
    environment = {**os.environ, "LD_PRELOAD": str(killer), "KILL_AT": str(change), "KILL_BELOW": "killed-export"}
    killed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = json.loads((tmp_path / "killed-export/.lance_prep/export/web.json").read_text()) if begun else {}
    assert (state.get("begun") or {"bytes": 0})["bytes"] >= 20_000 * begun
    again = subprocess.run(arguments, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sources"][0]["status"] == ("resumed" if begun else "written")
    exporting(tmp_path / "web.lance", tmp_path / "whole", "--format", "bin")
    for name in ("web/train.bin", "web_stats.json"):
        assert (tmp_path / "killed-export" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed-export").rglob("*.part"))
    assert exporting(tmp_path / "web.lance", tmp_path / "killed-export", "--format", "bin")["up_to_date"]


# Megatron.


def indexed_dataset(prefix: Path) -> Any:
    """Open a pair with Megatron's own reader."""
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    return module.IndexedDataset(str(prefix))


def documents_of(made: Made) -> list[np.ndarray]:
    """The sequences of a pair: parts of documents in blocks, other rows each with EOS at its end."""
    if made.layout != "blocks":
        return [np.append(row, EOS) for row in made.rows]
    parts = []
    for row, pieces in zip(made.rows, made.pieces, strict=True):
        parts += np.split(row, np.cumsum(pieces)[:-1])
    return parts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flags", [[], ["--shard-size", "1kB"]])
@pytest.mark.parametrize(("layout", "dtype"), [("blocks", "uint16"), ("documents", "uint32"), ("lines", "uint16")])
def test_megatron_reads_a_pair(tmp_path: Path, exporting: Export, layout: str, dtype: str, flags: list[str]) -> None:
    size = 128 if layout == "blocks" else None
    made = make_tokens(tmp_path / "web.lance", layout, [40, 1, 23], block_size=size, dtype=dtype)
    report = exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "megatron", *flags)
    pairs = sorted((tmp_path / "out" / "web").glob("*.idx"))
    assert report["sources"][0]["shards"] == len(pairs) == (1 if not flags else len(pairs))
    assert not flags or len(pairs) > 1
    found, expected = [], documents_of(made)
    for path in pairs:
        dataset = indexed_dataset(path.with_suffix(""))
        assert dataset.index.dtype == (np.uint16 if dtype == "uint16" else np.int32)
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
        found += [dataset[i].copy() for i in range(len(dataset))]  # it unmaps the file at its end
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)
    assert exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "megatron", *flags)["up_to_date"]


@pytest.mark.filterwarnings("ignore")
def test_megatron_gets_whole_documents(tmp_path: Path, exporting: Export) -> None:
    import lance_prep

    texts = [f"document {i} " * (i % 40 + 1) for i in range(60)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = made_tokenizers.save(tmp_path / "tokenizer", made_tokenizers.byte_level(), eos_token="<|endoftext|>")
    options: dict[str, Any] = {"tokenizer": tokenizer, "shuffle": False}
    lance_prep.build(tmp_path / "web.jsonl", output=tmp_path / "web.lance", block_size=32, **options)
    lance_prep.build(tmp_path / "web.jsonl", output=tmp_path / "docs.lance", layout="documents", **options)
    exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "megatron", "--by", "document")
    exporting(tmp_path / "docs.lance", tmp_path / "out-docs", "--format", "megatron")
    one, two = indexed_dataset(tmp_path / "out/web/train"), indexed_dataset(tmp_path / "out-docs/docs/train")
    assert len(one) == len(two) == 60
    assert all(np.array_equal(one[i], two[i]) for i in range(60))


# Streaming datasets.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["blocks", "documents"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_litdata_reads_chunks(tmp_path: Path, exporting: Export, layout: str, dtype: str) -> None:
    litdata = pytest.importorskip("litdata", reason="needs litdata")
    size, flags = (128, []) if layout == "blocks" else (None, ["--max-seq-length", 128])
    make_tokens(tmp_path / "web.lance", layout, [200, 1, 123], block_size=size, dtype=dtype, longest=200)
    report = exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "litdata", "--shard-size", "20kB", *flags)
    dataset = LanceDataset(tmp_path / "web.lance", block_size=None if size else 128)
    expected = dataset.take(np.arange(len(dataset)))["input_ids"].numpy()
    folder = tmp_path / "out" / "web"
    assert report["sources"][0]["shards"] == len(list(folder.glob("*.bin"))) > 1
    assert max(path.stat().st_size for path in folder.glob("*.bin")) <= 20_000
    read = litdata.StreamingDataset(str(folder), item_loader=litdata.TokensLoader(block_size=128), shuffle=False)
    np.testing.assert_array_equal(np.stack([read[i].numpy() for i in range(len(read))]), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["blocks", "lines"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_streaming_reads_shards(tmp_path: Path, exporting: Export, layout: str, dtype: str) -> None:
    try:
        from streaming import StreamingDataset
    except ImportError as error:
        pytest.skip(f"mosaicml-streaming, whose pins contradict ours, is not installed: {error}")
    size, flags = (128, []) if layout == "blocks" else (None, ["--max-seq-length", 128])
    made = make_tokens(tmp_path / "web.lance", layout, [200, 1, 123], block_size=size, dtype=dtype, longest=200)
    report = exporting(tmp_path / "web.lance", tmp_path / "out", "--format", "mds", "--shard-size", "20kB", *flags)
    dataset = LanceDataset(tmp_path / "web.lance", block_size=None if size else 128)
    expected = dataset.take(np.arange(len(dataset)))["input_ids"].numpy()
    folder = tmp_path / "out" / "web"
    assert report["sources"][0]["shards"] == len(list(folder.glob("*.mds"))) > 1
    assert max(path.stat().st_size for path in folder.glob("*.mds")) <= 20_000
    read = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    samples = [read[i] for i in range(len(read))]
    np.testing.assert_array_equal(np.stack([sample["tokens"] for sample in samples]), expected)
    if size:
        assert [int(sample["num_tokens"]) for sample in samples] == [len(row) for row in made.rows]


@pytest.mark.parametrize("format", ["mds", "litdata"])
def test_a_killed_export_of_shards_continues(tmp_path: Path, exporting: Export, format: str) -> None:
    killer = make_killer(tmp_path)
    make_tokens(tmp_path / "web.lance", "blocks", [400], block_size=128)
    command = [PROGRAM, "export", tmp_path / "web.lance", "-o", tmp_path / "killed-export", "--format", format]
    arguments = [*map(str, command), "--shard-size", "20kB"]
    for change in (9, 12, 7):
        environment = {**os.environ, "LD_PRELOAD": str(killer), "KILL_AT": str(change), "KILL_BELOW": "killed-export"}
        killed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    exporting(tmp_path / "web.lance", tmp_path / "killed-export", "--format", format, "--shard-size", "20kB")
    exporting(tmp_path / "web.lance", tmp_path / "whole", "--format", format, "--shard-size", "20kB")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name / "web").iterdir()}
                for name in ("killed-export", "whole"))  # fmt: skip
    assert one == two
    assert "index.json" in one


# TRL.


def test_sft_trainer_takes_packed_rows(tmp_path: Path, exporting: Export) -> None:
    sft = pytest.importorskip("trl.trainer.sft_trainer", reason="needs trl")
    made = make_tokens(tmp_path / "web.lance", "blocks", [40, 1, 23], block_size=128)
    exporting(tmp_path / "web.lance", tmp_path / "out", "--for", "trl")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    collate = sft.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    keys = ["input_ids", "labels", "seq_lengths"]  # the columns that SFTTrainer keeps
    for at in (0, 38, 62):
        batch = collate([{key: rows[i][key] for key in keys} for i in (at, at + 1)])
        ids, labels, positions, ends = [], [], [], [0]
        for row, pieces in zip(made.rows[at : at + 2], made.pieces[at : at + 2], strict=True):
            lengths = [*pieces, *([128 - len(row)] if len(row) < 128 else [])]
            real = row.tolist()
            ids += real + [0] * (128 - len(real))
            labels += real + [-100] * (128 - len(real))
            positions += [i for length in lengths for i in range(length)]
            ends += [ends[-1] + int(end) for end in np.cumsum(lengths)]
        labels = [-100 if position == 0 else label for label, position in zip(labels, positions, strict=True)]
        assert batch["input_ids"][0].tolist() == ids
        assert batch["position_ids"][0].tolist() == positions
        assert batch["labels"][0].tolist() == labels
        assert batch["cu_seq_lens_q"].tolist() == ends
    assert run(["import", str(tmp_path / "out" / "web"), "-o", str(tmp_path / "back.lance")]) == 0
    back = lance.dataset(str(tmp_path / "back.lance")).to_table().to_pylist()
    assert [row["input_ids"][: row["num_tokens"]] for row in back] == [row.tolist() for row in made.rows]
    assert [row["seq_lengths"] for row in back] == made.pieces
