"""Text in, versioned Lance token dataset out, training at memory-map speed from it.

    import lance_prep

    lance_prep.build("sample", output="sample.lance")      # -> BuildReport
    reader = lance_prep.stream("sample")                   # a streaming pa.RecordBatchReader

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_prep.engine import BuildReport, build, stream
    from lance_prep.errors import LancePrepError
    from lance_prep.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "BuildReport": "lance_prep.engine",
    "LancePrepError": "lance_prep.errors",
    "Recipe": "lance_prep.recipe",
    "build": "lance_prep.engine",
    "load_recipe": "lance_prep.recipe",
    "stream": "lance_prep.engine",
}

__all__ = ["BuildReport", "LancePrepError", "Recipe", "build", "load_recipe", "stream"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lance_prep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
