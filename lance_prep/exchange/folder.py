"""The folder that an export writes: shards, and the state by which the same command continues after a kill.

    DIR/manifest.json                          all sources; written last
    DIR/.huggingface.yaml                      tells `datasets.load_dataset` where the shards are
    DIR/<source>_stats.json                    rows, tokens, bytes, shards and hashes of a source
    DIR/<source>/shard_0000.parquet            its rows
    DIR/<source>/train.bin, val.bin            its rows and those of its validation set, if a target writes one file
    DIR/.lance_prep/export/<source>.json       what the shards were made from, and each finished shard

A shard is written to a hidden temporary file and made durable. Then its record is written, and then it is renamed. So
a file under a shard's name is whole, and it is ours if and only if a record names it. After a kill between the record
and the renaming, the temporary file is known by its hash. The record of a large file that is not finished yet says how
much of the temporary file is durable, and its hash up to there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from lance_prep.errors import DamagedDataset, OutputExists, UsageError, without_credentials
from lance_prep.store import FOLDER, LOADER_FILE, MANIFEST, LocalFiles, Split, decode, hash_file, make_durable
from lance_prep.transport import absolute_uri, is_local

STATE = f"{FOLDER}/export"
_FORMAT = 1
_FLUSH_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,120}")


@dataclass(frozen=True)
class Shard:
    """A finished file.

    Attributes:
        rows: number of rows.
        tokens: without padding.
        bytes: size of the file.
        hash: xxh3-128 of the file.
    """

    rows: int
    tokens: int
    bytes: int
    hash: str


@dataclass(frozen=True)
class State:
    """How far the export of a source is.

    Attributes:
        made_from: the target, its options and the content hash of the rows: what decides the bytes of the shards.
        shards: finished, in order. The last may not be renamed yet.
        split: its entry in the manifest; None while it is not finished.
        files: paths of its shards, below the folder; `%04d` stands for the number of one.
        beside: paths of the other files of the source.
        begun: the durable part of the shard after `shards`.
    """

    made_from: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    split: Split | None = None
    files: str = ""
    beside: tuple[str, ...] = ()
    begun: Shard | None = None

    @property
    def rows(self) -> int:
        """Number of rows that are durable."""
        return sum(shard.rows for shard in (*self.shards, *([self.begun] if self.begun else [])))

    def file(self, number: int) -> str:
        """Return the path of a shard, below the folder."""
        return self.files % number if "%" in self.files else self.files

    @property
    def folder(self) -> str:
        """The folder of its shards."""
        return self.files.rpartition("/")[0]


def check_name(name: str) -> str:
    """Return a source's name, which becomes the name of a folder.

    Raises:
        UsageError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a folder", "rename the source: use letters, digits, _ . and -"
        )
    return name


