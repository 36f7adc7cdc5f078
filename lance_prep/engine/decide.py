"""Decides what a build does, by comparing the output and the source with each other.

Source files are known by content, not by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.engine.shard import BuildJob
from lance_prep.errors import OutputExists, SourceChanged, UsageError
from lance_prep.ledger import as_plain
from lance_prep.model import Plan, SourceFile
from lance_prep.plan import restrict
from lance_prep.recipe import Recipe
from lance_prep.source import check_all_unchanged
from lance_prep.store import (
    FOLDER,
    KEY,
    LOADER_FILE,
    TEMPORARY,
    DatasetVersion,
    FileRecord,
    Metadata,
    Output,
    build_key,
    default_path,
    hash_file,
    opened,
    recipe_as_json,
    resolved_recipe,
)
from lance_prep.text import needs_scan
from lance_prep.transport import Transport, is_local

OVERWRITE = "make a new version with the new content: overwrite=True; or choose another output"
APPEND = "add what is new as a new version: append=True; or make a new version with the new content: overwrite=True"

_HASH_THREADS = 4


@dataclass(frozen=True)
class Changes:
    """Files of the source that differ from those that a dataset was built from.

    Attributes:
        new: not in the dataset, or more copies than it has.
        changed: have the name of a file in the dataset, but other content.
        gone: in the dataset and no longer in the source, as recorded.
    """

    new: tuple[SourceFile, ...]
    changed: tuple[SourceFile, ...]
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        parts = [
            f"{len(urls)} {what} ({urls[0]}{', ...' if len(urls) > 1 else ''})"
            for what, urls in (
                ("new", [file.url for file in self.new]),
                ("gone", list(self.gone)),
                ("changed", [file.url for file in self.changed]),
            )
            if urls
        ]
        return ", ".join(parts) or "nothing"


class Digests:
    """Content hashes of local source files (xxh3-128), each computed once, however often it is asked for.

    They tell a file that was only touched or renamed from one that was changed. A file that the build has just read is
    in the page cache: 1 GB takes about 0.3 s.
    """

    def __init__(self) -> None:
        self._known: dict[SourceFile, str | None] = {}

    def of(self, file: SourceFile) -> str | None:
        """Return the hash of a file; None for a remote one."""
        if file not in self._known:
            self._known[file] = _hash(file)
        return self._known[file]

    def of_all(self, files: Sequence[SourceFile]) -> list[str | None]:
        """Return the hashes of many files, computed in parallel."""
        if not any(is_local(file.url) for file in files):
            return [None] * len(files)
        with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
            return list(pool.map(self.of, files))


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
        job: the build; for an append, of the new files alone. None if the dataset is up to date.
        existing: the output before this build.
        appends: the job's rows follow the existing ones.
        first_shard: number of the job's first shard.
        digests: hashes of source files that were computed on the way.
    """

    job: BuildJob | None
    existing: Existing
    appends: bool = False
    first_shard: int = 0
    digests: Digests = field(default_factory=Digests)

    @property
    def before(self) -> DatasetVersion | None:
        """The version that an append adds to; None if the build does not append."""
        return self.existing.ours if self.appends else None


def decide(job: BuildJob, *, append: bool, overwrite: bool, refresh: bool = False, settle: bool = True) -> Decision:
    """Look at the output and say what to do.

    Args:
        append, overwrite, refresh: see `RunOptions`.
        settle: complete the notes of a process that died right after its commit. False writes nothing.

    Raises:
        OutputExists: it holds something that this build may not replace, or an unfinished build of something else.
        SourceChanged: it was built by the same recipe from another state of the source.
    """
    existing = look_at(job.output)
    if existing.number and existing.ours is None and not overwrite:
        raise OutputExists(f"{job.uri} is a Lance dataset that lance-prep did not make", OVERWRITE)
    for build in existing.ours.builds if existing.ours is not None and settle else ():
        # A process that is killed between its commit and this note leaves the note to the next one.
        job.output.journal(build.key).close(build.version)
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
    ignore = {"source"} if refresh or not (changes.gone or changes.changed) else set()
    refuse_other_recipe(job, there.metadata, ignore | ({"revision"} if append or refresh else set()))
    _refuse_other_texts(job, there)
    if not changes or (append and not changes.new and not changes.changed):
        return Decision(None, existing)
    if append and job.plan.recipe.limit.after_all(there.metadata.rows, there.metadata.ledger).reached:
        return Decision(None, existing)
    if refresh:
        _refuse_unfinished(job)
        return Decision(job, existing, digests=digests)
    if not append or changes.changed:
        only_new = changes.new and not changes.changed
        raise SourceChanged(f"the source of {job.uri} has changed: {changes}", APPEND if only_new else OVERWRITE)
    _refuse_unfinished(job)
    first = max(build.first_shard + build.shards for build in there.builds)
    # The new rows come in the types of those that are there, whatever the new files would give by themselves.
    then = job.output.journal(there.metadata.build.key).plan(job.uri, there.metadata.tokenizer_key)
    plan = replace(job.plan, schema=then.schema, read_schema=then.read_schema)
    plan = restrict(plan, changes.new, job.origin, first_shard=first)
    if needs_scan(plan.recipe):  # which texts are duplicates depends on the builds before
        plan = replace(plan, pinned={**plan.pinned, "added to": " ".join(build.key for build in there.builds)})
    key = build_key(plan, job.uri, job.spec.key if job.spec else None)
    return Decision(replace(job, plan=plan, key=key), existing, appends=True, first_shard=first, digests=digests)


