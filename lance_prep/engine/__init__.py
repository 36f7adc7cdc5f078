"""Engine: runs shards and commits them."""

from lance_prep.engine.build import RunOptions, build, preview_build, run_build, stream
from lance_prep.engine.local import default_workers
from lance_prep.engine.progress import Progress, Silent
from lance_prep.engine.report import BuildPreview, BuildReport

__all__ = [
    "BuildPreview",
    "BuildReport",
    "Progress",
    "RunOptions",
    "Silent",
    "build",
    "default_workers",
    "preview_build",
    "run_build",
    "stream",
]
