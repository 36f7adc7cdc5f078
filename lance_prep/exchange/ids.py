"""`import`: token ids that another program made, in; a dataset out.

An import is a build whose source holds ids. So it is cut into shards, resumed, verified and shown like any other. This
module decides what a row is, which is all that a build of ids has to be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lance_prep.engine import BuildReport, Progress, RunOptions, Silent, load_spec, run_build
from lance_prep.errors import LancePrepError, SourceNotFound, UsageError
from lance_prep.formats import IDS
from lance_prep.plan import default_output, make_plan
from lance_prep.recipe import Recipe, load_recipe
from lance_prep.store import natural
from lance_prep.transport import Transport, absolute_uri, is_local

Shape = Literal["documents", "blocks"]
_FILES = (".idx", ".bin", ".parquet")
_GLOB = "*?["
#: Fields of a recipe, and the options of an import that set them.
_OPTIONS = {"ids_dtype": "dtype", "ids_column": "column", "document_end": "eos_id"}


@dataclass(frozen=True)
class ImportOptions:
    """What an import has to be told, beside its source.

    Attributes:
        tokenizer: that made the ids, as `build` takes it. The dataset then decodes them, and ids beyond its vocabulary
            are refused. Without it, ids are stored as uint32 unless the source says uint16.
        dtype: of the ids in a flat file.
        eos_id: the id that ends a document; by default, the tokenizer's.
        column: with the ids, in Parquet.
        layout: by default, rows of one length become `blocks` as they are, and others `documents`.
        block_size: ids per row, for a flat file without documents, or to pack documents into blocks.
        packing: how documents are packed into blocks: "concat" or "best-fit"; "rows" for rows as they are.
    """

    tokenizer: str | None = None
    dtype: str | None = None
    eos_id: int | None = None
    column: str = IDS
    layout: Shape | None = None
    block_size: int | None = None
    packing: str | None = None


def import_ids(
    source: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    options: ImportOptions | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Make a dataset of token ids: Parquet shards, flat `.bin` files, or Megatron's `.idx` and `.bin`.

    An interrupted import continues. The rows depend on the source and the options, not on the number of workers.

    Args:
        source: files, folders or globs. A pair may be named by its `.idx`, its `.bin`, or without an extension.
        output: path or URI of the dataset; by default the source's name with `.lance`, in the current folder.
        options: what the source does not say.
        workers: shards imported at once; by default, one per core.
        overwrite: if the output holds something else, make a new version with the new content.
        storage_options: for object stores.
        progress: told what happens.

    Raises:
        UsageError: an option is missing, or contradicts the source.
        SourceError: the source cannot be read (`SourceNotFound`, `BadFile`, ...).
        TokenizerError: the tokenizer cannot be used, or an id is not in its vocabulary.
        OutputError: as for `build`.
    """
    given = options or ImportOptions()
    names = find_files([source] if isinstance(source, str | Path) else source)
    with _naming_options():
        recipe = ids_recipe(names, given, Transport.of(storage_options))
        named = output if output is not None else default_output(_stem(names))
        run = RunOptions(
            named, workers, overwrite=overwrite, storage_options=storage_options, progress=progress or Silent()
        )
        report = run_build(recipe, run, uri=run.uri(names))
    _warn_without_ends(names, recipe, report, run.progress)
    return report


def _warn_without_ends(names: Sequence[str], recipe: Recipe, report: BuildReport, progress: Progress) -> None:
    """Warn if each flat file became one document because the id that ends documents does not occur in it."""
    end, dtype = recipe.document_end, recipe.ids_dtype
    flat = [Path(absolute_uri(name)) for name in _flat(names)]
    flat = [path for path in flat if path.stat().st_size]
    if end is None or dtype is None or not flat or len(flat) < len(names) or report.ledger.rows_in != len(flat):
        return
    item = np.dtype(dtype).itemsize
    unended = [path for path in flat if np.fromfile(path, dtype, 1, offset=path.stat().st_size - item)[0] != end]
    if unended:
        more = f" (and {len(unended) - 1:,} more files)" if len(unended) > 1 else ""
        progress.warned(
            f"id {end} does not occur in {unended[0]}{more}, so the whole file became one document; "
            "if it holds several, import it again with `overwrite` and the `eos_id` and `dtype` that it was written "
            "with, or with `block_size`"
        )


def _flat(names: Sequence[str]) -> list[str]:
    """Return the flat files of a source: each `.bin` without an index beside it."""
    return [name for name in names if name.endswith(".bin") and not Path(name).with_suffix(".idx").is_file()]


