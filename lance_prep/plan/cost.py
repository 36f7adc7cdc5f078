"""What a build will cost: rows, tokens, disk, requests and time, estimated from a sample of the source.

The sample is many small pieces, spread evenly over the source's bytes, of at most `SAMPLE_BYTES` in all. A total is a
ratio estimate: tokens in the sample by bytes in the sample, times the bytes of the source. Its error is half the width
of the 95 % interval, from how much the pieces differ. A source that is not larger than the sample is read whole.

A document that is longer than a piece is never in the sample. Tokens are estimated from the bytes of whole documents
all the same, because a long document has about as many tokens for each byte as others; documents are estimated from the
bytes in which they begin. In a corpus of 105 MB with one document of 27 MB, tokens are 2 % off, and would be 25 % off.

Which pieces are read depends only on the plan, so the estimate is the same in every run; only speeds differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lance_prep.formats import KEPT_FOOTERS, CutJob, find_registered, format_named
from lance_prep.model import Part, Plan, Shard
from lance_prep.recipe import Limit, Recipe
from lance_prep.transport import Transport, is_local

SAMPLE_BYTES = 4 << 20
# Number and bytes of the pieces of a local source, and of a remote one. There, a piece is a request or more, and of a
# Parquet column whole pages are fetched, which have up to 1 MiB.
_LOCAL_PIECES, _REMOTE_PIECES = (64, 64 << 10), (16, 128 << 10)
# Rows in a batch of a sample: the last batch may bring it above its size.
_BATCH_ROWS = 16
# Of a request for a remote file that is read from front to back, and of one for columns of Parquet.
_STREAM_REQUEST_BYTES, _COLUMNS_REQUEST_BYTES = 4 << 20, 8 << 20


@dataclass(frozen=True)
class Sample:
    """A piece of the source to read.

    Attributes:
        plan: of one shard that holds only this piece; it has neither limits nor sides.
        size: its part of the source's size.
        rows: source rows in it, if they are known.
        by_weight: the size is that before compression.
        most_bytes: of text to read; None to read all of it.
        from_beginning: only the beginning of the file can be read, and `most_bytes` counts its decompressed bytes.
    """

    plan: Plan
    size: int
    rows: int | None = None
    by_weight: bool = False
    most_bytes: int | None = None
    from_beginning: bool = False


@dataclass(frozen=True)
class Counted:
    """What was found in a sample.

    Attributes:
        size: part of the source's size that the rows have.
        begun: part of the source's size in which `rows_in` begin.
        rows_in: source rows.
        source_rows: of them used.
        tokens, rows: made of them; `rows` of blocks is a fraction.
        disk: bytes of these rows.
        text_bytes: that were read.
    """

    size: float
    begun: float
    rows_in: float
    source_rows: float
    tokens: float
    rows: float
    disk: float
    text_bytes: float


@dataclass(frozen=True)
class Estimate:
    """A number that is estimated.

    Attributes:
        value: the estimate.
        error: half the width of its 95 % interval; 0 if the value is exact, None if the error is unknown.
    """

    value: float
    error: float | None

    def times(self, factor: float) -> Estimate:
        """Return the estimate of a multiple."""
        return Estimate(self.value * factor, None if self.error is None else self.error * factor)


def added(estimates: Iterable[Estimate]) -> Estimate:
    """Return the sum of independent estimates. Its error is unknown if that of one is."""
    parts = list(estimates)
    errors = [part.error for part in parts if part.error is not None]
    error = math.hypot(*errors) if len(errors) == len(parts) else None
    return Estimate(sum(part.value for part in parts), error)


@dataclass(frozen=True)
class Speed:
    """Speeds, as measured on the sample.

    Attributes:
        text: bytes of text that one worker lays out in a second.
        stored: bytes that were read in a second.
    """

    text: float
    stored: float


@dataclass(frozen=True)
class Cost:
    """What a build will cost.

    Attributes:
        source_bytes: to read, of the columns that are needed. Remote ones are fetched.
        requests: for remote files; None if all files are local.
        source_rows: source rows that are read.
        tokens, rows, disk: of the dataset; `disk` in bytes.
        seconds: with the workers asked for.
        speed: that `seconds` is based on.
        free: bytes free on the disk of the output; None in an object store.
        sample_bytes: stored bytes that were read for the estimate.
        sample_places: number of pieces that they are in.
        sample_requests: for them.
        from_beginning: whether only the beginnings of files could be read, so that the errors are unknown.
    """

    source_bytes: Estimate
    requests: Estimate | None
    source_rows: Estimate
    tokens: Estimate
    rows: Estimate
    disk: Estimate
    seconds: float
    speed: Speed
    free: int | None
    sample_bytes: int
    sample_places: int
    sample_requests: int
    from_beginning: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """What to read of a source, in its order; nothing if the size of the source is unknown.

    Attributes:
        samples: the pieces.
        size: of the source. It is the stored size, or that of Parquet columns before compression.
    """

    samples: list[Sample]
    size: int


def choose_samples(plan: Plan, transport: Transport) -> Sampling:
    """Return the pieces to read. Reads footers of Parquet files."""
    total = sum(shard.bytes for shard in plan.shards)
    size, by_weight = _size(plan, transport)
    if total <= SAMPLE_BYTES:
        whole = [Sample(_alone(one, one.shards[0]), one.shards[0].bytes) for one in plan.split() if total]
        return Sampling(whole, total)
    pieces, each = _LOCAL_PIECES if all(is_local(file.url) for file in plan.files) else _REMOTE_PIECES
    ends = np.cumsum([shard.bytes for shard in plan.shards])
    found: dict[tuple[str, int, int], Sample] = {}
    hits: Counter[tuple[str, int, int]] = Counter()
    for number in range(pieces):
        at = total * (2 * number + 1) // (2 * pieces)
        index = int(np.searchsorted(ends, at, side="right"))
        shard = plan.shards[index]
        place = 1 - (int(ends[index]) - at) / shard.bytes
        sample = _sample(plan, *_part_at(plan, shard, place), each, by_weight, transport)
        part = sample.plan.shards[0].parts[0]
        name = sample.plan.files[0].url, part.start, part.stop
        found[name] = sample
        hits[name] += 1
    samples = []
    for name, sample in found.items():
        if sample.rows is not None or sample.from_beginning:  # more of a large row group or file, which is hit often
            sample = replace(sample, most_bytes=hits[name] * each)
        samples.append(sample)
    return Sampling(samples, size)


def _size(plan: Plan, transport: Transport) -> tuple[int, bool]:
    """Return the size of a plan's source, and whether it is that of Parquet columns before compression.

    Tokens go with the latter more closely. It is used for as many files as footers are kept, so none is read for it.
    """
    if len(plan.files) > KEPT_FOOTERS or any(file.format != "parquet" for file in plan.files):
        return sum(shard.bytes for shard in plan.shards), False
    size = 0
    for part in (part for shard in plan.shards for part in shard.parts):
        job = CutJob(plan.files[part.file], plan.recipe, plan.read_schema, 0, transport)
        pieces = list(format_named("parquet").pieces(job))[part.start : part.stop]
        size += sum(piece.weight for piece in pieces)
    return size, True


def _part_at(plan: Plan, shard: Shard, place: float) -> tuple[Part, float]:
    """Return the part of a shard at a place from 0 up to 1, and the place in the part."""
    sizes = np.array([_weight(plan, part) for part in shard.parts], np.float64)
    ends = np.cumsum(sizes) / sizes.sum()
    number = min(int(np.searchsorted(ends, place, side="right")), len(sizes) - 1)
    start = ends[number - 1] if number else 0.0
    return shard.parts[number], min(max((place - start) / (ends[number] - start), 0.0), math.nextafter(1, 0))


def _weight(plan: Plan, part: Part) -> float:
    size = plan.files[part.file].size
    return max(part.rows if part.rows is not None else (part.stop - part.start) or size, 1)


def _sample(plan: Plan, part: Part, place: float, size: int, by_weight: bool, transport: Transport) -> Sample:
    file = plan.files[part.file]
    job = CutJob(file, plan.recipe, plan.read_schema, size, transport)
    piece = format_named(file.format).sample(job, part, place)
    if piece is None:
        return Sample(_alone(plan, Shard(0, (part,), file.size)), file.size, part.rows, from_beginning=True)
    taken = Part(part.file, piece.start, piece.stop, piece.rows)
    shard = Shard(0, (taken,), piece.stored, piece.rows)
    return Sample(_alone(plan, shard), piece.weight if by_weight else piece.stored, piece.rows, by_weight)


def _alone(plan: Plan, shard: Shard) -> Plan:
    """Return the plan of one shard, with neither limits nor sides, in small batches."""
    changed = {"side": None, "val_fraction": None, "max_rows": None, "max_source_rows": None, "max_tokens": None}
    recipe = plan.recipe.model_copy(update={**changed, "shuffle_batch_size": _BATCH_ROWS})
    return next(replace(plan, recipe=recipe, shards=(shard,)).split())


def estimate_cost(
    plan: Plan, sampling: Sampling, counted: Sequence[Counted], limit: Limit, speed: Speed, workers: int
) -> Cost:
    """Return the cost of a build, without what is known of its output and of the sample.

    Args:
        sampling: what was read.
        counted: what was found, at least one row.
        limit: what the build may still write.
        workers: number of shards built at once.
    """
    from_beginning = any(sample.from_beginning for sample in sampling.samples)
    size = sampling.size
    stored = sum(shard.bytes for shard in plan.shards)
    sides = [_share(plan.recipe, name) * _values(counted, name) for name in _NAMES]
    values = dict(zip(_NAMES, sides, strict=True))
    by, total = "size", float(size)
    for name in ("rows", "source_rows", "tokens"):  # the limit that ends the build first
        most = getattr(limit, name)
        if most is not None and values[name].sum() and most < _ratio(values, name, by, total, size).value:
            by, total = name, float(most)

    def of(name: str) -> Estimate:
        found = _ratio(values, name, by, total, size)
        return replace(found, error=None) if from_beginning and found.error else found

    rows = Estimate(plan.rows, 0) if plan.rows is not None and by == "size" else of("rows_in")
    read = Estimate(stored, 0) if by == "size" else of("size").times(stored / size)
    remote = any(not is_local(file.url) and find_registered(file.format).is_file for file in plan.files)
    requests = Estimate(_requests(plan), 0).times(read.value / stored) if remote else None
    seconds = max(of("text_bytes").value / speed.text / workers, read.value / speed.stored)
    return Cost(
        source_bytes=read,
        requests=requests,
        source_rows=rows,
        tokens=of("tokens"),
        rows=of("rows"),
        disk=of("disk"),
        seconds=seconds,
        speed=speed,
        free=None,
        sample_bytes=0,
        sample_places=len(counted),
        sample_requests=0,
        from_beginning=from_beginning,
    )


_NAMES = ("size", "begun", "rows_in", "source_rows", "tokens", "rows", "disk", "text_bytes")
_BY_BEGINNING = ("begun", "rows_in", "source_rows")


def _share(recipe: Recipe, name: str) -> float:
    """Return the part of a quantity that this side of a split has. Both sides read the whole source."""
    if recipe.side is None or recipe.val_fraction is None or name in ("size", "begun", "rows_in"):
        return 1.0
    return recipe.val_fraction if recipe.side == "validation" else 1 - recipe.val_fraction


def _values(counted: Sequence[Counted], name: str) -> Any:
    return np.array([getattr(one, name) for one in counted], np.float64)


def _ratio(values: dict[str, Any], name: str, by: str, total: float, size: int) -> Estimate:
    """Estimate the total of a quantity from that of another: the ratio estimator, with its error."""
    if by == "size" and name in _BY_BEGINNING:
        by = "begun"
    y, x = values[name], values[by]
    n, ratio = len(x), float(y.sum() / x.sum())
    read = values["begun"].sum() / size
    if name == by or (read >= 1 and by in ("size", "begun")):
        return Estimate(ratio * total, 0)
    if n < 2:
        return Estimate(ratio * total, None)
    left = max(0.0, 1 - read)  # what was read is known
    spread = float(((y - ratio * x) ** 2).sum() / (n - 1) / n * left)
    return Estimate(ratio * total, _quantile(n - 1) * math.sqrt(spread) / float(x.mean()) * total)


def _quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 1 % from 3 degrees of freedom on (Cornish-Fisher)."""
    z, v = 1.959964, freedom
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + (z**3 + z) / (4 * v) + second + third


def _requests(plan: Plan) -> int:
    """Return about how many requests for byte ranges the shards make."""
    made = 0
    for shard in plan.shards:
        by_row = [part for part in shard.parts if plan.files[part.file].format == "parquet"]
        # A column chunk each; those that touch are fetched together, and long ones in pieces.
        chunks = sum(part.stop - part.start for part in by_row) * len(plan.read_schema)
        size = _COLUMNS_REQUEST_BYTES if by_row else _STREAM_REQUEST_BYTES
        made += max(chunks, len(shard.parts), -(-shard.bytes // size))
    return made
