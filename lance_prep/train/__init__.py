"""Train stage: reads a version of a dataset as int64 tensors.

    permutation, order  the order of samples, in O(1) memory and at any position at once; ranks
    pages, tokens       find flat tokens in Lance's files; read them by memory map or by `take`
    index, learned      the index of a version, and which tokens of a conversation are learned
    forks               new locks in forked processes, and a helper process that reads for them
    lance_reads         reading through Lance, in a helper process after a fork
    access              opens a version, and chooses how its tokens are read
    samples, annotate   what a sample is; its labels, masks and positions
    views               which tokens and documents a sample has
    sources             what a loader and a mixture ask of data
    dataset             `LanceDataset`: samples by index
    parquet_files       shards of an export, and the flat copy of their tokens
    parquet             `ParquetDataset`: samples of these by index
    jsonl_files, jsonl  `JsonlDataset`: records of JSONL files in place
    collate             batches of ragged samples; moving batches to a device
    sampler             `TakeSampler`, for torch's DataLoader
    runs                reading several steps at once: when asked, on a thread, or in worker processes
    loader              `TokenLoader`: the same with a state
    shares, positions   which source each position of a mixture is of, and which sample
    splits              the splits of a manifest, and their weights
    mixture             `Mixture`: several datasets by weight
    config              `TrainConfig`: the data of a training run, from a `train.yaml`

Each module imports only from lines above it, and from the rest of lance-prep only ground modules and `store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.train.collate import pad_collate, varlen_collate
    from lance_prep.train.config import TrainConfig, load_train_config
    from lance_prep.train.dataset import LanceDataset
    from lance_prep.train.jsonl import JsonlDataset
    from lance_prep.train.loader import TokenLoader
    from lance_prep.train.mixture import Mixture
    from lance_prep.train.parquet import ParquetDataset
    from lance_prep.train.permutation import KeyedPermutation
    from lance_prep.train.sampler import TakeSampler
    from lance_prep.train.splits import Phase

__all__ = [
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

# Deferred: the helper process of a forked worker (`lance_reads`) needs no torch, whose import takes 2 to 5 s.
__getattr__, __dir__, _ = lazy_exports(__name__, extra="train")
