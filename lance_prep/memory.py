"""Memory of this process: how much there is of it, and giving back what the C library holds."""

from __future__ import annotations

import ctypes
import sys

import psutil


def rss() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Give free memory back to the system, where the C library is glibc; elsewhere nothing.

    Each shard ends threads whose arenas glibc keeps: building 1 GB peaked at 1,120 MB without this, at 990 MB with it.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library, which has no such call
        return
