"""Decodes token ids to text, many rows at once."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from lance_prep.keyed import Indices
from lance_prep.tokenizer import byte_names, load_reference


class TextDecoder:
    """The text of rows, equal to what `tokenizers` decodes. Threads may share one.

    The text of a byte-level token is its bytes, whatever is around it. For such tokenizers a table of the tokens' bytes
    is enough, and Arrow looks them up, without a Python object per token. `decode_batch` decodes for all others.

    Args:
        file: the `tokenizer.json`.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(self, file: bytes, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer, self._skip = load_reference(file), skip_special_tokens
        self._table: pa.Array | None = None
        if (json.loads(file).get("decoder") or {}).get("type") == "ByteLevel":
            self._table = _bytes_of_tokens(self._tokenizer, skip_special_tokens)

    def decode(self, column: Any, lengths: Indices) -> list[str]:
        """Return the text of each row.

        Args:
            column: Arrow lists of ids, without nulls.
            lengths: `[rows]`, ids of each row before its padding.
        """
        values = column.flatten()
        if pa.types.is_fixed_size_list(column.type):
            starts = np.arange(len(column), dtype=np.int64) * column.type.list_size
        else:
            offsets = column.offsets.to_numpy()
            starts = offsets[:-1] - offsets[0]
        stops = starts + lengths
        if self._table is None:
            ids = values.to_numpy()
            rows = [ids[start:stop].tolist() for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
            texts: list[str] = self._tokenizer.decode_batch(rows, skip_special_tokens=self._skip)
            return texts
        # Ids that the tokenizer does not know have no text.
        found = self._table.take(pa.array(np.minimum(values.to_numpy(), len(self._table) - 1)))
        bounds = np.frombuffer(found.buffers()[1], np.int64, len(found) + 1)
        text = memoryview(found.buffers()[2] or b"")
        spans = zip(bounds[starts].tolist(), bounds[stops].tolist(), strict=True)
        return [str(text[start:stop], "utf-8", "replace") for start, stop in spans]


@lru_cache(2)
def decoder_of(file: bytes, *, skip_special_tokens: bool) -> TextDecoder:
    """Return the decoder of a tokenizer. The sources of a collection share one."""
    return TextDecoder(file, skip_special_tokens=skip_special_tokens)


def _bytes_of_tokens(tokenizer: Any, skip_special_tokens: bool) -> pa.Array:
    """Return the bytes of each id, and no bytes for the id after the last."""
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special} if skip_special_tokens else set()
    table = [b""] * (max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 2)
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        known = [byte_of.get(character) for character in token]
        if token not in special:
            table[i] = token.encode() if None in known else bytes(known)  # type: ignore[arg-type]
    return pa.array(table, pa.large_binary())