class ExportFolder:
    """The folder that an export writes.

    Args:
        path: need not exist.
        suffix: of the shards' names.
        whole: a source is one file, whose name says which side of a split it is, and not a folder of shards.
    """

    def __init__(self, path: str | Path, suffix: str, *, whole: bool = False) -> None:
        place = absolute_uri(path)
        if not is_local(place):
            raise UsageError(
                f"cannot export to {without_credentials(str(path))}: the output must be a local folder",
                "export, then copy the folder",
            )
        self.root = Path(place)
        self._files = LocalFiles(self.root)
        self._suffix, self._whole = suffix, whole

    def files(self, name: str) -> str:
        """Return the paths of a source's shards, as in `State.files`."""
        if not self._whole:
            return f"{name}/shard_%04d{self._suffix}"
        return f"{name.removesuffix('.val')}/{'val' if name.endswith('.val') else 'train'}{self._suffix}"

    def check(self, *, force: bool) -> None:
        """Refuse a folder with other things in it.

        Raises:
            OutputExists: it is a dataset, or holds files and no export.
        """
        if self.root.exists() and not self.root.is_dir():
            raise OutputExists(f"{self.root} is a file", "name a folder")
        if inside := [path for path in (self.root, *self.root.parents) if (path / "_versions").exists()]:
            raise OutputExists(f"{self.root} is in a Lance dataset, {inside[0]}", "name a folder outside it")
        found = [path.name for path in self.root.iterdir() if path.name != FOLDER] if self.root.is_dir() else []
        if found and not (self.root / STATE).is_dir() and not force:
            raise OutputExists(
                f"{self.root} holds other files, such as {min(found)}",
                "name an empty folder, or pass force=True to add the export to them",
            )

    def check_free(self, names: Sequence[str]) -> None:
        """Refuse to write where other files are, whatever `check` allowed.

        Raises:
            OutputExists: names one.
        """
        first = not (self.root / STATE).is_dir()
        ours = [f"{name}_stats.json" for name in names if self.state(name) is None]
        for name in [*ours, *([MANIFEST, LOADER_FILE] if first else [])]:
            if os.path.lexists(self.root / name):
                raise OutputExists(
                    f"{self.root / name} was not written by an export", "name another folder, or move it away"
                )

    def names(self) -> list[str]:
        """Return the names of all sources that were exported here, finished or not."""
        return [Path(path).stem for path in self._files.list(STATE) if path.endswith(".json")]

    def state(self, name: str) -> State | None:
        """Return the state of a source, or None if it was never exported here.

        Raises:
            DamagedDataset: it cannot be read.
        """
        data = self._files.read(f"{STATE}/{name}.json")
        if data is None:
            return None
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            state = decode(State, fields)
            return state if state.files else replace(state, files=self.files(name))
        except (ValueError, RecursionError) as error:
            path = self.root / STATE / f"{name}.json"
            raise DamagedDataset(f"{path} is invalid: {error}", "name another folder, or remove this one") from error

    def save(self, name: str, state: State) -> None:
        """Write the state of a source."""
        self._write_json(f"{STATE}/{name}.json", {"format": _FORMAT, **asdict(state)})

    def checked(self, name: str, state: State, *, force: bool) -> State:
        """Return the state up to the first shard that is missing. Shards after it are removed.

        A shard that a killed export wrote and recorded is given its name.

        Args:
            force: a shard that has changed counts as missing.

        Raises:
            OutputExists: a shard has changed, and not `force`.
        """
        for number, shard in enumerate(state.shards):
            path, temporary = self.shard(state, number), self._temporary(state, number)
            if path.is_file() and path.stat().st_size == shard.bytes:
                continue
            if os.path.lexists(path) and not force:
                raise OutputExists(
                    f"{path} has changed since it was exported",
                    "move it away, or pass force=True to replace it",
                )
            last = number + 1 == len(state.shards)
            if last and not os.path.lexists(path) and temporary.is_file() and hash_file(temporary) == shard.hash:
                self._rename(temporary, path)
                continue
            for other in range(number, len(state.shards)):
                self.shard(state, other).unlink(missing_ok=True)
            state = replace(state, shards=state.shards[:number], split=None, begun=None)
            self.save(name, state)
            break
        return state

    def shard(self, state: State, number: int) -> Path:
        """Return the path of a shard."""
        return self._files.path(state.file(number), replace=True)

    def _temporary(self, state: State, number: int) -> Path:
        folder, _, name = state.file(number).rpartition("/")
        return self._files.path(f"{folder}/.{name}.part", replace=True)

    @contextmanager
    def new_shard(self, name: str, state: State) -> Iterator[ShardFile]:
        """Open the temporary file of a source's next shard. It is removed if the block fails.

        Raises:
            OutputExists: something else has the shard's name.
        """
        number = len(state.shards)
        if os.path.lexists(self.shard(state, number)):
            raise OutputExists(f"{self.shard(state, number)} was not written by this export", "move it away")
        temporary = self._temporary(state, number)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        file = ShardFile(temporary, state.begun)
        try:
            yield file
        except BaseException:  # raised again; also a stop must not leave the file
            file.abandon()
            raise

    def begun(self, name: str, state: State, file: ShardFile, rows: int, tokens: int) -> State:
        """Make what is written of a shard durable. Return the state with it."""
        state = replace(state, begun=file.durable(rows, tokens))
        self.save(name, state)
        return state

    def usable(self, state: State) -> State:
        """Return a state without the begun shard, if its temporary file has not the content that was recorded."""
        if state.begun is None:
            return state
        path = self._temporary(state, len(state.shards))
        if path.is_file() and not path.is_symlink() and _hash_begin(path, state.begun.bytes) == state.begun.hash:
            return state
        return replace(state, begun=None)

    def add(self, name: str, state: State, file: ShardFile, rows: int, tokens: int) -> State:
        """Make a written shard durable and give it its name. Return the state with it."""
        added = replace(state, shards=(*state.shards, file.finish(rows, tokens)), begun=None)
        self.save(name, added)
        self._rename(file.path, self.shard(state, len(state.shards)))
        return added

    def add_beside(self, name: str, state: State, files: Iterator[tuple[str, Iterable[Any]]]) -> State:
        """Write the files that describe a source's shards, given their names and contents. Return the state with them.

        Raises:
            OutputExists: something else has one of the names.
        """
        for other, data in files:
            path = f"{state.folder}/{other}"
            if path not in state.beside:
                if os.path.lexists(self.root / path):
                    raise OutputExists(f"{self.root / path} was not written by this export", "move it away")
                state = replace(state, beside=(*state.beside, path))
                self.save(name, state)
            self._write(path, data)
        return state

    def _write(self, path: str, data: Iterable[Any]) -> None:
        """Write a file of any size in one step."""
        target = self._files.path(path, replace=True)
        target.parent.mkdir(parents=True, exist_ok=True)  # a dataset without rows has no shard that made it
        file = ShardFile(target.with_name(f".{target.name}.part"))
        try:
            for part in data:
                file.write([part])
            file.finish(0, 0)
        except BaseException:  # raised again; also a stop must not leave the file
            file.abandon()
            raise
        file.path.replace(target)
        self._files.sync(path)

    def remove(self, name: str, state: State) -> None:
        """Remove the files that the state names, an unfinished one, and the state."""
        self._temporary(state, len(state.shards)).unlink(missing_ok=True)
        for number in range(len(state.shards)):
            self.shard(state, number).unlink(missing_ok=True)
        for path in state.beside:
            self._files.path(path, replace=True).unlink(missing_ok=True)
        self._files.delete(f"{STATE}/{name}.json")

    def write_stats(self, name: str, stats: dict[str, Any]) -> None:
        """Write `<source>_stats.json`."""
        self._write_json(f"{name}_stats.json", stats)

    def write_loader(self, train: Sequence[str], validation: Sequence[str]) -> None:
        """Write the file by which `datasets.load_dataset` finds the shards in folders of these names."""
        lines = ["# How `datasets.load_dataset` finds the data of this folder. Written by lance-prep.", "configs:"]
        lines += ["- config_name: default", "  data_files:"]
        for split, names in (("train", train), ("validation", validation)):
            if names:
                lines += [f"  - split: {split}", "    path:"]
                lines += [f"    - {name}/*{self._suffix}" for name in names]
        self._files.write(LOADER_FILE, ("\n".join(lines) + "\n").encode())

    def write_manifest(self, text: str) -> None:
        """Write `manifest.json`."""
        self._files.write(MANIFEST, text.encode())

    def _write_json(self, path: str, value: dict[str, Any]) -> None:
        self._files.write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def _rename(self, temporary: Path, path: Path) -> None:
        temporary.rename(path)
        self._files.sync(path.relative_to(self.root).as_posix())


