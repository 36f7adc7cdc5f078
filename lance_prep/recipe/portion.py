"""The part of a source that a dataset holds: how much of it, and which side of a split."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lance_prep.ledger import Ledger  # imports numpy, which `--help` does without


@dataclass(frozen=True)
class Limit:
    """The most that a build, or the rest of it, may write. A field is None if it limits nothing.

    Attributes:
        rows: number of rows written.
        source_rows: number of source rows used. The first ones of the source are used.
        tokens: the source row whose tokens reach this number is the last one used.
    """

    rows: int | None = None
    source_rows: int | None = None
    tokens: int | None = None

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return self != Limit()

    @property
    def limits_source(self) -> bool:
        """Whether it decides which source rows may be used."""
        return self.source_rows is not None or self.tokens is not None

    @property
    def reached(self) -> bool:
        """Whether nothing more may be written."""
        return 0 in (self.rows, self.source_rows, self.tokens)

    def after(self, *, rows: int = 0, source_rows: int = 0, tokens: int = 0) -> Limit:
        """Return what is left when this much was written."""
        used = {"rows": rows, "source_rows": source_rows, "tokens": tokens}
        return replace(self, **{n: max(0, was - used[n]) for n, was in vars(self).items() if was is not None})

    def after_all(self, rows: int, ledger: Ledger) -> Limit:
        """Return what is left when the rows of a ledger, and all that they used, were written."""
        return self.after(rows=rows, source_rows=ledger.rows_used, tokens=ledger.tokens_written)

    def broken(self, rows: int, ledger: Ledger) -> str:
        """Say what was written beyond the limit; empty if nothing was. The last source row may exceed `tokens`."""
        if self.rows is not None and rows > self.rows:
            return f"rows than max_rows allows: {rows:,}"
        if self.source_rows is not None and ledger.rows_used > self.source_rows:
            return f"source rows than max_source_rows allows: {ledger.rows_used:,}"
        return ""


def validation_bound(fraction: float) -> int:
    """Return the bound of a split: a document is for validation if the xxh3-64 of its text is below it.

    The side depends only on the text and the fraction. So a document never changes sides when others are added or
    their order changes, and equal texts are on the same side.
    """
    return math.ceil(fraction * (1 << 64))


def shared_limit(limit: Limit, fraction: float) -> tuple[Limit, Limit]:
    """Return a limit's part for training and its part for validation. Both are at least 1."""
    validation = {n: max(1, round(most * fraction)) for n, most in vars(limit).items() if most is not None}
    training = {n: max(1, getattr(limit, n) - most) for n, most in validation.items()}
    return Limit(**training), Limit(**validation)
