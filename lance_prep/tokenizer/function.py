"""Any Python function as tokenizer, for `build(tokenizer=function)`: the slow path.

A function is called once per text, under the interpreter's lock, and returns Python objects. If it calls `tokenizers`,
it encodes 0.6 to 2.7 MB/s, however many workers there are. gigatoken encodes over 100. The ids of a function cannot be
checked against a reference, and it has no decoder.

A function cannot be stored. Instead of a `tokenizer.json`, the dataset holds a JSON object with its name and a hash of
its ids of a few texts, whose sha256 identifies the tokenizer. So most changes of a function are noticed, but not all:
give it another name when its ids change.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lance_prep.errors import TokenizerError, UsageError
from lance_prep.layouts import FUNCTION_PREFIX, LAYOUTS
from lance_prep.recipe import Recipe
from lance_prep.tokenizer.encoders import PROBES
from lance_prep.tokenizer.lists import TokenLists
from lance_prep.tokenizer.spec import TokenizerSpec

#: Returns the token ids of a text: a list of int or an integer array.
TextFunction = Callable[[str], Any]
Dtype = Literal["uint16", "uint32"]

#: Fields of a recipe that only a tokenizer file reads.
_UNREAD = (
    *("tokenizer_revision", "tokenizer_backend", "special_tokens", "add_special_tokens", "eos_token"),
    *("messages", "chat_template"),
)


@dataclass(frozen=True)
class FunctionSpec(TokenizerSpec):
    """A Python function as a pinned tokenizer. It can be pickled if the function can."""

    function: TextFunction = field(default=len, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in TokenizerSpec.__dataclass_fields__ if name not in ("file", "chat")
        }


class TextRefused(TokenizerError):
    """The function failed on a text, or did not return ids.

    Attributes:
        index: of the text, among those that were encoded together.
    """

    index = 0


def function_spec(
    function: TextFunction, *, name: str | None = None, eos_id: int | None = None, dtype: Dtype | None = None
) -> FunctionSpec:
    """Return the spec of a function, after calling it on a few texts.

    Args:
        function: returns the ids of a text.
        name: identifies it. By default its module and its name there.
        eos_id: the id that ends a document.
        dtype: of the stored ids: "uint32" by default.

    Raises:
        UsageError: an argument is invalid, or the function has no name of its own.
        TokenizerError: the function returns other ids when it is called again.
    """
    if dtype not in (None, "uint16", "uint32"):
        raise UsageError(f"dtype: invalid value {dtype!r}", "use 'uint16' or 'uint32'")
    chosen = np.dtype(dtype or "uint32")
    largest = int(np.iinfo(chosen).max)
    if eos_id is not None and (type(eos_id) is not int or not 0 <= eos_id <= largest):
        raise UsageError(f"eos_id: {eos_id!r} is not an id of dtype {chosen.name}", f"use an int from 0 to {largest:,}")
    name = FUNCTION_PREFIX + (_own_name(function) if name is None else name)
    probes = [_outcome(function, text) for text in PROBES]
    if probes != [_outcome(function, text) for text in PROBES]:
        raise TokenizerError(
            f"{name} returns other ids when it is called again with the same text",
            "make it depend on the text alone: a dataset must be the same when it is built again",
        )
    seen = hashlib.sha256(json.dumps(probes).encode()).hexdigest()
    about = {"python_function": name, "eos_id": eos_id, "dtype": chosen.name, "ids_of_probes": seen}
    file = json.dumps(about).encode()
    return FunctionSpec(
        name=name,
        commit=None,
        file=file,
        sha256=hashlib.sha256(file).hexdigest(),
        vocab_size=largest + 1,
        bos_id=None,
        eos_id=eos_id,
        pad_id=None,
        prefix=(),
        suffix=(),
        is_template=True,
        function=function,
    )


def check_function(spec: FunctionSpec, recipe: Recipe) -> None:
    """Refuse fields of a recipe that a function does not read, and packing without EOS.

    Raises:
        UsageError: names the field, or eos_id.
    """
    if LAYOUTS[recipe.layout].packed and spec.eos_id is None:
        raise UsageError(
            f"layout {recipe.layout!r} ends each document with an id, and eos_id is missing",
            "pass eos_id, or use layout 'documents' or 'lines'",
        )
    for name in _UNREAD:
        if getattr(recipe, name) != Recipe.model_fields[name].default:
            raise UsageError(f"{name} has no effect with a Python function as tokenizer", f"leave `{name}` out")


def _own_name(function: TextFunction) -> str:
    """Return the module and the name of a function that can be imported.

    Raises:
        UsageError: it cannot: a lambda, a function inside another, a method of an object, or one of a script.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(module or "")
    for part in (name or "<none>").split("."):
        found = getattr(found, part, None)
    if module in (None, "__main__") or found is not function:
        raise UsageError(
            f"tokenizer: {function!r} cannot be named by its module",
            "pass tokenizer_name='...' too, which the dataset records; choose another name whenever the ids change",
        )
    return f"{module}.{name}"


def _outcome(function: TextFunction, text: str) -> Any:
    """Return the ids of a text, or the kind of failure: a function need not accept every text."""
    try:
        return np.asarray(function(text)).tolist()
    except Exception as error:
        return type(error).__name__


class FunctionEncoder:
    """Calls a function for each text. Several threads call it at the same time."""

    name = "function"

    def __init__(self, spec: FunctionSpec) -> None:
        self._spec = spec

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        """Return the ids of each text.

        Raises:
            TextRefused: the function failed, or did not return ids of the dtype.
        """
        lists = [self._ids(text, i) for i, text in enumerate(texts.to_pylist())]
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=offsets[1:])
        return TokenLists(offsets, np.concatenate([np.empty(0, self._spec.dtype), *lists]))

    def _ids(self, text: str, index: int) -> Any:
        dtype = self._spec.dtype
        try:
            returned = self._spec.function(text)
            ids = np.asarray(returned)
        except Exception as error:  # of any kind: it is the user's code
            raise self._refused(index, text, f"raised {type(error).__name__}: {error}", "fix the function") from error
        if ids.size == 0 and ids.ndim == 1:
            return np.empty(0, dtype)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            said = f"returned {_short(returned)}, not a list of ints or an integer array"
            raise self._refused(index, text, said, "return the ids of the text")
        if (low := int(ids.min())) < 0 or (high := int(ids.max())) > np.iinfo(dtype).max:
            said = f"returned the id {low if low < 0 else high}, which dtype {dtype.name} cannot hold"
            raise self._refused(index, text, said, "return ids of at least 0, and use dtype='uint32' for large ones")
        return ids.astype(dtype)

    def _refused(self, index: int, text: str, said: str, advice: str) -> TextRefused:
        error = TextRefused(f"{self._spec.name} {said}, for the text {_short(text)}", advice)
        error.index = index
        return error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
