"""The cache beside a dataset: damage, other users' files and wrong positions never give wrong tokens."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lance_prep.errors import DatasetError
from lance_prep.store.cache import Cache, damaged_files
from lance_prep.train import LanceDataset
from tests.train.made import BLOCK, Made

Make = Callable[..., Made]


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def folder_of(made: Made) -> Path:
    (folder,) = (made.path / ".lance_prep" / "cache").iterdir()
    return folder


def make_cached(make: Make, layout: str) -> Made:
    """A dataset whose cache was filled by an earlier process: "flat" rows, "packed" ones or "blocks"."""
    if layout == "blocks":
        made = make("blocks", [20, 9], block_size=BLOCK)
    else:
        made = make("lines", [30, 20], file_version="2.1" if layout == "packed" else "2.0")
    read(made)
    return made


def read(made: Made, ds: LanceDataset | None = None) -> list[Any]:
    """All that a user reads, compared with what was written."""
    if ds is None:
        ds = open_again(made)
    assert len(ds) == len(made.rows)
    batch = ds.take(range(len(ds)))
    ids = [sample["input_ids"][: sample.valid].tolist() for sample in batch]
    assert ids == [row.tolist() for row in made.rows]
    if made.layout == "blocks":
        lengths = [sample.documents.lengths.tolist() for sample in batch]
        assert lengths == made.pieces
        assert [list(origin.documents) for origin in ds.origins(np.arange(len(ds)))] == made.columns["doc_ids"]
    return ids


def open_again(made: Made, **options: Any) -> LanceDataset:
    filtered = "num_tokens >= 0"  # keeps all rows, and caches which
    return LanceDataset(made.path, filter=filtered, **options)


def change_index(made: Made, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Change the index as somebody could who knows this user's key."""
    cache = Cache(folder_of(made))
    arrays = {k: v.copy() for k, v in np.load(cache.folder / "index.npz").items()}
    facts = json.loads(arrays.pop("facts").tobytes())
    change(facts, arrays)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    assert cache.write("index.npz", lambda file: np.savez(file, **arrays)) is not None


@pytest.mark.parametrize("layout", ["flat", "packed", "blocks"])
def test_every_damaged_byte_is_noticed(make: Make, layout: str) -> None:
    made = make_cached(make, layout)
    folder = folder_of(made)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ("tokens.bin" in whole) == (layout == "packed")
    assert damaged_files(folder) == []
    rng = np.random.default_rng(0)
    for name, data in whole.items():
        flips = [
            data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
            for at in rng.integers(0, len(data), 6).tolist()
        ]
        for damaged in [b"", data[:-1], data + b"\0", *flips]:
            (folder / name).write_bytes(damaged)
            if not name.endswith(".seal") or damaged in (b"", data[:-1]):
                assert [path.name for path in damaged_files(folder)] == [name.removesuffix(".seal")]
            read(made)
            # The cache was rebuilt, so the next process finds it undamaged.
            assert damaged_files(folder) == []
            for path in folder.iterdir():
                path.write_bytes(whole[path.name])


def test_a_cache_that_came_with_the_dataset_is_not_believed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "stranger"))
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(256)) * 100)
    made = make_cached(make, "flat")
    change_index(made, lambda facts, arrays: facts.update(pages=[f"../../{secret.name}"] * 2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    read(made)
    assert open_again(made).access.way == "mmap"


FORGED: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], object]] = {
    "rows": lambda facts, arrays: facts.update(rows=facts["rows"] - 7),
    "a file outside": lambda facts, arrays: facts.update(pages=["../../../../etc/passwd"] * 2),
    "a file of the sidecar": lambda facts, arrays: facts.update(pages=["../.lance_prep/tokenizer.json"] * 2),
    "a negative position": lambda facts, arrays: arrays["pages"][1].__isub__(50_000_000),
    "a position beyond the file": lambda facts, arrays: arrays["pages"][1].__iadd__(50_000_000),
    "an odd position": lambda facts, arrays: arrays["pages"][1].__iadd__(1),
    "a shifted position": lambda facts, arrays: arrays["pages"][1].__iadd__(2),
    "an unknown file": lambda facts, arrays: arrays["pages"][0].__iadd__(100),
    "a negative file": lambda facts, arrays: arrays["pages"][0].__isub__(100),
    "more tokens": lambda facts, arrays: arrays["pages"][2].__iadd__(1 << 40),
    "a negative count": lambda facts, arrays: arrays["pages"][2].__isub__(1 << 40),
}


FORGED["shifted documents"] = lambda facts, arrays: arrays["docs"][1].__iadd__(8) if "docs" in arrays else None
for _name in (
    "a negative position",
    "a position beyond the file",
    "more tokens",
    "a negative count",
    "an unknown file",
):
    FORGED[f"{_name}, of the documents"] = lambda facts, arrays, change=FORGED[_name]: (
        change(facts, {"pages": arrays["docs"]}) if "docs" in arrays else None
    )


@pytest.mark.parametrize("layout", ["flat", "blocks"])
@pytest.mark.parametrize("name", FORGED)
def test_wrong_positions_are_refused_in_this_process_and_in_workers(make: Make, name: str, layout: str) -> None:
    made = make_cached(make, layout)
    change_index(made, FORGED[name])
    ds = open_again(made)
    read(made, ds)
    worker = pickle.loads(pickle.dumps(ds))
    read(made, worker)
    assert worker.access == ds.access
    if ds.access.way == "take":
        with pytest.raises(DatasetError, match="cannot be memory-mapped"):
            len(open_again(made, access="mmap"))


def test_a_data_file_that_became_shorter_is_an_error_and_not_a_crash(make: Make) -> None:
    made = make_cached(make, "blocks")
    path = max((made.path / "data").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(path, 100)
    with pytest.raises(DatasetError):
        read(made)


def test_cached_files_have_the_permissions_of_the_umask(make: Make, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        made = make_cached(make, "flat")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder_of(made).iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "home" / "lance-prep" / "key").stat().st_mode) == 0o600


def test_a_linked_folder_is_not_written_to(make: Make, tmp_path: Path) -> None:
    made = make_cached(make, "flat")
    target, link = tmp_path / "target", folder_of(made)
    shutil.rmtree(link)
    target.mkdir()
    link.symlink_to(target)
    read(made)
    assert list(target.iterdir()) == []


def test_a_cache_that_cannot_be_kept_is_no_error(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make("blocks", [20], block_size=BLOCK)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ds = open_again(made, cache_dir=tmp_path / "file" / "cache")
    read(made, ds)
    read(made, pickle.loads(pickle.dumps(ds)))
