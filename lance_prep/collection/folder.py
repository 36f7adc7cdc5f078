"""The folder of a download: which files it holds, and what is recorded about each.

DIR/
  <category>/<source>.jsonl              one JSON object a line: text, id, source, category, metadata
  <category>/<source>.stats.json         `SourceStats`: counts, hash, where it is from
  <category>/<source>.rejected.jsonl     records that could not be used, if any
  <category>/<source>.jsonl.part         an unfinished download
  <name>/*.jsonl                         data of one's own
  .lance_prep/collection.json            the collection recipe, with normalised shares
  .lance_prep/downloads/                 plan and state of unfinished downloads
  .lance_prep/lock                       as in a dataset
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lance_prep.collection.model import CollectionRecipe
from lance_prep.errors import DamagedDataset, DatasetError, SourceNotFound, UsageError
from lance_prep.model import Skipped
from lance_prep.store import FOLDER, LocalFiles, decode, natural
from lance_prep.transport import absolute_uri, is_local

LINES = ".jsonl"
STATS = ".stats.json"
REJECTED = ".rejected.jsonl"
PART = ".part"
RECIPE = f"{FOLDER}/collection.json"
FORMAT = 1


@dataclass(frozen=True)
class SourceStats:
    """What is recorded about the downloaded text of a source.

    Attributes:
        source, category: names in the collection recipe.
        rows: lines of the file.
        characters: of the texts, as Unicode code points.
        bytes: size of the file.
        sha256: of the file.
        asked: the recipe's `source`.
        repo, config, split, revision, commit: of a Hub dataset, as in `PinnedSource`.
        license: the recipe's note.
        tokens: of the texts, as a build counts them; None unless the recipe limits them.
        ledger: what became of each source row that was read.
        rejected: the file with the rejected rows, or None if no row was rejected.
        entry: the fields of the recipe that decide the file's content.
        finished: when, in UTC.
        seconds: how long the download took, over all its runs.
    """

    source: str
    category: str
    rows: int
    characters: int
    bytes: int
    sha256: str
    asked: str
    repo: str | None
    config: str | None
    split: str | None
    revision: str | None
    commit: str | None
    license: str | None
    tokens: int | None
    ledger: dict[str, Any]
    rejected: str | None
    entry: dict[str, Any]
    finished: str
    seconds: float
    format: int = FORMAT

    def text(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class DownloadedSource:
    """A `.jsonl` file of a download.

    Attributes:
        category: of the collection, or the folder below DIR that one's own file is in.
        name: of the source. For one's own file, its path in DIR, with `-` for `/`.
        path: the file.
        stats: None for a file that was not downloaded.
    """

    category: str
    name: str
    path: Path
    stats: SourceStats | None


@dataclass(frozen=True)
class Download:
    """What a folder of text holds.

    Attributes:
        folder: the folder.
        recipe: the collection recipe that was downloaded into it; None if there was none.
        sources: the `.jsonl` files, in natural order of their paths.
        skipped: files and links that are not read.
    """

    folder: Path
    recipe: CollectionRecipe | None
    sources: tuple[DownloadedSource, ...]
    skipped: tuple[Skipped, ...] = field(default=())

    def missing(self) -> list[tuple[str, str]]:
        """Return category and name of each source of the recipe that is not in the folder."""
        there = {source.name for source in self.sources}
        wanted = self.recipe.sources() if self.recipe is not None else []
        return [(category, name) for category, name, _ in wanted if name not in there]


def read_download(folder: str | Path) -> Download:
    """Find the `.jsonl` files below a folder, downloaded or one's own. Links are not followed.

    Raises:
        UsageError: the folder is not local.
        SourceNotFound: there is no such folder.
        DamagedDataset: a file with stats, or the saved recipe, is invalid.
        DatasetError: two files have the same name as sources.
    """
    root = local_folder(folder)
    if not root.is_dir():
        raise SourceNotFound(f"{folder}: no such folder", "name the folder that `lance-prep download -o` wrote")
    files = LocalFiles(root)
    skipped: list[Skipped] = []
    sources = [_source(files, root, name) for name in lines_files(root, skipped)]
    times = Counter(source.name.lower() for source in sources)
    for source in sources:
        if times[source.name.lower()] > 1:
            others = [str(each.path) for each in sources if each.name.lower() == source.name.lower()]
            raise DatasetError(f"{' and '.join(others)} would both be the source {source.name}", "rename one of them")
    return Download(root, read_recipe(files), tuple(sources), tuple(skipped))


def is_text_folder(folder: str | Path) -> bool:
    """Return True for a local folder that holds text, downloaded or one's own, and not a dataset."""
    uri = absolute_uri(folder)
    root = Path(uri)
    if not is_local(uri) or not root.is_dir() or (root / "_versions").is_dir():
        return False
    return (root / RECIPE).is_file() or next(lines_files(root, []), None) is not None


