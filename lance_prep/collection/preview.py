"""`preview_collection`: what a build of a collection would do, source by source, without writing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lance_prep.collection.output import (
    in_parallel,
    load_shared_specs,
    manifest_before,
    output_folder,
    source_error,
)
from lance_prep.collection.report import CollectionProgress, error_as_json
from lance_prep.collection.sources import CollectionPlan, SourceJob
from lance_prep.engine import BuildPreview, RunOptions, compare_space, default_workers, free_space, preview_build
from lance_prep.errors import LESS_SPACE, LancePrepError
from lance_prep.plan import Cost, Estimate, added


@dataclass(frozen=True)
class SourcePreview:
    """What the build of one source would do.

    Attributes:
        name, category: of the source.
        uri: of its dataset.
        build: what its build would do; None if the source cannot be planned.
        error: why its build would fail.
    """

    name: str
    category: str
    uri: str
    build: BuildPreview | None = None
    error: LancePrepError | None = None

    @property
    def costs(self) -> list[Cost]:
        """The costs of its build, and of that of its validation set, if they are known."""
        builds = [self.build, self.build.validation] if self.build is not None else []
        return [build.cost for build in builds if build is not None and build.cost is not None]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "category": self.category,
            "uri": self.uri,
            "build": self.build.as_json() if self.build else None,
            "error": error_as_json(self.error),
        }


@dataclass(frozen=True)
class TotalCost:
    """What the builds of a collection will cost together.

    Attributes:
        source_bytes, requests, source_rows, tokens, rows, disk, seconds: sums of `Cost`.
        free: bytes free on the disk of the output.
        unknown: number of sources to build whose cost is not known, and is left out.
    """

    source_bytes: Estimate
    requests: Estimate
    source_rows: Estimate
    tokens: Estimate
    rows: Estimate
    disk: Estimate
    seconds: float
    free: int
    unknown: int


@dataclass(frozen=True)
class CollectionPreview:
    """What a build of a collection would do.

    Attributes:
        output: absolute path of the folder.
        sources: what would become of each, in the collection's order.
        free: bytes free on its disk.
        notes: as in `CollectionPlan`.
    """

    output: str
    sources: tuple[SourcePreview, ...]
    free: int
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[SourcePreview, ...]:
        """The sources whose build would fail."""
        return tuple(source for source in self.sources if source.error is not None)

    @property
    def to_build(self) -> tuple[SourcePreview, ...]:
        """The sources that would be built, in whole or in part."""
        idle = ("nothing", "skip", "refuse")
        return tuple(
            source
            for source in self.sources
            for build in [source.build]
            if build is not None
            and any(part.action not in idle for part in (build, build.validation) if part is not None)
        )

    @property
    def total(self) -> TotalCost:
        """What the builds will cost together. The samples of sources are independent of each other."""
        costs = [cost for source in self.to_build for cost in source.costs]
        return TotalCost(
            source_bytes=added(cost.source_bytes for cost in costs),
            requests=added(cost.requests for cost in costs if cost.requests is not None),
            source_rows=added(cost.source_rows for cost in costs),
            tokens=added(cost.tokens for cost in costs),
            rows=added(cost.rows for cost in costs),
            disk=added(cost.disk for cost in costs),
            seconds=sum(cost.seconds for cost in costs),
            free=self.free,
            unknown=sum(not source.costs for source in self.to_build),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "ok": not self.failed,
            "notes": list(self.notes),
            "total": asdict(self.total),
            "sources": [source.as_json() for source in self.sources],
        }


def preview_collection(collection: CollectionPlan, options: RunOptions) -> CollectionPreview:
    """Return what `run_collection` would do. Reads metadata of the sources, and writes nothing. Raises as it does."""
    folder = output_folder(collection, options)
    manifest_before(collection, options)
    specs = load_shared_specs(collection)

    def preview(source: SourceJob) -> SourcePreview:
        uri = str(folder / f"{source.name}.lance")
        try:
            found = preview_build(source.recipe, replace(options, output=uri), uri=uri, spec=specs[source.is_chat])
            return SourcePreview(source.name, source.category, uri, found, found.error)
        except Exception as error:  # as in a build: one source that fails must not stop the others
            return SourcePreview(source.name, source.category, uri, error=source_error(source, error))

    # No more at once than cores: the speed of each is measured on the way.
    sources = in_parallel(preview, collection.sources, default_workers())
    return CollectionPreview(str(folder), tuple(sources), free_space(str(folder)) or 0, collection.notes)


def check_space(collection: CollectionPlan, options: RunOptions, progress: CollectionProgress) -> None:
    """Refuse a collection that the disk has no room for, before it is built; warn if it may be too small.

    Only a folder of files is looked at: finding the sizes of sources on the Hub would take as long as `--dry-run`. Each
    of these is checked when its own build starts.

    Raises:
        DiskFull: there is too little space.
    """
    sizes = [source.size for source in collection.sources if source.size is not None]
    free = free_space(str(output_folder(collection, options))) or 0
    # A byte of JSONL gives at most about two bytes on disk; only if that is too much, the sources are sampled.
    if len(sizes) < len(collection.sources) or 2 * sum(sizes) <= free:
        return
    preview = preview_collection(collection, options)
    if said := compare_space(preview.output, preview.total.disk, free):
        progress.warned(f"{said}; {LESS_SPACE}")
