"""What a verification found, and the seam where damage of any kind becomes a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MOST_PROBLEMS = 100


@dataclass
class Verification:
    """What was found.

    Attributes:
        problems: one sentence each, naming the file, or the shard and the row; empty when the dataset is whole. The
            first 100.
        more: problems beyond those.
        checks: what was looked at, with counts.
    """

    problems: list[str] = field(default_factory=list)
    more: int = 0
    checks: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def wrong(self, problem: str) -> None:
        """Add a problem."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1

    def count(self, what: str, number: int = 1) -> None:
        """Add to what was looked at."""
        self.checks[what] = self.checks.get(what, 0) + number

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Whatever the block raises is a problem of `what`: a damaged file may make a library fail in any way.

        Lance and tokenizers panic on some of them, which comes up as a `BaseException`.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as error:
            self.wrong(f"{what}: {describe(error)}")


def describe(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0][:300]}" if lines else type(error).__name__
