"""The content hash: the same for the same rows in the same order, however they were cut into batches or files.

xxh3-128 (20 GB/s, not cryptographic: it proves that nothing went wrong, not that nobody cheated). Each leaf column of a
shard has a hash of its own over validity, lengths and values; a shard's hash is taken over those by name, a dataset's
over its shards' in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

_BINARY = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}


class ShardHash:
    """Hash of one shard's rows, fed batch by batch."""

    def __init__(self) -> None:
        self._leaves: dict[str, Any] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        for field, column in zip(batch.schema, batch.columns, strict=True):
            self._feed(field.name, field.nullable, column)

    def hexdigest(self) -> str:
        """32 hex digits."""
        whole = xxhash.xxh3_128()
        for name in sorted(self._leaves):
            whole.update(f"{name}={self._leaves[name].hexdigest()}\n".encode())
        return str(whole.hexdigest())

    def _feed(self, name: str, nullable: bool, array: pa.Array) -> None:
        kind = array.type
        if pa.types.is_dictionary(kind):
            return self._feed(name, nullable, array.dictionary_decode())
        if isinstance(array, pa.ExtensionArray):
            return self._feed(name, nullable, array.storage)
        if nullable:
            self._bytes(f"{name}:valid", array.is_valid().cast(pa.uint8()))
        if pa.types.is_struct(kind):
            for child, values in zip(kind, array.flatten(), strict=True):
                self._feed(f"{name}.{child.name}", True, values)
        elif pa.types.is_fixed_size_list(kind):
            self._feed(f"{name}[]", False if array.null_count == 0 else nullable, array.flatten())
        elif pa.types.is_nested(kind):  # list, large_list, list_view; plans refuse maps, which Lance does not hold
            lengths = pc.list_value_length(array).fill_null(0).cast(pa.int64())
            self._bytes(f"{name}:length", lengths)
            values = array.flatten()
            self._feed(f"{name}[]", values.null_count > 0, values)
        elif pa.types.is_null(kind):
            self._bytes(f"{name}:length", pa.array([len(array)]))
        elif str(kind) in _BINARY:
            array = array.cast(pa.large_binary())
            self._bytes(f"{name}:length", pc.binary_length(array).fill_null(0).cast(pa.int64()))
            self._bytes(name, array.fill_null(b"") if array.null_count else array)
        else:
            self._bytes(name, _as_fixed(array))
        return None

    def _bytes(self, leaf: str, array: pa.Array) -> None:
        leaf_hash = self._leaves.get(leaf)
        if leaf_hash is None:
            leaf_hash = self._leaves[leaf] = xxhash.xxh3_128()
        leaf_hash.update(_buffer(array))


def combine(shard_hashes: Iterable[str]) -> str:
    """The content hash of a dataset from those of its shards with rows, in order."""
    whole = xxhash.xxh3_128()
    for digest in shard_hashes:
        whole.update(digest.encode())
    return str(whole.hexdigest())


def _as_fixed(array: pa.Array) -> pa.Array:
    """A fixed-width array without nulls whose buffer holds only its values."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if array.null_count:
        zero = pa.array(np.zeros(1, np.uint8)).cast(pa.uint8())
        width = array.type.bit_width // 8
        # The bytes under a null are arbitrary: view all as bytes of the right width, and set those to zero.
        data = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        return pa.array((data.reshape(-1, width) * valid[:, None]).reshape(-1)) if width else zero
    return array


def _buffer(array: pa.Array) -> Any:
    """The bytes of an array's values, without a copy."""
    if pa.types.is_large_binary(array.type):
        offsets = np.frombuffer(array.buffers()[1], np.int64)
        start, stop = int(offsets[array.offset]), int(offsets[array.offset + len(array)])
        data = array.buffers()[2]
        return memoryview(data)[start:stop] if data is not None else b""
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    return memoryview(data)[array.offset * width : (array.offset + len(array)) * width] if data is not None else b""
