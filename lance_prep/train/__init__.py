"""Train stage: reads a version of a dataset as int64 tensors.

    permutation, order  the order of samples, in O(1) memory and at any position at once; ranks
    pages, tokens       find flat tokens in Lance's files; read them by memory map or by `take`
    index, lance_reads  the index of a version; reading through Lance, in a helper process after a fork
    access              opens a version, and chooses how its tokens are read
    samples, views      what a sample is, and which tokens and documents it has
    dataset             `LanceDataset`: samples by index
    collate             batches of ragged samples
    sampler             `TakeSampler`, for torch's DataLoader
    reading, loader     `TokenLoader`: the same with a state, reading ahead
    shares, mixture     `Mixture`: several datasets by weight

Each module imports only from lines above it, and from the rest of the package only `errors`, `layouts` and `store`.
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
    # Deferred: the helper process of a forked worker (`lance_reads`) needs no torch, whose import takes 2 to 5 s.
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
