"""`manifest.json`: which datasets, or folders of Parquet shards, belong together, and what share of training each gets.

A collection is built into a folder of datasets. The manifest lists them, and `train.Mixture.from_manifest` reads it.
It is written after everything that it names, and replaced in one step. It depends only on what was built: a build that
was killed and continued writes the same bytes.

    {
      "format": 1,
      "tokenizer": "openai-community/gpt2",
      "max_seq_length": 1024,
      "input_path": "data",
      "output_path": "tokens",
      "files_processed": 2,
      "categories": {"code": 0.4, "chat": 0.6},
      "splits": {
        "apps": {"path": "apps.lance", "shards": 1, "sequences": 812, "samples": 5000, "tokens": 831488, ...},
        ...
      },
      "validation": {"apps": {"path": "apps.val.lance", ...}}
    }
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lance_prep.errors import DamagedDataset, DatasetError
from lance_prep.store.metadata import decode
from lance_prep.store.version import DatasetVersion

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Split:
    """One source of a collection, as it was built.

    Attributes:
        path: of the dataset, or of the folder of Parquet shards, relative to the manifest's folder, with `/`.
        shards: number of fragments, or of Parquet files.
        sequences: number of rows; with layout `blocks`, of `max_seq_length` tokens each.
        samples: number of source rows (documents) that were used.
        tokens: number of tokens without padding.
        category: of the collection; None for data without one.
        share: target share of the source in its category; None to share the category in proportion to `tokens`.
        version: of the Lance dataset; None for Parquet.
        content_hash: of the rows, in order.
    """

    path: str
    shards: int
    sequences: int
    samples: int
    tokens: int
    category: str | None = None
    share: float | None = None
    version: int | None = None
    content_hash: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        # A manifest may come from a stranger: it names only what is in its own folder.
        if not self.path or parts.is_absolute() or ".." in parts.parts or "\\" in self.path or "\0" in self.path:
            raise ValueError(f"path {self.path!r} leads out of the manifest's folder")
        if min(self.shards, self.sequences, self.samples, self.tokens) < 0:
            raise ValueError(f"{self.path}: a count is negative")

    def folder(self, root: Path, where: str, command: str) -> Path:
        """Return the split's folder.

        Args:
            root: folder of the manifest.
            where: the manifest and the name of the split, for messages.
            command: makes the manifest again.

        Raises:
            DatasetError: it is missing, or a link leads out of the manifest's folder.
        """
        place = root / self.path
        if not place.is_dir():
            raise DatasetError(f"{where} is missing: no folder {place}", f"run `{command}` again")
        if not place.resolve().is_relative_to(root.resolve()):
            # A manifest may come from a stranger.
            raise DatasetError(
                f"{where} is a link to {os.path.realpath(place)}, outside of {root}",
                "move the data into the folder, or use it by its own path",
            )
        return place

    def check_content(self, found: str, where: str, command: str) -> None:
        """Compare the manifest's content hash with that of the data. For `where` and `command` see `folder`.

        Raises:
            DatasetError: they differ.
        """
        if self.content_hash is not None and found != self.content_hash:
            raise DatasetError(
                f"{where} has content {self.content_hash} in the manifest, and {found} on disk: it was replaced",
                f"run `{command}` again, which writes a manifest of what is there",
            )


@dataclass(frozen=True)
class Manifest:
    """What a folder of datasets holds.

    Attributes:
        tokenizer: as the recipe names it.
        max_seq_length: tokens in a block; None if rows vary in length.
        input_path, output_path: as they were given to the command.
        files_processed: number of source files.
        splits: by name of the source, in alphabetical order: what is trained on.
        validation: the same for the validation sets.
        categories: target share of each category; they sum to 1. Empty if there are no targets.
        data_format: "lance" or "parquet".
        shard_size_gb: maximum size of a Parquet shard, else None.
        tokenizer_sha256: hash of the tokenizer's file.
    """

    tokenizer: str
    max_seq_length: int | None
    input_path: str
    output_path: str
    files_processed: int
    splits: dict[str, Split]
    validation: dict[str, Split] = field(default_factory=dict)
    categories: dict[str, float] = field(default_factory=dict)
    data_format: str = "lance"
    shard_size_gb: float | None = None
    tokenizer_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON, without those that are None, and with the format's version."""
        return {"format": FORMAT, **_without_none(asdict(self))}

    def text(self) -> str:
        """Return the file's text. Equal manifests have equal texts."""
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"

    def command(self, folder: Path) -> str:
        """Return the command that makes the manifest of a folder."""
        source, output = shlex.quote(self.input_path), shlex.quote(str(folder))
        if self.data_format != "lance":
            return f"lance-prep export {source} -o {output} --format {shlex.quote(self.data_format)}"
        recursive = "" if self.input_path.endswith((".yaml", ".yml")) else " --recursive"
        return f"lance-prep build {source} -o {output}{recursive}"

    def write(self, folder: str | Path) -> Path:
        """Write `manifest.json` into a local folder in one step, durably. Return its path."""
        path = Path(folder) / MANIFEST
        beside = path.with_name(f".{MANIFEST}.tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.write(self.text())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        return path


def split_of(version: DatasetVersion, *, category: str | None = None, share: float | None = None) -> Split:
    """Return the entry of a dataset that is in the manifest's folder."""
    metadata = version.metadata
    return Split(
        path=Path(version.uri).name,
        shards=len(version.dataset.get_fragments()),
        sequences=metadata.rows,
        samples=metadata.ledger.rows_used,
        tokens=metadata.tokens,
        category=category,
        share=share,
        version=version.number,
        content_hash=metadata.content_hash,
    )


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder, or the manifest file itself.

    Raises:
        DatasetError: there is no manifest.
        DamagedDataset: it is invalid.
    """
    path = Path(folder)
    path = path if path.suffix == ".json" else path / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DatasetError(
            f"no manifest: {path}", f"run `lance-prep build DIR -o {path.parent} --recursive`, which writes it"
        ) from None
    except ValueError as error:
        raise DamagedDataset(f"{path} is not a manifest: {error}", "build the collection again") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, where: str) -> Manifest:
    """Read the text of a manifest.

    Args:
        where: its path or URL, for messages.

    Raises:
        DamagedDataset: it is invalid.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return decode(Manifest, {name: value for name, value in data.items() if name != "format"})
    except (ValueError, RecursionError) as error:
        raise DamagedDataset(f"{where} is not a manifest: {error}", "build the collection again") from error


def _without_none(data: Mapping[str, Any]) -> dict[str, Any]:
    clean = {name: value for name, value in data.items() if value is not None or name == "max_seq_length"}
    return {name: _without_none(value) if isinstance(value, Mapping) else value for name, value in clean.items()}