def check_folder(uri: str, *, overwrite: bool) -> None:
    """Refuse a path that holds something else or cannot be made, before anything is made there.

    Raises:
        UsageError: Lance cannot write to a path with this name.
        OutputExists: it is a file, or a folder with other things in it.
    """
    if not is_local(uri):
        return
    path = Path(uri)
    try:
        uri.encode()
    except UnicodeEncodeError:
        said = f"the output's path, {uri!r}, is not valid UTF-8, as Lance needs"
        raise UsageError(said, "choose another name; if this one is UTF-8, set LC_ALL=C.UTF-8") from None
    if found := re.search(r"[\x00-\x1f\x7f]", uri):
        said = f"the output's path, {uri!r}, has the control character {found[0]!r}"
        raise UsageError(said, "choose a name without line breaks, tabs and other control characters")
    if path.is_file():
        raise OutputExists(f"{uri} is a file", "choose another output")
    above = next((one for one in path.parents if os.path.lexists(one)), path.parent)
    if not above.is_dir():
        what = "a file, not a folder" if above.is_file() else "not a folder"
        raise UsageError(f"{uri} cannot be made: {above} is {what}", "choose another output")
    # A build that never committed leaves only these. A collection, a download and an export have FOLDER too.
    unfinished = {FOLDER, "data", "_transactions", LOADER_FILE, f".{LOADER_FILE}{TEMPORARY}"}
    if path.is_dir() and not (path / "_versions").is_dir() and {entry.name for entry in path.iterdir()} - unfinished:
        raise OutputExists(f"{uri} is a folder with other things in it", "choose another output")
    if (path / "_versions").is_dir() and not (path / FOLDER).is_dir() and not overwrite:
        raise OutputExists(f"{uri} is a Lance dataset that lance-prep did not make", OVERWRITE)


def look_at(output: Output) -> Existing:
    """Return what is at the output, without looking at any build."""
    dataset = output.open()
    if dataset is None:
        return Existing()
    ours = KEY in (dataset.schema.metadata or {})
    return Existing(int(dataset.version), opened(output.uri, dataset, output.transport) if ours else None)


def _refuse_unfinished(job: BuildJob) -> None:
    """Refuse to discard an unfinished build of something else."""
    for key, recipe in job.output.unfinished().items():
        differences = _differences(job, recipe, set())
        if key != job.key and differences:
            raise OutputExists(f"{job.uri} holds an unfinished build by another recipe: {differences}", OVERWRITE)


def refuse_other_recipe(job: BuildJob, metadata: Metadata, ignore: set[str]) -> None:
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
    if was and now and was.key != now.key:
        old, new = (chat.origin if chat else "none" for chat in (was.chat, now.chat))
        said = f"{job.uri} was built with the chat template of {old}, which differs from that of {new}"
        raise OutputExists(said, OVERWRITE)


def _refuse_other_texts(job: BuildJob, there: DatasetVersion) -> None:
    """Refuse to add to, or to leave as it is, a dataset whose texts were dropped by other rules."""
    if not job.plan.pinned:
        return
    then = job.output.journal(there.metadata.build.key).plan(job.uri, there.metadata.tokenizer_key).pinned
    for name, now in job.plan.pinned.items():
        if then.get(name) != now:
            said = f"{job.uri} was built with {name} {then.get(name)}, which is now {now}"
            raise OutputExists(said, OVERWRITE)


