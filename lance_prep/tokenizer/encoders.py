"""The two backends: Arrow text in, `TokenLists` out.

`gigatoken` encodes 100 MB/s and more a thread from Arrow buffers to numpy without a Python object; `tokenizers`, the
reference, 3 MB/s a thread (`make bench-build`). Both return the plain ids of a text. The layout
adds the ids of the post-processor, unless that is not a plain template (`TokenizerSpec.is_template`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.errors import LancePrepError, TokenizerError
from lance_prep.process import rss, trim
from lance_prep.recipe import Recipe
from lance_prep.tokenizer.lists import TokenLists, call_gigatoken, join
from lance_prep.tokenizer.spec import TokenizerSpec, load_reference, panics_of
from lance_prep.tokenizer.unicode import PointFinder, differing_points, is_ascii

#: gigatoken's cache of words has no bound: 400 MB of words that never repeat took 3.4 GB. A new tokenizer (0.2 s) frees
#: it. An encoder makes one once the process is larger than `PROCESS_BYTES` and `ENCODER_BYTES` for each encoder, and it
#: has encoded `RENEW_AFTER_TEXT` since the last. (A build of ordinary text with two encoders stays below 700 MiB.)
PROCESS_BYTES = 350 << 20
ENCODER_BYTES = 200 << 20
RENEW_AFTER_TEXT = 8 << 20

REFERENCE_BYTES = 1 << 20

#: Texts that both backends must encode alike before gigatoken is used for a tokenizer.
PROBES = (
    "Hello world, this is a test. It's 1234567 times  two   spaces\tand tabs.\n\nNew lines\r\n",
    "  leading and trailing  ",
    "naïve café “quotes” … ½ 中文分词 日本語 한국어 عربى עברית हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301\u0301 \u200b\ufeff ﬁ １２３ \x00\x1b[0m",
    "def f(x):\n\treturn x ** 2  # don't we'll I'M\n" + "a" * 300,
)


class Encoder(Protocol):
    """Encodes texts. One thread uses it at a time; it is made where it is used and not pickled."""

    name: str

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        """Return the ids of each text, without the special tokens of the post-processor.

        Args:
            texts: valid UTF-8, without nulls.
        """
        ...


class ReferenceEncoder:
    """The `tokenizers` library, on all cores. May be used by several threads at once."""

    name = "tokenizers"

    def __init__(self, spec: TokenizerSpec, recipe: Recipe) -> None:
        self._tokenizer = load_reference(spec.file, spec.name)
        self._tokenizer.encode_special_tokens = not recipe.parses_special_tokens
        self._tokenizer_name = spec.name
        self._dtype = spec.dtype
        # A post-processor that is not a template is applied here, since the layout cannot.
        self._whole = not spec.is_template and recipe.adds_special_tokens

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        # The results of tokenizers take 100 bytes a token, so texts are encoded in pieces.
        pieces, start = [], 0
        ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False)) if len(texts) else np.empty(0)
        while start < len(texts):
            limit = (ends[start - 1] if start else 0) + REFERENCE_BYTES
            stop = max(start + 1, int(np.searchsorted(ends, limit)))
            pieces.append(self._encode(texts.slice(start, stop - start)))
            start = stop
        return join(pieces, self._dtype)

    def _encode(self, texts: pa.LargeStringArray) -> TokenLists:
        with panics_of(self._tokenizer_name):
            encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=self._whole)
        ids = [encoding.ids for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)), out=offsets[1:])
        flat = np.fromiter(itertools.chain.from_iterable(ids), self._dtype, int(offsets[-1]))
        return TokenLists(offsets, flat)


class GigatokenEncoder:
    """`gigatoken`, on Arrow's own buffers.

    Args:
        encoders: number of encoders in this process, which share one memory limit.
        parallel: encode a batch on all cores; False uses the calling thread alone, which is enough if several shards
            are built at once.

    Raises:
        TokenizerError: gigatoken cannot load this tokenizer (WordPiece, Unigram, ...).
    """

    name = "gigatoken"

    def __init__(self, spec: TokenizerSpec, recipe: Recipe, *, encoders: int, parallel: bool) -> None:
        if not spec.is_template and recipe.adds_special_tokens:
            raise TokenizerError(f"gigatoken cannot apply the post-processor of {spec.name}", "use tokenizers")
        self._file = spec.file if recipe.parses_special_tokens else _without_special_tokens(spec.file)
        self._name = spec.name
        self._dtype = spec.dtype
        self._parallel = parallel
        self._memory = PROCESS_BYTES + ENCODER_BYTES * encoders
        self._renew()

    def _renew(self) -> None:
        self._tokenizer: Any = None  # frees the old one before the new one is made
        try:
            import gigatoken

            self._tokenizer = gigatoken.Tokenizer.from_json(self._file)
        except Exception as error:  # not installed, or a part of the tokenizer is not supported
            raise TokenizerError(
                f"gigatoken cannot load {self._name}: {error}", "use tokenizer_backend='tokenizers'"
            ) from error
        self._text_since = 0

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        tokens = call_gigatoken(self._tokenizer, texts, self._dtype, parallel=self._parallel)
        self._bound_memory(_text_bytes(texts))
        return tokens

    def _bound_memory(self, size: int) -> None:
        self._text_since += size
        if self._text_since > RENEW_AFTER_TEXT and rss() > self._memory:
            self._renew()
            trim()


class ExactEncoder:
    """gigatoken, except for texts in which its Unicode tables give other ids: those are encoded by `tokenizers`.

    Args:
        also: further code points whose texts are encoded by `tokenizers`.
    """

    def __init__(
        self, fast: GigatokenEncoder, reference: ReferenceEncoder, file: bytes, also: Collection[int] = ()
    ) -> None:
        self.name = fast.name
        self._fast = fast
        self._reference = reference
        self._file = file
        self._also = also
        self._finder: PointFinder | None = None

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        tokens = self._fast.encode(texts)
        rows = self._rows(texts)
        if not len(rows):
            return tokens
        return tokens.replaced(rows, self._reference.encode(texts.take(pa.array(rows))))

    def with_points(self, also: Collection[int]) -> ExactEncoder:
        """Return an encoder that also leaves texts with these code points to `tokenizers`."""
        return ExactEncoder(self._fast, self._reference, self._file, also)

    def _rows(self, texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
        if self._finder is None:
            if is_ascii(texts):  # the libraries agree on ASCII: a corpus of it need not wait for the comparison
                return np.empty(0, np.int64)
            self._finder = PointFinder(np.append(differing_points(self._file), np.fromiter(self._also, np.uint32)))
        return self._finder.rows(texts)


def make_encoder(
    spec: TokenizerSpec, recipe: Recipe, reference: ReferenceEncoder, *, encoders: int = 1, parallel: bool = False
) -> ExactEncoder | ReferenceEncoder:
    """Return the backend that the recipe asks for; `auto` is gigatoken if it agrees with `reference` on a few texts."""
    return _choose(spec, recipe, reference, encoders=encoders, parallel=parallel)[0]


def chosen_backend(spec: TokenizerSpec, recipe: Recipe) -> tuple[str, str]:
    """Return the name of the backend that a build with this recipe uses, and why."""
    encoder, why = _choose(spec, recipe, ReferenceEncoder(spec, recipe), encoders=1, parallel=False)
    return encoder.name, why


def _choose(
    spec: TokenizerSpec, recipe: Recipe, reference: ReferenceEncoder, *, encoders: int, parallel: bool
) -> tuple[ExactEncoder | ReferenceEncoder, str]:
    """Return the backend, and why it is chosen."""
    if recipe.tokenizer_backend == "tokenizers":
        return reference, "tokenizer_backend='tokenizers' asks for it"
    if recipe.tokenizer_backend == "auto" and _known_to_differ(spec.file):
        return reference, "gigatoken ignores a setting of this tokenizer: its pre-tokenizer, or the affixes of words"
    try:
        fast = GigatokenEncoder(spec, recipe, encoders=encoders, parallel=parallel)
    except TokenizerError as error:
        if recipe.tokenizer_backend == "gigatoken":
            raise
        return reference, str(error)
    added = _added_tokens(spec.file) if recipe.parses_special_tokens else ()
    if recipe.tokenizer_backend == "auto" and not _behaves(fast, reference, added):
        return reference, "gigatoken gives other ids than tokenizers for a few test texts"
    return ExactEncoder(fast, reference, spec.file), "gigatoken gives the ids of tokenizers for a few test texts"


def _behaves(fast: Encoder, reference: Encoder, added: Sequence[str]) -> bool:
    """Return whether the installed version of gigatoken encodes a few texts as the reference does.

    Args:
        added: tokens to be found in texts.
    """
    around = [f"a {token} b{token}\n{token}{token}c  {token} \n\n{token}" for token in added]
    probes = pa.array([*PROBES, *around, "".join(added)], pa.large_string())
    try:
        return fast.encode(probes).equals(reference.encode(probes))
    except Exception:  # another version of gigatoken may have other functions; `tokenizers` always works
        return False


@cache
def _known_to_differ(file: bytes) -> bool:
    """Return whether gigatoken loads this tokenizer, but ignores one of its settings.

    It ignores `use_regex: false` of byte-level BPE, affixes of words, and pre-tokenizers that it does not know.
    """
    data = json.loads(file)
    model, before = data.get("model") or {}, data.get("pre_tokenizer") or {}
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return True
    if model.get("byte_fallback"):
        return False
    return (before.get("type") == "ByteLevel" and before.get("use_regex") is False) or not _is_known(before)


def _is_known(step: dict[str, Any]) -> bool:
    if step.get("type") == "Sequence":
        return all(_is_known(child) for child in step.get("pretokenizers") or ())
    if step.get("type") == "Split" and "Regex" in (step.get("pattern") or {}):
        return (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    return step.get("type") == "ByteLevel"


class SpecialTokenGuard:
    """Refuses texts that contain a special token, for `special_tokens="error"`."""

    def __init__(self, spec: TokenizerSpec) -> None:
        added = json.loads(spec.file).get("added_tokens") or []
        self._tokens = sorted(token["content"] for token in added if token.get("special"))

    def check(self, texts: pa.LargeStringArray) -> None:
        """Refuse texts that contain a special token.

        Raises:
            LancePrepError: names the first such text and its token.
        """
        if not self._tokens:
            return
        found = pc.match_substring_regex(texts, "|".join(re.escape(token) for token in self._tokens))
        index = pc.index(found, True).as_py()
        if index >= 0:
            text = texts[index].as_py()
            token = next(t for t in self._tokens if t in text)
            at = text.index(token)
            raise LancePrepError(
                f"special token {token} in a text: ...{text[max(0, at - 40) : at + len(token) + 40]!r}...",
                "clean the source, or use special_tokens='text' (as plain text) or special_tokens='parse'",
            )


def _added_tokens(file: bytes) -> tuple[str, ...]:
    return tuple(token["content"] for token in json.loads(file).get("added_tokens") or ())


@cache
def _without_special_tokens(file: bytes) -> bytes:
    data = json.loads(file)
    data["added_tokens"] = [token for token in data.get("added_tokens") or [] if not token.get("special")]
    return json.dumps(data).encode()


def _text_bytes(texts: pa.LargeStringArray) -> int:
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return int(offsets[texts.offset + len(texts)] - offsets[texts.offset])
