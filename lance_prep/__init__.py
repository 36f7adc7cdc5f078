"""Turn text into a versioned Lance dataset of tokens, and stream it into training at memory-map speed.

    import lance_prep

    lance_prep.build("sample", output="sample.lance")      # -> BuildReport
    lance_prep.stream("sample")                            # -> a streaming pa.RecordBatchReader
    lance_prep.info("sample.lance")                        # -> DatasetVersion: .metadata, .source_files, ...
    lance_prep.versions("sample.lance")                    # -> list of Version
    lance_prep.verify("sample.lance").ok                   # -> True
    lance_prep.push("sample.lance", "owner/name")          # -> PushReport

Names are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.collection import CollectionReport, build_collection
    from lance_prep.dataset import DatasetVersion, Verification, Version, verify
    from lance_prep.dataset import list_versions as versions
    from lance_prep.dataset import open_version as info
    from lance_prep.engine import BuildReport, build, stream
    from lance_prep.errors import LancePrepError
    from lance_prep.hub import push
    from lance_prep.recipe import Recipe, load_recipe

__version__ = "0.1.0"

__all__ = [
    "BuildReport",
    "CollectionReport",
    "DatasetVersion",
    "LancePrepError",
    "Recipe",
    "Verification",
    "Version",
    "build",
    "build_collection",
    "info",
    "load_recipe",
    "push",
    "stream",
    "verify",
    "versions",
]

__getattr__, __dir__, _ = lazy_exports(__name__)
