"""Train stage: a dataset at a version in, int64 tensors out.

    permutation, order which sample comes when: O(1) memory, any position at once
    pages, tokens      where tokens lie flat in Lance's files; reading them by memory map or by `take`
    index, lance_reads what is known of a version before random access; what is asked of Lance itself
    access             opening a version, and choosing the way to its tokens
    samples, views     what a sample is, and which tokens it holds
    dataset            `LanceDataset`: samples by index
    collate            ragged samples as batches
    sampler            `TakeSampler`, for torch's DataLoader
    reading, loader    `TokenLoader`: the same with a state, reading ahead
    shares, mixture    several datasets by weight

Each imports only from lines above it, and of the rest of the package `errors` and `store.metadata`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_prep.train.collate import pad_collate, varlen_collate
    from lance_prep.train.dataset import LanceDataset
    from lance_prep.train.loader import TokenLoader
    from lance_prep.train.mixture import Mixture, Phase
    from lance_prep.train.permutation import KeyedPermutation
    from lance_prep.train.sampler import TakeSampler

__all__ = [
    "KeyedPermutation",
    "LanceDataset",
    "Mixture",
    "Phase",
    "TakeSampler",
    "TokenLoader",
    "pad_collate",
    "varlen_collate",
]

_WHERE = {
    "KeyedPermutation": "permutation",
    "LanceDataset": "dataset",
    "Mixture": "mixture",
    "Phase": "mixture",
    "TakeSampler": "sampler",
    "TokenLoader": "loader",
    "pad_collate": "collate",
    "varlen_collate": "collate",
}


def __getattr__(name: str) -> Any:
    # On first use: the helper process of a forked worker (`lance_reads`) needs no torch, an import of 2 to 5 s.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{name} needs torch, which is not installed; install it with: pip install 'lance-prep[train]' "
            "(from a checkout: pip install '.[train]')",
            name="torch",
        ) from error
    globals()[name] = value
    return value
