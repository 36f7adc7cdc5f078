"""Gathers everything that a report shows, from scans in bounded memory and a sample of rows.

Lengths are counted over all rows, one small column at a time. Token frequencies are counted over at most
`MOST_TOKENS` tokens in ranges of rows that are spread evenly, since they hardly change beyond that. Decoded rows are a
sample: the page stays below 1 MB whatever the size of the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lance_prep.dataset import Measured, Version, adding_up, list_versions, open_parts
from lance_prep.errors import reading_dataset
from lance_prep.layouts import LAYOUTS, ROW_BITS
from lance_prep.ledger import Ledger
from lance_prep.loss_mask import MASK_COLUMN, runs_to_spans
from lance_prep.report.hits import Hits, find_hits
from lance_prep.store import DatasetVersion, Manifest, Split
from lance_prep.tokenizer import load_reference, real_ids, text_pieces

#: Token frequencies are counted over about this number of tokens, in this number of ranges of rows.
MOST_TOKENS = 100_000_000
RANGES = 64
#: Columns of a source that a report may count rows by: at most this number of values are shown.
MOST_VALUES = 12
#: Datasets of a collection whose rows are in the sample and in the statistics.
MOST_DATASETS = 64

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReportOptions:
    """Limits of what a report reads and shows.

    Attributes:
        rows: number of rows in the sample.
        row_tokens: tokens of a row that are shown.
        sample_tokens: tokens of all rows together; later rows are cut short.
        seed: which rows are drawn.
    """

    rows: int = 100
    row_tokens: int = 600
    sample_tokens: int = 24_000
    seed: int = 0


@dataclass
class Statistics:
    """Counts over the rows of one dataset, or of several with the same tokenizer.

    Attributes:
        measured: lengths of rows and documents.
        frequencies: int64 `[vocab_size]`, how often each id was seen.
        counted: number of tokens in `frequencies`.
    """

    measured: Measured = field(default_factory=Measured)
    frequencies: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counted: int = 0

    def count_ids(self, ids: npt.NDArray[Any]) -> None:
        """Count token ids."""
        found = np.bincount(ids, minlength=len(self.frequencies))
        found[: len(self.frequencies)] += self.frequencies
        self.frequencies = found
        self.counted += len(ids)


@dataclass(frozen=True)
class SampledRow:
    """A row of the sample.

    Attributes:
        dataset: the name of its source; empty for a single dataset.
        row: its number.
        num_tokens: of the row; more than are shown if it is cut short.
        pieces: text, ids, and whether it is learned (None if the dataset does not say), of each piece.
        documents: of the tokens shown: first piece, shard, source row.
        columns: kept columns, as text.
    """

    dataset: str
    row: int
    num_tokens: int
    pieces: tuple[tuple[str, tuple[int, ...], bool | None], ...]
    documents: tuple[tuple[int, int, int], ...]
    columns: dict[str, str]


@dataclass(frozen=True)
class Source:
    """A source of a collection: its split, and its part of the whole.

    Attributes:
        target: its target share; None if the collection has none.
    """

    name: str
    split: Split
    target: float | None


@dataclass(frozen=True)
class Gathered:
    """The content of a page.

    Attributes:
        title: name of the dataset or of the folder.
        opened: the datasets, by name; the name of a single one is empty.
        manifest: of a collection.
        left_out: datasets of the collection that are not in the statistics, with the reason.
        top: the most frequent tokens: id, text, how often.
        hits: what texts share with a benchmark.
    """

    title: str
    opened: dict[str, DatasetVersion]
    manifest: Manifest | None
    left_out: dict[str, str]
    statistics: Statistics
    ledger: Ledger
    versions: tuple[Version, ...]
    sources: tuple[Source, ...]
    top: tuple[tuple[int, str, int], ...]
    sample: tuple[SampledRow, ...]
    has_chat: bool
    hits: Hits


def gather(
    where: str | Path,
    version: int | str | None = None,
    storage_options: dict[str, str] | None = None,
    *,
    options: ReportOptions | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Gathered:
    """Gather the content of a report about a dataset, or about a folder with a manifest.

    Args:
        on_rows: called with the number of rows read so far, and the total.

    Raises:
        DatasetError: there is no dataset or collection, or it is damaged.
    """
    options = options or ReportOptions()
    parts = open_parts(where, version, storage_options, most=MOST_DATASETS)
    manifest, opened, left_out = parts.manifest, parts.opened, parts.left_out
    tokens = sum(each.metadata.tokens for each in opened.values())
    share = min(1.0, MOST_TOKENS / max(tokens, 1))
    # Lengths of all rows are read, and then the ids of a share of them.
    total = sum(each.metadata.rows + _rows_of_share(each, share) for each in opened.values())
    advance = adding_up(total, on_rows)
    statistics, ledger = Statistics(), Ledger()
    for each in opened.values():
        ledger.add(each.metadata.ledger)
        with reading_dataset(each.uri):
            _scan(each, statistics, share=share, advance=advance)
    single = next(iter(opened.values())) if manifest is None else None
    return Gathered(
        title=Path(str(where).rstrip("/")).name,
        opened=opened,
        manifest=manifest,
        left_out=left_out,
        statistics=statistics,
        ledger=ledger,
        versions=tuple(list_versions(single.uri, storage_options)) if single is not None else (),
        sources=_sources(manifest),
        top=_most_frequent(opened, statistics),
        sample=tuple(_sample(opened, options)),
        has_chat=any(MASK_COLUMN in each.dataset.schema.names for each in opened.values()),
        hits=find_hits(opened),
    )


def _scan(opened: DatasetVersion, into: Statistics, *, share: float, advance: Callable[[int], None]) -> None:
    """Count lengths over all rows, and token ids over a share of them."""
    into.measured.scan(opened, advance)
    if not LAYOUTS[opened.metadata.layout].tokens:
        return
    if opened.metadata.tokenizer is not None:
        least = opened.metadata.tokenizer.vocab_size
        if len(into.frequencies) < least:
            into.frequencies = np.concatenate([into.frequencies, np.zeros(least - len(into.frequencies), np.int64)])
    for start, stop in _ranges(opened.metadata.rows, share):
        scanner = opened.dataset.scanner(columns=["input_ids", "num_tokens"], offset=start, limit=stop - start)
        for batch in scanner.to_batches():
            into.count_ids(real_ids(batch["input_ids"], batch["num_tokens"].to_numpy()))
            advance(len(batch))


def _rows_of_share(opened: DatasetVersion, share: float) -> int:
    if not LAYOUTS[opened.metadata.layout].tokens:
        return 0
    return sum(stop - start for start, stop in _ranges(opened.metadata.rows, share))


def _ranges(rows: int, share: float) -> list[tuple[int, int]]:
    """Return ranges of rows, spread evenly, that hold this share of all."""
    if share >= 1:
        return [(0, rows)] if rows else []
    number = min(RANGES, rows)
    starts = [rows * i // number for i in range(number)]
    return [(start, start + max(1, int(rows * share / number))) for start in starts]


def _sources(manifest: Manifest | None) -> tuple[Source, ...]:
    """Return the sources with their target shares: their category's, times their part of the category."""
    if manifest is None:
        return ()
    found = []
    for name, split in manifest.splits.items():
        target = None
        if split.category in manifest.categories:
            peers = [each for each in manifest.splits.values() if each.category == split.category]
            stated = [each.share for each in peers if each.share is not None]
            tokens = sum(each.tokens for each in peers)
            own = split.share if len(stated) == len(peers) else split.tokens / tokens if tokens else 0.0
            whole = sum(stated) if len(stated) == len(peers) else 1.0
            target = manifest.categories[split.category] * (own or 0.0) / (whole or 1.0)
        found.append(Source(name, split, target))
    return tuple(found)


