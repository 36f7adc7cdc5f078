"""Turn text into a versioned Lance dataset of tokens, and stream it into training at memory-map speed.

    import lance_prep

    lance_prep.build("sample", output="sample.lance")      # -> BuildReport
    lance_prep.stream("sample")                            # -> a streaming pa.RecordBatchReader
    lance_prep.info("sample.lance")                        # -> DatasetVersion: .metadata, .source_files, ...
    lance_prep.versions("sample.lance")                    # -> list of Version
    lance_prep.verify("sample.lance").ok                   # -> True

Names are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_prep.dataset import DatasetVersion, Verification, Version, verify
    from lance_prep.dataset import list_versions as versions
    from lance_prep.dataset import open_version as info
    from lance_prep.engine import BuildReport, build, stream
    from lance_prep.errors import LancePrepError
    from lance_prep.recipe import Recipe, load_recipe

__version__ = "0.1.0"

#: name -> (package, name there)
_HOMES = {
    "BuildReport": ("engine", "BuildReport"),
    "DatasetVersion": ("dataset", "DatasetVersion"),
    "LancePrepError": ("errors", "LancePrepError"),
    "Recipe": ("recipe", "Recipe"),
    "Verification": ("dataset", "Verification"),
    "Version": ("dataset", "Version"),
    "build": ("engine", "build"),
    "info": ("dataset", "open_version"),
    "load_recipe": ("recipe", "load_recipe"),
    "stream": ("engine", "stream"),
    "verify": ("dataset", "verify"),
    "versions": ("dataset", "list_versions"),
}

__all__ = [
    "BuildReport",
    "DatasetVersion",
    "LancePrepError",
    "Recipe",
    "Verification",
    "Version",
    "build",
    "info",
    "load_recipe",
    "stream",
    "verify",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        package, there = _HOMES[name]
        return getattr(import_module(f"lance_prep.{package}"), there)
    raise AttributeError(f"module 'lance_prep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
