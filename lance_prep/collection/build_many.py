"""`build_collection`: a dataset for each source of a collection, and a manifest of them.

    OUT/<source>.lance     an ordinary dataset, as `build` makes it
    OUT/manifest.json      written last, once every source is built

A source that is up to date is left alone, and one that has changed becomes a new version of its dataset. The manifest
holds the sources that the collection has now. Datasets in the output that it does not name are reported and kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack

from lance_prep.collection.load import Collection
from lance_prep.collection.sources import CollectionPlan, SourceJob, open_collection
from lance_prep.engine import BuildReport, Progress, RunOptions, SharedEngine, Silent, load_spec, run_build
from lance_prep.errors import Interrupted, LancePrepError, OutputExists, UsageError, translate
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import RecipeFields
from lance_prep.store import FOLDER, Manifest, Split, open_version, split_of
from lance_prep.transport import absolute_uri, is_local

#: Sources at work for each worker. All but one wait for the Hub, the disk or their turn. 400 sources of 5 lines took
#: 69 s one after the other on a busy disk, 20 s three at once and 15 s eight at once.
_AT_ONCE = 4

Status = Literal["built", "resumed", "rebuilt", "unchanged", "failed"]


class CollectionProgress(Protocol):
    """Listens to the build of a collection. Called from several threads."""

    def planned(self, collection: CollectionPlan) -> None:
        """The sources are known."""
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
        build: the report of its build; None if it failed.
        error: why it failed.
    """

    name: str
    category: str
    status: Status
    uri: str
    split: Split | None = None
    build: BuildReport | None = None
    error: LancePrepError | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "category": self.category,
            "status": self.status,
            "uri": self.uri,
            "split": asdict(self.split) if self.split else None,
            "build": self.build.as_json() if self.build else None,
            "error": {"message": str(self.error), "advice": self.error.advice} if self.error else None,
        }


@dataclass(frozen=True)
class CollectionReport:
    """The result of `build_collection`.

    Attributes:
        output: absolute path of the folder.
        sources: what became of each, in the collection's order.
        manifest: as it was written; None if a source failed, and then the manifest of an earlier run stays as it is.
        unlisted: datasets in the output that the collection has no source for (any more), by file name. They stay, and
            the manifest does not list them.
        seconds: of this run.
    """

    output: str
    sources: tuple[SourceReport, ...]
    manifest: Manifest | None
    unlisted: tuple[str, ...]
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
            "unlisted": list(self.unlisted),
            "seconds": self.seconds,
        }


def build_collection(
    source: Collection,
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
    progress: CollectionProgress | None = None,
    **overrides: Unpack[RecipeFields],
) -> CollectionReport:
    """Build a dataset for each source of a collection into a folder, and write the manifest.

    A source that is up to date is left alone. One whose content has changed becomes a new version of its dataset. One
    whose recipe has changed, such as another tokenizer, fails unless `overwrite` is given.

    Args:
        source: a built-in collection (`distillation`), a recipe `.yaml` with `categories` or its fields, which is read
            from the Hub; or a folder, such as `download` writes, with `.jsonl` files below it.
        output: the folder to write to; by default the source's name with `-tokens`, in the current folder.
        workers: number of shards built at once, over all sources; by default the number of cores.
        overwrite: make a new version of each dataset that differs from what would be built, for whatever reason.
        storage_options: for object stores.
        progress: told what happens.
        overrides: fields of `Recipe`, for all sources.

    Returns:
        What became of each source. If one fails, the others are built all the same, and no manifest is written: see
        `CollectionReport.failed`.

    Raises:
        RecipeError, UsageError: the recipe or an option is invalid.
        SourceNotFound: there is no such folder, or no `.jsonl` file below it.
        DatasetError: two files would be the same source.
        TokenizerError: the tokenizer cannot be used.
        OutputExists: the output is not a folder of datasets.
    """
    options = RunOptions(output, workers, overwrite=overwrite, refresh=not overwrite, storage_options=storage_options)
    return run_collection(open_collection(source, overrides), options, progress)


