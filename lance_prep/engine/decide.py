"""What is at the output already, and what a build does about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.engine.changes import Digests, compare
from lance_prep.engine.shard import BuildJob
from lance_prep.errors import OutputExists, SourceChanged
from lance_prep.plan import restrict
from lance_prep.store import (
    FOLDER,
    KEY,
    DatasetVersion,
    Journal,
    Metadata,
    Output,
    build_key,
    opened,
    plan_as_json,
    recipe_as_json,
    resolved_recipe,
    unfinished_builds,
)
from lance_prep.transport import is_local

OVERWRITE = "make a new version with the new content: overwrite=True; or choose another output"
APPEND = "add what is new as a new version: append=True; or make a new version with the new content: overwrite=True"


@dataclass(frozen=True)
class Existing:
    """The output before a build.

    Attributes:
        number: of the latest version; 0 if there is no dataset.
        ours: the latest version; None if there is no dataset, or another program built it.
    """

    number: int = 0
    ours: DatasetVersion | None = None


@dataclass(frozen=True)
class Decision:
    """What a build has to do.

    Attributes:
        job: the build; for an append, of the new files alone. None where the dataset is up to date.
        existing: what is there.
        appends: the job's rows come after those that are there.
        first_shard: number of the job's first shard.
        digests: hashes of source files that were computed on the way.
    """

    job: BuildJob | None
    existing: Existing
    appends: bool = False
    first_shard: int = 0
    digests: Digests = field(default_factory=Digests)


def decide(job: BuildJob, *, append: bool, overwrite: bool, settle: bool = True) -> Decision:
    """Look at the output and say what to do.

    Args:
        settle: complete the notes of a process that died right after its commit. False writes nothing.

    Raises:
        OutputExists: it holds something that this build may not replace, or an unfinished build of something else.
        SourceChanged: it was built by the same recipe from another state of the source.
    """
    existing = _look(job, overwrite=overwrite, settle=settle)
    if overwrite:
        same = existing.ours is not None and [build.key for build in existing.ours.builds] == [job.key]
        return Decision(None if same else job, existing)
    if existing.ours is None:
        _refuse_unfinished(job)
        return Decision(job, existing)
    there = existing.ours
    digests = Digests()
    changes = compare(there.source_files, job.plan, digests)
    # A folder, a glob and the list of files that a shell makes of it may name the same files.
    ignore = set() if changes.gone or changes.changed else {"source"}
    _refuse_other_recipe(job, there.metadata, ignore | ({"revision"} if append else set()))
    if not changes or (append and not changes.new and not changes.changed):
        return Decision(None, existing)
    limit = job.plan.recipe.max_rows
    if append and limit is not None and limit <= there.metadata.rows:
        return Decision(None, existing)
    if not append or changes.changed:
        raise SourceChanged(f"the source of {job.uri} has changed: {changes}", OVERWRITE if changes.changed else APPEND)
    _refuse_unfinished(job)
    first = max(build.first_shard + build.shards for build in there.builds)
    # The new rows come in the types of those that are there, whatever the new files would give by themselves.
    then = Journal(job.files(), there.metadata.build.key).plan(job.uri)
    plan = replace(job.plan, schema=then.schema, read_schema=then.read_schema)
    plan = restrict(plan, changes.new, job.origin, first_shard=first)
    key = build_key(plan_as_json(plan, job.uri), job.spec.sha256 if job.spec else None)
    return Decision(replace(job, plan=plan, key=key), existing, appends=True, first_shard=first, digests=digests)


def check_folder(uri: str, *, overwrite: bool) -> None:
    """Refuse a path that holds something else, before anything is made there.

    Raises:
        OutputExists: it is a file, or a folder with other things in it.
    """
    if not is_local(uri):
        return
    path = Path(uri)
    if path.is_file():
        raise OutputExists(f"{uri} is a file", "choose another output")
    if path.is_dir() and any(path.iterdir()) and not any((path / known).is_dir() for known in (FOLDER, "_versions")):
        raise OutputExists(f"{uri} is a folder with other things in it", "choose another output")
    if (path / "_versions").is_dir() and not (path / FOLDER).is_dir() and not overwrite:
        raise OutputExists(f"{uri} is a Lance dataset that lance-prep did not make", OVERWRITE)


def committed(output: Output) -> Existing:
    """Return what a dataset of lance-prep at the output holds, without looking at any build; empty if there is none."""
    dataset = output.open()
    if dataset is None or KEY not in (dataset.schema.metadata or {}):
        return Existing()
    return Existing(int(dataset.version), opened(output.uri, dataset, output.transport))


def _look(job: BuildJob, *, overwrite: bool, settle: bool) -> Existing:
    dataset = job.output.open()
    if dataset is None:
        return Existing()
    if KEY not in (dataset.schema.metadata or {}):
        if overwrite:
            return Existing(int(dataset.version))
        raise OutputExists(f"{job.uri} is a Lance dataset that lance-prep did not make", OVERWRITE)
    ours = opened(job.uri, dataset, job.output.transport)
    for build in ours.builds if settle else ():
        # A process killed between its commit and this note leaves the note to the next one.
        Journal(ours.files, build.key).close(build.version)
    return Existing(ours.number, ours)


def _refuse_unfinished(job: BuildJob) -> None:
    """A build of something else was begun here and never committed: its work is not thrown away in silence."""
    for key, recipe in unfinished_builds(job.files()).items():
        differences = _differences(job, recipe, set())
        if key != job.key and differences:
            raise OutputExists(f"{job.uri} holds an unfinished build by another recipe: {differences}", OVERWRITE)


def _refuse_other_recipe(job: BuildJob, metadata: Metadata, ignore: set[str]) -> None:
    if metadata.tokenizer and job.spec and metadata.tokenizer.sha256 == job.spec.sha256:
        ignore = ignore | {"tokenizer"}  # the same tokenizer under another name, or moved
    differences = _differences(job, metadata.recipe, ignore)
    if differences:
        raise OutputExists(f"{job.uri} was built by another recipe: {differences}", OVERWRITE)
    was, now = metadata.tokenizer, job.spec
    if was and now and was.sha256 != now.sha256:
        raise OutputExists(
            f"{job.uri} was built with tokenizer {was.name} {was.sha256[:12]}, which is now {now.sha256[:12]}",
            OVERWRITE,
        )


def _differences(job: BuildJob, recorded: dict[str, Any], ignore: set[str]) -> str:
    """Say how a recorded recipe differs from the job's."""
    # Paths are compared as they are now: the dataset may have been moved away from its source.
    then = resolved_recipe(recorded, job.uri)
    now = resolved_recipe(recipe_as_json(job.plan, job.uri), job.uri)
    names = [name for name in now if then.get(name) != now[name] and name not in ignore]
    return "; ".join(f"{name} was {_short(then.get(name))}, now {_short(now[name])}" for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
