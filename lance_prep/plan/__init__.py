"""Plan stage: a `Recipe` in, a `Plan` of pinned files and ordered shards out. Touches metadata only."""

from lance_prep.plan.make import TOPICS, make_plan, restrict
from lance_prep.plan.model import SHARD_BYTES, Part, PinnedSource, Plan, Shard, SourceFile

__all__ = ["SHARD_BYTES", "TOPICS", "Part", "PinnedSource", "Plan", "Shard", "SourceFile", "make_plan", "restrict"]
