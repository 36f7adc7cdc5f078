"""Datasets that the tests of the train side share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.train.made import BLOCK, Made, make_raw, make_tokens


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_tokens(tmp_path_factory.mktemp("data") / "blocks.lance", "blocks", [40, 23, 1, 39], block_size=BLOCK)


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_tokens(tmp_path_factory.mktemp("data") / "lines.lance", "lines", [50, 3, 1, 47], seed=1)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("data") / "documents.lance"
    return make_tokens(path, "documents", [9, 12], dtype="uint32", seed=2, longest=200)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_raw(tmp_path_factory.mktemp("data") / "raw.lance", [20, 17])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Make a dataset of one test's own."""

    def made(layout: str, shards: Sequence[int], name: str = "d.lance", **options: Any) -> Made:
        if layout == "raw":
            return make_raw(tmp_path / name, shards)
        return make_tokens(tmp_path / name, layout, shards, **options)

    return made
