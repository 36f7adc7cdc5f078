"""Source stage: a `Plan` and one of its `Shard`s in, `SourceBatch`es out, always in source order."""

from lance_prep.source.model import SourceBatch
from lance_prep.source.read import check_unchanged, read_shard

__all__ = ["SourceBatch", "check_unchanged", "read_shard"]
