"""Reads files back out of a folder that hf_xet wrote to as a local store (`local://FOLDER`).

hf_xet cuts files into chunks, packs chunks into xorbs, and says in shards which chunks make up a file. The client tells
the Hub only the sha256, which a shard has too. Neither is read with hf_xet itself: it locks the store of a process.

    shard   a header of 48 bytes, then for each file entries of 48 bytes: its hash and flags, one for each run of chunks
            (xorb, first and last chunk), one for each run to verify it, one with its sha256; ends with a hash of 0xff
    xorb    chunks, each with a header of 8 bytes: version, stored size (3 bytes), compression, size (3 bytes)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

_ENTRY = 48
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30
_LZ4, _LZ4_BY_PLANE = 1, 2


def read_file(store: Path, sha256: str) -> bytes | None:
    """Return the file with this sha256, or None if no client has uploaded it."""
    for shard in store.rglob("*.mdb"):
        for runs, digest in _files(shard.read_bytes()):
            if digest == sha256:
                data = b"".join(chunk for run in runs for chunk in _chunks(store, *run))
                assert hashlib.sha256(data).hexdigest() == sha256
                return data
    return None


def _hex(hash: bytes) -> str:
    """Return a hash as hf_xet writes it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def _files(shard: bytes) -> Iterator[tuple[list[tuple[str, int, int]], str | None]]:
    """Yield for each file its runs of chunks (xorb, first, end) and its sha256."""
    at = _ENTRY
    while shard[at : at + 32] != b"\xff" * 32:
        flags, number = struct.unpack_from("<II", shard, at + 32)
        at += _ENTRY
        runs = []
        for _ in range(number):
            _, _, first, end = struct.unpack_from("<IIII", shard, at + 32)
            runs.append((_hex(shard[at : at + 32]), first, end))
            at += _ENTRY
        at += _ENTRY * number if flags & _HAS_VERIFICATION else 0
        digest = None
        if flags & _HAS_METADATA:
            digest = _hex(shard[at : at + 32])
            at += _ENTRY
        yield runs, digest


def _chunks(store: Path, xorb: str, first: int, end: int) -> Iterator[bytes]:
    """Yield the content of some chunks of a xorb."""
    data = next(store.rglob(f"*.{xorb}")).read_bytes()
    at = 0
    for number in range(end):
        stored, size = (int.from_bytes(data[at + i : at + i + 3], "little") for i in (1, 5))
        scheme, at = data[at + 4], at + 8
        if number >= first:
            yield _decompress(data[at : at + stored], scheme, size)
        at += stored


def _decompress(data: bytes, scheme: int, size: int) -> bytes:
    if scheme not in (_LZ4, _LZ4_BY_PLANE):
        return data
    found: bytes = pa.decompress(data, size, codec="lz4", asbytes=True)
    if scheme == _LZ4:
        return found
    # First the bytes 0, 4, 8, ... of the chunk, then 1, 5, 9, ... and so on.
    planes, out, at = np.frombuffer(found, np.uint8), np.empty(size, np.uint8), 0
    for plane in range(4):
        length = len(out[plane::4])
        out[plane::4] = planes[at : at + length]
        at += length
    return out.tobytes()
