"""Files of numbers beside a dataset's data: named arrays that can be mapped into memory, with a checksum.

{"arrays": {NAME: length, ...}, "hash": xxh3-128}\n     JSON, filled up with spaces to a multiple of 8 bytes
array, array, ...                                       uint64, little-endian
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from lance_prep.keyed import U64
from lance_prep.store.sidecar import Files, LocalFiles

_ITEM = 8
_LONGEST_HEAD = 1 << 16


def write_arrays(files: Files, path: str, arrays: Mapping[str, U64]) -> None:
    """Write uint64 arrays to a file."""
    body = b"".join(np.ascontiguousarray(array, "<u8").tobytes() for array in arrays.values())
    about = {"arrays": {name: len(array) for name, array in arrays.items()}, "hash": xxhash.xxh3_128_hexdigest(body)}
    head = json.dumps(about).encode()
    files.write(path, head + b" " * (-(len(head) + 1) % _ITEM) + b"\n" + body)


def read_arrays(files: Files, path: str) -> dict[str, U64] | None:
    """Return the arrays of a file, mapped into memory if it is local; None if it is missing.

    Raises:
        ValueError: it is damaged.
    """
    if isinstance(files, LocalFiles):
        local = files.path(path)
        return _arrays(np.memmap(local, np.uint8, "r")) if local.is_file() and local.stat().st_size else None
    data = files.read(path)
    if data is None:
        return None
    with tempfile.NamedTemporaryFile() as copy:  # the mapping keeps the content of the file, which has no name then
        copy.write(data)
        copy.flush()
        return _arrays(np.memmap(Path(copy.name), np.uint8, "r"))


def _arrays(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> dict[str, U64]:
    head, newline, _ = data[:_LONGEST_HEAD].tobytes().partition(b"\n")
    body = data[len(head) + 1 :]
    try:
        about = json.loads(head)
        lengths, stated = dict(about["arrays"]), about["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it does not begin with a description of its arrays") from error
    if not newline or not all(type(length) is int and length >= 0 for length in lengths.values()):
        raise ValueError("the lengths of its arrays are invalid")
    if sum(lengths.values()) * _ITEM != len(body) or xxhash.xxh3_128_hexdigest(body.data) != stated:
        raise ValueError("it is not what was written")
    found, at = {}, 0
    for name, length in lengths.items():
        found[name] = body[at : at + length * _ITEM].view("<u8")
        at += length * _ITEM
    return found
