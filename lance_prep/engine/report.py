"""The progress of a build while it runs, and its report at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from lance_prep.errors import LancePrepError
from lance_prep.ledger import Ledger
from lance_prep.model import Plan
from lance_prep.plan import Cost
from lance_prep.store import Lengths, Receipt


class Progress(Protocol):
    """Listens to a build. Called from the threads that build shards: implementations guard their own state."""

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        """The plan is made; the shards `done` were finished by an earlier run."""
        return

    def compared(self, shard: int, rows: int, source_bytes: int) -> None:
        """A batch was read to compare its texts, before any shard is built: source rows, bytes of text read."""
        return

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        """A batch went through: source rows, tokens made, bytes of text read."""
        return

    def finished(self, receipt: Receipt) -> None:
        """A shard is done."""
        return

    def warned(self, message: str) -> None:
        """Something that the user should know, once."""
        return


class Silent(Progress):
    """Tells nothing."""


@dataclass(frozen=True)
class BuildPreview:
    """What a build would do.

    Attributes:
        plan: the files and shards that would be read.
        action: `build` a new dataset, `resume` one, `append` or `overwrite` as a new version, do `nothing`, `skip` an
            output that exists, or `refuse`.
        why: the reason for the action, in one sentence.
        error: the error that the build would raise, if it would refuse.
        validation: what would be done with the validation set, if one is split off.
        cost: what it would cost; None if there is nothing to build, or it cannot be estimated.
        not_estimated: why the cost cannot be estimated.
    """

    plan: Plan
    action: Literal["build", "resume", "append", "overwrite", "nothing", "skip", "refuse"]
    why: str
    error: LancePrepError | None = None
    validation: BuildPreview | None = None
    cost: Cost | None = None
    not_estimated: str = ""

    def as_json(self) -> dict[str, Any]:
        plan = {name: value for name, value in self.plan.as_json().items() if "schema" not in name}
        skipped = [asdict(each) for each in self.plan.skipped]
        cost = self.cost.as_json() if self.cost else None
        said = {"action": self.action, "why": self.why, **plan, "skipped": skipped, "cost": cost}
        if self.not_estimated:
            said["not_estimated"] = self.not_estimated
        return {**said, "validation": self.validation.as_json()} if self.validation else said


@dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    Attributes:
        status: `built`; `resumed`, if shards of an earlier run were used; `unchanged`, if the dataset was up to date;
            `skipped`, if `skip_existing` left it alone.
        uri: of the dataset.
        version: of the dataset.
        rows, tokens: of the dataset.
        ledger: where each source row and token went.
        content_hash: of the rows, in order.
        shards: number of shards.
        shards_resumed: number of shards from an earlier run.
        text_bytes: bytes of text that were read; of `raw`, of all columns.
        seconds: of this run.
        recipe: all fields of the recipe as resolved, such as the text column that was found.
        lengths: of the documents in tokens; None for `raw`.
        retries: number of requests retried.
        rejected_file: path of the rejected rows, if there are any.
        contaminated_file: path of what texts share with a benchmark, if anything was found.
        validation: the report of the validation set, if one is split off.
    """

    status: Literal["built", "resumed", "unchanged", "skipped"]
    uri: str
    version: int
    rows: int
    tokens: int
    ledger: Ledger
    content_hash: str
    shards: int
    seconds: float
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    lengths: Lengths | None = None
    shards_resumed: int = 0
    text_bytes: int = 0
    retries: int = 0
    rejected_file: str | None = None
    contaminated_file: str | None = None
    validation: BuildReport | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from lance_prep import viz

        shown: list[tuple[str, object]] = [("status", self.status), ("version", self.version), ("rows", self.rows)]
        shown += [("tokens", self.tokens)] if self.tokens else []
        shown += [("shards", self.shards), ("time", f"{self.seconds:.1f} s"), ("content hash", self.content_hash)]
        files = (("rejected rows", self.rejected_file), ("benchmark hits", self.contaminated_file))
        return viz.build_html(self.uri, [*shown, *((name, file) for name, file in files if file)], self.ledger)
