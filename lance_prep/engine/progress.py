"""What a build tells while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lance_prep.model import Plan
from lance_prep.store.receipt import Receipt


class Progress(Protocol):
    """Listens to a build. Called from the threads that build shards: implementations guard their own state."""

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        """The plan is made; the shards `done` were finished by an earlier run."""
        ...

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        """A batch went through: source rows, tokens made, bytes of text read."""
        ...

    def finished(self, receipt: Receipt) -> None:
        """A shard is done."""
        ...

    def warned(self, message: str) -> None:
        """Something that the user should know, once."""
        ...


class Silent:
    """Tells nothing."""

    def planned(self, plan: Plan, done: Sequence[int]) -> None: ...

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None: ...

    def finished(self, receipt: Receipt) -> None: ...

    def warned(self, message: str) -> None: ...
