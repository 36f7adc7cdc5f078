"""`preview_collection`: what a build of a collection would do, source by source, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lance_prep.collection.build_many import (
    in_parallel,
    load_shared_spec,
    manifest_before,
    output_folder,
    source_error,
)
from lance_prep.collection.report import error_as_json
from lance_prep.collection.sources import CollectionPlan, SourceJob
from lance_prep.engine import BuildPreview, RunOptions, default_workers, preview_build
from lance_prep.errors import LancePrepError


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
            "error": error_as_json(self.error),
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
    """Return what `run_collection` would do. Reads metadata of the sources, and writes nothing. Raises as it does."""
    folder = output_folder(collection, options)
    manifest_before(collection, options)
    spec = load_shared_spec(collection)

    def preview(source: SourceJob) -> SourcePreview:
        uri = str(folder / f"{source.name}.lance")
        try:
            found = preview_build(source.recipe, replace(options, output=uri), uri=uri, spec=spec)
            return SourcePreview(source.name, source.category, uri, found, found.error)
        except Exception as error:
            return SourcePreview(source.name, source.category, uri, error=source_error(source, error))

    sources = in_parallel(preview, collection.sources, options.workers or default_workers())
    return CollectionPreview(str(folder), tuple(sources), collection.notes)
