"""`preview_build`: what a build would do, and what it would cost. Writes nothing."""

from __future__ import annotations

from dataclasses import replace

from lance_prep.engine.decide import Decision, check_folder, decide, look_at
from lance_prep.engine.estimate import estimate
from lance_prep.engine.local import default_workers
from lance_prep.engine.report import BuildPreview
from lance_prep.engine.run import (
    RunOptions,
    left_to_write,
    load_spec,
    make_job,
    plan_build,
    unbuilt,
    validation_uri,
    with_fraction,
)
from lance_prep.engine.shard import BuildJob
from lance_prep.errors import LancePrepError, OutputExists, SourceChanged, counted
from lance_prep.recipe import Recipe
from lance_prep.store import Output, with_data
from lance_prep.tokenizer import TokenizerSpec


def preview_build(recipe: Recipe, options: RunOptions, *, uri: str, spec: TokenizerSpec | None = None) -> BuildPreview:
    """Say what `run_build` would do. Nothing is written, and the tokenizer is loaded only to compare it."""
    recipe = with_fraction(recipe, options, uri, spec)
    if not recipe.has_two_sides:
        return _preview_one(recipe, options, uri, spec)
    training, validation = recipe.sides()
    preview = _preview_one(training, options, uri, spec)
    return replace(preview, validation=_preview_one(validation, options, validation_uri(uri), spec))


def _preview_one(recipe: Recipe, options: RunOptions, uri: str, spec: TokenizerSpec | None) -> BuildPreview:
    output = options.at(uri)
    if options.skip_existing and look_at(output).ours is not None:
        return BuildPreview(plan_build(recipe, options, uri), "skip", "the output exists and would be left alone")
    plan = plan_build(recipe, options, uri)
    try:
        check_folder(uri, overwrite=options.overwrite)
        if not look_at(output).number and not output.unfinished():
            return _with_cost(BuildPreview(plan, "build", f"a new dataset at {uri}"), output, options, spec)
        job = make_job(plan, output, options.origin, spec)
        how = {"append": options.append, "overwrite": options.overwrite, "refresh": options.refresh}
        decision = decide(job, **how, settle=False)
        return _with_cost(_preview(decision, job), output, options, job.spec, decision)
    except (OutputExists, SourceChanged) as error:
        return BuildPreview(plan, "refuse", str(error), error)


def _with_cost(
    preview: BuildPreview,
    output: Output,
    options: RunOptions,
    spec: TokenizerSpec | None,
    decision: Decision | None = None,
) -> BuildPreview:
    """Add what it would cost to build what is left; or why that is not known, which is no reason to show no plan."""
    job = decision.job if decision is not None else None
    if decision is not None and job is None:
        return preview
    plan, limit = preview.plan, preview.plan.recipe.limit
    if decision is not None and job is not None:
        plan, limit = unbuilt(job, left_to_write(job, decision), with_data(output.files, job.journal.receipts()))
    try:
        spec = spec or load_spec(plan.recipe)
        workers = options.workers or default_workers()
        cost = estimate(plan, spec, options.origin, limit=limit, workers=workers, output=output.uri)
    except LancePrepError as error:
        return replace(preview, not_estimated=f"{error}; {error.advice}")
    return replace(preview, cost=cost, not_estimated="" if cost else "the size of the source is not known")


def _preview(decision: Decision, asked: BuildJob) -> BuildPreview:
    job, version = decision.job, decision.existing.number
    if job is None:
        return BuildPreview(asked.plan, "nothing", f"version {version} is up to date")
    done = len(job.journal.receipts())
    resumed = f", with {done} of {len(job.plan.shards)} shards already finished" if done else ""
    if decision.appends:
        new = counted(len(job.plan.files), "new file")
        return BuildPreview(job.plan, "append", f"{new} as version {version + 1}{resumed}")
    if version:
        return BuildPreview(job.plan, "overwrite", f"the new content becomes version {version + 1}{resumed}")
    if done:
        return BuildPreview(job.plan, "resume", f"{done} of {len(job.plan.shards)} shards are already finished")
    return BuildPreview(job.plan, "build", f"a new dataset at {job.uri}")
