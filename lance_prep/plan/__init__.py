"""Plan stage: a `Recipe` in, a `Plan` of pinned files and ordered shards out. Touches metadata only."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.formats import TOPICS
    from lance_prep.plan.columns import resolve_columns
    from lance_prep.plan.cost import (
        SAMPLE_BYTES,
        Cost,
        Counted,
        Estimate,
        Sample,
        Speed,
        added,
        choose_samples,
        estimate_cost,
    )
    from lance_prep.plan.cut import SHARD_BYTES
    from lance_prep.plan.make import default_output, make_plan, restrict
    from lance_prep.plan.template import NoText, compile_template

__getattr__, __dir__, __all__ = lazy_exports(__name__)
