"""From `lance_prep.build` to a batch: what the build side writes is what the train side expects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import lance_prep
import lance_prep.train
from lance_prep.train import LanceDataset, TokenLoader, __all__
from tests.train.made import Made


@pytest.mark.parametrize(
    ("layout", "block_size"), [("blocks", None), ("lines", None), ("lines", 128), ("documents", 128)]
)
def test_a_built_sample_is_read_as_it_was_written(tmp_path: Path, layout: str, block_size: Any) -> None:
    path = tmp_path / "sample.lance"
    options = {"block_size": 128} if layout == "blocks" else {}
    lance_prep.build("sample", output=path, layout=layout, **options)
    ds = LanceDataset(path, block_size=block_size)
    assert ds.access.way == "mmap", ds.access
    table = lance.dataset(str(path)).to_table(columns=["input_ids", "num_tokens"])
    rows = [ids[:n] for ids, n in zip(table["input_ids"].to_pylist(), table["num_tokens"].to_pylist(), strict=True)]
    if layout == "blocks" or block_size is None:
        got = [sample["input_ids"][: sample.valid].tolist() for sample in ds.take(range(len(ds)))]
        assert got == rows
        assert ds.text(0) == ds.decode(rows[0])
        assert "\ufffd" not in ds.text(len(ds) // 2)[5:-5]
    else:
        eos = ds._facts.eos_id
        stream = np.concatenate([[*row, eos] for row in rows])
        got = ds.take(range(len(ds)))["input_ids"].reshape(-1).tolist()
        assert got[: len(stream)] == stream.tolist()
    if layout == "blocks" or block_size:
        batch = next(iter(TokenLoader(ds, 4)))
        assert batch["input_ids"].shape == (4, 128)


def test_a_worker_that_inherits_an_index_loads_neither_lance_nor_the_build_side(blocks: Made) -> None:
    """The import of Lance takes 1.4 s, which a spawned worker is spared."""
    script = f"""
import pickle, subprocess, sys
from lance_prep.train import LanceDataset
ds = LanceDataset({str(blocks.path)!r})
len(ds)
code = '''
import pickle, sys
pickle.loads(sys.stdin.buffer.read()).take([1, 2])
print(*sys.modules)
'''
subprocess.run([sys.executable, "-c", code], input=pickle.dumps(ds), check=True)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert not {"lance", "pydantic", "fsspec", "httpx", "rich", "click"} & {name.split(".")[0] for name in loaded}
    ours = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("lance_prep.")}
    assert ours == {
        f"lance_prep.{name}"
        for name in (
            "errors",
            "hub_path",
            "hub_session",
            "keyed",
            "layouts",
            "ledger",
            "loss_mask",
            "process",
            "store",
            "train",
            "transport",
        )
    }
    assert "lance_prep.store.journal" not in loaded


def test_the_package_exports_these_names() -> None:
    assert all(getattr(lance_prep.train, name).__name__ == name for name in __all__)
    assert __all__ == [
        "JsonlDataset",
        "KeyedPermutation",
        "LanceDataset",
        "Mixture",
        "ParquetDataset",
        "Phase",
        "TakeSampler",
        "TokenLoader",
        "TrainConfig",
        "load_train_config",
        "pad_collate",
        "varlen_collate",
    ]
