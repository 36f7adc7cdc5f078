"""Plan stage: a `Recipe` in, a `Plan` of pinned files and ordered shards out. Touches metadata only."""

from lance_prep.plan.make import TOPICS, make_plan
from lance_prep.plan.model import Part, PinnedSource, Plan, Shard, SourceFile

__all__ = ["TOPICS", "Part", "PinnedSource", "Plan", "Shard", "SourceFile", "make_plan"]
