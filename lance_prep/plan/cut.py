"""Files to shards: a function of the files' metadata and the recipe, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from lance_prep.formats import CutJob, Piece, format_named
from lance_prep.model import Part, Shard, SourceFile
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport

SHARD_BYTES = 128 << 20
# A small source is cut finer, so that it keeps more than one core busy; below this, starting a shard costs more.
LEAST_SHARD_BYTES = 16 << 20
SHARDS_AT_LEAST = 8
# Footers are small and the Hub is far: their time is all waiting.
_THREADS = 16


def cut_shards(
    files: Sequence[SourceFile], recipe: Recipe, read_schema: pa.Schema, transport: Transport
) -> tuple[Shard, ...]:
    """Return shards of about `recipe.shard_size` bytes, in the order of the files.

    By default, 128 MiB; for a source of less than 1 GiB an eighth of it, but at least 16 MiB. A larger file has shards
    of its own. Smaller ones share shards.

    Args:
        recipe: as planned.
        read_schema: as in `Plan`.

    Raises:
        ColumnNotFound: a file lacks a column that the first one has.
        BadFile: not what its name says.
    """
    least = min(recipe.shard_size or LEAST_SHARD_BYTES, LEAST_SHARD_BYTES)

    def cut(file: SourceFile) -> list[Piece]:
        return list(format_named(file.format).pieces(CutJob(file, recipe, read_schema, least, transport)))

    if len(files) < 2:
        lists = [cut(file) for file in files]
    else:
        with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
            lists = list(pool.map(cut, files))
    total = sum(piece.weight for pieces in lists for piece in pieces)
    return _join(lists, recipe.shard_size or min(max(total // SHARDS_AT_LEAST, LEAST_SHARD_BYTES), SHARD_BYTES))


def _join(lists: list[list[Piece]], target: int) -> tuple[Shard, ...]:
    """Return the shards of each file's pieces."""
    shards: list[Shard] = []
    waiting: list[tuple[int, Piece]] = []

    def close() -> None:
        if waiting:
            shards.append(_shard(len(shards), waiting))
            waiting.clear()

    weight = 0
    for file, pieces in enumerate(lists):
        large = sum(piece.weight for piece in pieces) > target
        if large:
            close()
        for piece in pieces:
            weight = weight + piece.weight if waiting else piece.weight
            if waiting and weight > target:
                close()
                weight = piece.weight
            waiting.append((file, piece))
        if large:
            close()
    close()
    return tuple(shards)


def _shard(index: int, pieces: Sequence[tuple[int, Piece]]) -> Shard:
    """Return a shard of pieces, each with the number of its file. Neighbours in a file become one part."""
    parts: list[Part] = []
    for file, piece in pieces:
        last = parts[-1] if parts else None
        if last and last.file == file and last.stop == piece.start:
            rows = None if last.rows is None or piece.rows is None else last.rows + piece.rows
            parts[-1] = Part(file, last.start, piece.stop, rows)
        else:
            parts.append(Part(file, piece.start, piece.stop, piece.rows))
    counts = [part.rows for part in parts]
    total = None if None in counts else sum(count for count in counts if count is not None)
    return Shard(index, tuple(parts), sum(piece.stored for _, piece in pieces), total)
