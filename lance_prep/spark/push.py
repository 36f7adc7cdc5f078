"""`push_parquet`: a DataFrame in, Parquet files of one split on the Hub out.

Executors write each partition to a temporary file and upload it, which changes nothing in the repository. The driver
then names the files and commits them. So a task that Spark runs twice uploads twice, and is committed once.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lance_prep.engine import ExecutorSetup, Progress, Silent
from lance_prep.errors import BranchMoved, OutputExists, UsageError
from lance_prep.hub import (
    HubFile,
    HubRepo,
    UploadedFile,
    branch_head,
    commit_files,
    ensure_repo,
    list_files,
    upload_files,
)
from lance_prep.spark.partitions import Rows, run_partitions
from lance_prep.spark.write import arrow_schema

#: Of a file, as `datasets` writes them.
FILE_BYTES = 500_000_000
#: Operations in a commit: `upload_large_folder` of huggingface_hub makes none with more.
MOST_OPERATIONS = 1_000
#: Arrow bytes in a row group. A task holds one row group in memory, and no part of a file.
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class ParquetPush:
    """The result of `push_parquet`.

    Attributes:
        repo: `owner/name`.
        commits: those that were made, in order; empty if the repository had the same files.
        url: page of the last commit.
        files, bytes, rows: of the split.
        removed: files of the split before that were removed.
    """

    repo: str
    commits: tuple[str, ...]
    url: str
    files: int
    bytes: int
    rows: int
    removed: int = 0


def push_parquet(
    df: Any,
    uri: str,
    *,
    split: str = "train",
    folder: str = "data",
    mode: Literal["error", "overwrite"] = "error",
    private: bool = False,
    message: str | None = None,
    max_file_bytes: int = FILE_BYTES,
    max_operations: int = MOST_OPERATIONS,
    progress: Progress | None = None,
) -> ParquetPush:
    """Write a Spark DataFrame to a dataset on the Hub, as Parquet files such as `data/train-00000-of-00012.parquet`.

    The files follow the DataFrame's partitions and rows in order, so the same DataFrame gives the same files, and
    pushing it again makes no commit. What a push that was killed has uploaded is not sent again. Each task needs disk
    space for one file, in the folder that `TMPDIR` names.

    Args:
        df: the DataFrame.
        uri: `hf://datasets/owner/name`, or with a branch `hf://datasets/owner/name@branch`. Both are created if they
            are missing.
        split: name of the split.
        folder: of the repository.
        mode: if the split has files already, raise an `error`, or `overwrite` (replace) them. Other files stay.
        private: of a new repository.
        message: title of the commit.
        max_file_bytes: a file ends with the row group that reaches this size.
        max_operations: files added or removed in one commit. If there are more, several commits are made, which is
            not atomic: until the last one, readers see a part. A warning says so.
        progress: told of each finished partition and of warnings.

    Raises:
        UsageError: an argument is invalid.
        OutputExists: the split has files, and `mode` is "error".
        AccessDenied: there is no token, or it may not write there.
        BranchMoved: another push changed the split meanwhile.
        LancePrepError: what a task failed with.
    """
    repo = HubRepo.parse(uri)
    _check(split, folder, mode, max_file_bytes, max_operations)
    ensure_repo(repo, private=private)
    before = _files_of(repo, folder, split)
    if before and mode == "error":
        said = f"{repo} has {len(before)} files of the split {split!r}, such as {min(before)}"
        raise OutputExists(said, "use mode='overwrite', or push to another split")
    parts, rows = _upload(df, repo, f"{folder}/{split}", max_file_bytes, progress or Silent())
    names = [f"{folder}/{split}-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    files = [replace(part, path=name) for part, name in zip(parts, names, strict=True)]
    if _files_of(repo, folder, split) != before:
        said = f"{repo}: the files of the split {split!r} have changed since this push began"
        raise BranchMoved(said, "see what the other push wrote, then push again: what has arrived is not sent again")
    removed = sorted(set(before) - set(names))
    title = message or f"Push {rows:,} rows of {split} as {len(files)} Parquet file{'s'[: len(files) > 1]}"
    commits, url = _commit(repo, files, removed, title, max_operations, progress)
    return ParquetPush(repo.name, commits, url, len(files), sum(f.size for f in files), rows, len(removed))


def _check(split: str, folder: str, mode: str, max_file_bytes: int, max_operations: int) -> None:
    if not re.fullmatch(r"\w+(\.\w+)*", split, re.ASCII):
        raise UsageError(f"invalid name of a split: {split!r}", "use letters, digits and underscores")
    if not all(re.fullmatch(r"\w[\w.-]*", part, re.ASCII) for part in folder.split("/")):
        raise UsageError(f"invalid folder {folder!r}", "name a folder of the repository, such as data")
    if mode not in ("error", "overwrite"):
        raise UsageError(f"unknown mode {mode!r}", "use one of: error, overwrite")
    for name, value in (("max_file_bytes", max_file_bytes), ("max_operations", max_operations)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}", "leave it out for the default")


def _files_of(repo: HubRepo, folder: str, split: str) -> dict[str, str]:
    """Return path -> hash of the split's files on the branch."""
    pattern = re.compile(rf"{re.escape(folder)}/{re.escape(split)}-[^/]*\.parquet")
    there = list_files(repo, branch_head(repo), folder)
    return {path: file.digest for path, file in there.items() if pattern.fullmatch(path)}


