"""Source stage: a `Plan` and one of its `Shard`s in, `SourceBatch`es out, always in source order."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.plan import NoText
    from lance_prep.source.cutter import SourceBatch
    from lance_prep.source.prepare import Render
    from lance_prep.source.read import check_all_unchanged, check_unchanged, read_shard, read_some

__getattr__, __dir__, __all__ = lazy_exports(__name__)