def run_collection(
    collection: CollectionPlan, options: RunOptions, progress: CollectionProgress | None = None
) -> CollectionReport:
    """Build what `open_collection` returned. Raises as `build_collection` does."""
    started = time.monotonic()
    progress = progress or SilentCollection()
    typed = str(options.output or f"{collection.name}-tokens")
    folder = output_folder(typed)
    recipe = collection.sources[0].recipe
    if not LAYOUTS[recipe.layout].tokens:
        raise UsageError(f"layout {recipe.layout!r} has no tokens, and a collection is made of tokens", "use blocks")
    spec = load_spec(recipe)  # once: it may come from the Hub, and one that is missing is one error, not one a source
    progress.planned(collection)
    folder.mkdir(parents=True, exist_ok=True)

    def build(source: SourceJob) -> SourceReport:
        uri = str(folder / f"{source.name}.lance")
        one = replace(options, output=uri, progress=progress.started(source), engine=engine)
        try:
            made = run_build(source.recipe, one, uri=uri, spec=spec)
            split = split_of(open_version(uri, made.version), category=source.category, share=source.share)
            result = SourceReport(source.name, source.category, _status(made), uri, split, made)
        except Exception as error:
            ours = translate(error, f"building {source.name}")
            if ours is None or isinstance(ours, Interrupted):
                raise
            result = SourceReport(source.name, source.category, "failed", uri, error=ours)
        progress.ended(result)
        return result

    with SharedEngine(options.workers) as engine:
        results = _in_parallel(build, collection.sources, engine.workers * _AT_ONCE)
    manifest = None
    if not any(result.error for result in results):
        manifest = _manifest(collection, typed, results)
        manifest.write(folder)
    seconds = time.monotonic() - started
    return CollectionReport(str(folder), tuple(results), manifest, _unlisted(folder, collection), seconds)


def _in_parallel(build: Any, sources: Sequence[SourceJob], at_once: int) -> list[SourceReport]:
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="source")
    try:
        futures = [pool.submit(build, source) for source in sources]
        for future in as_completed(futures):
            future.result()  # an error that is not a source's ends the run
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def output_folder(output: str) -> Path:
    """Return the folder that a collection is built into.

    Raises:
        UsageError: it is not local.
        OutputExists: it is a file or a dataset.
    """
    if not is_local(output):
        raise UsageError(
            f"{output}: a collection is built into a local folder", "build locally, then copy the folder there"
        )
    folder = Path(absolute_uri(output))
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file", "choose another output")
    if any((folder / name).is_dir() for name in ("_versions", "data/_versions")):
        raise OutputExists(f"{folder} is a dataset, and a collection is a folder of them", "choose another output")
    return folder


def _status(report: BuildReport) -> Status:
    if report.status in ("unchanged", "skipped"):
        return "unchanged"
    if report.version > 1:
        return "rebuilt"
    return "resumed" if report.status == "resumed" else "built"


def _manifest(collection: CollectionPlan, typed: str, results: Sequence[SourceReport]) -> Manifest:
    recipe = collection.sources[0].recipe
    versions = [open_version(result.uri, result.build.version) for result in results if result.build]
    return Manifest(
        tokenizer=recipe.tokenizer or "",
        max_seq_length=recipe.block_size if LAYOUTS[recipe.layout].packed else None,
        input_path=collection.asked,
        output_path=typed,
        files_processed=sum(version.metadata.files for version in versions),
        splits={result.name: result.split for result in sorted(results, key=lambda r: r.name) if result.split},
        categories=collection.categories,
        tokenizer_sha256=versions[0].metadata.tokenizer_sha256,
    )


def _unlisted(folder: Path, collection: CollectionPlan) -> tuple[str, ...]:
    listed = {f"{source.name}.lance" for source in collection.sources}
    there = [path.name for path in folder.iterdir() if path.suffix == ".lance" and (path / FOLDER).is_dir()]
    return tuple(sorted(set(there) - listed))
