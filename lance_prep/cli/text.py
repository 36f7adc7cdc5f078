"""Numbers as people read them."""

from __future__ import annotations


def count(number: int) -> str:
    """1,234 or 1.23 M."""
    if number < 100_000:
        return f"{number:,}"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def size(number: float) -> str:
    """Bytes as B, kB, MB, GB (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


def span(seconds: float) -> str:
    """1.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(rows: list[tuple[str, str]], indent: str = "") -> str:
    """Two columns, the first as wide as its widest."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in rows)
