"""`export`: the rows of a dataset, or of every dataset that a manifest names, as files of another format."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lance_prep.errors import DatasetError, OutputExists, UsageError
from lance_prep.exchange.base import GB, Encoder, ExportOptions, Piece, Source, Target, target_named
from lance_prep.exchange.folder import ExportFolder, ShardFile, State, check_name
from lance_prep.exchange.rows import open_source
from lance_prep.store import (
    MANIFEST,
    DatasetVersion,
    Manifest,
    Split,
    combine,
    open_version,
    output_lock,
    read_manifest,
)
from lance_prep.transport import Transport

#: Called with the source's name, and numbers of rows and tokens that were encoded.
OnRows = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportedSource:
    """What became of one source.

    Attributes:
        name: of the source; its shards are in the folder of this name.
        status: "written", "resumed" (a part was there), "up to date", or "planned" by a dry run.
        rows, tokens: in its shards, without padding.
        bytes: of its shards; 0 in a plan.
        shards: number of them; 0 in a plan.
        hash: of the shards' hashes in order; empty in a plan.
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
        sources: in alphabetical order, validation sets last.
    """

    output: str
    format: str
    sources: tuple[ExportedSource, ...]

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return all(source.status == "up to date" for source in self.sources)

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return {**asdict(self), "sources": [asdict(source) for source in self.sources], "up_to_date": self.up_to_date}


@dataclass(frozen=True)
class _Item:
    """A dataset to export.

    Attributes:
        name: of the source.
        folder: name of its folder.
        validation: whether it is a validation set.
        split: its entry in a manifest.
        source: its rows.
        encoder: writes them.
        made_from: see `State`.
    """

    name: str
    folder: str
    validation: bool
    split: Split
    source: Source
    encoder: Encoder
    made_from: dict[str, Any]


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
    on_rows: OnRows = lambda name, rows, tokens: None,
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
        dry_run: say what would be done, and write nothing.
        workers: threads that encode; by default, one per core.
        storage_options: of the dataset's object store.
        on_rows: reports progress.

    Raises:
        UsageError: the options contradict each other, or the dataset.
        OutputExists: the folder holds something else.
        DatasetError: a dataset or the manifest cannot be read.
    """
    target, options = target_named(format), options or ExportOptions()
    target.check(options)
    folder = ExportFolder(output, target.suffix)
    folder.check(force=force)
    manifest, items = _plan(source, target, options, version, splits, Transport.of(storage_options))
    folder.check_free([item.folder for item in items])
    if dry_run:
        done = [_planned(item, folder.state(item.folder), force) for item in items]
        return ExportReport(str(folder.root), target.name, tuple(done))
    with output_lock(str(folder.root)):
        run = _Run(folder, options.shard_size, workers or os.cpu_count() or 1, on_rows, force)
        exported = [run.export(item) for item in items]
        _write_manifest(folder, manifest, items, str(source), str(output), target, options)
    return ExportReport(str(folder.root), target.name, tuple(exported))


def _plan(
    source: str | Path,
    target: Target,
    options: ExportOptions,
    version: int | str | None,
    splits: Sequence[str] | None,
    transport: Transport,
) -> tuple[Manifest, list[_Item]]:
    """Return the manifest of what is exported, and the datasets in it."""
    path = Path(source)
    if not (path.is_file() or (path / MANIFEST).is_file()):
        if splits is not None:
            raise UsageError(f"splits has no effect: {source} is one dataset", "leave splits out")
        opened = open_version(source, version, transport.storage_options)
        name = check_name(Path(opened.uri).name.removesuffix(".lance"))
        manifest = _manifest_of(name, opened)
        chosen = [(name, False, manifest.splits[name], opened)]
    else:
        if version is not None:
            raise UsageError(f"version has no effect: {source} names a version of each dataset", "leave version out")
        root, manifest = (path.parent if path.is_file() else path), read_manifest(path)
        chosen = []
        for name, validation, split in _chosen(manifest, splits, path):
            opened = open_version(root / split.path, split.version, transport.storage_options)
            chosen.append((check_name(name), validation, split, opened))
    items = []
    for name, validation, split, opened in chosen:
        rows = open_source(opened, target, options)
        made_from = {
            "target": f"{target.name} {target.version}",
            "content_hash": opened.metadata.content_hash,
            "layout": opened.metadata.layout,
            **{name: getattr(options, name) for name in ("shard_size", *target.reads)},
        }
        folder = f"{name}.val" if validation else name
        items.append(_Item(name, folder, validation, split, rows, target.make(rows, options), made_from))
    names = [item.folder for item in items]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two sources would be written into the folder {min(twice)}", "rename one of them")
    return manifest, items


