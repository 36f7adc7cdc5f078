"""Ids that a source holds already: checked against the vocabulary, and passed on.

Documents may end with EOS or not. Layout `blocks` needs EOS at the end of each, so it is added where it is missing.
Rows of layout `documents` must not have it, since `LanceDataset` adds it, so it is removed. Rows that become blocks as
they are keep all ids.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_prep.layouts import LAYOUTS, NO_TOKENIZER
from lance_prep.recipe import Recipe
from lance_prep.tokenizer.function import TextRefused
from lance_prep.tokenizer.lists import Offsets, TokenLists
from lance_prep.tokenizer.spec import TokenizerSpec


def ids_spec(recipe: Recipe) -> TokenizerSpec:
    """Return what is known of the tokenizer of ids that came without one: their type, and the id that ends a document.

    In place of a `tokenizer.json`, the dataset holds these two as JSON.
    """
    dtype = np.dtype("uint16" if recipe.ids_dtype == "uint16" else "uint32")
    file = json.dumps({"no_tokenizer": True, "eos_id": recipe.document_end, "dtype": dtype.name}).encode()
    return TokenizerSpec(
        name=NO_TOKENIZER,
        commit=None,
        file=file,
        sha256=hashlib.sha256(file).hexdigest(),
        vocab_size=int(np.iinfo(dtype).max) + 1,
        bos_id=None,
        eos_id=recipe.document_end,
        pad_id=None,
        prefix=(),
        suffix=(),
        is_template=True,
    )


class IdsEncoder:
    """Takes lists of ids in place of texts."""

    name = "ids"

    def __init__(self, spec: TokenizerSpec, recipe: Recipe) -> None:
        self._spec = spec
        self._eos = None if recipe.packing == "rows" else spec.eos_id
        self._packed = LAYOUTS[recipe.layout].packed

    def encode(self, texts: pa.LargeListArray) -> TokenLists:
        """Return the ids of each list.

        Raises:
            TextRefused: an id is not in the vocabulary.
        """
        offsets = texts.offsets.to_numpy()
        offsets, ids = offsets - offsets[0], texts.flatten().to_numpy()
        if len(ids) and (largest := int(ids.max())) >= self._spec.vocab_size:
            row = int(np.searchsorted(offsets, int(ids.argmax()), side="right")) - 1
            known = f"{self._spec.name}, which has {self._spec.vocab_size:,} ids"
            error = TextRefused(
                f"id {largest:,} is not in the vocabulary of {known}",
                "name the tokenizer that made the ids; for a flat file, give the ids_dtype it was written with",
            )
            error.index = row
            raise error
        tokens = TokenLists(offsets, ids.astype(self._spec.dtype, copy=False))
        if self._eos is None:
            return tokens
        return _with_end(tokens, self._eos) if self._packed else _without_end(tokens, self._eos)


def _ended(tokens: TokenLists, eos: int) -> npt.NDArray[np.bool_]:
    """Return which lists end with `eos`."""
    ended = np.zeros(len(tokens), np.bool_)
    filled = np.flatnonzero(tokens.lengths)
    ended[filled] = tokens.ids[tokens.offsets[filled + 1] - 1] == eos
    return ended


def _with_end(tokens: TokenLists, eos: int) -> TokenLists:
    """Return lists of which each ends with `eos`."""
    missing = ~_ended(tokens, eos)
    if not missing.any():
        return tokens
    more: Offsets = np.append(np.zeros(1, np.int64), np.cumsum(missing))
    return TokenLists(tokens.offsets + more, np.insert(tokens.ids, tokens.offsets[1:][missing], eos))


def _without_end(tokens: TokenLists, eos: int) -> TokenLists:
    """Return lists without the last id of each that ends with `eos`."""
    ended = _ended(tokens, eos)
    if not ended.any():
        return tokens
    fewer: Offsets = np.append(np.zeros(1, np.int64), np.cumsum(ended))
    return TokenLists(tokens.offsets - fewer, np.delete(tokens.ids, tokens.offsets[1:][ended] - 1))
