"""`export`: the rows of a dataset, or of every dataset that a manifest names, as files of another format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lance_prep.errors import DamagedDataset, OutputExists, without_credentials
from lance_prep.exchange.base import GB, ExportOptions, Target, Written, target_named
from lance_prep.exchange.checks import VERIFY
from lance_prep.exchange.folder import ExportFolder, Shard, ShardFile, State
from lance_prep.exchange.items import Item, Items, find_items
from lance_prep.exchange.pieces import Waiting, encoded
from lance_prep.store import Split, combine, output_lock
from lance_prep.transport import Transport

#: A file that consists of its pieces only is synced after at least this many bytes, and can be continued from there.
CHECKPOINT_BYTES = 256 << 20


@dataclass(frozen=True)
class ExportedSource:
    """What became of one dataset.

    Attributes:
        name: of the source, or `<source>.val` for its validation set; its shards are in the folder of this name.
        status: "written", "resumed" (a part was there), "up to date", or "planned" by a dry run.
        rows: number of rows in the shards.
        tokens: without padding; in a plan, those of the dataset.
        bytes: of the shards; 0 in a plan.
        shards: number of files; 0 in a plan.
        hash: of the shards' hashes, in order; empty in a plan.
    """

    name: str
    status: str
    rows: int
    tokens: int
    bytes: int = 0
    shards: int = 0
    hash: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        output: absolute path of the folder.
        format: name of the target.
        sources: by name, validation sets last.
        left_out: sources whose shards are in the folder, but which are not in its manifest: they are no longer in the
            collection, or were exported with other options.
    """

    output: str
    format: str
    sources: tuple[ExportedSource, ...]
    left_out: tuple[str, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return all(source.status == "up to date" for source in self.sources)

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return {**asdict(self), "up_to_date": self.up_to_date}


class ExportProgress(Protocol):
    """Listens to an export, in the thread that called it."""

    def planned(self, rows: int, done: int) -> None:
        """Report the number of rows of all sources, and how many of them an earlier run has written."""

    def advanced(self, name: str, rows: int, tokens: int) -> None:
        """Report rows of a source that were written."""


class _Silent:
    def planned(self, rows: int, done: int) -> None:
        pass

    def advanced(self, name: str, rows: int, tokens: int) -> None:
        pass


def export(
    source: str | Path,
    output: str | Path,
    *,
    format: str = "parquet",
    version: int | str | None = None,
    splits: Sequence[str] | None = None,
    options: ExportOptions | None = None,
    force: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    storage_options: Mapping[str, str] | None = None,
    progress: ExportProgress | None = None,
) -> ExportReport:
    """Write a dataset, or every dataset of a manifest, as files of another format.

    The same command continues an export that was killed, and does nothing if the export is up to date.

    Args:
        source: a dataset, or a folder with `manifest.json`.
        output: local folder for the files.
        format: name of a target.
        version: number or tag, for a single dataset.
        splits: names of the sources to export; all by default.
        options: what decides the content of the files.
        force: write into a folder that holds other files, and replace shards that were made from other rows or options.
            Files that no export wrote are neither removed nor replaced.
        dry_run: check and report what would be done, and write nothing.
        workers: threads that encode; by default, one per core.
        storage_options: of the dataset's object store.
        progress: told what happens.

    Raises:
        UsageError: options contradict each other or the source.
        OutputExists: the folder holds something else.
        DatasetError: a dataset or the manifest cannot be read.
        DiskFull: the same command continues once there is space.
    """
    target, options = target_named(format), options or ExportOptions()
    target.check(options)
    options = target.settled(options)
    folder = ExportFolder(output, target.suffix, whole=options.shard_size is None)
    folder.check(force=force)
    items = find_items(source, target, options, version, splits, Transport.of(storage_options))
    statuses = [item.status(folder.state(item.name), force=force) for item in items.chosen]
    folder.check_free([item.name for item in items.chosen])
    _, left_out = _others(folder, items)
    if dry_run:
        planned = (_planned(item, status, folder) for item, status in zip(items.chosen, statuses, strict=True))
        return ExportReport(str(folder.root), target.name, tuple(planned), left_out)
    with output_lock(str(folder.root)):
        kept, left_out = _others(folder, items)  # again: another export may have ended since
        run = _Run(folder, options.shard_size, workers or os.cpu_count() or 1, progress or _Silent(), force)
        exported = run.all(items.chosen)
        _write_lists(folder, items, kept, without_credentials(str(source)), str(output), target, options)
    return ExportReport(str(folder.root), target.name, tuple(exported), left_out)


def _others(folder: ExportFolder, items: Items) -> tuple[list[str], tuple[str, ...]]:
    """Return the sources of earlier exports into the folder that stay in its manifest, and those that do not.

    Raises:
        OutputExists: one dataset is exported into a folder that holds others.
    """
    chosen = {item.name: item for item in items.chosen}
    wanted = items.chosen[0].made_from
    kept: list[str] = []
    left_out: list[str] = []
    for name in sorted(set(folder.names()) - set(chosen)):
        state = folder.state(name)
        same = state is not None and all(
            state.made_from.get(option) == value
            for option, value in wanted.items()
            if option not in ("content_hash", "layout")
        )
        known = any(entry.folder == name for entry in items.entries)
        (kept if known and same and state is not None and state.split is not None else left_out).append(name)
    if items.single and left_out:
        raise OutputExists(f"{folder.root} holds an export of {left_out[0]}", "name another folder")
    return kept, tuple(left_out)


def _planned(item: Item, status: str, folder: ExportFolder) -> ExportedSource:
    state = folder.state(item.name)
    if status == "up to date" and state is not None:
        return _report(item, state.shards, status)
    return ExportedSource(item.name, "planned", item.source.rows, item.entry.split.tokens)


def _report(item: Item, shards: Sequence[Shard], status: str) -> ExportedSource:
    return ExportedSource(
        item.name,
        status,
        sum(shard.rows for shard in shards),
        sum(shard.tokens for shard in shards),
        sum(shard.bytes for shard in shards),
        len(shards),
        combine(shard.hash for shard in shards),
    )


@dataclass(frozen=True)
class _Run:
    """Exports items, one after another."""

    folder: ExportFolder
    shard_size: int | None
    workers: int
    progress: ExportProgress
    force: bool

    def all(self, items: Sequence[Item]) -> list[ExportedSource]:
        """Export items, or what is left of them."""
        states = [self._state(item) for item in items]
        done = sum(state.rows for state in states)
        self.progress.planned(sum(item.source.rows for item in items), done)
        return [self._export(item, state) for item, state in zip(items, states, strict=True)]

    def _state(self, item: Item) -> State:
        """Return how far an item is, after removing what is to be replaced."""
        state = self.folder.state(item.name)
        if state is not None and item.status(state, force=self.force) == "written":
            self.folder.remove(item.name, state)
            state = None
        if state is None:
            state = State(item.made_from, files=self.folder.files(item.name))
            self.folder.save(item.name, state)
        return self.folder.usable(self.folder.checked(item.name, state, force=self.force))

    def _export(self, item: Item, state: State) -> ExportedSource:
        status = "up to date"
        if state.split is None:
            status = "resumed" if state.rows else "written"
            state = self._finish(item, self._write(item, state))
        return _report(item, state.shards, status)

    def _write(self, item: Item, state: State) -> State:
        """Write the shards that are missing."""
        # One shard at least, so that a reader of the format finds an empty dataset.
        if state.rows == item.source.rows and state.begun is None and (state.shards or not item.encoder.plain):
            return state
        with closing(encoded(item.source, item.encoder, state.rows, self.workers)) as pieces:
            waiting = Waiting(pieces)
            while waiting.more or state.begun is not None or (item.encoder.plain and not state.shards):
                with self.folder.new_shard(item.name, state) as file:
                    state = self._write_shard(item, file, waiting, state)
        return state

    def _write_shard(self, item: Item, file: ShardFile, waiting: Waiting, state: State) -> State:
        """Write a file of as many pieces as fit. Return the state with it."""
        encoder, begun = item.encoder, state.begun
        rows, tokens = (begun.rows, begun.tokens) if begun is not None else (0, 0)
        end, held, notes = len(encoder.end([])), [], []
        head = len(encoder.begin([]))
        if not encoder.held and begun is None:
            file.write([encoder.begin([])])
        used = file.size if not encoder.held else head
        while waiting.more:
            room = None if self.shard_size is None else self.shard_size - used - end
            piece = waiting.take(room, first=not rows)
            if piece is None:
                break
            if encoder.held:
                held.append(piece)
            else:
                file.write(piece.data)
            rows, tokens = rows + piece.rows, tokens + piece.tokens
            used, end = used + piece.size, end + piece.end
            notes.append(piece.note)
            self.progress.advanced(item.name, piece.rows, piece.tokens)
            durable = file.begun.bytes if file.begun is not None else 0
            if encoder.plain and file.size - durable >= CHECKPOINT_BYTES:
                state = self.folder.begun(item.name, state, file, rows, tokens)
        if encoder.held:
            file.write([encoder.begin(held), *(part for piece in held for part in piece.data)])
        file.write([encoder.end(notes)])
        return self.folder.add(item.name, state, file, rows, tokens)

    def _finish(self, item: Item, state: State) -> State:
        """Write the statistics of a source whose shards are all there."""
        done = _report(item, state.shards, "")
        opened, entry = item.source.opened, item.entry.split
        if done.rows != item.source.rows:
            raise DamagedDataset(
                f"{opened.uri} has {item.source.rows} rows, but {done.rows} could be read",
                VERIFY,
            )
        content_hash = opened.metadata.content_hash
        names = [state.file(number).rpartition("/")[2] for number in range(done.shards)]
        written = [
            Written(name, shard.rows, shard.tokens, shard.bytes)
            for name, shard in zip(names, state.shards, strict=True)
        ]
        state = self.folder.add_beside(item.name, state, item.encoder.beside(written))
        split = replace(entry, path=state.folder, shards=done.shards, sequences=done.rows, tokens=done.tokens)
        split = replace(split, version=None, content_hash=content_hash)
        counts = {name: getattr(done, name) for name in ("rows", "tokens", "bytes", "hash", "shards")}
        counts |= item.encoder.about()
        files = [{"file": name, **asdict(shard)} for name, shard in zip(names, state.shards, strict=True)]
        self.folder.write_stats(item.name, {"source": item.name, **item.made_from, **counts, "files": files})
        finished = replace(state, split=split)
        self.folder.save(item.name, finished)
        return finished


def _write_lists(
    folder: ExportFolder,
    items: Items,
    kept: Sequence[str],
    source: str,
    output: str,
    target: Target,
    options: ExportOptions,
) -> None:
    """Write the folder's manifest, and what tells `datasets` where the shards are."""
    found: tuple[dict[str, Split], dict[str, Split]] = ({}, {})
    names = {item.name for item in items.chosen} | set(kept)
    for entry in items.entries:
        state = folder.state(entry.folder) if entry.folder in names else None
        if state is not None and state.split is not None:
            found[entry.validation][entry.name] = state.split
    lengths = {item.source.length for item in items.chosen}
    if target.loads:
        folder.write_loader(*([split.path for split in splits.values()] for splits in found))
    manifest = replace(
        items.manifest,
        max_seq_length=lengths.pop() if len(lengths) == 1 else None,
        input_path=source,
        output_path=output,
        splits=found[False],
        validation=found[True],
        data_format=target.name,
        shard_size_gb=options.shard_size / GB if options.shard_size is not None else None,
    )
    folder.write_manifest(manifest.text())