@contextmanager
def _naming_options() -> Iterator[None]:
    """Raise errors that name fields of a recipe again, with the names of `ImportOptions` that set these fields."""
    try:
        yield
    except LancePrepError as error:
        said, advice = str(error), error.advice
        for field, option in _OPTIONS.items():
            said, advice = (re.sub(rf"\b{field}\b(?!=)", f"`{option}`", text) for text in (said, advice))
            said, advice = (text.replace(f"{field}=", f"{option}=") for text in (said, advice))
        advice = advice.replace("lance-prep build --help", "lance-prep import --help")
        if (said, advice) == (str(error), error.advice):
            raise
        raise type(error)(said, advice) from error


def find_files(source: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the files that a source names, both files of each pair, in natural order within a folder.

    Raises:
        SourceNotFound: no file of token ids is found.
    """
    found: dict[str, None] = {}
    for name in map(str, source):
        for file in _named(name):
            found |= dict.fromkeys(_with_pair(file))
    return tuple(found)


def _named(name: str) -> list[str]:
    if not is_local(name):
        return [name]
    path = Path(absolute_uri(name))
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in _FILES and not file.name.startswith(".")]
    elif any(mark in name for mark in _GLOB) and not path.exists():
        files = [file for file in path.parent.glob(path.name) if file.suffix in _FILES]
    elif path.is_file():
        return [name]
    else:
        files = [file for file in (Path(f"{path}.idx"),) if file.is_file()]
    if not files:
        raise SourceNotFound(
            f"{name}: no file of token ids found", f"name files that end with {', '.join(_FILES)}, or a folder of them"
        )
    return [str(file) for file in sorted(files, key=lambda file: natural(file.name))]


def _with_pair(file: str) -> list[str]:
    """Return a file, or both files of its pair."""
    path = Path(file)
    if is_local(file) and path.suffix in (".idx", ".bin") and path.with_suffix(".idx").is_file():
        return [str(path.with_suffix(suffix)) for suffix in (".idx", ".bin") if path.with_suffix(suffix).is_file()]
    return [file]


def _stem(names: Sequence[str]) -> Any:
    """Return the name of the source by which the dataset is called: a pair has one."""
    stems = list(dict.fromkeys(name.removesuffix(".bin").removesuffix(".idx") for name in names))
    return stems[0] if len(stems) == 1 else list(names)


def ids_recipe(names: Sequence[str], options: ImportOptions, transport: Transport | None = None) -> Recipe:
    """Return the recipe of an import: what is a row, given what the source is.

    Raises:
        UsageError: the source and the options do not say it.
    """
    fields: dict[str, Any] = {
        "ids_column": options.column,
        "ids_dtype": options.dtype,
        "tokenizer": options.tokenizer,
        "document_end": options.eos_id,
        "shuffle": False,
        "layout": "documents",
    }
    if options.tokenizer is not None and options.eos_id is None:
        spec = load_spec(load_recipe(list(names), fields))
        fields["document_end"] = spec.eos_id if spec is not None else None
    flat = _flat(names)
    length = None if flat or any(name.endswith(".idx") for name in names) else _row_length(names, fields, transport)
    shape = options.layout or ("blocks" if length or options.block_size else "documents")
    if shape == "documents":
        if flat and fields["document_end"] is None:
            raise UsageError(
                f"nothing says where documents end in {flat[0]}",
                "give eos_id, or a tokenizer that has an end-of-text token; or block_size, for rows of one length",
            )
        return load_recipe(list(names), _given(fields, options))
    if (size := options.block_size or length) is None:
        raise UsageError("layout 'blocks' needs block_size, which the source does not say", "give block_size")
    as_rows = size == length or (bool(flat) and fields["document_end"] is None)
    fields |= {"layout": "blocks", "block_size": size, "packing": "rows" if as_rows else "concat"}
    return load_recipe(list(names), _given(fields, options))


def _given(fields: dict[str, Any], options: ImportOptions) -> dict[str, Any]:
    """Return the fields of a recipe, with the packing that was asked for."""
    return fields if options.packing is None else {**fields, "packing": options.packing}


def _row_length(names: Sequence[str], fields: Mapping[str, Any], transport: Transport | None) -> int | None:
    """Return how many ids each row of a table has, if its type says so."""
    # Packing does not change the type, and only with it may a table have seq_lengths.
    asked = {**fields, "layout": "blocks", "packing": "rows", "tokenizer": None}
    schema = make_plan(load_recipe(list(names), asked), transport).read_schema
    kind = schema.field(str(fields["ids_column"])).type
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None
