"""`Mixture`: several datasets by weight, as one map-style dataset whose every position is known in closed form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from lance_prep.errors import UsageError
from lance_prep.keyed import Indices
from lance_prep.train.dataset import DatasetOptions, LanceDataset
from lance_prep.train.order import DEFAULT_SEED, PAD_ROW, Place
from lance_prep.train.positions import FAR, Lookup, Pool, Positions, simulated
from lance_prep.train.samples import Batch, Documents, Sample
from lance_prep.train.sources import Origin, Source, as_indices
from lance_prep.train.splits import Phase, Pin, Splits, Weights, check_phases


class Mixture(Dataset[dict[str, Any]]):
    """Mixes datasets by weight. Position i is a sample of one of them, the same for every rank, worker and run.

    Args:
        weights: weight of each dataset by path; or phases, whose weights change after `until_tokens` tokens. A phase
            does not affect the positions before it, so phases can be added to a run that is under way.
        block_size: tokens per sample, equal for all sources. Left out for sources of records, such as raw datasets.
        by: what the weights count: "tokens" (real tokens, without padding) or "rows" (samples). Records need "rows".
        seed: of the order within each source. Every source has its own order, and a new one each time it repeats.
        stopping: "repeat" starts a source again when it runs out, and an epoch ends when each was used up once.
            "stop" ends the epoch before the first source would repeat.
        experiment_tokens, target_tokens: tokens of this run, and of a larger run that it predicts. Each source is
            restricted to the first experiment_tokens / target_tokens of its samples, in its own order,
            so that this run repeats every source as often as the large one will (simulated epoching, see `positions`).
        datasets: sources that are already open or need their own options, by the names used in `weights`.
        options: arguments of `LanceDataset` for the sources that are opened here, such as `labels` or `filter` (see
            `DatasetOptions`).

    Samples are those of the sources: dicts of int64 tensors `[block_size]`, or records. They are already
    shuffled: read them in sequence, as `TakeSampler` and `TokenLoader` do. At every position of a phase, each
    source's count is at most one off its exact share. Indices from `len` on belong to the following epochs. Memory is
    O(sources). A mixture pickles to a few KB, and opens datasets lazily.

    Raises:
        UsageError: phases do not follow each other, or options contradict each other or would have no effect. At first
            use: a source is empty, or the sources' block sizes differ.
        DatasetError: at first use: a source is not a dataset.
        TypeError: an option has a name that `LanceDataset` does not know.
    """

    #: Order: epoch e goes on where e - 1 ended (see `Order`).
    endless = True

    def __init__(
        self,
        weights: Mapping[str, float | Fraction] | Mapping[Path, float | Fraction] | Sequence[Phase],
        *,
        block_size: int | None = None,
        by: Literal["tokens", "rows"] = "tokens",
        seed: int = DEFAULT_SEED,
        stopping: Literal["repeat", "stop"] = "repeat",
        experiment_tokens: int | None = None,
        target_tokens: int | None = None,
        datasets: Mapping[str, Source] | None = None,
        **options: Unpack[DatasetOptions],
    ) -> None:
        _check_options(options)
        if by not in ("tokens", "rows") or stopping not in ("repeat", "stop"):
            raise UsageError(
                f"invalid by={by!r} or stopping={stopping!r}",
                "use by='tokens' or 'rows', and stopping='repeat' or 'stop'",
            )
        weights = _by_name(weights) if isinstance(weights, Mapping) else weights
        self.phases = (Phase(weights),) if isinstance(weights, str | dict) else tuple(weights)
        check_phases(self.phases)
        self.names = list(dict.fromkeys(name for phase in self.phases for name in phase.by_name))
        given = dict(datasets or {})
        unknown = sorted(given.keys() - set(self.names))
        if unknown:
            raise UsageError(f"datasets without a weight: {', '.join(unknown)}", "give each a weight")
        if options and given.keys() == set(self.names):
            raise UsageError(
                f"{', '.join(sorted(options))} would have no effect, because all datasets are open already",
                "pass these options to each LanceDataset",
            )
        self._block_size = block_size
        self.sources: list[Source] = [
            given[name]
            if name in given
            else LanceDataset(name, block_size=block_size, **_of_one(name, options, self.names))
            for name in self.names
        ]
        self.by, self.seed, self.stopping = by, seed, stopping
        self._simulated = simulated(experiment_tokens, target_tokens)
        self._pins: dict[str, Pin] = {}
        self._laid: Positions | None = None
        self._looked_up: Lookup | None = None
        self._size: int | None = None

    @classmethod
    def from_manifest(
        cls,
        folder: str | Path,
        splits: Sequence[str] | None = None,
        *,
        weights: Weights | Sequence[Phase] = "target",
        validation: bool = False,
        block_size: int | None = None,
        by: Literal["tokens", "rows"] = "tokens",
        seed: int = DEFAULT_SEED,
        stopping: Literal["repeat", "stop"] = "repeat",
        experiment_tokens: int | None = None,
        target_tokens: int | None = None,
        **options: Unpack[DatasetOptions],
    ) -> Self:
        """Mix the splits of a collection, as its `manifest.json` lists them.

        Args:
            folder: with the manifest: the output of `lance-prep build DIR -o OUT --recursive`, or of
                `lance-prep export OUT -o DIR --format parquet` (see `ParquetDataset`).
            splits: names of the splits to use. By default those that `weights` names, or all that hold data.
            weights: "target" gives each split the share that the recipe asks for: its category's, times its own in the
                category, which is in proportion to tokens unless the recipe gives one. With fewer splits, these keep
                the proportions between them. "tokens" is in proportion to tokens. A mapping gives weights to splits,
                or to whole categories; phases hold such mappings.
            validation: mix the validation sets instead.
            block_size, by, seed, stopping, experiment_tokens, target_tokens, options: see `Mixture`. The manifest
                chooses the versions.

        Splits without sequences are left out with a warning, and refused if they are named. Each split is read at the
        version and with the content that the manifest names, whatever was built into its folder later.

        Raises:
            DatasetError: the manifest is missing, or lists no split with sequences. A split is missing. At first use: a
                split's version is missing or has other content.
            UsageError: a name is unknown, a split that is named is empty, or a target share is missing.
            TypeError: an option has a name that `LanceDataset` does not know.
        """
        _check_options(options)
        if "version" in options:
            raise UsageError(
                "version cannot be combined with a manifest, which names a version of each split", "remove it"
            )
        found = Splits.read(folder, validation=validation)
        phases = found.phases(weights, splits)
        check_phases(phases)
        opened = {name: found.open(name, block_size, options) for name in phases[0].by_name}
        mixture = cls(
            phases,
            block_size=block_size,
            by=by,
            seed=seed,
            stopping=stopping,
            experiment_tokens=experiment_tokens,
            target_tokens=target_tokens,
            datasets=opened,
        )
        mixture._pins = {name: found.pin(name) for name in opened}
        return mixture

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_laid": None, "_looked_up": None}

    # Laying out.

    @property
    def block_size(self) -> int | None:
        """Tokens per sample, or None if all sources hold records.

        Raises:
            UsageError: block sizes of sources differ from each other or from the requested one, or samples vary in
                length.
        """
        sizes = {name: source.block_size for name, source in self._named()}
        size = self._block_size or self.sources[0].block_size
        if set(sizes.values()) != {size} or (size is None and not self._records):
            raise UsageError(
                f"a mixture needs one block size, and its sources have {sizes}", "pass the same block_size for all"
            )
        return size

    @property
    def _records(self) -> bool:
        """Whether the samples of all sources are records without tokens."""
        return all(source._mean_tokens is None for source in self.sources)

    @property
    def _positions(self) -> Positions:
        if self._laid is None:
            self._check_sources()
            self._size = size = self.block_size
            if size is None and (self.by == "tokens" or len(self.phases) > 1 or self._simulated):
                raise UsageError("records have no tokens to mix by or to end a phase", "use by='rows' and one phase")
            phases = [
                (self._row_weights(phase), FAR if phase.until_tokens is None else -(-phase.until_tokens // (size or 1)))
                for phase in self.phases
            ]
            pools = [self._pool(i) for i in range(len(self.names))]
            self._laid = Positions.lay_out(phases, pools, self.seed, restart=self.stopping == "stop")
        return self._laid

    @property
    def _lookup(self) -> Lookup:
        if self._looked_up is None:
            self._looked_up = Lookup(self._positions)
        return self._looked_up

    def _pool(self, number: int) -> Pool:
        name, source = self.names[number], self.sources[number]
        size = used = len(source)
        if self._simulated is not None and self._has_weight(name):
            used = self._simulated.size(size)
            if not used:
                raise UsageError(
                    f"{name} has {size} samples, and experiment_tokens={self._simulated.experiment_tokens} of "
                    f"target_tokens={self._simulated.target_tokens} leaves less than half a sample of them",
                    "remove it from the mixture, or use larger experiment_tokens",
                )
        # Seeded by content and position rather than path: a dataset that was moved keeps its order.
        return Pool(size, used, f"{number}/{source._content_hash}")

    def _check_sources(self) -> None:
        for name, source in self._named():
            if name in self._pins:
                self._pins[name].check(source)
            if not len(source) and self._has_weight(name):
                raise UsageError(
                    f"{name} has a weight but no samples", "remove it from the mixture, or check its filter"
                )

        tokenizers = {name: hash for name, source in self._named() if (hash := source._tokenizer_hash) is not None}
        if len(set(tokenizers.values())) > 1:
            said = ", ".join(f"{name}: {hash[:12]}" for name, hash in tokenizers.items())
            warnings.warn(
                f"the sources of a mixture were tokenized with different tokenizers, so equal ids may mean different "
                f"text ({said})",
                stacklevel=2,
            )

    def _named(self) -> list[tuple[str, Source]]:
        return list(zip(self.names, self.sources, strict=True))

    def _has_weight(self, name: str) -> bool:
        return any(phase.by_name.get(name) for phase in self.phases)

    def _row_weights(self, phase: Phase) -> list[Fraction]:
        """Return the weights per sample. They are read as decimals, so that 0.3 is 3/10."""
        weights = [Fraction(str(phase.by_name.get(name, 0))) for name in self.names]
        if self.by == "tokens":
            means = [Fraction(source._mean_tokens or 1).limit_denominator(10**6) for source in self.sources]
            weights = [weight / mean for weight, mean in zip(weights, means, strict=True)]
        return weights

    def shares(self, phase: int = 0) -> dict[str, Fraction]:
        """Return the exact share of samples of each source in a phase."""
        return dict(zip(self.names, self._positions.stretches[phase].shares.exact, strict=True))

    def counts(self, length: int) -> dict[str, int]:
        """Return the number of samples of each source among the first `length` positions."""
        return dict(zip(self.names, self._positions.counts(length), strict=True))

    def _repr_html_(self) -> str:
        from lance_prep import viz

        counts = self.counts(len(self))
        rows = [
            (name, len(source), f"{float(share):.2%}", counts[name])
            for (name, source), share in zip(self._named(), self.shares().values(), strict=True)
        ]
        title = f"Mixture of {len(rows)} sources, {len(self):,} samples in an epoch"
        phase = " in the first phase" if len(self.phases) > 1 else ""
        return viz.table(title, ("source", "samples", f"share{phase}", "samples in an epoch"), rows)

    # Samples.

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return self._positions.length

    @property
    def _read_rows(self) -> int:
        """Number of samples to read at once, for speed."""
        return max(source._read_rows for source in self.sources)

    @property
    def _slow(self) -> bool:
        """Whether reading ahead always saves time."""
        return any(source._slow for source in self.sources)

    def locate(self, indices: Indices) -> tuple[Indices, Indices]:
        """Return the number of the source of each position, and the sample of that source: int64 `[positions]` each.

        Raises:
            IndexError: a position is negative.
        """
        flat = np.asarray(indices, np.int64).reshape(-1)
        if flat.size and int(flat.min()) < 0:
            raise IndexError(f"position {flat.min()} of a mixture is negative")
        return self._lookup.locate(flat)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> Sample | Batch:
        """Return a sample, or a batch of those in a slice of the first epoch. Negative indices count from its end.

        Raises:
            IndexError: the index is below -len.
            TypeError: it is not an integer.
            DatasetError: a source cannot be read.
        """
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self)), dtype=np.int64))
        position = as_indices([index])
        return self.take(np.where(position < 0, position + len(self), position))[0]

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor) -> Batch:
        """Return the samples at positions, in their order. Each source is read once.

        Args:
            indices: `[samples]`, at least 0. Those from `len` on belong to the following epochs.

        Returns:
            A sequence of samples whose `["input_ids"]` is the int64 tensor `[samples, block_size]` of all.

        Raises:
            IndexError: an index is negative.
            TypeError: an index is not an integer.
            DatasetError: a source cannot be read.
        """
        array = as_indices(indices)
        padding = array == PAD_ROW
        source, sample = self.locate(np.where(padding, 0, array))
        sample = np.where(padding, PAD_ROW, sample)
        used = np.unique(source).tolist() or [0]
        if len(used) == 1:
            whole: Batch = self.sources[used[0]].__getitems__(sample)
            return whole
        wheres = [np.flatnonzero(source == i) for i in used]
        parts = [self.sources[i].__getitems__(sample[w]) for i, w in zip(used, wheres, strict=True)]
        return (_merged_records if self._size is None else _merged)(parts, wheres, len(array))

    #: torch fetches a batch in one call.
    __getitems__ = take

    # Where samples come from, and what a checkpoint compares.

    def origins(self, indices: Indices) -> list[Origin]:
        """Return where the samples at positions come from, leaving out padding samples."""
        indices = indices[indices != PAD_ROW]
        source, sample = self.locate(indices)
        out: list[Origin | None] = [None] * len(indices)
        for i in np.unique(source).tolist():
            here = np.flatnonzero(source == i)
            for at, origin in zip(here.tolist(), self.sources[i].origins(sample[here]), strict=True):
                out[at] = Origin(self.names[i], origin.row, origin.documents)
        return [origin for origin in out if origin is not None]

    def trace(self, step: int, rank: int = 0, *, global_batch_size: int = 1, world_size: int = 1) -> list[Origin]:
        """Return where each sample that a rank gets at a step comes from.

        Steps are counted through all epochs. `TokenLoader.trace` knows the sizes itself.
        """
        share = Place(rank, world_size).share(global_batch_size)
        start = step * global_batch_size
        return self.origins(np.arange(start + share.start, start + share.stop, dtype=np.int64))

    def _identity(self, position: int = 0) -> dict[str, Any]:
        """Return what a checkpoint made at a position must match to be resumed. Later weights may differ."""
        begun = [
            {"from": stretch.start, "shares": [str(share) for share in stretch.shares.exact]}
            for stretch in self._positions.stretches
            if stretch.start < position or stretch.start == 0
        ]
        return {
            "sources": [source._identity() for source in self.sources],
            "phases": begun,
            "by": self.by,
            "mixture_seed": self.seed,
            "stopping": self.stopping,
            **(asdict(self._simulated) if self._simulated is not None else {}),
        }


def _by_name(weights: Mapping[Any, float | Fraction]) -> dict[str, float | Fraction]:
    """Return weights by the text of their paths."""
    by_name = {os.fspath(name): weight for name, weight in weights.items()}
    if len(by_name) < len(weights):
        raise UsageError("a dataset has two weights, by its path and by its name", "give each dataset one weight")
    return by_name


def _of_one(name: str, options: DatasetOptions, names: Sequence[str]) -> DatasetOptions:
    """Return the options of one dataset. If the mixture has datasets on the Hub, `cache` applies only to them."""
    if name.startswith("hf://") or not any(other.startswith("hf://") for other in names):
        return options
    return {**options, "cache": False}


def _check_options(options: Mapping[str, Any]) -> None:
    if misspelt := sorted(options.keys() - DatasetOptions.__annotations__.keys()):
        raise TypeError(f"Mixture() got an unexpected keyword argument {misspelt[0]!r}")


def _merged(parts: Sequence[Batch], wheres: Sequence[Indices], count: int) -> Batch:
    """Merge batches of samples of one size, `parts[i]` at positions `wheres[i]`."""
    first = parts[0]
    if any(part.tensors.keys() != first.tensors.keys() for part in parts):
        said = "; ".join(sorted({", ".join(part.tensors) for part in parts}))
        raise UsageError(f"the samples of the sources differ: {said}", "open all sources with the same options")
    tensors = {}
    for name, values in first.tensors.items():
        out = np.empty((count, *values.shape[1:]), np.int64)
        for part, where in zip(parts, wheres, strict=True):
            out[where] = part.tensors[name].numpy()
        tensors[name] = torch.from_numpy(out)
    lists: dict[str, list[Any]] = {}
    for name in first.lists:
        lists[name] = [None] * count
        for part, where in zip(parts, wheres, strict=True):
            for at, value in zip(where.tolist(), part.lists[name], strict=True):
                lists[name][at] = value
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.full(count, tensors["input_ids"].shape[1], np.int64)
        for part, where in zip(parts, wheres, strict=True):
            if part.valid is not None:
                valid[where] = part.valid

    def find() -> Documents:
        return Documents.merged([part.documents for part in parts], wheres, count)

    return Batch(tensors, lists, count, first.options, valid=valid, find=find)


def _merged_records(parts: Sequence[Batch], wheres: Sequence[Indices], count: int) -> Any:
    """Merge batches of records. A record lacks other sources' fields, which are None in the batch."""
    items: list[Any] = [None] * count
    for part, where in zip(parts, wheres, strict=True):
        for at, item in zip(where.tolist(), part, strict=True):
            items[at] = item
    if not all(isinstance(part, Batch) for part in parts):
        return items  # made by a transform of the source: torch collates them
    names = dict.fromkeys(name for item in items for name in item)
    return Batch({}, {name: [item.get(name) for item in items] for name in names}, count, parts[0].options)
