"""Text stage: `SourceBatch`es in and out. Drops documents and lines because of their text, and counts them.

It also writes conversations as texts with marks, and encodes these, with the tokens that are learned.
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.text.chat_template import chat_renderer
    from lance_prep.text.decontaminate import Benchmark, Hit, items_of
    from lance_prep.text.dedup import ShardKeys, find_later, group_equal
    from lance_prep.text.drop import DUPLICATE, Dropped, keep_texts
    from lance_prep.text.marked import ChatEncoder, ChatTables
    from lance_prep.text.minhash import minhash_version
    from lance_prep.text.quality import detector_version, detects_language
    from lance_prep.text.scan import ShardScan, needs_scan, scan_shard

__getattr__, __dir__, __all__ = lazy_exports(__name__)
