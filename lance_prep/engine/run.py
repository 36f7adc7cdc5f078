"""`build` and `stream`: from a source to a dataset, or to a reader."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import pyarrow as pa

import lance_prep.engine.local
import lance_prep.engine.spark  # noqa: F401  (registers itself)
from lance_prep.engine.commit import commit_build, existing_report
from lance_prep.engine.decide import Decision, check_folder, decide, look_at, refuse_own_source
from lance_prep.engine.estimate import check_space, estimate_fraction
from lance_prep.engine.local import default_workers
from lance_prep.engine.report import BuildReport, Progress, Silent
from lance_prep.engine.scan import DEFAULT_MEMORY, LEAST_MEMORY, ScanOptions, groups_to_scan, pin_texts, scan_source
from lance_prep.engine.schedule import Engine, Schedule, make_engine
from lance_prep.engine.shard import BuildJob, Encoders, Hooks, shard_rows
from lance_prep.errors import LESS_SPACE, TokenizerError, UsageError, counted
from lance_prep.layout import check_tokenizer
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Tally
from lance_prep.model import Plan
from lance_prep.plan import default_output, make_plan
from lance_prep.process import read_ahead
from lance_prep.recipe import Limit, Recipe, RecipeFields, Source, load_recipe, source_names
from lance_prep.store import (
    DatasetVersion,
    Journal,
    Output,
    OutputLock,
    Quarantine,
    Receipt,
    build_key,
    check_data,
    tokenizer_path,
    with_data,
    write_by_hash,
)
from lance_prep.text import needs_scan
from lance_prep.tokenizer import (
    BackendDisagrees,
    Dtype,
    FunctionSpec,
    TokenizerSpec,
    check_function,
    function_spec,
    ids_spec,
    load_tokenizer,
)
from lance_prep.transport import Transport, absolute_uri

READ_AHEAD_BATCHES = 2


@dataclass(frozen=True)
class RunOptions:
    """How to run a build: nothing here changes a row.

    Attributes:
        output: path or URI of the dataset; by default the source's name with `.lance`, in the current folder.
        workers: number of shards built at once; by default the number of cores.
        append: if the source has grown, add what is new as a new version.
        overwrite: if the output holds something else, make a new version with the new content.
        refresh: if the source has changed, make a new version with its new content. Another recipe is still refused.
        skip_existing: if the output holds a dataset, whatever it was built from, leave it alone.
        storage_options: for object stores, as Lance and object_store name them.
        source_storage_options: for the object store of the source; by default, `storage_options`.
        memory: bytes that comparing texts may take (`dedup`); what does not fit stays on the disk. 1 GiB by default.
        progress: told what happens.
        engine: where shards are built: `local`, `spark`, a name given to `register_engine`, or an engine such as
            `SparkEngine(master="spark://host:7077")`.
    """

    output: str | Path | None = None
    workers: int | None = None
    append: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    storage_options: Mapping[str, str] | None = field(default=None, repr=False)
    progress: Progress = field(default_factory=Silent)
    engine: str | Engine = "local"
    refresh: bool = False
    source_storage_options: Mapping[str, str] | None = field(default=None, repr=False)
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers: must be at least 1, got {self.workers}", "use a larger number")
        if self.memory is not None and self.memory < LEAST_MEMORY:
            said = f"memory: must be at least {LEAST_MEMORY:,} bytes, got {self.memory:,}"
            raise UsageError(said, "use a larger number, such as 1GiB")
        chosen = [f"{name}=True" for name in ("append", "overwrite", "refresh", "skip_existing") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", "use one of them")

    def uri(self, source: Source) -> str:
        """Absolute path, or URI, of the output."""
        output = str(self.output) if self.output is not None else default_output(source)
        return absolute_uri(output)

    def at(self, uri: str) -> Output:
        """Return the output at `uri`."""
        return Output(uri, Transport.of(self.storage_options))

    @property
    def scan(self) -> ScanOptions:
        """How to compare texts before shards are built."""
        return ScanOptions(self.workers or default_workers(), self.memory or DEFAULT_MEMORY)

    @property
    def origin(self) -> Transport:
        """How to reach the source."""
        given = self.source_storage_options
        return Transport.of(self.storage_options if given is None else given)


def build(
    source: Source,
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    storage_options: Mapping[str, str] | None = None,
    source_storage_options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    engine: str | Engine = "local",
    eos_id: int | None = None,
    dtype: Dtype | None = None,
    tokenizer_name: str | None = None,
    **overrides: Unpack[RecipeFields],
) -> BuildReport:
    """Build a Lance token dataset.

    An interrupted build continues. A dataset that is already up to date is left as it is.

    Args:
        source: a built-in recipe (`sample`, `wikitext`), a recipe `.yaml`, a Hub id `owner/name`, an `hf://` or `s3://`
            URL, a local file, folder or glob, a list of these local names, or a `Recipe`.
        output, workers, append, overwrite, skip_existing, storage_options, source_storage_options, progress, engine:
            see `RunOptions`.
        eos_id, dtype, tokenizer_name: only with a function as tokenizer: the id that ends a document (needed by layout
            blocks), the type of the stored ids ("uint32" by default), and the name that the dataset records, by
            default the function's module and name.
        overrides: fields of `Recipe`, such as `layout="blocks"` or `max_rows=1000`. `tokenizer` may also be any
            function that returns the ids of a text, as a list of int or an integer array. This is the slow path: one
            call per text, from one thread per worker (so it must be thread-safe, or use `workers=1`), with nothing
            to check its ids against. Its name and its ids of a few texts identify it: choose another name whenever
            the ids change.

    Raises:
        RecipeError: the recipe is invalid.
        SourceError: the source cannot be read (`SourceNotFound`, `HubUnreachable`, ...).
        TokenizerError: the tokenizer cannot be used.
        OutputError: the output cannot be written, holds something else, or is being built by another process.
    """
    options = RunOptions(
        output,
        workers,
        append,
        overwrite,
        skip_existing,
        storage_options,
        progress or Silent(),
        engine,
        source_storage_options=source_storage_options,
    )
    recipe, spec = recipe_and_function(source, overrides, eos_id, dtype, tokenizer_name)
    return run_build(recipe, options, uri=options.uri(source), spec=spec)


def recipe_and_function(
    source: Source, overrides: RecipeFields, eos_id: int | None, dtype: Dtype | None, tokenizer_name: str | None
) -> tuple[Recipe, FunctionSpec | None]:
    """Return the recipe and, if a function was given as tokenizer, its spec.

    Raises:
        UsageError: an argument has no effect, or an override is invalid.
        RecipeError: the recipe is invalid.
        TokenizerError: the function cannot be used.
    """
    function = overrides.get("tokenizer")
    if not callable(function):
        given = {"eos_id": eos_id, "dtype": dtype, "tokenizer_name": tokenizer_name}
        if unread := [name for name, value in given.items() if value is not None]:
            said = f"{' and '.join(unread)} can only be given with a function as tokenizer"
            raise UsageError(said, "remove them: a tokenizer file says its ids; eos_token names another end of text")
        return load_recipe(source, overrides), None
    spec = function_spec(function, name=tokenizer_name, eos_id=eos_id, dtype=dtype)
    recipe = load_recipe(source, {**overrides, "tokenizer": spec.name})
    check_function(spec, recipe)
    return recipe, spec


def run_build(recipe: Recipe, options: RunOptions, *, uri: str, spec: TokenizerSpec | None = None) -> BuildReport:
    """Build a recipe into the dataset at `uri`. Raises as `build` does.

    A recipe with two sides gives two datasets: the training set, and beside it the validation set.

    Args:
        spec: the recipe's tokenizer, if it is loaded already.
    """
    recipe = with_fraction(recipe, options, uri, spec)
    if not recipe.has_two_sides:
        return _build(recipe, options, uri, spec)
    training, validation = recipe.sides()
    report = _build(training, options, uri, spec)
    return replace(report, validation=_build(validation, options, validation_uri(uri), spec))


def validation_uri(uri: str) -> str:
    """Return the path or URI of the validation set that belongs to a dataset: `X.val.lance` to `X.lance`."""
    return f"{uri.removesuffix('.lance')}.val.lance"


def with_fraction(recipe: Recipe, options: RunOptions, uri: str, spec: TokenizerSpec | None) -> Recipe:
    """Return a recipe with `val_tokens` and the `val_fraction` that stands for it.

    It is the fraction that the output was built with, or is being built with, so that no document changes sides. The
    first build estimates it from the source.

    Raises:
        UsageError: there are not that many tokens, or the source cannot be sampled.
    """
    tokens = recipe.val_tokens
    if tokens is None or recipe.val_fraction is not None:
        return recipe
    fraction = _recorded_fraction(options.at(uri), tokens) if uri else None
    if fraction is None:
        plan = plan_build(recipe, options, uri)
        fraction = estimate_fraction(plan, spec or load_spec(plan.recipe), options.origin, tokens)
    return recipe.model_copy(update={"val_fraction": fraction})


def _recorded_fraction(output: Output, tokens: int) -> float | None:
    there = look_at(output).ours
    recipes = [there.metadata.recipe] if there is not None else []
    for recipe in [*recipes, *output.unfinished().values()]:
        if recipe.get("val_tokens") == tokens and isinstance(fraction := recipe.get("val_fraction"), float):
            return fraction
    return None


def _build(recipe: Recipe, options: RunOptions, uri: str, spec: TokenizerSpec | None) -> BuildReport:
    started = time.monotonic()
    output, engine = options.at(uri), make_engine(options.engine, options.workers)
    if options.skip_existing and (existing := look_at(output)).ours is not None:
        return existing_report(existing, "skipped", time.monotonic() - started)
    check_folder(uri, overwrite=options.overwrite)
    plan = plan_build(recipe, options, uri)
    if plan.left_out:
        options.progress.warned(plan.left_out)
    return run_job(make_job(plan, output, options.origin, spec), engine, options, started)


def run_job(job: BuildJob, engine: Engine, options: RunOptions, started: float) -> BuildReport:
    """Build what is planned, from the lock to the commit.

    Args:
        started: time when the command began, of `time.monotonic`.
    """
    with job.output.lock() as lock:
        decision = decide(job, append=options.append, overwrite=options.overwrite, refresh=options.refresh)
        if decision.job is None:
            return existing_report(decision.existing, "unchanged", time.monotonic() - started)
        return _run(decision, engine, options, lock, started)


def plan_build(recipe: Recipe, options: RunOptions, uri: str) -> Plan:
    """Plan a recipe, and refuse what contradicts the output."""
    check_storage_options(recipe, options, uri)
    if options.memory is not None and recipe.dedup == "none":
        raise UsageError("`memory` has no effect without `dedup`: it is for comparing texts", "remove it")
    plan = pin_texts(make_plan(recipe, options.origin), options.origin)
    refuse_own_source(uri, plan.files)
    return plan


def check_storage_options(recipe: Recipe, options: RunOptions, uri: str) -> None:
    """Refuse options for object stores that nothing would use.

    Raises:
        UsageError: names the parameter, and what is not in an object store.
    """
    source, output = (source_names(recipe), recipe.asked), ([uri], uri or "the output")
    shared = options.source_storage_options is None
    for name, given, places in (
        ("storage_options", options.storage_options, [source, output] if shared else [output]),
        ("source_storage_options", options.source_storage_options, [source]),
    ):
        urls = [url for names, _ in places for url in names if "://" in url and not url.startswith("hf://")]
        if given and not urls:
            said = f"{name} has no effect: not in an object store: {', '.join(called for _, called in places)}"
            raise UsageError(said, "remove them; for the Hub, set HF_TOKEN and HF_ENDPOINT")


def make_job(plan: Plan, output: Output, origin: Transport, spec: TokenizerSpec | None = None) -> BuildJob:
    """Return the build of a plan; `spec` is loaded unless it is given."""
    spec = spec or load_spec(plan.recipe)
    key = build_key(plan, output.uri, spec.key if spec else None)
    return BuildJob(plan, spec, origin, output, key)


def _run(decision: Decision, engine: Engine, options: RunOptions, lock: OutputLock, started: float) -> BuildReport:
    job, progress = decision.job, options.progress
    assert job is not None
    output, files = job.output, job.output.files
    others = discard_others(job, progress)
    receipts = with_data(files, job.journal.receipts())
    # Also before the build, not only before the commit: on a full disk, leftovers of a killed build take its space.
    if output.is_local:
        output.leftovers(job.journal, receipts.values(), overwritten=decision.existing.number > 0).remove(lock)
    limit = left_to_write(job, decision)
    schedule = Schedule(job.tasks(), receipts, limit)
    if not schedule.done:
        left, still = unbuilt(job, limit, receipts)
        if said := check_space(left, job.spec, job.origin, limit=still, uri=job.uri):
            progress.warned(f"{said}; {LESS_SPACE}")
    job.journal.begin(job.plan, job.uri)
    if job.spec is not None:
        write_by_hash(files, tokenizer_path(job.spec.sha256), job.spec.file)
        if job.spec.chat is not None:
            write_by_hash(files, tokenizer_path(job.spec.chat.sha256), job.spec.chat.file)
    finished = _build_shards(job, decision.before, engine, options, receipts, limit)
    lock.check()
    check_data(files, job.uri, finished)
    return commit_build(decision, finished, lock, resumed=len(receipts), started=started, others=others)


def _build_shards(
    job: BuildJob,
    before: DatasetVersion | None,
    engine: Engine,
    options: RunOptions,
    receipts: dict[int, Receipt],
    limit: Limit,
) -> list[Receipt]:
    """Build the shards that have no receipt, as far as the limit needs them, and return the receipts of all."""
    progress, encoders, done = options.progress, Encoders(job.spec), dict(receipts)
    finished: list[Receipt] = []
    for tasks in groups_to_scan(job.tasks(), options.scan):
        scan_source(job, tasks, before, progress, options.scan)
        if not finished:
            progress.planned(job.plan, sorted(receipts))
        there = {task.shard.index: done[task.shard.index] for task in tasks if task.shard.index in done}
        schedule = Schedule(tasks, there, limit)
        engine.run(schedule, Hooks(progress, encoders=encoders))
        finished = schedule.result()
        if schedule.reached:
            break
        done |= {receipt.shard: receipt for receipt in finished}
    return finished


def discard_others(job: BuildJob, progress: Progress) -> list[Journal]:
    """Discard unfinished builds of something else, which `decide` has let this build replace.

    Returns:
        The journals to discard after the commit: in an object store, all of them. See `store.leftovers`.
    """
    others = [job.output.journal(key) for key in job.output.unfinished() if key != job.key]
    for other in others:
        finished = counted(len({receipt.shard for receipt in other.receipts()}), "finished shard")
        progress.warned(f"another unfinished build is discarded, with {finished}")
        if job.output.is_local:
            for path in other.paths():
                job.output.files.delete(path)
    return [] if job.output.is_local else others


def left_to_write(job: BuildJob, decision: Decision) -> Limit:
    """Return the most that may still be written. The recipe's limit includes what an append adds to."""
    limit, before = job.plan.recipe.limit, decision.before
    return limit.after_all(before.metadata.rows, before.metadata.ledger) if before else limit