def _most_frequent(opened: dict[str, DatasetVersion], statistics: Statistics) -> tuple[tuple[int, str, int], ...]:
    first = next(iter(opened.values()))
    if not statistics.counted:
        return ()
    order = np.argsort(-statistics.frequencies, kind="stable")[:25].tolist()
    tokenizer = _reference(first)
    found = []
    for token in order:
        text = "" if tokenizer is None else "".join(piece.text for piece in text_pieces(tokenizer, [token]))
        found.append((token, text, int(statistics.frequencies[token])))
    return tuple(each for each in found if each[2])


def _reference(opened: DatasetVersion) -> Any:
    stated = opened.metadata.tokenizer
    return None if stated is None or stated.is_function else load_reference(opened.tokenizer_file())


def _sample(opened: dict[str, DatasetVersion], options: ReportOptions) -> Iterator[SampledRow]:
    """Yield rows drawn at random, in order; at most `sample_tokens` tokens of them."""
    usable = {name: each for name, each in opened.items() if each.metadata.rows}
    left = options.sample_tokens
    generator = np.random.default_rng(options.seed)
    for place, (name, each) in enumerate(usable.items()):
        wanted = max(1, options.rows // len(usable))
        rows = generator.choice(each.metadata.rows, min(wanted, each.metadata.rows), replace=False)
        budget = left // (len(usable) - place)
        with reading_dataset(each.uri):
            records = each.dataset.take(np.sort(rows).tolist()).to_pylist()
        tokenizer = _reference(each)
        for row, record in zip(np.sort(rows).tolist(), records, strict=True):
            shown = _shown(name, int(row), record, tokenizer, min(options.row_tokens, budget))
            used = sum(len(ids) for _, ids, _ in shown.pieces) or len(str(shown.columns)) // 4
            budget -= used
            left -= used
            yield shown
            if budget <= 0:
                break


def _shown(name: str, row: int, record: dict[str, Any], tokenizer: Any, most: int) -> SampledRow:
    ids, n = record.pop("input_ids", []), record.pop("num_tokens", 0)
    runs = record.pop(MASK_COLUMN, None)
    doc_ids = record.pop("doc_ids", None) or [record.pop("doc_id", 0)]
    lengths = record.pop("seq_lengths", None) or [n]
    ids = ids[: min(n, most)]
    columns = {key: str(value)[:200] for key, value in record.items()}
    if tokenizer is None:
        spans = [(f"{token} ", i, i + 1) for i, token in enumerate(ids)]
    else:
        spans = [(piece.text, piece.start, piece.stop) for piece in text_pieces(tokenizer, ids)]
    learned = None
    if runs is not None:
        learned = np.zeros(len(ids), np.bool_)
        for start, stop in zip(*runs_to_spans(np.array(runs, np.uint16), np.array([0, len(runs)]))[:2], strict=True):
            learned[start:stop] = True
    pieces = tuple(
        (text, tuple(ids[start:stop]), None if learned is None else bool(learned[start:stop].any()))
        for text, start, stop in spans
    )
    return SampledRow(name, row, n, pieces, _documents(spans, doc_ids, lengths), columns)


def _documents(
    spans: Sequence[tuple[str, int, int]], doc_ids: Sequence[int], lengths: Sequence[int]
) -> tuple[tuple[int, int, int], ...]:
    """Return the piece that each document begins with, its shard and its source row."""
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[:-1]
    first = np.array([start for _, start, _ in spans], np.int64)
    found = []
    for start, doc_id in zip(starts.tolist(), doc_ids, strict=False):
        piece = int(np.searchsorted(first, start))
        if piece < len(spans):
            found.append((piece, doc_id >> ROW_BITS, doc_id & ((1 << ROW_BITS) - 1)))
    return tuple(found)
