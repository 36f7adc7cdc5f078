"""File names to formats."""

from __future__ import annotations

from pathlib import PurePosixPath

from lance_prep.errors import SourceError, UsageError
from lance_prep.model import Compression, Format

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
    ".arrow": "arrow",
    ".lance": "lance",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_COMPRESSIBLE = ("jsonl", "json", "csv", "text")

# What lies beside the data in a folder, and is none.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOT_DATA_STEMS = ("readme", "license", "changelog")


def format_of(name: str) -> tuple[Format, Compression | None] | None:
    """Format and compression by a file's extensions; None where they say neither."""
    path = PurePosixPath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    known = _FORMATS.get(path.suffix)
    if known is None or (compression is not None and known not in _COMPRESSIBLE):
        return None
    return known, compression


def require_format(name: str) -> tuple[Format, Compression | None]:
    """As `format_of`.

    Raises:
        SourceError: unknown extension; the advice lists those that are known.
    """
    known = format_of(name)
    if known is None:
        extensions = ", ".join(_FORMATS)
        raise SourceError(
            f"{name}: unknown file extension",
            f"known are {extensions}; JSON, CSV and text also with {', '.join(_COMPRESSIONS)}",
        )
    return known


def is_data(path: str) -> bool:
    """True for a file of a folder that holds data: known extension, not hidden, no README or the like.

    Args:
        path: relative to the folder.
    """
    parts = PurePosixPath(path).parts
    name = parts[-1].lower()
    if any(part.startswith((".", "__")) for part in parts) or name in _NOT_DATA:
        return False
    return not name.startswith(_NOT_DATA_STEMS) and format_of(name) is not None


def check_one_family(names: list[str], where: str) -> None:
    """Refuse a folder or glob that holds files of several kinds: no schema would fit them all.

    Raises:
        UsageError: says how many there are of each.
    """
    counts: dict[str, int] = {}
    for name in names:
        family = require_format(name)[0].replace("jsonl", "json")
        counts[family] = counts.get(family, 0) + 1
    if len(counts) > 1:
        said = " and ".join(f"{count} {family}" for family, count in sorted(counts.items()))
        raise UsageError(f"{where} holds files of several kinds: {said}", "name one kind: 'folder/**/*.parquet'")
