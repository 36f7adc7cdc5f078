"""The folder that a collection is built into, and what the builds of its sources share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from lance_prep.collection.folder import local_folder
from lance_prep.collection.sources import CollectionPlan, SourceJob
from lance_prep.engine import RunOptions, load_spec
from lance_prep.errors import DamagedDataset, Interrupted, LancePrepError, OutputExists, UsageError, translate
from lance_prep.store import MANIFEST, Manifest, read_manifest
from lance_prep.tokenizer import TokenizerSpec

T = TypeVar("T")


def output_as_given(collection: CollectionPlan, options: RunOptions) -> str:
    """Return the output's path as the user gave it."""
    return str(options.output or f"{collection.name}-tokens")


def output_folder(collection: CollectionPlan, options: RunOptions) -> Path:
    """Return the folder that a collection is built into.

    Raises:
        UsageError: it is not local.
        OutputExists: it is a file or a dataset.
    """
    folder = local_folder(output_as_given(collection, options)).absolute()
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file", "choose another output")
    if (folder / "_versions").is_dir():
        raise OutputExists(f"{folder} is a dataset, and a collection is a folder of them", "choose another output")
    return folder


def manifest_before(collection: CollectionPlan, options: RunOptions) -> Manifest | None:
    """Return the manifest of an earlier run.

    Raises:
        OutputExists: the output has a `manifest.json` of another program, or of an export.
    """
    path = local_folder(output_as_given(collection, options)) / MANIFEST
    if not path.exists():
        return None
    try:
        found = read_manifest(path)
    except DamagedDataset as error:
        raise OutputExists(f"{path} is not a manifest of lance-prep", "choose another output, or move it") from error
    if found.data_format != "lance":
        raise OutputExists(f"{path} is the manifest of an export to {found.data_format}", "choose another output")
    return found


def load_shared_specs(collection: CollectionPlan) -> dict[bool, TokenizerSpec]:
    """Load the tokenizer, with its chat template for the sources that are conversations (True).

    It is loaded before any source: it may come from the Hub, and if it is missing, that is one error.
    """
    recipe = collection.sources[0].recipe
    names = {source.name for source in collection.sources}
    for name in names if recipe.has_two_sides else ():
        if f"{name}.val" in names:
            raise UsageError(f"{name}.val would be a source and the validation set of {name}", "rename one of them")
    found = {}
    for source in collection.sources:
        if source.is_chat not in found:
            spec = load_spec(source.recipe)
            if spec is None:
                said = f"layout {recipe.layout!r} has no tokens, and a collection is made of tokens"
                raise UsageError(said, "use layout='blocks', or build each source by itself")
            found[source.is_chat] = spec
    return found


def in_parallel(work: Callable[[SourceJob], T], sources: Sequence[SourceJob], at_once: int) -> list[T]:
    """Return what `work` returns for each source. The first error ends the run: those of a source are its result."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="source")
    try:
        futures = [pool.submit(work, source) for source in sources]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def source_error(source: SourceJob, error: Exception) -> LancePrepError:
    """Return the error of one source, which does not stop the others. Raise one that is not a source's."""
    ours = translate(error, f"building {source.name}")
    if ours is None or isinstance(ours, Interrupted):
        raise error
    return ours