def read_recipe(files: LocalFiles) -> CollectionRecipe | None:
    """Return the collection recipe that was downloaded into a folder; None if there was none.

    Raises:
        DamagedDataset: it is invalid.
    """
    data = files.read(RECIPE)
    if data is None:
        return None
    try:
        return CollectionRecipe(**json.loads(data))
    except (ValueError, ValidationError, TypeError, RecursionError) as error:
        said = f"{files.path(RECIPE)} is not a collection recipe: {' '.join(str(error).split())}"
        raise DamagedDataset(said, "run `lance-prep download` again, which writes it") from error


def read_stats(files: LocalFiles, category: str, name: str) -> SourceStats | None:
    """Return what is recorded about `<category>/<name>.jsonl`; None if nothing is.

    Raises:
        DamagedDataset: the record is invalid.
    """
    path = f"{category}/{name}{STATS}" if category else f"{name}{STATS}"
    data = files.read(path)
    if data is None:
        return None
    try:
        stats = decode(SourceStats, json.loads(data))
        if stats.format != FORMAT:
            raise ValueError(f"its format is {stats.format}, not {FORMAT}")
        return stats
    except (ValueError, RecursionError) as error:
        raise DamagedDataset(
            f"{files.path(path)} is invalid: {error}",
            "remove it, and the file that it describes, and run `lance-prep download` again",
        ) from error


def _source(files: LocalFiles, root: Path, path: str) -> DownloadedSource:
    folder, _, file = path.rpartition("/")
    stem = file.removesuffix(LINES)
    stats = read_stats(files, folder, stem)
    if stats is not None and (stats.category, stats.source) == (folder, stem):
        return DownloadedSource(folder, stem, root / path, stats)
    # A name is part of file names, and must not depend on what else is in the folder.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.removesuffix(LINES).replace("/", "-")).lstrip("_.-") or "data"
    return DownloadedSource(path.split("/")[0] if folder else stem, name[:100], root / path, None)


#: What `exchange` puts into the folder of an export. Its text is that of sources which are built already.
EXPORT_STATE = ".lance_prep/export"


def lines_files(root: Path, skipped: list[Skipped]) -> Iterator[str]:
    """Yield the paths, relative to `root`, of all `.jsonl` files below it, in natural order.

    Args:
        skipped: gets what is left out, except hidden files, stats and unfinished downloads.
    """

    def walk(folder: Path, name: str) -> Iterator[str]:
        entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name.removesuffix(LINES)))
        for entry in entries:
            path = f"{name}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                skipped.append(Skipped(path, "a link"))
            elif entry.is_dir():
                if entry.name.endswith(".lance"):
                    skipped.append(Skipped(path, "a Lance dataset"))
                elif (folder / entry.name / EXPORT_STATE).is_dir():
                    skipped.append(Skipped(path, "an export"))
                else:
                    yield from walk(folder / entry.name, f"{path}/")
            elif not entry.is_file():
                skipped.append(Skipped(path, "not a regular file"))
            elif entry.name.endswith(REJECTED):
                skipped.append(Skipped(path, "rejected rows"))
            elif entry.name.endswith(LINES):
                yield path
            elif not entry.name.endswith((STATS, PART)):
                skipped.append(Skipped(path, f"not a {LINES} file"))

    yield from walk(root, "")


def local_folder(folder: str | Path) -> Path:
    """Return the path of a local folder, which may be given as a `file://` URI. It need not exist.

    Raises:
        UsageError: it is not local.
    """
    if is_local(str(folder)):
        return Path(folder)
    uri = absolute_uri(folder)
    if not is_local(uri):
        raise UsageError(f"{folder} is not a local folder", "use a local folder, and copy it to or from the store")
    return Path(uri)


def check_folder(folder: Path) -> None:
    """Check that text may be written into a folder, which need not exist.

    Raises:
        UsageError: it is a file or below one, or a Lance dataset, whose files would be mixed with the text.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file", "name a folder with -o")
    if (folder / "_versions").is_dir():
        raise UsageError(f"{folder} is a Lance dataset", "name another folder with -o")