def _manifest_of(name: str, opened: DatasetVersion) -> Manifest:
    """Return a manifest with one dataset."""
    data = opened.metadata
    split = Split(opened.uri.rpartition("/")[2], data.shards, data.rows, data.ledger.rows_used, data.tokens)
    return Manifest(
        tokenizer=data.tokenizer.name if data.tokenizer else "",
        max_seq_length=data.block_size,
        input_path="",
        output_path="",
        files_processed=data.files,
        splits={name: replace(split, version=opened.number, content_hash=data.content_hash)},
        tokenizer_sha256=data.tokenizer.sha256 if data.tokenizer else None,
    )


def _chosen(manifest: Manifest, splits: Sequence[str] | None, path: Path) -> list[tuple[str, bool, Split]]:
    """Return name, whether it is a validation set, and entry of each dataset to export.

    Raises:
        UsageError: there is no such split.
    """
    if manifest.data_format != "lance":
        raise UsageError(f"{path} lists {manifest.data_format} files, not Lance datasets", "export the Lance datasets")
    if unknown := sorted(set(splits or ()) - set(manifest.splits)):
        raise UsageError(f"{path} has no split {unknown[0]!r}", f"use some of: {', '.join(manifest.splits)}")
    chosen = [
        (name, validation, split)
        for validation, entries in ((False, manifest.splits), (True, manifest.validation))
        for name, split in sorted(entries.items())
        if splits is None or name in splits
    ]
    if not chosen:
        raise UsageError(f"{path} lists no splits", "build the collection first")
    return chosen


def _status(item: _Item, state: State | None, force: bool) -> str:
    """Return what is left to do: "up to date", "resumed" or "written".

    Raises:
        OutputExists: the shards that are there were made from something else.
    """
    if state is None:
        return "written"
    if differs := sorted(
        name for name in {*state.made_from, *item.made_from} if state.made_from.get(name) != item.made_from.get(name)
    ):
        if force:
            return "written"
        was, now = state.made_from.get(differs[0]), item.made_from.get(differs[0])
        raise OutputExists(
            f"{item.folder} was exported with another {differs[0]} ({was}, now {now})",
            "name another folder, or pass force=True to replace its shards",
        )
    return "up to date" if state.split is not None else "resumed"


def _planned(item: _Item, state: State | None, force: bool) -> ExportedSource:
    if _status(item, state, force) == "up to date" and state is not None:
        return _report(item, state, "up to date")
    return ExportedSource(item.folder, "planned", item.source.rows, item.split.tokens)


def _report(item: _Item, state: State, status: str) -> ExportedSource:
    shards = state.shards
    return ExportedSource(
        item.folder,
        status,
        sum(shard.rows for shard in shards),
        sum(shard.tokens for shard in shards),
        sum(shard.bytes for shard in shards),
        len(shards),
        combine(shard.hash for shard in shards),
    )


