"""`preview_collection`: what a build of a collection would do, source by source, without writing anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lance_prep.collection.build_many import output_folder
from lance_prep.collection.sources import CollectionPlan, SourceJob
from lance_prep.engine import BuildPreview, RunOptions, preview_build
from lance_prep.errors import Interrupted, LancePrepError, translate

#: Sources planned at once. Most of the time, planning waits for the Hub.
_THREADS = 16


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

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "category": self.category,
            "uri": self.uri,
            "build": self.build.as_json() if self.build else None,
            "error": {"message": str(self.error), "advice": self.error.advice} if self.error else None,
        }


@dataclass(frozen=True)
class CollectionPreview:
    """What a build of a collection would do.

    Attributes:
        output: absolute path of the folder.
        sources: what would become of each, in the collection's order.
        notes: as in `CollectionPlan`.
    """

    output: str
    sources: tuple[SourcePreview, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[SourcePreview, ...]:
        """The sources whose build would fail."""
        return tuple(source for source in self.sources if source.error is not None)

    def as_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "ok": not self.failed,
            "notes": list(self.notes),
            "sources": [source.as_json() for source in self.sources],
        }


def preview_collection(collection: CollectionPlan, options: RunOptions) -> CollectionPreview:
    """Return what `run_collection` would do. Reads metadata of the sources, and writes nothing.

    Raises:
        UsageError: an option is invalid.
        OutputExists: the output is not a folder of datasets.
    """
    folder = output_folder(str(options.output or f"{collection.name}-tokens"))

    def preview(source: SourceJob) -> SourcePreview:
        uri = str(folder / f"{source.name}.lance")
        try:
            found = preview_build(source.recipe, replace(options, output=uri), uri=uri)
            return SourcePreview(source.name, source.category, uri, found, found.error)
        except Exception as error:
            ours = translate(error, f"planning {source.name}")
            if ours is None or isinstance(ours, Interrupted):
                raise
            return SourcePreview(source.name, source.category, uri, error=ours)

    with ThreadPoolExecutor(min(_THREADS, len(collection.sources))) as pool:
        return CollectionPreview(str(folder), tuple(pool.map(preview, collection.sources)), collection.notes)
