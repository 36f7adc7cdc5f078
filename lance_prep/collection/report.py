"""What the build of a collection tells: its progress while it runs, and a report at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from lance_prep.collection.sources import CollectionPlan, SourceJob
from lance_prep.engine import BuildReport, Progress, Silent
from lance_prep.errors import LancePrepError
from lance_prep.store import Manifest, Split

Status = Literal["built", "resumed", "rebuilt", "unchanged", "failed"]


class CollectionProgress(Protocol):
    """Listens to the build of a collection. Called from several threads."""

    def planned(self, collection: CollectionPlan) -> None:
        """The sources are known."""
        return

    def warned(self, message: str) -> None:
        """Something that the user should know."""
        return

    def started(self, source: SourceJob) -> Progress:
        """A source is built from now on. Returns what listens to its build."""
        return Silent()

    def ended(self, result: SourceReport) -> None:
        """A source was built, or failed."""
        return


class SilentCollection(CollectionProgress):
    """Tells nothing."""


@dataclass(frozen=True)
class SourceReport:
    """What became of one source.

    Attributes:
        name, category: of the source.
        status: `built`; `resumed`, if shards of an earlier run were used; `rebuilt` as a new version, because it has
            changed; `unchanged`, if its dataset was up to date; `failed`.
        uri: of its dataset.
        split: its entry in the manifest; None if it failed.
        validation: the entry of its validation set; None if it failed, or none is split off.
        build: the report of its build; None if it failed.
        error: why it failed.
    """

    name: str
    category: str
    status: Status
    uri: str
    split: Split | None = None
    validation: Split | None = None
    build: BuildReport | None = None
    error: LancePrepError | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "category": self.category,
            "status": self.status,
            "uri": self.uri,
            "split": asdict(self.split) if self.split else None,
            "validation": asdict(self.validation) if self.validation else None,
            "build": self.build.as_json() if self.build else None,
            "error": error_as_json(self.error),
        }


@dataclass(frozen=True)
class Unlisted:
    """A dataset in the output that the collection has no source for.

    Attributes:
        name: of the source that it was built from.
        path: of the dataset.
        tokens: in it.
        listed_before: whether the manifest of an earlier run lists it.
        same_as: name of a source with the same rows, as after a source was renamed; else None.
    """

    name: str
    path: str
    tokens: int
    listed_before: bool
    same_as: str | None = None


@dataclass(frozen=True)
class CollectionReport:
    """The result of `build_collection`.

    Attributes:
        output: absolute path of the folder.
        sources: what became of each, in the collection's order.
        manifest: as it was written; None if a source failed, and then the manifest of an earlier run stays as it is.
        unlisted: datasets in the output without a source. They stay there, and the manifest does not list them.
        seconds: of this run.
    """

    output: str
    sources: tuple[SourceReport, ...]
    manifest: Manifest | None
    unlisted: tuple[Unlisted, ...]
    seconds: float

    @property
    def failed(self) -> tuple[SourceReport, ...]:
        """The sources that failed."""
        return tuple(source for source in self.sources if source.error is not None)

    @property
    def ok(self) -> bool:
        """Whether every source was built."""
        return not self.failed

    def as_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "ok": self.ok,
            "sources": [source.as_json() for source in self.sources],
            "manifest": self.manifest.as_json() if self.manifest else None,
            "unlisted": [asdict(each) for each in self.unlisted],
            "seconds": self.seconds,
        }


def error_as_json(error: LancePrepError | None) -> dict[str, str] | None:
    """Return an error as plain JSON."""
    return {"message": str(error), "advice": error.advice} if error is not None else None