@dataclass(frozen=True)
class _Run:
    """Exports sources, one after another."""

    folder: ExportFolder
    shard_size: int
    workers: int
    on_rows: OnRows
    force: bool

    def export(self, item: _Item) -> ExportedSource:
        """Export a source, or what is left of it."""
        state = self.folder.state(item.folder)
        status = _status(item, state, self.force)
        if state is not None and status == "written":
            self.folder.remove(item.folder, state)
            state = None
        if state is None:
            state = State(item.made_from)
            self.folder.save(item.folder, state)
        state = self.folder.finished(item.folder, state)
        if state.split is None:
            status = "resumed" if state.shards else "written"
            state = self._write(item, state)
            state = self._finish(item, state)
        return _report(item, state, status)

    def _write(self, item: _Item, state: State) -> State:
        """Write the shards that are missing."""
        start = sum(shard.rows for shard in state.shards)
        self.on_rows(item.folder, start, sum(shard.tokens for shard in state.shards))
        batches = item.source.batches(start, item.encoder.batch_rows, item.encoder.columns)
        with closing(_encoded(item.encoder, batches, self.workers)) as pieces:
            waiting = next(pieces, None)
            while waiting is not None:
                with self.folder.new_shard(item.folder, state) as file:
                    shard, waiting = self._write_shard(item, file, waiting, pieces)
                    state = self.folder.add(item.folder, state, file, *shard)
        return state

    def _write_shard(
        self, item: _Item, file: ShardFile, piece: Piece | None, pieces: Iterator[Piece]
    ) -> tuple[tuple[int, int], Piece | None]:
        """Write pieces while they fit. Return the numbers of rows and tokens, and the first piece of the next shard."""
        encoder, rows, tokens = item.encoder, 0, 0
        notes: list[Any] = []
        end = len(encoder.end([]))
        file.write([encoder.begin()])
        while piece is not None:
            fits, rest = piece.split(self.shard_size - file.size - end)
            if fits is None:
                if rows:
                    break
                # A record that is larger than a shard has one to itself.
                fits, rest = piece.first()
            file.write(fits.data)
            rows, tokens, end = rows + fits.rows, tokens + fits.tokens, end + fits.end
            notes.append(fits.note)
            self.on_rows(item.folder, fits.rows, fits.tokens)
            if (piece := rest) is not None:
                break
            piece = next(pieces, None)
        file.write([encoder.end(notes)])
        return (rows, tokens), piece

    def _finish(self, item: _Item, state: State) -> State:
        """Write the statistics of a source whose shards are all there."""
        done = _report(item, state, "")
        if done.rows != item.source.rows:
            raise DatasetError(
                f"{item.source.opened.uri} has {item.source.rows} rows, but {done.rows} were read",
                "run the command again",
            )
        split = Split(
            item.folder,
            done.shards,
            done.rows,
            item.split.samples,
            done.tokens,
            item.split.category,
            item.split.share,
            content_hash=item.source.opened.metadata.content_hash,
        )
        files = [
            {"file": self.folder.shard(item.folder, number).name, **asdict(shard)}
            for number, shard in enumerate(state.shards)
        ]
        facts = {name: getattr(done, name) for name in ("rows", "tokens", "bytes", "hash", "shards")}
        self.folder.write_stats(item.folder, {"source": item.name, **item.made_from, **facts, "files": files})
        finished = replace(state, split=split)
        self.folder.save(item.folder, finished)
        return finished


def _encoded(encoder: Encoder, batches: Iterator[Any], workers: int) -> Generator[Piece, None, None]:
    """Yield the pieces of batches in order, encoded on several threads."""
    waiting: deque[Future[Piece]] = deque()
    with ThreadPoolExecutor(workers, "lance-prep-export") as pool, closing(batches):  # type: ignore[type-var]
        try:
            for batch in batches:
                waiting.append(pool.submit(encoder.encode, batch))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _write_manifest(
    folder: ExportFolder,
    manifest: Manifest,
    items: Iterable[_Item],
    source: str,
    output: str,
    target: Target,
    options: ExportOptions,
) -> None:
    """Write the manifest of the folder."""
    found: tuple[dict[str, Split], dict[str, Split]] = ({}, {})
    for item in items:
        state = folder.state(item.folder)
        if state is not None and state.split is not None:
            found[item.validation][item.name] = state.split
    lengths = {item.source.length for item in items}
    folder.write_manifest(
        replace(
            manifest,
            max_seq_length=lengths.pop() if len(lengths) == 1 else None,
            input_path=source,
            output_path=output,
            splits=found[False],
            validation=found[True],
            data_format=target.name,
            shard_size_gb=options.shard_size / GB,
        ).text()
    )
