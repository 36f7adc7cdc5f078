"""Open a dataset, or all datasets of a collection: a folder with a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lance_prep.errors import DatasetError, LancePrepError
from lance_prep.store import MANIFEST, DatasetVersion, Manifest, open_version, read_manifest
from lance_prep.transport import in_home, is_local


@dataclass(frozen=True)
class Parts:
    """An open dataset or collection.

    Attributes:
        opened: the datasets by name of their source; the name of a single dataset is empty.
        manifest: of the collection; None for a single dataset.
        left_out: sources of the collection that were not opened, with the reason.
    """

    opened: dict[str, DatasetVersion]
    manifest: Manifest | None
    left_out: dict[str, str]


def open_parts(
    where: str | Path,
    version: int | str | None = None,
    storage_options: Mapping[str, str] | None = None,
    *,
    most: int | None = None,
) -> Parts:
    """Open a dataset, or the datasets of a local folder with a manifest, without its validation sets.

    Args:
        version: number or tag of a dataset; the latest by default.
        most: maximum number of datasets of a collection; None for all.

    Raises:
        DatasetError: it is neither, none of its datasets can be opened, or a version of a collection was asked for.
    """
    folder = in_home(where)
    if not is_local(str(where)) or not (folder / MANIFEST).is_file():
        return Parts({"": open_version(str(where), version, storage_options)}, None, {})
    if version is not None:
        raise DatasetError(f"{where} is a collection, and only its datasets have versions", "remove `version`")
    manifest = read_manifest(folder)
    if manifest.data_format != "lance":
        said = f"{where} is an export to {manifest.data_format}"
        raise DatasetError(said, f"use the collection that it was made from: {manifest.input_path}")
    opened: dict[str, DatasetVersion] = {}
    left_out: dict[str, str] = {}
    for name in manifest.validation:
        # Its source rows are those of the training set once more.
        left_out[f"{name}.val"] = "validation sets are not counted; look at each by itself"
    for name, split in manifest.splits.items():
        if len(opened) == most:
            left_out[name] = f"only the first {most} datasets are read"
            continue
        try:
            place = split.folder(folder, f"{where}: {name}", manifest.command(folder))
            opened[name] = open_version(str(place), split.version)
        except LancePrepError as error:
            left_out[name] = str(error)
    if not opened:
        raise DatasetError(f"{where}: no dataset of its manifest can be opened", next(iter(left_out.values()), ""))
    return Parts(opened, manifest, left_out)


def adding_up(total: int, on_rows: Callable[[int, int], None] | None) -> Callable[[int], None]:
    """Return a function that is called with the rows of each batch, and calls `on_rows` with all rows so far."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if on_rows is not None:
            on_rows(done, total)

    return advance
