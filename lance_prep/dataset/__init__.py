"""Inspects and verifies a dataset, and manages its versions. Functions that write take its lock."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.dataset.check_builds import Verification
    from lance_prep.dataset.check_source import SAMPLE_ROWS, SourceCheck
    from lance_prep.dataset.difference import Difference, compare, diff_versions
    from lance_prep.dataset.history import Restored, Tagged, delete_tag, restore, tag
    from lance_prep.dataset.jsonl_index import Indexed, index_jsonl
    from lance_prep.dataset.lengths import Histogram, Measured
    from lance_prep.dataset.maintain import Compaction, Pruning, compact, prune
    from lance_prep.dataset.parts import Parts, adding_up, open_parts
    from lance_prep.dataset.show import ShownDocument, ShownRow, find_rows, pinned_recipe, show_rows
    from lance_prep.dataset.sql import query
    from lance_prep.dataset.verify import Listener, verify
    from lance_prep.dataset.versions import Version, list_versions
    from lance_prep.store import DatasetVersion, open_version

__getattr__, __dir__, __all__ = lazy_exports(__name__)
