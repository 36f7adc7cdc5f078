"""The splits of a manifest: which are trained on, with what weights, and where they are. Opens no dataset."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, Literal

from lance_prep.errors import DatasetError, UsageError, did_you_mean
from lance_prep.store import MANIFEST, Manifest, Split, read_manifest
from lance_prep.train.dataset import LanceDataset
from lance_prep.train.parquet import ParquetDataset
from lance_prep.train.sources import Source
from lance_prep.transport import absolute_uri, is_local

#: Options of `LanceDataset` that Parquet shards can be read with.
_OF_PARQUET = ("labels", "attention_mask", "cache_dir", "cache_bytes")


#: Weights by name, or the rule that makes them.
Weights = Literal["target", "tokens"] | Mapping[str, float | Fraction]


@dataclass(frozen=True)
class Phase:
    """Weights in force until `until_tokens` tokens have been delivered in all, or to the end if None. Validates itself.

    Attributes:
        weights: of datasets by path. For `Mixture.from_manifest`: of splits and categories, or "target" or "tokens".
        until_tokens: where the phase ends.

    Raises:
        UsageError: there are no weights, one is negative or infinite, or all are 0.
    """

    weights: Weights
    until_tokens: int | None = None

    @property
    def by_name(self) -> Mapping[str, float | Fraction]:
        """The weights by name.

        Raises:
            UsageError: they are a rule, which needs a manifest.
        """
        if isinstance(self.weights, str):
            raise UsageError(f"weights={self.weights!r} needs a manifest", "use Mixture.from_manifest(FOLDER)")
        return self.weights

    def __post_init__(self) -> None:
        if isinstance(self.weights, str):
            if self.weights not in ("target", "tokens"):
                raise UsageError(f"invalid weights {self.weights!r}", "use 'target', 'tokens' or a mapping")
        elif not self.weights or min(self.weights.values()) < 0 or not 0 < sum(self.weights.values()) < inf:
            raise UsageError(f"invalid weights {dict(self.weights)}", "use weights of at least 0, and one above 0")


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse phases that do not follow each other.

    Raises:
        UsageError: names where they end.
    """
    ends = [phase.until_tokens for phase in phases]
    bounds = [0, *(end for end in ends[:-1] if end is not None)]
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    if not phases or ends[-1] is not None or None in ends[:-1] or not rising:
        raise UsageError(
            f"invalid phases: they end at {ends} tokens",
            "let each end later than the one before, and the last one at None",
        )


@dataclass(frozen=True)
class Pin:
    """What a manifest says a split holds.

    Attributes:
        where: the manifest and the name of the split, for messages.
        split: its entry.
        command: makes the manifest again.
    """

    where: str
    split: Split
    command: str

    def check(self, source: Source) -> None:
        """Compare it with the content of the data that was opened.

        Raises:
            DatasetError: it differs, or the version cannot be opened.
        """
        try:
            found = source._content_hash
        except DatasetError as error:
            raise type(error)(f"{self.where}: {error}", f"run `{self.command}` again") from error
        self.split.check_content(found, self.where, self.command)
        if isinstance(source, ParquetDataset) and sum(source.shards.rows) != self.split.sequences:
            raise DatasetError(
                f"{self.where} has {self.split.sequences} sequences in {self.split.shards} shards in the manifest, and "
                f"{sum(source.shards.rows)} in {len(source.shards.rows)} on disk",
                f"copy the folder again, or run `{self.command}`",
            )


