"""A dataset of ours, opened for looking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.errors import DatasetError
from lance_prep.store.files import Files, files_of, is_local
from lance_prep.store.lance_io import open_dataset
from lance_prep.store.metadata import BUILDS_FOLDER, read_metadata
from lance_prep.store.seal import manifest_versions


@dataclass(frozen=True)
class Opened:
    """A dataset at one version.

    Attributes:
        uri: absolute path or URI.
        dataset: the Lance dataset.
        metadata: what is written in it.
        files: what lies beside its data.
    """

    uri: str
    dataset: Any
    metadata: dict[str, Any]
    files: Files

    def tokenizer_file(self) -> bytes:
        """Contents of the `tokenizer.json` that made this version.

        Raises:
            DatasetError: it is gone, or the layout has none.
        """
        if self.metadata["tokenizer"] is None:
            raise DatasetError(f"{self.uri} has layout 'raw': no tokenizer made it", "read its columns")
        key = self.metadata["builds"][-1]["key"]
        data = self.files.read(f"{BUILDS_FOLDER}/{key}/tokenizer.json")
        if data is None:
            raise DatasetError(f"the tokenizer file of {self.uri} is gone", "build the dataset again")
        return data


def absolute(uri: str | Path) -> str:
    """Absolute path, or URI, of a dataset."""
    return str(Path(uri).absolute()) if is_local(str(uri)) else str(uri).rstrip("/")


def open_ours(
    uri: str | Path, version: int | str | None = None, storage_options: Mapping[str, str] | None = None
) -> Opened:
    """Open a dataset that lance-prep made.

    Args:
        version: number or tag; the latest by default.

    Raises:
        DatasetError: there is none, or not at that version, or it is not ours.
    """
    where = absolute(uri)
    latest = open_dataset(where, storage_options=storage_options)
    if latest is None:
        raise DatasetError(f"there is no dataset at {uri}", "make one with lance-prep build")
    dataset = latest
    if version is not None:
        dataset = _at(latest, where, version, storage_options)
    return Opened(where, dataset, read_metadata(dataset.schema), files_of(where, storage_options))


def _at(latest: Any, where: str, version: int | str, storage_options: Mapping[str, str] | None) -> Any:
    wanted = int(version) if str(version).isdigit() else version
    dataset = open_dataset(where, wanted, storage_options)
    if dataset is None:
        versions, tags = version_numbers(where, storage_options), sorted(latest.tags.list())
        known = f"are versions {versions[0]} to {versions[-1]}" if len(versions) > 1 else f"is version {versions[0]}"
        raise DatasetError(
            f"{where} has no version {version}", f"there {known}" + (f"; tags: {', '.join(tags)}" if tags else "")
        )
    return dataset


def version_numbers(where: str, storage_options: Mapping[str, str] | None) -> list[int]:
    """Numbers of the versions that are there, ascending, by the names of their manifests: damaged ones too."""
    return manifest_versions(files_of(where, storage_options))
