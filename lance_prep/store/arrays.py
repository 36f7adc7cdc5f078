"""Files of numbers beside a dataset's data: named arrays that can be mapped into memory, with a checksum.

{"arrays": {NAME: length, ...}, "hash": xxh3-128}\n     JSON, filled up with spaces to a multiple of 8 bytes
array, array, ...                                       uint64, little-endian
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import xxhash

from lance_prep.keyed import U64
from lance_prep.store.sidecar import Files, LocalFiles

_ITEM = 8
_LONGEST_HEAD = 1 << 16
#: Files that are mapped one by one. Python keeps a mapped file open, and many systems let a process open 1,024 files.
MOST_MAPPED = 500


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


class ArrayHeap:
    """Holds the arrays of many files in one mapping of a temporary file.

    Each file that `read_arrays` maps takes one of the files that a process may open (`ulimit -n`, often 1,024), and one
    of the 65,530 mappings that Linux gives it (`vm.max_map_count`).

    Args:
        size: bytes of the files whose arrays are added, at least. They take disk space only once they are added.
    """

    def __init__(self, size: int) -> None:
        with tempfile.TemporaryFile() as file:  # the mapping keeps its content
            file.truncate(max(size, _ITEM))
            self._items = np.memmap(file, "<u8", "r+", shape=max(size // _ITEM, 1))
        self._used = 0

    @classmethod
    def if_many(cls, files: int, size: Callable[[], int]) -> ArrayHeap | None:
        """Return a heap for this number of files, or None if they can be mapped one by one."""
        return cls(size()) if files > MOST_MAPPED else None

    def add(self, arrays: Mapping[str, U64]) -> dict[str, U64]:
        """Return copies of arrays, in the mapping."""
        copies = {}
        for name, array in arrays.items():
            copies[name] = self._items[self._used : self._used + len(array)]
            copies[name][:] = array
            self._used += len(array)
        return copies


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
