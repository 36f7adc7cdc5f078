"""Plan stage: a `Recipe` in, a `Plan` of pinned files and ordered shards out. Touches metadata only."""

from lance_prep.plan.model import Part, PinnedSource, Plan, Shard, SourceFile

__all__ = ["Part", "PinnedSource", "Plan", "Shard", "SourceFile"]
