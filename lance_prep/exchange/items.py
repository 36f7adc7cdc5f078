"""What an export consists of: one item for each dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lance_prep.errors import OutputExists, UsageError, without_credentials
from lance_prep.exchange.base import Encoder, ExportOptions, Source, Target
from lance_prep.exchange.folder import State, check_name
from lance_prep.exchange.rows import open_source
from lance_prep.store import MANIFEST, DatasetVersion, Manifest, Split, open_version, read_manifest
from lance_prep.transport import Transport, absolute_uri


@dataclass(frozen=True)
class Entry:
    """A dataset of a manifest.

    Attributes:
        name: of the source.
        validation: whether it is the source's validation set.
        split: its entry in the manifest.
    """

    name: str
    validation: bool
    split: Split

    @property
    def folder(self) -> str:
        """The name of its folder of shards."""
        return f"{self.name}.val" if self.validation else self.name


@dataclass(frozen=True)
class Item:
    """A dataset to export.

    Attributes:
        entry: what it is.
        source: its rows.
        encoder: writes them.
        made_from: what decides the bytes of its shards; see `State`.
    """

    entry: Entry
    source: Source
    encoder: Encoder
    made_from: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder of shards."""
        return self.entry.folder

    def status(self, state: State | None, *, force: bool) -> str:
        """Return what is left to do: "written" (all), "resumed" (a part) or "up to date".

        Raises:
            OutputExists: the shards that are there were made from something else, and not `force`.
        """
        if state is None:
            return "written"
        if state.made_from == self.made_from:
            return "up to date" if state.split is not None else "resumed"
        if force:
            return "written"
        both = {**self.made_from, **state.made_from}
        name = next(name for name in both if state.made_from.get(name) != self.made_from.get(name))
        was, now = state.made_from.get(name), self.made_from.get(name)
        said = f"was exported with {_said(name, was)}, not {_said(name, now)}"
        if name == "content_hash":
            said = f"was exported from other rows: content hash {was}, not {now}"
        raise OutputExists(f"{self.name} {said}", "name another folder, or pass force=True to replace its shards")


def _said(name: str, value: Any) -> str:
    return f"{name}={value}B" if name == "shard_size" and value else f"{name}={value!r}"


@dataclass(frozen=True)
class Items:
    """What an export was asked for.

    Attributes:
        manifest: of the datasets; made up if there is only one.
        entries: all datasets of the manifest.
        chosen: those to export.
        single: one dataset was named, and no manifest.
    """

    manifest: Manifest
    entries: tuple[Entry, ...]
    chosen: tuple[Item, ...]
    single: bool = False


def find_items(
    path: str | Path,
    target: Target,
    options: ExportOptions,
    version: int | str | None,
    splits: Sequence[str] | None,
    transport: Transport,
) -> Items:
    """Open the datasets to export.

    Raises:
        UsageError: an option contradicts the source, or the target cannot hold the rows.
        DatasetError: a dataset or the manifest cannot be read.
    """
    named, place = without_credentials(str(path)), Path(absolute_uri(path))
    if not (place.is_file() or (place / MANIFEST).is_file()):
        if splits is not None:
            raise UsageError(f"splits has no effect: {named} is one dataset", "leave `splits` out")
        opened = open_version(path, version, transport.storage_options)
        entry = _entry_of(opened)
        return Items(_manifest_of(entry, opened), (entry,), (_item(entry, opened, target, options),), single=True)
    if version is not None:
        raise UsageError(f"version has no effect: {named} names a version of each dataset", "leave `version` out")
    root, manifest = (place.parent if place.is_file() else place), read_manifest(place)
    if manifest.data_format != "lance":
        raise UsageError(f"{named} lists {manifest.data_format} files, not Lance datasets", "export the Lance datasets")
    entries = _entries(manifest)
    if unknown := sorted(set(splits or ()) - set(manifest.splits)):
        raise UsageError(f"{named} has no split {unknown[0]!r}", f"use some of: {', '.join(manifest.splits)}")
    chosen = [entry for entry in entries if splits is None or entry.name in splits]
    if not chosen:
        raise UsageError(f"there is nothing to export from {named}", "build the collection, or name other splits")
    items = [_item(entry, _open(root, manifest, entry, transport), target, options) for entry in chosen]
    return Items(manifest, entries, tuple(items))


def _entries(manifest: Manifest) -> tuple[Entry, ...]:
    """Return the datasets of a manifest by name, validation sets last.

    Raises:
        UsageError: a name cannot be that of a folder, or two datasets would share one.
    """
    both = ((False, manifest.splits), (True, manifest.validation))
    entries = [Entry(check_name(name), kind, split) for kind, found in both for name, split in sorted(found.items())]
    folders = [entry.folder for entry in entries]
    if twice := sorted(name for name in folders if folders.count(name) > 1):
        raise UsageError(f"two datasets would be written into the folder {twice[0]}", "rename a source")
    return tuple(entries)


def _open(root: Path, manifest: Manifest, entry: Entry, transport: Transport) -> DatasetVersion:
    """Return the version of a dataset that the manifest names.

    Raises:
        DatasetError: it is missing, has other rows, or is a link out of the manifest's folder.
    """
    split, kind = entry.split, "validation set" if entry.validation else "split"
    where, command = f"{root / MANIFEST}: {kind} {entry.name!r}", manifest.command(root)
    opened = open_version(split.folder(root, where, command), split.version, transport.storage_options)
    split.check_content(opened.metadata.content_hash, where, command)
    return opened


def _item(entry: Entry, opened: DatasetVersion, target: Target, options: ExportOptions) -> Item:
    source = open_source(opened, target, options)
    made_from = {
        "format": target.name,
        "format_version": target.version,
        "content_hash": opened.metadata.content_hash,
        "layout": opened.metadata.layout,
        **{name: getattr(options, name) for name in ("shard_size", *target.reads)},
    }
    return Item(entry, source, target.make(source, options), made_from)


def _entry_of(opened: DatasetVersion) -> Entry:
    """Return the entry of a dataset that no manifest names."""
    data, name = opened.metadata, opened.uri.rpartition("/")[2]
    split = Split(name, data.shards, data.rows, data.ledger.rows_used, data.tokens, version=opened.number)
    return Entry(check_name(name.removesuffix(".lance")), False, replace(split, content_hash=data.content_hash))


def _manifest_of(entry: Entry, opened: DatasetVersion) -> Manifest:
    tokenizer, data = opened.metadata.tokenizer, opened.metadata
    return Manifest(
        tokenizer=tokenizer.name if tokenizer else "",
        max_seq_length=data.block_size,
        input_path="",
        output_path="",
        files_processed=data.files,
        splits={entry.name: entry.split},
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
    )
