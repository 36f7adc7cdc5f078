"""Train stage: a dataset at a version in, int64 tensors out.

    permutation, order which sample comes when: O(1) memory, any position at once
    pages, tokens      where tokens lie flat in Lance's files; reading them by memory map or by `take`
    index, access      what is known of a version before random access; opening it, and choosing the way
    samples, views     what a sample is, and which tokens it holds
    dataset            `LanceDataset`: samples by index
    collate            ragged samples as batches
    sampler            `TakeSampler`, for torch's DataLoader
    reading, loader    `TokenLoader`: the same with a state, reading ahead
    shares, mixture    several datasets by weight

Each imports only from lines above it, and of the rest of the package `errors` and `store.metadata`.
"""

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
