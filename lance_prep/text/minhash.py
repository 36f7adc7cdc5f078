"""MinHash: keys of texts such that texts that are nearly equal have a key in common.

A text's runs of words are a set. Its digest has `bands * rows` numbers, each of which two texts share with a
probability equal to the Jaccard similarity s of their sets. A key is a band: `rows` of these numbers. So two texts have
a key in common with probability `1 - (1 - s^rows)^bands`: with 14 bands of 8 rows, 0.01 at s = 0.4, 0.56 at 0.7, and
0.99 at 0.86.

`rensa` computes the digests. Its own index of digests is not used: what it answers depends on the order of insertion,
and it holds every digest in memory. Here the keys are treated as those of equal texts are (see `dedup.py`): a text is
dropped if an earlier one has one of its keys. There are no clusters to join, so a later text never changes what became
of an earlier one.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pyarrow as pa

from lance_prep.arrow_text import hash_texts
from lance_prep.errors import UsageError
from lance_prep.keyed import U64, hashes, key
from lance_prep.process import install_advice
from lance_prep.recipe import Recipe
from lance_prep.text.words import Words, hash_runs, hash_words

#: Version of everything here and in `words.py` that decides a key.
VERSION = 1

_SEED = 20_261_124


def minhash_version() -> str:
    """Return what decides the keys, beside the recipe: it is a part of the build's key.

    Raises:
        UsageError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ModuleNotFoundError as error:
        said = "`dedup` 'minhash' needs rensa, which is not installed"
        raise UsageError(said, install_advice("dedup")) from error
    return f"{VERSION}, rensa {RMinHash.ALGORITHM_VERSION}, unicode of pyarrow {version('pyarrow').partition('.')[0]}"


def minhash_keys(texts: pa.LargeStringArray, units: U64, recipe: Recipe) -> tuple[U64, U64]:
    """Return the keys of texts without nulls, uint64 `[n, 2]`, and the unit of each.

    A text with fewer words than a run has is one run. A text without words is compared as it is, with one key.
    """
    words = hash_words(texts)
    counts = np.diff(words.offsets)
    runs, offsets = _runs(words, recipe.minhash_ngram)
    wordless, worded = np.flatnonzero(counts == 0), np.flatnonzero(counts)
    digests = _digests(runs, offsets, recipe.minhash_bands * recipe.minhash_rows)[worded]
    bands = digests.reshape(len(worded), recipe.minhash_bands, recipe.minhash_rows)
    half = [_fold(bands, key(4, side)) for side in (0, 1)]
    exact = hash_texts(texts.take(pa.array(wordless)))
    keys = np.concatenate([np.stack(half, axis=2).reshape(-1, 2), exact])
    return keys, np.concatenate([np.repeat(units[worded], recipe.minhash_bands), units[wordless]])


def _runs(words: Words, length: int) -> tuple[U64, U64]:
    """Return the runs of words of each text, as `hash_runs` does; of a text with fewer words, all of them as one."""
    counts = np.diff(words.offsets)
    short = np.flatnonzero((counts > 0) & (counts < length))
    runs, offsets = hash_runs(words, length)
    whole = np.zeros(len(short), np.uint64)
    for size in np.unique(counts[short]):
        some = np.flatnonzero(counts[short] == size)
        at = words.offsets[short[some]]
        of_size = Words(words.hashes[(at[:, None] + np.arange(size)).reshape(-1)], np.arange(len(some) + 1) * size)
        whole[some] = hash_runs(of_size, int(size))[0]
    runs = np.insert(runs, offsets[short], whole)
    more = np.zeros(len(counts) + 1, np.int64)
    more[short + 1] = 1
    return runs, (offsets + np.cumsum(more)).astype(np.uint64)


def _digests(runs: U64, offsets: U64, size: int) -> U64:
    from rensa import RMinHash

    digests = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets, size, _SEED)
    return np.array(digests.to_rows(), np.uint64).reshape(len(offsets) - 1, size)


def _fold(bands: U64, seed: int) -> U64:
    """Return one hash of each band, `[texts, bands]`. That of another band with the same numbers is different."""
    folded = np.broadcast_to(np.arange(bands.shape[1], dtype=np.uint64), bands.shape[:2])
    for row in range(bands.shape[2]):
        folded = hashes(seed, folded ^ bands[:, :, row] * np.uint64(0x9E3779B97F4A7C15))
    return folded
