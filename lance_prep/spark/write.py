"""`write_lance`: writes a DataFrame as a dataset.

A partition is a shard. Its rows go through the same code as those of a file: executors tokenize, lay out and write
them, and the driver makes one commit once every partition has its receipt.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import pyarrow as pa

from lance_prep.engine import (
    BuildJob,
    BuildReport,
    Built,
    Decision,
    ExecutorSetup,
    Existing,
    Hooks,
    Progress,
    ShardTask,
    Silent,
    check_built,
    check_folder,
    commit_build,
    discard_others,
    existing_report,
    keep_shard,
    load_spec,
    look_at,
    make_shard,
    recipe_and_function,
    refuse_other_recipe,
)
from lance_prep.errors import OutputExists, UsageError
from lance_prep.formats import hand_over, partition_file, plain_type
from lance_prep.model import Part, PinnedSource, Plan, Shard
from lance_prep.plan import resolve_columns
from lance_prep.recipe import Limit, Recipe, RecipeFields, refuse_unread
from lance_prep.spark.partitions import Rows, run_partitions
from lance_prep.store import Output, Receipt, build_key, check_data, tokenizer_path, with_data, write_by_hash
from lance_prep.text import needs_scan
from lance_prep.tokenizer import Dtype, FunctionSpec, TokenizerSpec
from lance_prep.transport import Transport, absolute_uri

#: The source's name in the metadata.
SOURCE = "DataFrame"
#: Key of a build whose own key, which depends on its content, is not known yet.
_NO_KEY = "0" * 16

Mode = Literal["error", "append", "overwrite"]


def write_lance(
    df: Any,
    uri: str | Path,
    *,
    mode: Mode = "error",
    storage_options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    eos_id: int | None = None,
    dtype: Dtype | None = None,
    tokenizer_name: str | None = None,
    **fields: Unpack[RecipeFields],
) -> BuildReport:
    """Tokenize the text of a Spark DataFrame on its executors, and write it as a Lance token dataset.

    The rows depend on the DataFrame's rows, their order and its partitions, and on the recipe; not on the cluster or
    on tasks that Spark runs again. A DataFrame whose order differs from run to run (after a shuffle without a sort)
    gives another dataset each time.

    Args:
        df: with a column of text.
        uri: path or URI of the dataset, which all executors see.
        mode: if there is a dataset already, raise an `error`, `append` the rows, or `overwrite` it. Each makes a new
            version. An append that is run twice appends twice.
        storage_options: for object stores, as Lance and object_store name them.
        progress: told of each finished partition and of warnings.
        eos_id, dtype, tokenizer_name: of a Python function as `tokenizer`, as in `lance_prep.build`.
        fields: of `Recipe`, such as `tokenizer`, `layout`, `block_size`, `text_column`, `keep_columns` and `filter`.

    Raises:
        UsageError: a field has no meaning for a DataFrame.
        ColumnNotFound: no such column, or no text column to be found.
        OutputExists: there is a dataset, and `mode` is "error"; or it was built by another recipe.
        LancePrepError: what a task failed with.
    """
    started = time.monotonic()
    check_mode(mode)
    recipe, function = recipe_and_function(
        Recipe.model_validate({"source": SOURCE}), fields, eos_id, dtype, tokenizer_name
    )
    refuse_unread(recipe, fields)
    _refuse_unused(recipe, fields)
    columns = resolve_columns(recipe, arrow_schema(df))
    plan = Plan(columns.recipe, PinnedSource(asked=SOURCE), (), (), columns.out, columns.read)
    output = Output(absolute_uri(uri), Transport.of(storage_options))
    job = BuildJob(plan, function or load_spec(columns.recipe), Transport(), output, _NO_KEY)
    check_folder(output.uri, overwrite=mode == "overwrite")
    with output.lock() as lock:
        decision = _decide(job, look_at(output), mode)
        assert decision.job is not None
        if job.spec is not None and not isinstance(job.spec, FunctionSpec):
            write_by_hash(output.files, tokenizer_path(job.spec.sha256), job.spec.file)
            if job.spec.chat is not None:
                write_by_hash(output.files, tokenizer_path(job.spec.chat.sha256), job.spec.chat.file)
        hooks = Hooks(progress or Silent())
        made = _write(df, decision.job, decision.first_shard, hooks)
        job, there = _named(decision.job, made), decision.existing.ours
        if mode == "overwrite" and there is not None and [build.key for build in there.builds] == [job.key]:
            # The same content again. Its journal stays as it is, so the new files are leftovers.
            output.tidy(lock)
            return existing_report(decision.existing, "unchanged", time.monotonic() - started)
        others = discard_others(job, hooks.progress)
        receipts = _keep(job, made)
        lock.check()
        return commit_build(replace(decision, job=job), receipts, lock, resumed=0, started=started, others=others)


def check_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        UsageError: lists the modes.
    """
    if mode not in ("error", "append", "overwrite"):
        raise UsageError(f"unknown mode {mode!r}", "use one of: error, append, overwrite")


