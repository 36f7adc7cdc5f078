"""Find out what the terminal can show: colours, block characters, and its width.

A screen reader cannot be detected. `TERM=dumb`, `NO_COLOR` or `ACCESSIBLE=1` in the environment asks for plain text.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def plain() -> bool:
    """Return whether the environment asks for output that a screen reader can read: no bars, no drawings."""
    return os.environ.get("TERM") == "dumb" or os.environ.get("ACCESSIBLE", "0") not in ("", "0")


def coloured() -> bool:
    """Return whether stdout gets colours: see no-color.org and bixense.com/clicolors."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = os.environ.get("CLICOLOR_FORCE", "0")
    return forced not in ("", "0") or (sys.stdout.isatty() and not plain())


def draws() -> bool:
    """Return whether stdout gets drawings of block characters instead of numbers."""
    return sys.stdout.isatty() and not plain() and not os.environ.get("NO_COLOR") and not _is_ascii()


def width() -> int | None:
    """Return the number of columns of the terminal, or None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _is_ascii() -> bool:
    # Python writes UTF-8 even in the locale C, so the encoding alone does not tell.
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locales = [name for name in names if name]
    if "C" in locales or "POSIX" in locales:
        return True
    try:
        _BLOCKS.encode(sys.stdout.encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def sparkline(values: Sequence[float], top: float) -> str:
    """Draw each value as a block, as high as its part of `top`. A value above 0 is never left out."""
    most = len(_BLOCKS) - 1
    return "".join(" " if not value else _BLOCKS[min(most, int(value / top * most + 0.5))] for value in values)