def _differences(job: BuildJob, recorded: dict[str, Any], ignore: set[str]) -> str:
    """Say how a recorded recipe differs from the job's."""
    # Paths are compared as they are now: the dataset may have been moved away from its source.
    then = resolved_recipe(recorded, job.uri)
    now = resolved_recipe(recipe_as_json(job.plan, job.uri), job.uri)
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    then, now = {**defaults, **then}, {**defaults, **now}
    names = [name for name in now if then[name] != now[name] and name not in ignore]
    return "; ".join(f"{name} was {_short(then[name])}, now {_short(now[name])}" for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def refuse_own_source(uri: str, files: Iterable[SourceFile]) -> None:
    """Refuse an output that would be written over its source, or whose quarantine file would be.

    Raises:
        UsageError: names the file.
    """
    if not is_local(uri):
        for file in files:
            if file.url in (uri, default_path(uri)):
                raise UsageError(f"{file.url} is the source itself", "choose another output")
        return
    output, quarantine = _identity(uri), _identity(default_path(uri))
    roots = (f"{uri}/", f"{os.path.realpath(uri)}/")
    for file in files:
        if not is_local(file.url):
            continue
        if output and (_identity(file.url) == output or file.url.startswith(roots)):
            raise UsageError(f"{file.url} is the source itself, or is inside it", "choose another output")
        if quarantine and _identity(file.url) == quarantine:
            raise UsageError(
                f"{file.url} is a source, and the rejected rows of {uri} would be written over it",
                "choose another output, or rename the source",
            )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def record_files(plan: Plan, digests: Digests, transport: Transport) -> list[FileRecord]:
    """Return the plan's files as they are recorded in a dataset, local ones with a hash of their content.

    Raises:
        SourceChanged: a file was changed since it was planned.
    """
    hashes = digests.of_all(plan.files)
    check_all_unchanged(plan.files, transport)  # what was hashed is what was read
    return [FileRecord(**as_plain(file), hash=digest) for file, digest in zip(plan.files, hashes, strict=True)]


def compare(then: Iterable[FileRecord], plan: Plan, digests: Digests) -> Changes:
    """Compare the recorded files of a dataset with the plan's, by content and number of copies.

    A renamed or touched file is the same file. A second copy is a new one, because a fresh build would read both. A
    file with the place, size and time of a record is taken to be unchanged. Others are hashed, if a record that is
    left has their size.
    """
    records = list(then)
    left = list(records)
    rest = _match(left, plan.files, _state, _state)
    sizes = {record.size for record in left}
    hashes = {file.url: digests.of(file) for file in rest if file.size in sizes}
    # Blob ids of the Hub and ETags depend on the content, wherever the file is.
    rest = _match(
        left, rest, lambda r: r.hash or (r.size, r.identity), lambda f: hashes.get(f.url) or (f.size, f.identity)
    )
    # If every record has its file, what is left over is new, wherever it is: a log that was rotated, for example.
    places = {_place(record.url) for record in records} if left else set()
    changed = tuple(file for file in rest if _place(file.url) in places)
    new = tuple(file for file in rest if _place(file.url) not in places)
    elsewhere = {_place(file.url) for file in changed}
    return Changes(new, changed, tuple(record.url for record in left if _place(record.url) not in elsewhere))


def _match(
    left: list[FileRecord],
    files: Iterable[SourceFile],
    of_record: Callable[[FileRecord], Hashable],
    of_file: Callable[[SourceFile], Hashable],
) -> list[SourceFile]:
    """Take the record of each file out of `left`, one record for one file, and return the files without one."""
    records: dict[Hashable, list[FileRecord]] = {}
    for record in reversed(left):
        records.setdefault(of_record(record), []).append(record)
    rest, found = [], set()
    for file in files:
        if same := records.get(of_file(file)):
            found.add(id(same.pop()))
        else:
            rest.append(file)
    left[:] = [record for record in left if id(record) not in found]
    return rest


def _state(file: SourceFile | FileRecord) -> Hashable:
    return _place(file.url), file.size, file.identity


def _place(url: str) -> str:
    """Return the URL of a file without the commit."""
    return re.sub(r"(?<=^hf://datasets/)([^@]+)@[^/]+", r"\1", url)


def _hash(file: SourceFile) -> str | None:
    path = Path(file.url)
    return hash_file(path) if is_local(file.url) and path.is_file() else None