class ShardFile:
    """A shard that is being written.

    The system is asked to write every 64 MB to the disk while encoding goes on. Otherwise up to 2 GB would wait for the
    end of the shard, which took 1 s per GB.

    Args:
        path: of the temporary file.
        begun: what an earlier run made durable in it, and this one continues.

    Attributes:
        path: of the temporary file.
        size: bytes written.
        begun: what is durable of it.
    """

    def __init__(self, path: Path, begun: Shard | None = None) -> None:
        self.path, self.size, self.begun = path, 0, begun
        self._hash = xxhash.xxh3_128()
        if begun is not None:
            self.size = begun.bytes
            _hash_begin(path, begun.bytes, self._hash)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb", buffering=0)
            self._file.truncate(self.size)
            self._file.seek(self.size)
        else:
            path.unlink(missing_ok=True)
            # O_EXCL follows no link.
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb", buffering=0)
        self._flusher: ThreadPoolExecutor | None = None
        self._flushed = self.size
        self._flushing: Future[None] | None = None

    def write(self, data: Sequence[Any]) -> None:
        """Append bytes-like objects."""
        for part in data:
            self._hash.update(part)
            self.size += memoryview(part).nbytes
        _write_all(self._file.fileno(), data)
        if self.size - self._flushed >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            if self._flushing is not None:
                self._flushing.result()  # the system reports an error only once
            self._flusher = self._flusher or ThreadPoolExecutor(1, "lance-prep-flush")
            self._flushed = self.size
            self._flushing = self._flusher.submit(getattr(os, "fdatasync", os.fsync), self._file.fileno())

    def durable(self, rows: int, tokens: int) -> Shard:
        """Make what is written durable, so that another run can continue it. Return its record."""
        self.begun = self._record(rows, tokens)
        return self.begun

    def finish(self, rows: int, tokens: int) -> Shard:
        """Make the file durable and close it."""
        shard = self._record(rows, tokens)
        self._close()
        return shard

    def _record(self, rows: int, tokens: int) -> Shard:
        if self._flushing is not None:
            self._flushing.result()
        make_durable(self._file.fileno())
        return Shard(rows, tokens, self.size, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file, and remove what is not durable of it."""
        if self.begun is None:
            self.path.unlink(missing_ok=True)
        else:
            os.truncate(self.path, self.begun.bytes)
        self._close()

    def _close(self) -> None:
        if self._flusher is not None:
            self._flusher.shutdown(wait=True)
        self._file.close()


def _hash_begin(path: Path, size: int, digest: Any = None) -> str:
    """Return the hash of a file's first bytes; empty if it has fewer."""
    digest = digest or xxhash.xxh3_128()
    with path.open("rb") as file:
        while size and (data := file.read(min(size, 1 << 22))):
            digest.update(data)
            size -= len(data)
    return "" if size else str(digest.hexdigest())


def _write_all(fd: int, parts: Sequence[Any]) -> None:
    """Write all parts with few system calls."""
    views = [memoryview(part).cast("B") for part in parts]
    while views:
        some = views[:512]  # systems take at most 1,024 at once
        written = os.writev(fd, some)
        for view in some:
            if written < view.nbytes:
                views[0] = view[written:]
                break
            written -= view.nbytes
            views.pop(0)