def unbuilt(job: BuildJob, limit: Limit, receipts: Mapping[int, Receipt]) -> tuple[Plan, Limit]:
    """Return the plan of the shards that have no receipt, and what they may write."""
    for receipt in receipts.values():
        limit = limit.after_all(receipt.rows, receipt.ledger)
    return replace(job.plan, shards=tuple(shard for shard in job.plan.shards if shard.index not in receipts)), limit


def load_spec(recipe: Recipe) -> TokenizerSpec | None:
    """Return the recipe's tokenizer, or None if the layout takes none.

    Raises:
        TokenizerError: it cannot be used with the recipe's layout.
    """
    if not LAYOUTS[recipe.layout].tokens:
        return None
    spec = load_tokenizer(recipe) if recipe.tokenizer is not None else ids_spec(recipe)
    check_tokenizer(spec, recipe)
    if recipe.tokenizer_backend == "gigatoken" and not spec.is_template and recipe.adds_special_tokens:
        raise TokenizerError(
            f"gigatoken cannot apply the post-processor of {spec.name}", "use tokenizer_backend='auto'"
        )
    return spec


def stream(
    source: Source,
    *,
    storage_options: Mapping[str, str] | None = None,
    eos_id: int | None = None,
    dtype: Dtype | None = None,
    tokenizer_name: str | None = None,
    **overrides: Unpack[RecipeFields],
) -> pa.RecordBatchReader:
    """Return the rows that `build` would write, as a streaming reader. It holds a few batches and writes nothing.

    If texts are compared (`dedup`), the source is read twice, and a temporary folder holds 24 bytes for each text.

    Args:
        source, storage_options, eos_id, dtype, tokenizer_name, overrides: as in `build`.

    Returns:
        A reader with the dataset's schema. Its rows and their order are those of the built dataset. A row that `build`
        would set aside is left out; with `strict=True` it is an error.

    Raises:
        RecipeError, SourceError, TokenizerError: at once, or from the reader. TokenizerError also if the fast backend
            disagrees with `tokenizers`; `build` would encode that shard again.
    """
    recipe, spec = recipe_and_function(source, overrides, eos_id, dtype, tokenizer_name)
    if recipe.has_two_sides:
        raise UsageError("val_fraction: a stream is of one side of the split", "use side='train' or side='validation'")
    options = RunOptions(storage_options=storage_options)
    check_storage_options(recipe, options, uri="")
    recipe = with_fraction(recipe, options, "", spec)
    made = pin_texts(make_plan(recipe, options.origin), options.origin)
    job = BuildJob(made, spec or load_spec(made.recipe), options.origin, Output(""), key="")
    rows = _stream_compared(job, options) if needs_scan(recipe) else _stream(job)
    return pa.RecordBatchReader.from_batches(job.schema, read_ahead(rows, READ_AHEAD_BATCHES))


def _stream_compared(job: BuildJob, options: RunOptions) -> Iterator[pa.RecordBatch]:
    """Stream the rows that are left when texts have been compared, which needs room for what each shard holds."""
    with tempfile.TemporaryDirectory(prefix="lance-prep-") as folder:
        job = make_job(job.plan, Output(folder), job.origin, job.spec)
        scan_source(job, job.tasks(), None, options.progress, options.scan)
        yield from _stream(job)


def _stream(job: BuildJob) -> Iterator[pa.RecordBatch]:
    hooks = Hooks(encoders=Encoders(job.spec))
    left = job.plan.recipe.limit
    for task in job.tasks():
        tally = Tally(on_reject=Quarantine(strict=job.plan.recipe.strict).add)
        with (
            hooks.encoders.lend(task) as lent,
            closing(shard_rows(task, left, tally, hooks, lent)) as rows,
        ):
            try:
                written = 0
                for batch in rows:
                    yield batch
                    written += len(batch)
            except BackendDisagrees as error:
                # A build discards the shard and encodes it again; a stream cannot take rows back.
                raise TokenizerError(str(error), "use tokenizer_backend='tokenizers'") from error
        left = left.after_all(written, tally.ledger)
        if left.reached:
            return
