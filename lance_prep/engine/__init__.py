"""Engine: runs shards and commits them."""

from lance_prep.engine.build import RunOptions, build, run_build, stream
from lance_prep.engine.progress import Progress, Silent
from lance_prep.engine.report import BuildReport

__all__ = ["BuildReport", "Progress", "RunOptions", "Silent", "build", "run_build", "stream"]
