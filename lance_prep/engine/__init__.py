"""Engine: runs shards and commits them."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.engine.local import default_workers
    from lance_prep.engine.report import BuildPreview, BuildReport, Progress, Silent
    from lance_prep.engine.run import RunOptions, build, preview_build, run_build, stream

__getattr__, __dir__, __all__ = lazy_exports(__name__)
