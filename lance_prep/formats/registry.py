"""The formats, by the names of files and by their own names.

What a file's name says is known here, so that names can be looked up without importing anything. A format's module is
imported when a file of that format is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lance_prep.errors import SourceError, UsageError

if TYPE_CHECKING:
    from lance_prep.formats.base import Format

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

# Files in a data folder that hold no records.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOT_DATA_STEMS = ("readme", "license", "changelog")
_NOT_DATA_ENDINGS = (".stats.json",)  # what `download` writes beside each file


@dataclass(frozen=True)
class Registered:
    """A registered format.

    Attributes:
        name: as in `SourceFile.format`.
        home: `module:class` of the format, or the format itself.
        extensions: of its files, in lower case and with the dot.
        compressible: its files may be compressed as a whole, such as `.jsonl.gz`.
        family: formats of one family may be in the same source.
        is_file: it is read from a plain file, so size and time (or ETag) tell whether that has changed. Other sources
            are pinned by a version or a commit, and their size may be unknown.
        options: fields of a recipe that only this format reads.
        named_only: its files are read only if a source names them. In a folder they are not taken for data.
        called: its files, for messages.
    """

    name: str
    home: str | Format
    extensions: tuple[str, ...] = ()
    compressible: bool = False
    family: str = ""
    is_file: bool = True
    options: tuple[str, ...] = ()
    called: str = ""
    named_only: bool = False


_FORMATS = {
    each.name: each
    for each in (
        Registered("parquet", "lance_prep.formats.parquet:Parquet", (".parquet",)),
        Registered("jsonl", "lance_prep.formats.jsonl:JsonLines", (".jsonl", ".ndjson"), True, "json"),
        Registered("json", "lance_prep.formats.jsonl:Json", (".json",), True),
        Registered(
            "csv",
            "lance_prep.formats.delimited:Delimited",
            (".csv", ".tsv"),
            compressible=True,
            options=("delimiter",),
            called="CSV files",
        ),
        Registered(
            "text",
            "lance_prep.formats.text:Text",
            (".txt", ".md"),
            compressible=True,
            options=("text_unit",),
            called="text files (.txt, .md)",
        ),
        Registered(
            "ids",
            "lance_prep.formats.flat:FlatIds",
            (".bin",),
            family="ids",
            options=("ids_dtype",),
            called="files of token ids (.bin, .idx)",
            named_only=True,
        ),
        Registered("megatron", "lance_prep.formats.megatron:MegatronPair", (".idx",), family="ids", named_only=True),
        Registered("arrow", "lance_prep.formats.tables:ArrowFile", (".arrow",)),
        Registered("lance", "lance_prep.formats.tables:LanceTable", (".lance",), is_file=False),
        Registered("streaming", "lance_prep.formats.generated:HubStream", is_file=False),
        Registered("dataframe", "lance_prep.formats.generated:Partition", is_file=False),
        Registered("topics", "lance_prep.formats.generated:PythonTopics", is_file=False),
    )
}
_by_extension = {extension: each for each in _FORMATS.values() for extension in each.extensions}


def register_format(
    name: str,
    home: str | Format,
    extensions: tuple[str, ...],
    *,
    compressible: bool = False,
    family: str = "",
    is_file: bool = True,
) -> None:
    """Make a format known. Arguments: see `Registered`.

    Raises:
        ValueError: the name or an extension is taken.
    """
    taken = [each for each in (name, *extensions) if each in _FORMATS or each in _by_extension]
    if taken:
        raise ValueError(f"{taken[0]!r} is registered already")
    _FORMATS[name] = Registered(name, home, extensions, compressible, family, is_file)
    _by_extension.update(dict.fromkeys(extensions, _FORMATS[name]))


def registered() -> tuple[Registered, ...]:
    """Return all formats, in the order of registration."""
    return tuple(_FORMATS.values())


def find_registered(name: str) -> Registered:
    """Return the format with this name.

    Raises:
        SourceError: it is not registered in this process.
    """
    if name not in _FORMATS:
        raise SourceError(f"unknown format {name!r}", "import the module that registers it before the build")
    return _FORMATS[name]


def format_named(name: str) -> Format:
    """Return the format with this name, importing its module at the first use.

    Raises:
        SourceError: it is not registered in this process.
    """
    found = find_registered(name)
    if isinstance(found.home, str):
        module, _, kind = found.home.partition(":")
        made: Format = getattr(import_module(module), kind)()
        _FORMATS[name] = replace(found, home=made)
        return made
    return found.home


def format_of(name: str) -> tuple[str, str | None] | None:
    """Return format and compression by a file's extensions; None if they are unknown."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    known = _by_extension.get(path.suffix)
    if known is None or (compression is not None and not known.compressible):
        return None
    return known.name, compression


def require_format(name: str) -> tuple[str, str | None]:
    """Return the same as `format_of`.

    Raises:
        SourceError: unknown extension; the advice lists those that are known.
    """
    known = format_of(name)
    if known is None:
        raise SourceError(
            f"{name}: unknown file extension",
            f"known are {', '.join(_by_extension)}; JSON, CSV and text also with {', '.join(COMPRESSIONS)}",
        )
    return known


def without_extensions(name: str, *more: str) -> str:
    """Return a file's name without the known extensions at its end, and without those in `more`."""
    known = {*_by_extension, *COMPRESSIONS, *more}
    while (path := PurePosixPath(name)).suffix in known and path.stem:
        name = path.stem
    return name


def is_data(path: str) -> bool:
    """Return True for a file of a folder that holds data: known extension, not hidden, no README or the like.

    Args:
        path: relative to the folder.
    """
    parts = PurePosixPath(path).parts
    name = parts[-1].lower()
    if any(part.startswith((".", "__")) for part in parts) or name in _NOT_DATA:
        return False
    if name.startswith(_NOT_DATA_STEMS) or name.endswith(_NOT_DATA_ENDINGS):
        return False
    known = format_of(name)
    return known is not None and not _FORMATS[known[0]].named_only


def check_one_family(names: Iterable[str], where: str) -> None:
    """Refuse a folder or glob that holds files of several kinds: no schema would fit them all.

    Raises:
        UsageError: says how many there are of each.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        found = find_registered(require_format(name)[0])
        kinds.setdefault(found.family or found.name, []).append(name)
    if len(kinds) > 1:
        said = " and ".join(f"{len(files)} {family}" for family, files in sorted(kinds.items()))
        suffix = PurePosixPath(max(kinds.values(), key=len)[0]).suffix
        advice = f"name the files of one kind, with a glob such as '*{suffix}'"
        raise UsageError(f"{where} holds files of several kinds: {said}", advice)