@dataclass(frozen=True)
class Splits:
    """The splits of a manifest that hold data.

    Attributes:
        folder: of the manifest.
        manifest: as it was read.
        filled: the splits with at least one sequence, by name.
        empty: the others.
    """

    folder: Path
    manifest: Manifest
    filled: dict[str, Split]
    empty: dict[str, Split]

    @property
    def path(self) -> Path:
        """The manifest's file."""
        return self.folder / MANIFEST

    @property
    def command(self) -> str:
        """The command that makes the manifest."""
        return self.manifest.command(self.folder)

    @classmethod
    def read(cls, folder: str | Path, *, validation: bool = False) -> Splits:
        """Read the manifest of a folder: its splits, or its validation sets.

        Raises:
            DatasetError: the manifest is missing, or lists no split with sequences.
            UsageError: the folder is not local, or is a dataset.
        """
        if not is_local(absolute_uri(folder)):
            raise UsageError(
                f"{folder} is not a local folder", "copy it first: `lance-prep pull owner/name` does, from the Hub"
            )
        place = Path(absolute_uri(folder))
        if (place / "_versions").is_dir() and not (place / MANIFEST).exists():
            raise UsageError(
                f"{folder} is one dataset, not a folder with {MANIFEST}", "use LanceDataset, or Mixture({path: 1.0})"
            )
        manifest = read_manifest(place)
        parent = place if place.is_dir() else place.parent
        found = manifest.validation if validation else manifest.splits
        filled = {name: split for name, split in found.items() if split.sequences}
        empty = {name: split for name, split in found.items() if not split.sequences}
        whole = cls(parent, manifest, filled, empty)
        kind = "validation set" if validation else "split"
        if not filled:
            seen = ", ".join(f"{name}: {split.sequences}" for name, split in found.items()) or f"it has no {kind}s"
            option = " --val-fraction 0.01" if validation else ""
            raise DatasetError(
                f"{whole.path}: no {kind} with sequences above 0 ({seen})",
                f"check that the sources hold text, then run `{whole.command}{option} --force`",
            )
        return whole

    def phases(self, rules: Weights | Sequence[Phase], names: Iterable[str] | None) -> list[Phase]:
        """Return phases with the weight of every split in use.

        Args:
            rules: one rule for all of training, or phases whose weights name splits or categories.
            names: the splits to use. By default those that the rules name, or all that hold data.

        Raises:
            UsageError: see `weights`. There is no phase, a name is unknown or repeated, or its split is empty.
        """
        asked = [(rules, None)] if isinstance(rules, str | Mapping) else [(p.weights, p.until_tokens) for p in rules]
        mappings = [rule for rule, _ in asked if isinstance(rule, Mapping)]
        if not all(mappings):
            raise UsageError("weights is an empty mapping", "give at least one split or category a weight")
        if names is not None:
            chosen = self._named(names)
        elif len(mappings) < len(asked) or not asked:
            self._warn_of_empty(None)
            chosen = list(self.filled)
        else:
            self._warn_of_empty({name for rule in mappings for name in rule})
            chosen = list(dict.fromkeys(name for rule in mappings for name in self.expanded(rule)))
        return [Phase(self.weights(rule, chosen), until) for rule, until in asked]

    def _named(self, names: Iterable[str]) -> list[str]:
        if isinstance(names, str):
            raise UsageError(f"splits={names!r} is not a list of names", f"use splits=[{names!r}]")
        chosen = list(names)
        if not chosen:
            raise UsageError("splits is an empty list", "name at least one split, or use splits=None for all of them")
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"splits names a split twice: {', '.join(chosen)}", "name each split once")
        for name in chosen:
            self._check_name(name, self.filled)
        return chosen

    def _warn_of_empty(self, asked: set[str] | None) -> None:
        """Warn of empty splits: of all, or of those whose category was asked for."""
        out = [name for name, split in self.empty.items() if asked is None or split.category in asked]
        if out:
            warnings.warn(f"{self.path}: left out, because they have no sequences: {', '.join(out)}", stacklevel=4)

    def _check_name(self, name: str, known: Iterable[str]) -> None:
        if name in self.empty:
            raise UsageError(
                f"{self.path}: split {name!r} has no sequences", "leave it out, or build it from a source with text"
            )
        if name not in known:
            advice = f"{did_you_mean(name, known)}it has: {', '.join(known)}"
            raise UsageError(f"{self.path}: no split {name!r}", advice)

    def weights(self, rule: Weights, chosen: Sequence[str]) -> dict[str, Fraction]:
        """Return the weight of each chosen split. They sum to 1.

        Args:
            rule: "target" gives each split its category's share, times its own share of the category; "tokens" is in
                proportion to tokens. A mapping gives weights to splits or whole categories. Chosen splits that it does
                not name get 0.
            chosen: names of splits.

        Raises:
            UsageError: the manifest lacks what the rule needs, or a name in the mapping is unknown or not chosen.
        """
        if isinstance(rule, Mapping):
            found = self._given(rule, chosen)
        elif rule == "tokens":
            found = {name: Fraction(self.filled[name].tokens) for name in chosen}
        elif rule == "target":
            found = self._targets(chosen)
        else:
            raise UsageError(f"invalid weights {rule!r}", "use 'target', 'tokens' or a mapping from split to weight")
        total = sum(found.values())
        if not total > 0:
            raise UsageError(
                f"{self.path}: the weights of {', '.join(chosen)} are all 0", "give one of them a weight above 0"
            )
        return {name: weight / total for name, weight in found.items()}

    def _targets(self, chosen: Sequence[str]) -> dict[str, Fraction]:
        # Of the whole manifest first: choosing fewer splits leaves the proportions between them as they are.
        without = [name for name in chosen if self.filled[name].category not in self.manifest.categories]
        if without:
            raise UsageError(
                f"{self.path}: no target share for {', '.join(without)}, which have no category",
                "use weights='tokens', or a mapping such as weights={'" + without[0] + "': 1.0}",
            )
        category_of = {name: split.category for name, split in self.filled.items()}
        return {
            name: _decimal(self.manifest.categories[str(category_of[name])])
            * self._inside(str(category_of[name]))[name]
            for name in chosen
        }

    def _inside(self, category: str) -> dict[str, Fraction]:
        """Return the parts of a category's splits that hold data; they sum to 1.

        Raises:
            UsageError: only some of them have a share.
        """
        members = {name: split for name, split in self.filled.items() if split.category == category}
        shares = {name: split.share for name, split in members.items() if split.share is not None}
        if shares and len(shares) < len(members):
            raise UsageError(
                f"{self.path}: in category {category!r} only {', '.join(shares)} of {', '.join(members)} have a share",
                "give each source of the category a share in the recipe, or none; or pass weights={...}",
            )
        parts = {name: _decimal(share) for name, share in shares.items()}
        parts = parts or {name: Fraction(split.tokens) for name, split in members.items()}
        total = sum(parts.values())
        return {name: part / total if total else Fraction(0) for name, part in parts.items()}

    def _given(self, rule: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Fraction]:
        found = dict.fromkeys(chosen, Fraction(0))
        for name, weight in self.expanded(rule).items():
            if name not in found:
                raise UsageError(f"weights names {name!r}, which splits leaves out", "add it to splits, or remove it")
            found[name] = weight
        return found

    def expanded(self, rule: Mapping[str, Any]) -> dict[str, Fraction]:
        """Return weights by split: those of a category are divided among its splits as "target" does.

        Raises:
            UsageError: a name is unknown or means a split twice, or a weight is invalid.
        """
        out: dict[str, Fraction] = {}
        for name, weight in rule.items():
            if (
                isinstance(weight, bool)
                or not isinstance(weight, int | float | Fraction)
                or not 0 <= weight < float("inf")
            ):
                raise UsageError(f"invalid weight {weight!r} of {name!r}", "use a number of at least 0")
            members = {} if name in self.filled else self._inside(name)
            if not members:
                self._check_name(name, [*self.filled, *self.manifest.categories])
            for split, part in (members or {name: Fraction(1)}).items():
                if split in out:
                    raise UsageError(f"weights names {split!r} twice: itself and its category", "remove one of them")
                out[split] = _decimal(weight) * part
        return out

    def pin(self, name: str) -> Pin:
        """Return what the manifest says of a split."""
        return Pin(f"{self.path}: split {name!r}", self.filled[name], self.command)

    def open(self, name: str, block_size: int | None, options: Mapping[str, Any]) -> Source:
        """Return a split as a source of a mixture. Opens nothing yet.

        Args:
            name: of the split.
            block_size: tokens per sample; left out if the rows have one length.
            options: arguments of `LanceDataset`, except for the version.

        Raises:
            UsageError: Parquet shards do not hold what an option needs.
            DatasetError: the split is missing, or a link leads out of the manifest's folder.
        """
        split, pin = self.filled[name], self.pin(name)
        place = split.folder(self.folder, pin.where, pin.command)
        if self.manifest.data_format == "lance":
            return LanceDataset(place, block_size=block_size, **{**options, "version": split.version})
        if self.manifest.data_format != "parquet":
            raise UsageError(
                f"{self.path} lists {self.manifest.data_format} files, which hold no tokens",
                "train from the Lance datasets, or export them with format 'parquet'",
            )
        refused = [name for name, value in options.items() if name not in _OF_PARQUET and value]
        if block_size not in (None, self.manifest.max_seq_length):
            refused.append("block_size")
        if refused:
            raise UsageError(
                f"{self.path} lists Parquet shards, which cannot be read with {', '.join(refused)}",
                "remove it, or train from the Lance datasets",
            )
        return ParquetDataset(place, **{name: value for name, value in options.items() if name in _OF_PARQUET})


def _decimal(number: Any) -> Fraction:
    """Return a number as it is written: 0.3 is 3/10."""
    return number if isinstance(number, Fraction) else Fraction(str(number))
