"""Reading in other processes, and of datasets that change, vanish or are damaged while they are in use."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest
from torch.utils.data import DataLoader

from lance_prep.errors import DatasetError, UsageError
from lance_prep.train import LanceDataset
from tests.train.made import BLOCK, Made


def run(script: str, *arguments: str, cwd: Path | None = None, timeout: float = 120) -> str:
    """Run a script in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_workers_refuse_a_dataset_rebuilt_at_the_same_path(make: Callable[..., Made]) -> None:
    """They read the new rows, while checkpoints named the old ones."""
    old = make("blocks", [40], block_size=BLOCK, seed=1)
    ds = LanceDataset(old.path, access="take")
    loader = DataLoader(ds, batch_size=8, num_workers=1, multiprocessing_context="fork")
    assert len([row for batch in loader for row in batch["input_ids"]]) == 40
    shutil.rmtree(old.path)
    make("blocks", [40], block_size=BLOCK, seed=2)
    with pytest.raises(DatasetError, match="was replaced while it was in use") as error:
        list(loader)
    assert "hash-blocks-1" in str(error.value)
    assert "hash-blocks-2" in str(error.value)
    assert "try: open the dataset again, and start from step 0" in str(error.value)  # torch keeps only this text


def test_a_reopened_dataset_refuses_a_replaced_one(make: Callable[..., Made]) -> None:
    old = make("blocks", [40], block_size=BLOCK, seed=1)
    ds = LanceDataset(old.path)
    assert ds.version == 1
    sent = pickle.dumps(ds)
    shutil.rmtree(old.path)
    make("blocks", [40], block_size=BLOCK, seed=2)
    reads: list[Callable[[LanceDataset], Any]] = [len, lambda d: d[0], lambda d: d.text(0), lambda d: d.decode([3])]
    for read in reads:
        with pytest.raises(DatasetError, match="was replaced") as error:
            read(pickle.loads(sent))
        assert "start from step 0" in error.value.advice


@pytest.mark.parametrize("used", [False, True])
def test_a_version_pruned_while_in_use_is_a_dataset_error(make: Callable[..., Made], used: bool) -> None:
    first = make("lines", [20], file_version="2.1")
    ds = LanceDataset(first.path, access="take", version=1)
    assert ds.version == 1
    if used:
        assert len(ds[3]["input_ids"]) == len(first.rows[3])
    make("lines", [30])
    lance.dataset(str(first.path)).cleanup_old_versions(older_than=timedelta(0))
    with pytest.raises(DatasetError, match=r"reading .*d\.lance") as error:
        ds[19]
    assert "lance-prep versions" in error.value.advice


def test_damaged_files_are_dataset_errors(make: Callable[..., Made]) -> None:
    made = make("blocks", [40], block_size=BLOCK)
    manifest = next((made.path / "_versions").glob("*.manifest"))
    whole = manifest.read_bytes()
    for position in range(8, len(whole), max(1, len(whole) // 60)):
        manifest.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with suppress(DatasetError):
            LanceDataset(made.path, access="take")[3]
    manifest.write_bytes(whole)
    data = next((made.path / "data").glob("*.lance"))
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"reading .*d\.lance"):
        LanceDataset(made.path, access="take")[3]


def test_the_helper_of_a_forked_worker_imports_nothing_from_the_current_folder(blocks: Made, tmp_path: Path) -> None:
    trap = "from pathlib import Path; Path({mark!r}).write_text(__name__); raise SystemExit('trapped')"
    for name in ("random", "lance", "numpy", "pickle", "torch", "lance_prep", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(trap.format(mark=str(tmp_path / "trapped")))
    script = tmp_path.parent / f"{tmp_path.name}.py"  # outside of the current folder
    script.write_text(f"""
import sys
from torch.utils.data import DataLoader
from lance_prep.train import LanceDataset
ds = LanceDataset({str(blocks.path)!r}, access="take")
assert ds[0]
loader = DataLoader(ds, batch_size=50, num_workers=1, multiprocessing_context="fork")
print(sum(len(batch["input_ids"]) for batch in loader))
""")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(len(blocks.rows)), done.stderr
    assert not (tmp_path / "trapped").exists()


def test_a_fork_while_another_thread_reads_does_not_hang(blocks: Made) -> None:
    """A forked worker reads through its helper on a thread, which holds a lock, and forks again meanwhile."""
    script = """
import os, signal, sys, threading
from lance_prep.train import LanceDataset
ds = LanceDataset(sys.argv[1], access="take")
want = ds[3]["input_ids"].tolist()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
stop = threading.Event()
def read():
    while not stop.is_set():
        assert ds[3]["input_ids"].tolist() == want
thread = threading.Thread(target=read)
assert ds[3]["input_ids"].tolist() == want
thread.start()
for _ in range(3):
    grandchild = os.fork()
    if not grandchild:
        signal.alarm(20)
        os._exit(0 if ds[3]["input_ids"].tolist() == want else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
    if code:
        os._exit(3)
stop.set()
thread.join()
os._exit(0)
"""
    run(script, str(blocks.path))


def test_raw_datasets_refuse_what_needs_tokens(raw: Made) -> None:
    for options in (
        {"access": "mmap"},
        {"labels": "shifted"},
        {"labels": "same"},
        {"attention_mask": True},
        {"position_ids": True},
        {"document_ids": True},
        {"mask_boundaries": True},
        {"block_size": 8},
    ):
        with pytest.raises(UsageError, match=f"{next(iter(options))}.* raw"):
            len(LanceDataset(raw.path, **options))  # type: ignore[arg-type]
    assert len(LanceDataset(raw.path)) == len(LanceDataset(raw.path, labels=None)) == len(raw.columns["text"])
    with pytest.raises(UsageError, match="raw dataset has no tokens"):
        LanceDataset(raw.path).text(0)


def test_without_torch_the_error_names_the_command() -> None:
    script = """
import sys
sys.modules["torch"] = None
try:
    from lance_prep.train import LanceDataset
except ImportError as error:
    print(error)
"""
    said = run(script)
    assert "pip install 'lance-prep[train]'" in said
    assert "pip install '.[train]'" in said
