"""Check a folder of text: each file against its stats, each line as a build would read it, and exact duplicates."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import drop_blank, hash_texts, without_nulls
from lance_prep.collection.duplicates import Place, TextHashes
from lance_prep.collection.folder import LINES, STATS, SourceStats, lines_files, local_folder, read_recipe, read_stats
from lance_prep.collection.unfinished import Unfinished
from lance_prep.dataset import Verification
from lance_prep.errors import DamagedDataset, SourceNotFound
from lance_prep.ledger import Rejected, Tally
from lance_prep.model import PinnedSource, Plan, Skipped, SourceFile
from lance_prep.plan import restrict
from lance_prep.recipe import make_recipe
from lance_prep.source import read_shard
from lance_prep.store import LocalFiles
from lance_prep.transport import Transport

#: Bad lines of a file that are named one by one, and duplicates.
NAMED = 10
_SHARD_BYTES = 32 << 20
_BLOCK_BYTES = 4 << 20
_REASONS = {"no column text": "no `text`", "column text is not string": "`text` is not a string"}


@dataclass(frozen=True)
class CheckedFile:
    """A `.jsonl` file that was checked.

    Attributes:
        path: in the folder.
        downloaded: whether it has stats.
        rows: lines that are not blank, `bad` ones included.
        characters: of the texts.
        bad: lines that a build would reject.
        empty: rows without text: null, or only white space.
        repeated: rows with the text of an earlier row of the file.
        repeated_elsewhere: rows with the text of a row of an earlier file.
    """

    path: str
    downloaded: bool
    rows: int
    characters: int
    bytes: int
    bad: int
    empty: int
    repeated: int = 0
    repeated_elsewhere: int = 0


@dataclass
class DownloadCheck(Verification):
    """The result of checking a folder of text. Duplicates are no problems.

    Attributes:
        files: in natural order.
        notes: what else a user should know, a sentence each.
        pairs: number of rows whose text is that of an earlier row, by the paths of the earlier row and the row.
        examples: of such rows, a sentence each.
    """

    files: list[CheckedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def repeated(self) -> int:
        """Number of rows whose text is that of an earlier row."""
        return sum(self.pairs.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        pairs = [
            {"first": first, "repeated_in": later, "rows": count}
            for (first, later), count in sorted(self.pairs.items())
        ]
        return {"ok": self.ok, **asdict(self), "pairs": pairs, "repeated": self.repeated}


def check_download(folder: str | Path, *, on_rows: Callable[[int], None] = lambda rows: None) -> DownloadCheck:
    """Check the `.jsonl` files below a folder, downloaded or one's own.

    A downloaded file must have the size, the hash and the number of rows that its stats say. Each line of any file must
    be a JSON object with a string `text`. Rows with the text of an earlier row, in any file, are counted. Memory use
    does not grow with the files, but for 16 bytes a row.

    Args:
        on_rows: called with the number of rows read since the last call.

    Raises:
        SourceNotFound: there is no `.jsonl` file.
    """
    root, found, skipped = local_folder(folder), DownloadCheck(), list[Skipped]()
    files, hashes = LocalFiles(root), TextHashes()
    paths = list(lines_files(root, skipped))
    if not paths:
        raise SourceNotFound(
            f"no {LINES} file in {folder} or in a folder below it", "name the folder that `lance-prep download` wrote"
        )
    for path in paths:
        hashes.begin_file()
        with found.reading(path):
            _check_file(files, path, found, hashes, on_rows)
    _note(files, paths, skipped, found)
    repeated = hashes.duplicates(NAMED)
    found.pairs = {(paths[first], paths[later]): count for (first, later), count in repeated.pairs.items()}
    found.files = [_counted(each, found.pairs) for each in found.files]
    found.examples = [_example(root, paths, *pair) for pair in repeated.examples]
    return found


def _counted(checked: CheckedFile, pairs: Mapping[tuple[str, str], int]) -> CheckedFile:
    counts = {first: count for (first, later), count in pairs.items() if later == checked.path}
    own = counts.pop(checked.path, 0)
    return replace(checked, repeated=own, repeated_elsewhere=sum(counts.values()))


def _check_file(
    files: LocalFiles, path: str, found: DownloadCheck, hashes: TextHashes, on_rows: Callable[[int], None]
) -> None:
    local = files.path(path)
    size = local.stat().st_size
    stats = None
    category, _, name = path.removesuffix(LINES).rpartition("/")
    try:
        stats = read_stats(files, category, name)
    except DamagedDataset as error:
        found.wrong(str(error))
    if stats is not None:
        _check_bytes(local, path, size, stats, found)
    reader = _Reader(local, size, hashes, on_rows)
    reader.read()
    if stats is not None and reader.rows != stats.rows:
        found.wrong(f"{path}: {reader.rows:,} rows; as downloaded, it had {stats.rows:,}")
    for number, rejected in zip(_line_numbers(local, reader.bad), reader.bad, strict=True):
        found.wrong(f"{path}, line {number:,}: {_REASONS.get(rejected.reason, rejected.reason)}")
    bad = sum(reader.reasons.values())
    if bad > len(reader.bad):
        said = ", ".join(f"{_REASONS.get(reason, reason)}: {count:,}" for reason, count in reader.reasons.items())
        found.wrong(f"{path}: {bad:,} bad lines; the first {len(reader.bad)} are named ({said})")
    if reader.empty:
        found.notes.append(
            f"{path}: {reader.empty:,} of its rows have no text, or only white space: no build uses them"
        )
    found.count("files")
    found.count("rows", reader.rows)
    found.files.append(CheckedFile(path, stats is not None, reader.rows, reader.characters, size, bad, reader.empty))


def _check_bytes(local: Path, path: str, size: int, stats: SourceStats, found: DownloadCheck) -> None:
    if size != stats.bytes:
        found.wrong(f"{path}: {size:,} bytes; as downloaded, it had {stats.bytes:,}")
        return
    with local.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != stats.sha256:
        found.wrong(f"{path}: its sha256 is {digest}; as downloaded, it was {stats.sha256}")


class _Reader:
    """Reads a file as a build does.

    Attributes:
        rows, empty, characters: as in `CheckedFile`.
        bad: the first bad lines.
        reasons: number of bad lines, by reason.
    """

    def __init__(self, path: Path, size: int, hashes: TextHashes, on_rows: Callable[[int], None]) -> None:
        self.rows = self.empty = self.characters = 0
        self.bad: list[Rejected] = []
        self.reasons: dict[str, int] = {}
        self._plan = _plan(path, size)
        self._hashes = hashes
        self._on_rows = on_rows

    def read(self) -> None:
        """Read the file to its end."""
        for shard in self._plan.shards:
            tally = Tally(on_reject=self._reject)
            rows, hashes, before = [], [], 0
            for batch in read_shard(self._plan, shard, tally):
                texts, kept = drop_blank(without_nulls(batch.columns.column(0)))
                rows.append(batch.rows[kept])
                hashes.append(hash_texts(texts))
                self.empty += len(batch.rows) - len(kept)
                self.characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
                self._on_rows(tally.ledger.rows_in - before)
                before = tally.ledger.rows_in
            self._hashes.add(tally.ledger.rows_in, rows, hashes)
            self.rows += tally.ledger.rows_in

    def _reject(self, rejected: Rejected) -> None:
        self.reasons[rejected.reason] = self.reasons.get(rejected.reason, 0) + 1
        if len(self.bad) < NAMED:
            self.bad.append(rejected)


def _plan(path: Path, size: int) -> Plan:
    """Return the plan that reads `text` of a file, whether or not its first lines have it."""
    url = str(path.absolute())
    file = SourceFile(url, "jsonl", size, str(path.stat().st_mtime_ns))
    fields = {"source": url, "layout": "documents", "text_column": "text", "shard_size": _SHARD_BYTES}
    recipe = make_recipe(fields, {}, url)
    delivered, read = pa.schema([("text", pa.large_string())]), pa.schema([("text", pa.string())])
    plan = Plan(recipe, PinnedSource(asked=url), (file,), (), delivered, read)
    return restrict(plan, (file,), Transport(), first_shard=0)


def _line_numbers(path: Path, rows: Sequence[Rejected]) -> list[int]:
    """Return the number of the line of each row, from 1; rows are in the file's order."""
    numbers: list[int] = []
    with path.open("rb") as file:
        lines = at = 0
        for rejected in rows:
            while at < rejected.position:
                block = file.read(min(_BLOCK_BYTES, rejected.position - at))
                if not block:
                    break
                lines += block.count(b"\n")
                at += len(block)
            numbers.append(lines + 1)
    return numbers


