"""History stage: a dataset's versions in, tags and new versions out. What writes takes the output's lock."""

from lance_prep.history.compact import Compaction, compact
from lance_prep.history.prune import Pruning, prune
from lance_prep.history.restore import Restored, restore
from lance_prep.history.tags import Tagged, delete_tag, tag

__all__ = ["Compaction", "Pruning", "Restored", "Tagged", "compact", "delete_tag", "prune", "restore", "tag"]
