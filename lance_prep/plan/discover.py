"""Local and object-store sources: a path or URL in, pinned files out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_prep.errors import SourceNotFound, UsageError, translate, translating
from lance_prep.fetch import fsspec_of, identity_of
from lance_prep.plan.formats import check_one_family, format_of, is_data, require_format
from lance_prep.plan.model import PinnedSource, SourceFile
from lance_prep.recipe import Recipe

_ADVICE = "name a local file, folder or glob, a Hub id owner/name, an hf:// or s3:// URL, a recipe, or `sample`"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """What a source's name meant.

    Attributes:
        source, files: as in `Plan`.
        schema: of all columns, where finding the files told it already; else None.
    """

    source: PinnedSource
    files: tuple[SourceFile, ...]
    schema: pa.Schema | None = None


def looks_like_hub_id(source: str) -> bool:
    """True for `owner/name` that is no path of a data file."""
    return _HUB_ID.fullmatch(source) is not None and format_of(source) is None


def is_glob(path: str) -> bool:
    return _GLOB.search(path) is not None


def find_local(source: str) -> Found | None:
    """Local files of a path or glob; None where there is no such path.

    Raises:
        SourceNotFound: a folder without data files, or a glob that matches none.
        SourceError, UsageError: unknown extension, or several kinds of files in one folder.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not is_lance(path):
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))
        names = [name for name in inside if is_data(name) and _is_leaf(path / name)]
        names = _without_ours(names, path)
        if not names:
            raise SourceNotFound(f"{source}: no data files in this folder", "its files must have known extensions")
        check_one_family(names, source)
        paths = [path / name for name in names]
    elif path.exists():
        paths = [path]
    elif is_glob(source):
        # Path.glob takes no absolute pattern
        matched = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        names = [name for name in matched if _is_leaf(Path(name)) and format_of(name) is not None]
        paths = [Path(name) for name in _without_ours(names, Path())]
        if not paths:
            raise SourceNotFound(f"{source}: no data file matches this pattern", _ADVICE)
        check_one_family([p.name for p in paths], source)
    else:
        return None
    return Found(PinnedSource(asked=source), tuple(_local_file(p) for p in paths))


def _without_ours(names: list[str], root: Path) -> list[str]:
    """Without what builds put beside their source: datasets of ours, begun ones too, and quarantine files.

    Else a build into the folder that it reads would find its own output there the next time. Named by themselves they
    are sources like any other.
    """
    kept = [name for name in names if not name.endswith(".rejected.jsonl") and not _in_ours(root / name)]
    return kept or [name for name in names if name.endswith(".rejected.jsonl")]


def _in_ours(path: Path) -> bool:
    return any((folder / ".lance_prep").is_dir() for folder in (path, *path.parents))


def is_lance(path: Path) -> bool:
    """True for the folder of a Lance dataset."""
    return (path / "_versions").is_dir()


def _is_leaf(path: Path) -> bool:
    """A file, or a Lance dataset; not what lies inside one."""
    if any(is_lance(parent) for parent in path.parents):
        return False
    return is_lance(path) if path.is_dir() else True


def _local_file(path: Path) -> SourceFile:
    url = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow symlinks and lose the file's name)
    if is_lance(path):
        return lance_file(url, None)
    kind, compression = require_format(path.name)
    stat = path.stat()
    return SourceFile(url, kind, stat.st_size, str(stat.st_mtime_ns), compression)


def lance_file(url: str, options: Mapping[str, str] | None) -> SourceFile:
    """A Lance dataset, pinned to its latest version; `size` counts its data files where Lance knows them."""
    import lance

    try:
        dataset = lance.dataset(url, storage_options=dict(options) if options else None)
    except (OSError, ValueError) as error:
        raise translate(error, f"opening {url}") or SourceNotFound(
            f"{url}: not a Lance dataset", "name the folder that holds `_versions`"
        ) from error
    files = [file for fragment in dataset.get_fragments() for file in fragment.data_files()]
    size = sum(getattr(file, "file_size_bytes", None) or 0 for file in files)
    return SourceFile(url, "lance", size, f"version {dataset.version}")


def find_remote(source: str, options: Mapping[str, str] | None) -> Found:
    """Files under an object-store URL: a file, a folder, a glob or a Lance dataset.

    Raises:
        SourceNotFound, AccessDenied, SourceError: it cannot be listed, or holds no data.
    """
    if source.rstrip("/").endswith(".lance"):
        return Found(PinnedSource(asked=source), (lance_file(source.rstrip("/"), options),))
    with translating(f"listing {source}"):
        try:
            infos = _list(source, options)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{source}: {error}", _ADVICE) from error
    if not infos:
        raise SourceNotFound(f"{source}: no data file there", _ADVICE)
    check_one_family([name for name, _ in infos], source)
    return Found(PinnedSource(asked=source), tuple(_remote_file(source, name, info) for name, info in infos))


def _list(source: str, options: Mapping[str, str] | None) -> list[tuple[str, Any]]:
    fs, path = fsspec_of(source, options)
    if is_glob(path):
        found = fs.glob(path, detail=True)
        return [(name, found[name]) for name in sorted(found) if found[name]["type"] == "file" and format_of(name)]
    info = fs.info(path)
    if info["type"] == "file":
        require_format(path)
        return [(path, info)]
    found = fs.find(path, detail=True)
    return [(name, found[name]) for name in sorted(found) if is_data(name.removeprefix(path).lstrip("/"))]


def _remote_file(source: str, name: str, info: Any) -> SourceFile:
    kind, compression = require_format(name)
    url = f"{source.split('://')[0]}://{name.lstrip('/')}"
    return SourceFile(url, kind, int(info["size"]), identity_of(info), compression)


def check_no_hub_options(recipe: Recipe) -> None:
    """Refuse options that only a Hub dataset has: none is accepted and ignored.

    Raises:
        UsageError: names the options.
    """
    given = [f"--{name}" for name in ("config", "split", "revision") if getattr(recipe, name) is not None]
    if given:
        said = f"{recipe.source} is no dataset of the Hub, so {' and '.join(given)} would mean nothing"
        raise UsageError(said, "leave them out")


def not_found(source: str) -> SourceNotFound:
    """The error for a source that is neither a path nor anything else."""
    return SourceNotFound(f"{source}: no such file, folder or recipe", _ADVICE)