def _upload(
    df: Any, repo: HubRepo, prefix: str, max_file_bytes: int, progress: Progress
) -> tuple[list[UploadedFile], int]:
    """Run the DataFrame's one Spark job. Return what it uploaded, in the order of the rows, and the number of rows."""
    schema = arrow_schema(df)

    def hear(partition: int, made: list[_Part]) -> None:
        progress.advanced(partition, sum(part.rows for part in made), 0, sum(part.file.size for part in made))

    results = run_partitions(df, _work(repo, prefix, schema, max_file_bytes), hear)
    parts = [part for partition in sorted(results) for part in results[partition]]
    if not parts:  # one file without rows, which says what the columns are
        parts = list(_upload_parts(repo, prefix, schema, max_file_bytes, iter([schema.empty_table().to_batches()])))
    return [part.file for part in parts], sum(part.rows for part in parts)


@dataclass(frozen=True)
class _Part:
    file: UploadedFile
    rows: int


def _work(
    repo: HubRepo, prefix: str, schema: pa.Schema, max_file_bytes: int
) -> Callable[[ExecutorSetup, int, Rows], list[_Part]]:
    """Return the function that uploads a partition's rows."""

    def work(setup: ExecutorSetup, partition: int, rows: Rows) -> list[_Part]:
        groups = _row_groups(rows, schema)
        return list(_upload_parts(repo, f"{prefix}-{partition:05d}", schema, max_file_bytes, groups))

    return work


def _row_groups(rows: Rows, schema: pa.Schema) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows in lists of batches that make a row group, without those that are empty."""
    group: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        if batch.num_rows:
            group.append(batch.cast(schema))
            size += batch.nbytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _upload_parts(
    repo: HubRepo, prefix: str, schema: pa.Schema, max_file_bytes: int, groups: Iterator[list[pa.RecordBatch]]
) -> Iterator[_Part]:
    """Write row groups to files, one at a time, and upload each."""
    for number, first in enumerate(groups):
        with tempfile.TemporaryDirectory(prefix="lance-prep-push-") as folder:
            path, rows = Path(folder) / "part.parquet", 0
            with path.open("wb") as file, _writer(file, schema) as writer:
                group: list[pa.RecordBatch] | None = first
                while group is not None:
                    writer.write_table(pa.Table.from_batches(group, schema), row_group_size=1 << 40)
                    rows += sum(batch.num_rows for batch in group)
                    group = next(groups, None) if file.tell() < max_file_bytes else None
            yield _Part(upload_files(repo, [HubFile(f"{prefix}-{number:05d}.parquet", str(path))])[0], rows)


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of files as `datasets` makes them: pages cut by content, so that Xet stores equal ones once."""
    return pq.ParquetWriter(file, schema, compression="zstd", use_content_defined_chunking=True, write_page_index=True)


def _commit(
    repo: HubRepo,
    files: Sequence[UploadedFile],
    removed: Sequence[str],
    title: str,
    max_operations: int,
    progress: Progress | None,
) -> tuple[tuple[str, ...], str]:
    """Commit the files, and last the removal of those that are no longer wanted. Return the commits and the page."""
    operations: list[UploadedFile | str] = [*files, *removed]
    chunks = [operations[at : at + max_operations] for at in range(0, len(operations), max_operations)]
    if len(chunks) > 1:
        said = (
            f"{len(operations):,} files are added or removed in {len(chunks)} commits, which is not atomic: "
            f"until the last one, readers of {repo} see a part"
        )
        progress.warned(said) if progress else warnings.warn(said, stacklevel=3)
    made: list[str] = []
    for number, chunk in enumerate(chunks, 1):
        done = commit_files(
            repo,
            [file for file in chunk if isinstance(file, UploadedFile)],
            title if len(chunks) == 1 else f"{title} (part {number} of {len(chunks)})",
            parent=made[-1] if made else None,
            removes=[path for path in chunk if isinstance(path, str)],
        )
        if done.made:
            made.append(done.commit)
    return tuple(made), done.url