def arrow_schema(df: Any) -> pa.Schema:
    """Return the schema in which Spark hands a DataFrame's rows to Python."""
    from pyspark.sql.pandas.types import to_arrow_schema

    schema = to_arrow_schema(df.schema, timezone=df.sparkSession.conf.get("spark.sql.session.timeZone"))
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def _refuse_unused(recipe: Recipe, fields: Mapping[str, Any]) -> None:
    """Refuse options that a DataFrame has operations for, and options of files."""
    advice = {
        "max_rows": "use df.limit(n)",
        "max_source_rows": "use df.limit(n)",
        "max_tokens": "use df.limit(n)",
        "shard_size": "a partition is a shard: use df.repartition(n)",
        "config": "name it where the DataFrame is read",
        "split": "name it where the DataFrame is read",
        "revision": "name it where the DataFrame is read",
        "text_unit": "it is for text files",
        "delimiter": "it is for CSV files",
    }
    for name, what in advice.items():
        if fields.get(name) is not None:
            raise UsageError(f"{name} has no effect on a DataFrame", f"remove it; {what}")
    if needs_scan(recipe):
        given = next(name for name in ("dedup", "decontaminate", "language") if fields.get(name) not in (None, "none"))
        said = f"{given} needs a pass over all texts before any is written, and a DataFrame is read once"
        raise UsageError(said, "use df.dropDuplicates, or write Parquet files and build those with engine='spark'")
    if recipe.has_two_sides:
        said = "val_fraction: a DataFrame is written one side at a time"
        raise UsageError(said, "call write_lance twice, with side='train' and with side='validation'")


def _decide(job: BuildJob, existing: Existing, mode: Mode) -> Decision:
    """Say what the output allows.

    Raises:
        OutputExists: see `write_lance`.
    """
    there = existing.ours
    if existing.number and mode == "error":
        raise OutputExists(f"{job.uri} exists", "use mode='append' or mode='overwrite', or choose another path")
    if not existing.number or mode == "overwrite":
        return Decision(job, existing)
    if there is None:
        raise OutputExists(f"{job.uri} is a Lance dataset that lance-prep did not make", "use mode='overwrite'")
    refuse_other_recipe(job, there.metadata, set())
    then = job.output.journal(there.metadata.build.key).plan(job.uri, there.metadata.tokenizer_key)
    if then.schema != job.plan.schema:
        said = f"{job.uri} has other columns: {then.schema.to_string()}"
        raise OutputExists(said, "cast the DataFrame's columns, or use mode='overwrite'")
    first = max(build.first_shard + build.shards for build in there.builds)
    return Decision(job, existing, appends=True, first_shard=first)


def _write(df: Any, job: BuildJob, first_shard: int, hooks: Hooks) -> dict[int, Built]:
    """Run the DataFrame's one Spark job. Return the built shards by index."""
    names = [f"`{name.replace('`', '``')}`" for name in job.plan.read_schema.names]
    progress = hooks.progress

    def hear(partition: int, result: tuple[Built, tuple[str, ...]]) -> None:
        receipt = result[0].receipt
        progress.finished(receipt)  # first, so that a line that the rows complete counts the shard
        progress.advanced(receipt.shard, receipt.ledger.rows_in, receipt.ledger.tokens_in, receipt.text_bytes)
        for message in result[1]:
            hooks.warn_once(message)

    results = run_partitions(df.select(*names), _work(job, first_shard), hear)
    made = {first_shard + partition: built for partition, (built, _) in results.items()}
    # A partition that Spark left out has no rows. So has the one shard of a DataFrame without partitions.
    for index in range(first_shard, max([first_shard, *made]) + 1):
        if index not in made:
            task = _task(job, index)
            hand_over(task.plan.files[0], iter(()))
            made[index] = make_shard(task, Limit(), hooks)
            progress.finished(made[index].receipt)
    return made


def _work(job: BuildJob, first_shard: int) -> Callable[[ExecutorSetup, int, Rows], tuple[Built, tuple[str, ...]]]:
    """Return the function that makes a shard of a partition's rows."""
    spec: TokenizerSpec | None = replace(job.spec, file=b"") if job.spec is not None else None
    job = replace(job, spec=spec)

    def work(setup: ExecutorSetup, partition: int, rows: Rows) -> tuple[Built, tuple[str, ...]]:
        task = _task(job, first_shard + partition)
        hand_over(task.plan.files[0], rows)
        return setup.make(task, Limit())

    return work


def _task(job: BuildJob, index: int) -> ShardTask:
    shard = Shard(index, (Part(0),), 0)
    plan = replace(job.plan, files=(partition_file(index),), shards=(shard,))
    return ShardTask(plan, job.spec, job.origin, job.output, job.key)


def _named(job: BuildJob, made: Mapping[int, Built]) -> BuildJob:
    """Return the build with its plan and key. The content identifies a DataFrame, which has no name of its own."""
    files, shards = [], []
    for place, index in enumerate(sorted(made)):
        receipt = made[index].receipt
        content = [receipt.content_hash, asdict(receipt.ledger), receipt.quarantine_hash]
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
        files.append(partition_file(index, identity))
        rows = receipt.ledger.rows_in
        shards.append(Shard(index, (Part(place, rows=rows),), receipt.text_bytes, rows))
    plan = replace(job.plan, files=tuple(files), shards=tuple(shards))
    return replace(job, plan=plan, key=build_key(plan, job.uri, job.spec.key if job.spec else None))


def _keep(job: BuildJob, made: Mapping[int, Built]) -> list[Receipt]:
    """Write the receipts into the journal. Shards that an earlier version was made of keep theirs, with its files."""
    job.journal.begin(job.plan, job.uri)
    there = with_data(job.output.files, job.journal.receipts())
    for index, task in zip(sorted(made), job.tasks(), strict=True):
        if index not in there:
            check_built(job.output, index, made[index])
            there[index] = keep_shard(task, made[index])
    receipts = [there[index] for index in sorted(made)]
    check_data(job.output.files, job.uri, receipts)
    return receipts
