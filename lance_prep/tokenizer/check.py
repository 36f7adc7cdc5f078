"""The reference check: while a fast backend encodes, a spare thread encodes a sample with `tokenizers`."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_prep.errors import LancePrepError
from lance_prep.keyed import hashes, key
from lance_prep.tokenizer.encoders import Encoder, ReferenceEncoder
from lance_prep.tokenizer.lists import TokenLists

FIRST_ROWS = 64
ONE_ROW_IN = 2000
#: The reference encodes 3 MB/s: of a longer text, its first characters are encoded by both backends and compared.
LONGEST_TEXT = 1 << 16


class BackendDisagrees(LancePrepError):
    """The fast backend's ids of a text are not those of `tokenizers`.

    Attributes:
        points: the code points beyond ASCII in the smallest part of the text that still shows it. If it is empty, the
            backends disagree on plain ASCII.
    """

    points: frozenset[int] = frozenset()


class CheckedEncoder:
    """An encoder whose answers are sampled and compared with `tokenizers`.

    The first 64 texts of a shard and one in 2,000 after them, drawn by a keyed hash of their number. Use as a context
    manager; a difference is raised by `encode` or, for the last samples, by `finish`.

    Raises:
        BackendDisagrees: with the text and both lists of ids.
    """

    def __init__(self, fast: Encoder, reference: ReferenceEncoder, *, seed: int, shard: int) -> None:
        self.name = fast.name
        self.rows_checked = 0
        self._fast = fast
        self._reference = reference
        self._key = key(seed, shard, 0x636865636B)
        self._seen = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reference-check")
        self._pending: deque[Future[str | None]] = deque()

    def __enter__(self) -> CheckedEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        tokens = self._fast.encode(texts)
        chosen = self._draw(len(texts))
        if len(chosen):
            sample, ids = self._sample(texts, tokens, chosen)
            self.rows_checked += len(chosen)
            self._pending.append(self._pool.submit(self._compare, sample, ids))
        while self._pending and self._pending[0].done():
            self._look_at(self._pending.popleft().result())
        return tokens

    def finish(self) -> None:
        """Wait for the samples that are still being compared."""
        while self._pending:
            self._look_at(self._pending.popleft().result())

    def _draw(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        numbers = np.arange(self._seen, self._seen + n, dtype=np.uint64)
        self._seen += n
        return np.flatnonzero((numbers < FIRST_ROWS) | (hashes(self._key, numbers) % np.uint64(ONE_ROW_IN) == 0))

    def _sample(
        self, texts: pa.LargeStringArray, tokens: TokenLists, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> tuple[pa.LargeStringArray, TokenLists]:
        sample = texts.take(pa.array(chosen))
        lengths = pc.binary_length(sample)
        if pc.max(lengths).as_py() <= LONGEST_TEXT:
            return sample, tokens.take(chosen)
        sample = pc.utf8_slice_codeunits(sample, 0, LONGEST_TEXT // 4)
        return sample, self._fast.encode(sample)

    def _compare(self, sample: pa.LargeStringArray, fast: TokenLists) -> str | None:
        """Return the first text whose ids differ. Runs in the spare thread, which must not use the fast encoder."""
        reference = self._reference.encode(sample)
        if reference.equals(fast):
            return None
        differs = (
            not np.array_equal(reference.slice(i, i + 1).ids, fast.slice(i, i + 1).ids) for i in range(len(sample))
        )
        text: str = sample[next(i for i, each in enumerate(differs) if each)].as_py()
        return text

    def _look_at(self, text: str | None) -> None:
        if text is None:
            return
        part = self._smallest(text)
        one = pa.array([part], pa.large_string())
        have, want = self._fast.encode(one).ids[:50].tolist(), self._reference.encode(one).ids[:50].tolist()
        error = BackendDisagrees(
            f"{self.name} and tokenizers disagree on {part[:200]!r}: {have} and {want}",
            "texts with the same characters are encoded by tokenizers instead",
        )
        error.points = frozenset(ord(char) for char in part if ord(char) > 127)
        raise error

    def _smallest(self, text: str) -> str:
        """Return a short part of a text on which the backends still disagree."""
        step = len(text) // 2
        while step:
            at = 0
            while at < len(text):
                shorter = text[:at] + text[at + step :]
                if shorter and self._differs(shorter):
                    text = shorter
                else:
                    at += step
            step //= 2
        return text

    def _differs(self, text: str) -> bool:
        one = pa.array([text], pa.large_string())
        return not self._fast.encode(one).equals(self._reference.encode(one))