def _note(files: LocalFiles, paths: Sequence[str], skipped: Sequence[Skipped], found: DownloadCheck) -> None:
    """Say what is not there, and what is left out."""
    recipe = None
    try:
        recipe = read_recipe(files)
    except DamagedDataset as error:
        found.wrong(str(error))
    for category, name, _ in recipe.sources() if recipe is not None else []:
        path = f"{category}/{name}{LINES}"
        if path in paths:
            continue
        if files.read(f"{category}/{name}{STATS}") is not None:
            found.wrong(f"{path} is missing; its stats are there")
        state = Unfinished(files, category, name).state()
        what = f"is unfinished ({state.bytes:,} bytes so far)" if state is not None else "is not downloaded"
        found.notes.append(f"{category}/{name} of the recipe {what}; run `lance-prep download` to fetch it")
    found.notes += [f"{each.path} is left out: {each.reason}" for each in skipped]


def _example(root: Path, paths: Sequence[str], first: Place, later: Place) -> str:
    one, text = _row(root / paths[first.file], first.row)
    other, _ = _row(root / paths[later.file], later.row)
    return f"{paths[later.file]}, line {other:,} repeats {paths[first.file]}, line {one:,}: {text[:60]!r}"


def _row(path: Path, row: int) -> tuple[int, str]:
    """Return the number of a row's line, from 1, and its text."""
    number, line = next(islice(_lines(path), row, None))
    return number, str(json.loads(line.removeprefix(codecs.BOM_UTF8))["text"])


def samples(folder: str | Path, count: int) -> dict[str, list[tuple[int, Any]]]:
    """Return the first records of each file below a folder, each with the number of its line.

    Lines that are not valid JSON are left out.
    """
    root = local_folder(folder)
    return {path: list(islice(_parsed(root / path), count)) for path in lines_files(root, [])}


def _parsed(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        with suppress(ValueError, RecursionError):
            yield number, json.loads(line.removeprefix(codecs.BOM_UTF8))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
