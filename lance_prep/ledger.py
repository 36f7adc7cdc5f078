"""The ledger: where each source row, line and token went. It balances, always."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    Counts = array[int]
else:
    Counts = array  # cannot be subscripted before Python 3.12


def as_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, for JSON. Dataclasses in them become dicts, but not those inside a collection.

    Nothing is copied but arrays: `dataclasses.asdict` copies every list and dict, and takes seven times as long.
    """
    return {name: _plain(value) for name, value in vars(record).items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return as_plain(value)
    return value.tolist() if isinstance(value, array) else value


_SUBBIN_BITS = 7
_SUBBINS = 1 << _SUBBIN_BITS
_BINS = 36 * _SUBBINS  # up to 2**42 tokens


@dataclass
class Ledger:
    """Counts for one shard, or their sum.

    Source rows: `rows_in = rows_used + empty + filtered + rejected + held_out + dropped + over_limit`.
    Lines: `lines_in = lines_used + lines_empty + lines_dropped + lines_over_limit`. The newline at the end of a text
    ends its last line; no empty line follows. Layouts that keep documents whole count only the lines dropped from them.
    Tokens: `tokens_in = tokens_written + tokens_over_limit`; `padding` is what was added to fill blocks.

    Attributes:
        rows_in: source rows seen, those skipped by row-group statistics included.
        rows_used: source rows that contributed to the output.
        empty: rows whose text is null, empty, or only white space.
        filtered: rows removed by the filter.
        rejected: unusable rows; see `reasons`, and the quarantine file.
        held_out: rows on the other side of a split into training and validation.
        dropped: rows removed because of their text, such as duplicates; see `dropped_for`.
        contaminated: rows in which a benchmark's text was found, dropped or not.
        lines_dropped: lines removed from their documents because an earlier line is equal.
        over_limit: rows that were read, but are beyond `max_rows`, `max_source_rows` or `max_tokens`.
        documents_cut: documents that are divided between blocks.
        tokens_learned: written tokens that are the assistant's, in conversations.
        rows_not_learned: used conversations without a learned token.
        shards_by_reference: shards encoded with `tokenizers` because the fast backend gave other ids.
        rows_checked: rows also encoded with `tokenizers` while building.
        reasons: rejected rows by reason.
        dropped_for: dropped rows by reason.
    """

    rows_in: int = 0
    rows_used: int = 0
    empty: int = 0
    filtered: int = 0
    rejected: int = 0
    held_out: int = 0
    dropped: int = 0
    contaminated: int = 0
    over_limit: int = 0
    lines_in: int = 0
    lines_used: int = 0
    lines_empty: int = 0
    lines_dropped: int = 0
    lines_over_limit: int = 0
    tokens_in: int = 0
    tokens_written: int = 0
    tokens_over_limit: int = 0
    padding: int = 0
    documents_cut: int = 0
    tokens_learned: int = 0
    rows_not_learned: int = 0
    rows_checked: int = 0
    shards_by_reference: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dropped_for: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, rows: int) -> None:
        """Count rows that are dropped for a reason."""
        if rows:
            self.dropped += rows
            self.dropped_for[reason] = self.dropped_for.get(reason, 0) + rows

    def add(self, other: Ledger) -> None:
        """Add another ledger to this one."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, dict):
                mine |= {reason: mine.get(reason, 0) + count for reason, count in theirs.items()}
            else:
                setattr(self, f.name, mine + theirs)

    def imbalance(self) -> list[str]:
        """What does not add up, one sentence each; empty when it balances."""
        sums = [
            ("rows_in", ("rows_used", "empty", "filtered", "rejected", "held_out", "dropped", "over_limit")),
            ("lines_in", ("lines_used", "lines_empty", "lines_dropped", "lines_over_limit")),
            ("tokens_in", ("tokens_written", "tokens_over_limit")),
        ]
        wrong = []
        for total, parts in sums:
            have, want = getattr(self, total), sum(getattr(self, part) for part in parts)
            if have != want:
                terms = " + ".join(f"{part} {getattr(self, part)}" for part in parts)
                wrong.append(f"{total} is {have}, but {terms} = {want}")
        for name, reasons in (("rejected", self.reasons), ("dropped", self.dropped_for)):
            if (have := getattr(self, name)) != (want := sum(reasons.values())):
                wrong.append(f"{name} is {have}, but the reasons add up to {want}")
        return wrong

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LengthRecord:
    """How many documents have which length, for a receipt. Arrays of uint64: a build may hold 100,000 of these.

    Attributes:
        bins, counts: bins of `DocumentLengths` that hold documents, ascending, and how many each holds.
        longest: tokens of the longest document, or 0 without documents.
        longest_doc_id: the first document of that length.
    """

    bins: Counts
    counts: Counts
    longest: int
    longest_doc_id: int

    def __post_init__(self) -> None:
        if len(self.bins) != len(self.counts) or max(self.bins, default=0) >= _BINS:
            raise ValueError("the bins of its lengths are invalid")


class DocumentLengths:
    """Counts lengths of documents in a histogram of fixed size: exact below 256 tokens, to 0.4 % above.

    Each power of two is divided into 128 bins. Histograms of shards add up to that of the dataset.
    """

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.longest = 0
        self.longest_doc_id = 0

    def add(self, lengths: npt.NDArray[np.int64], doc_ids: npt.NDArray[np.uint64]) -> None:
        """Count documents of these lengths; `doc_ids` ascend from call to call."""
        if not len(lengths):
            return
        self._counts += np.bincount(_bins_of(lengths), minlength=_BINS)
        last = int(lengths.argmax())
        if lengths[last] > self.longest:
            self.longest, self.longest_doc_id = int(lengths[last]), int(doc_ids[last])

    def merge(self, record: LengthRecord) -> None:
        """Add the documents of another shard."""
        np.add.at(self._counts, np.array(record.bins, np.int64), np.array(record.counts, np.int64))
        if record.longest > self.longest:
            self.longest, self.longest_doc_id = record.longest, record.longest_doc_id

    def record(self) -> LengthRecord:
        bins = np.flatnonzero(self._counts)
        counts = self._counts[bins]
        return LengthRecord(array("Q", bins.tolist()), array("Q", counts.tolist()), self.longest, self.longest_doc_id)

    def quantile(self, share: float) -> int:
        """Return the length that at least this share of the documents does not exceed, or 0 without documents."""
        total = int(self._counts.sum())
        if not total:
            return 0
        rank = max(math.ceil(share * total), 1)
        found = int(np.searchsorted(np.cumsum(self._counts), rank))
        shift = max(found // _SUBBINS - 1, 0)
        middle = ((found - shift * _SUBBINS) << shift) + (1 << shift >> 1)
        return min(middle, self.longest)


def _bins_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # frexp gives the exponent e with 2**(e - 1) <= length < 2**e; a length keeps its eight highest bits.
    shift = np.maximum(np.frexp(lengths.astype(np.float64))[1] - _SUBBIN_BITS - 1, 0).astype(np.int64)
    bins: npt.NDArray[np.int64] = (lengths >> shift) + shift * _SUBBINS
    return bins


@dataclass(frozen=True)
class Rejected:
    """A row that could not be used, for the quarantine file.

    Attributes:
        file: URL of the source file.
        position: row in the file, or byte offset for line formats; `unit` says which.
        reason: short, the same for all rows of its kind, such as `invalid JSON`.
        data: the row's bytes as they were, cut at 4 KiB.
        size: how many bytes there were before the cut.
    """

    file: str
    position: int
    unit: str
    reason: str
    data: bytes
    size: int


@dataclass
class Tally:
    """What a shard's stages count into, and where they put rejected rows.

    Attributes:
        ledger: counts so far.
        on_reject: called with each rejected row, before it is counted; raises `RowRejected` under `strict`.
        text_bytes: bytes of text that went through.
        lengths: of the documents (for `lines`, the lines) in tokens, those beyond the row limit included.
        retries: requests to a store that had to be made again. Not in the ledger, which is the same for every run.
    """

    ledger: Ledger = field(default_factory=Ledger)
    on_reject: Callable[[Rejected], None] = lambda rejected: None
    retries: int = 0
    text_bytes: int = 0
    lengths: DocumentLengths = field(default_factory=DocumentLengths)

    def reject(self, rejected: Rejected) -> None:
        """Count a rejected row and hand it on."""
        self.on_reject(rejected)
        self.ledger.rejected += 1
        self.ledger.reasons[rejected.reason] = self.ledger.reasons.get(rejected.reason, 0) + 1
