"""`build_collection`: a dataset for each source of a collection, and a manifest of them.

    OUT/<source>.lance       an ordinary dataset, as `build` makes it
    OUT/<source>.val.lance   its validation set, if one is split off
    OUT/manifest.json        written last, once every source is built

A source that is up to date is left alone, and one that has changed becomes a new version of its dataset. The manifest
lists the sources that the collection has now. Datasets in the output that it does not list are reported and kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from lance_prep.collection.load import Collection
from lance_prep.collection.output import (
    in_parallel,
    load_shared_specs,
    manifest_before,
    output_as_given,
    output_folder,
    source_error,
)
from lance_prep.collection.preview import check_space
from lance_prep.collection.report import (
    CollectionProgress,
    CollectionReport,
    SilentCollection,
    SourceReport,
    Status,
    Unlisted,
)
from lance_prep.collection.sources import CollectionPlan, SourceJob, open_collection
from lance_prep.engine import (
    BuildReport,
    RunOptions,
    SharedEngine,
    run_build,
)
from lance_prep.errors import (
    DatasetError,
)
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import RecipeFields
from lance_prep.store import FOLDER, Manifest, Split, open_version, output_lock, split_of
from lance_prep.tokenizer import TokenizerSpec

#: Sources at work for each worker. All but one wait for the Hub, the disk or their turn. 400 sources of 5 lines took
#: 69 s one after the other on a busy disk, 20 s three at once and 15 s eight at once.
_AT_ONCE = 4


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
        overrides: fields of `Recipe`, for all sources. Numbers such as `max_rows` and `val_tokens` are for each source.

    Returns:
        What became of each source. If one fails, the others are built all the same, and no manifest is written: see
        `CollectionReport.failed`.

    Raises:
        RecipeError, UsageError: the recipe or an option is invalid.
        SourceNotFound: there is no such folder, or no `.jsonl` file below it.
        DatasetError: two files would be the same source.
        TokenizerError: the tokenizer cannot be used.
        OutputExists: the output is a file or a dataset, or has the manifest of something else.
        OutputLocked: another process builds into the folder.
    """
    options = RunOptions(output, workers, overwrite=overwrite, refresh=not overwrite, storage_options=storage_options)
    return run_collection(open_collection(source, overrides), options, progress)


def run_collection(
    collection: CollectionPlan, options: RunOptions, progress: CollectionProgress | None = None
) -> CollectionReport:
    """Build what `open_collection` returned. Raises as `build_collection` does."""
    started = time.monotonic()
    progress = progress or SilentCollection()
    folder, _ = output_folder(collection, options), manifest_before(collection, options)
    specs = load_shared_specs(collection)
    progress.planned(collection)
    check_space(collection, options, progress)
    with output_lock(str(folder)):
        before = manifest_before(collection, options)
        results = _build_all(collection, folder, options, progress, specs)
        unlisted = _unlisted(folder, results, before)
        manifest = None
        if not any(result.error for result in results):
            manifest = _manifest(collection, output_as_given(collection, options), results)
            manifest.write(folder)
    return CollectionReport(str(folder), tuple(results), manifest, unlisted, time.monotonic() - started)


def _build_all(
    collection: CollectionPlan,
    folder: Path,
    options: RunOptions,
    progress: CollectionProgress,
    specs: Mapping[bool, TokenizerSpec],
) -> list[SourceReport]:
    """Build the datasets, several at a time."""

    def build(source: SourceJob) -> SourceReport:
        uri = str(folder / f"{source.name}.lance")
        where = engine if options.engine == "local" else options.engine
        one = replace(options, output=uri, progress=progress.started(source), engine=where)
        try:
            made = run_build(source.recipe, one, uri=uri, spec=specs[source.is_chat])
            split, validation = _split(source, made), _split(source, made.validation)
            result = SourceReport(source.name, source.category, _status(made), uri, split, validation, made)
        except Exception as error:  # one source that fails must not stop the others
            result = SourceReport(source.name, source.category, "failed", uri, error=source_error(source, error))
        progress.ended(result)
        return result

    with SharedEngine(options.workers) as engine:
        return in_parallel(build, collection.sources, engine.workers * _AT_ONCE)


def _split(source: SourceJob, made: BuildReport | None) -> Split | None:
    """Return the manifest's entry of a dataset that was built."""
    if made is None:
        return None
    return split_of(open_version(made.uri, made.version), category=source.category, share=source.share)


def _status(report: BuildReport) -> Status:
    parts = [part for part in (report, report.validation) if part is not None]
    if all(part.status in ("unchanged", "skipped") for part in parts):
        return "unchanged"
    if any(part.version > 1 for part in parts):
        return "rebuilt"
    return "built" if all(part.status == "built" for part in parts) else "resumed"


def _manifest(collection: CollectionPlan, output: str, results: Sequence[SourceReport]) -> Manifest:
    recipe = collection.sources[0].recipe
    versions = [open_version(result.uri, result.build.version) for result in results if result.build]
    by_name = sorted(results, key=lambda result: result.name)
    return Manifest(
        tokenizer=recipe.tokenizer or "",
        max_seq_length=recipe.block_size if LAYOUTS[recipe.layout].packed else None,
        input_path=collection.asked,
        output_path=output,
        files_processed=sum(version.metadata.files for version in versions),
        splits={result.name: result.split for result in by_name if result.split},
        validation={result.name: result.validation for result in by_name if result.validation},
        categories=collection.categories,
        tokenizer_sha256=versions[0].metadata.tokenizer_sha256,
    )


def _unlisted(folder: Path, results: Sequence[SourceReport], before: Manifest | None) -> tuple[Unlisted, ...]:
    """Find the datasets without a source.

    They are found on disk, not in the manifest before: a run that is killed after it wrote the manifest and before it
    reported them leaves them to the next one.
    """
    splits = [split for result in results for split in (result.split, result.validation) if split is not None]
    listed = {Path(result.uri) for result in results} | {folder / split.path for split in splits}
    then = [*before.splits.values(), *before.validation.values()] if before is not None else []
    paths = {split.path for split in then}
    same = {split.content_hash: Path(split.path).stem for split in splits if split.sequences}
    found = []
    for path in sorted(folder.glob("*.lance")):
        if path in listed or not (path / FOLDER).is_dir():
            continue
        try:
            metadata = open_version(path).metadata
        except DatasetError:  # unfinished, or of another program
            continue
        alike = same.get(metadata.content_hash)
        found.append(Unlisted(path.stem, str(path), metadata.tokens, path.name in paths, alike))
    return tuple(found)
