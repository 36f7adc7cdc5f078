"""Reads `train.yaml`, which describes the data of a training run.

train_data_path: tokens              # a folder with manifest.json, or one dataset
val_data_path: tokens
pretokenized_splits: [gsm8k, apps]   # of the manifest; all by default
phases:
  - {weights: target, until_tokens: 1_000_000_000}
  - weights: {code: 70, math_reasoning: 30}
global_batch_size: 64
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from lance_prep.errors import RecipeError, UsageError, no_such_field
from lance_prep.recipe import read_yaml
from lance_prep.store import MANIFEST, read_manifest
from lance_prep.train.loader import TokenLoader
from lance_prep.train.mixture import Mixture
from lance_prep.train.order import DEFAULT_SEED, Tail
from lance_prep.train.positions import simulated
from lance_prep.train.runs import Collate
from lance_prep.train.samples import Labels
from lance_prep.train.splits import Phase, Splits, Weights, check_phases


def _weights(value: Any) -> Weights:
    """Return weights, after the checks that need no manifest."""
    if isinstance(value, Mapping):
        value = {str(name): weight for name, weight in value.items()}
        if not all(isinstance(w, int | float) and not isinstance(w, bool) for w in value.values()):
            raise ValueError("weights must be numbers")
    elif not isinstance(value, str):
        raise ValueError("must be target, tokens, or a mapping from split or category to weight")
    try:
        return Phase(value).weights
    except UsageError as error:
        raise ValueError(f"{error}; {error.advice}") from None


class PhaseConfig(BaseModel):
    """A phase of training. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights: Annotated[Any, PlainValidator(_weights)] = Field(
        description="target, tokens, or weights of splits and categories"
    )
    until_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="total tokens delivered when the phase ends; left out in the last phase"
    )


class TrainConfig(BaseModel):
    """The data that a training run reads. Frozen; unknown fields are refused. Made by `load_train_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    train_data_path: str = Field(description="folder with manifest.json, or one dataset")
    val_data_path: str | None = Field(
        None,
        description="folder with manifest.json: its validation sets, or its splits if it has no validation sets and "
        "differs from train_data_path; or one dataset",
    )
    use_pretokenized_data: Literal[True] = Field(True, description="data is tokenized before training")
    pretokenized_splits: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="splits to train on; all by default"
    )
    weights: Annotated[Any, PlainValidator(_weights)] = Field(
        "target", description="target, tokens, or weights of splits and categories"
    )
    phases: Annotated[tuple[PhaseConfig, ...], Field(strict=False)] = Field(
        (), description="weights that change during training, instead of weights"
    )
    by: Literal["tokens", "rows"] = Field("tokens", description="what weights count")
    stopping: Literal["repeat", "stop"] = Field("repeat", description="what happens when a source runs out")
    experiment_tokens: int | None = Field(None, description="tokens of this run, which simulates a larger one")
    target_tokens: int | None = Field(None, description="tokens of the larger run")
    seed: int = Field(DEFAULT_SEED, description="seed of the order")
    global_batch_size: Annotated[int, Field(ge=1)] = Field(8, description="samples per step over all ranks")
    tail: Tail = Field("drop", description="what happens to the last samples of an epoch")
    block_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens per sample, unless rows are blocks"
    )
    labels: Labels = Field("same", description="same, shifted, assistant or assistant-shifted")
    attention_mask: bool = False
    position_ids: bool = False
    document_ids: bool = False
    mask_boundaries: bool = False
    num_workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that read")
    prefetch: Annotated[int, Field(ge=0)] = Field(2, description="number of runs of steps to read ahead")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.phases and "weights" in self.model_fields_set:
            raise ValueError("weights and phases exclude each other; give the weights in the phases")
        try:
            if self.phases:
                check_phases(self._phases())
            simulated(self.experiment_tokens, self.target_tokens)
        except UsageError as error:
            raise ValueError(f"{error}; {error.advice}") from None
        return self

    def _phases(self) -> list[Phase]:
        return [Phase(phase.weights, phase.until_tokens) for phase in self.phases]

    def train_mixture(self) -> Mixture:
        """Return the mixture to train on.

        Raises:
            UsageError, DatasetError: see `Mixture.from_manifest`.
        """
        options = {
            "by": self.by,
            "seed": self.seed,
            "stopping": self.stopping,
            "experiment_tokens": self.experiment_tokens,
            "target_tokens": self.target_tokens,
            **self._sample_options(),
        }
        if _is_dataset(self.train_data_path):
            self._check_single()
            return Mixture({self.train_data_path: 1}, **options)
        return Mixture.from_manifest(
            self.train_data_path, self.pretokenized_splits, weights=self._phases() or self.weights, **options
        )

    def val_mixture(self) -> Mixture | None:
        """Return the mixture to validate on, or None without `val_data_path`.

        Weights are in proportion to tokens, so an epoch has every validation sample about once.

        Raises:
            UsageError, DatasetError: see `Mixture.from_manifest`.
        """
        path = self.val_data_path
        if path is None:
            return None
        if _is_dataset(path):
            return Mixture({path: 1}, seed=self.seed, **self._sample_options())
        same = Path(path).resolve() == Path(self.train_data_path).resolve()
        validation = same or bool(read_manifest(path).validation)
        names = None
        if self.pretokenized_splits is not None and validation:
            found = Splits.read(path, validation=True)
            names = [name for name in self.pretokenized_splits if name in found.filled] or self.pretokenized_splits
            if missing := sorted(set(self.pretokenized_splits) - set(names)):
                warnings.warn(f"{found.path}: no validation set for {', '.join(missing)}", stacklevel=2)
        return Mixture.from_manifest(
            path, names, weights="tokens", validation=validation, seed=self.seed, **self._sample_options()
        )

    def train_loader(
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Collate | None = None,
        device: str | torch.device | None = None,
    ) -> TokenLoader:
        """Return the loader to train with. Arguments: see `TokenLoader`."""
        return self._loader(self.train_mixture(), self.tail, rank, world_size, collate_fn, device)

    def val_loader(
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Collate | None = None,
        device: str | torch.device | None = None,
    ) -> TokenLoader | None:
        """Return the loader to validate with, whose last step is padded, or None without `val_data_path`."""
        mixture = self.val_mixture()
        return None if mixture is None else self._loader(mixture, "pad", rank, world_size, collate_fn, device)

    def _loader(
        self,
        mixture: Mixture,
        tail: Tail,
        rank: int | None,
        world_size: int | None,
        collate_fn: Collate | None,
        device: str | torch.device | None,
    ) -> TokenLoader:
        return TokenLoader(
            mixture,
            self.global_batch_size,
            rank=rank,
            world_size=world_size,
            tail=tail,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
            collate_fn=collate_fn,
            device=device,
        )

    def _sample_options(self) -> dict[str, Any]:
        names = ("block_size", "labels", "attention_mask", "position_ids", "document_ids", "mask_boundaries")
        return {name: getattr(self, name) for name in names}

    def _check_single(self) -> None:
        given = [name for name in ("pretokenized_splits", "weights", "phases") if name in self.model_fields_set]
        if given:
            raise UsageError(
                f"{', '.join(given)} would have no effect: {self.train_data_path} is one dataset",
                "remove it, or set train_data_path to a folder with manifest.json",
            )


def load_train_config(source: str | Path | Mapping[str, Any]) -> TrainConfig:
    """Read a `train.yaml`, or its fields as a mapping. Relative paths are resolved against the file's folder.

    Raises:
        RecipeError: no such file, not valid YAML, or a field is unknown or invalid.
    """
    if isinstance(source, Mapping):
        return _validated(source, "the train config")
    path = Path(source)
    if not path.is_file():
        raise RecipeError(f"no such file: {path}", "write a train.yaml with `train_data_path: OUT`")
    fields = read_yaml(path)
    for name in ("train_data_path", "val_data_path"):
        if isinstance(fields.get(name), str) and "://" not in fields[name]:
            fields[name] = str(path.parent / fields[name])
    return _validated(fields, str(path))


def _validated(fields: Mapping[str, Any], where: str) -> TrainConfig:
    if fields.get("use_pretokenized_data") is False:
        raise RecipeError(
            f"{where}: use_pretokenized_data: false is not supported, because lance-prep tokenizes before training",
            "run `lance-prep build DIR -o OUT --recursive` and set train_data_path to OUT; or tokenize during training "
            "with JsonlDataset(DIR, transform=...) in Python",
        )
    try:
        return TrainConfig(**fields)
    except ValidationError as error:
        # Report a misspelt name before the field that is missing because of it.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        loc = [str(part) for part in problem["loc"]]
        known = list((PhaseConfig if loc[:1] == ["phases"] and len(loc) > 1 else TrainConfig).model_fields)
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            what = no_such_field(loc[-1], known)
        elif problem["type"] == "missing":
            what = "required field is missing"
        elif loc and problem["type"] != "value_error":
            what = f"{what} (given: {problem['input']!r})"
        name = f"{'.'.join(loc)}: " if loc else ""
        raise RecipeError(f"{where}: {name}{what}", f"fields: {', '.join(known)}") from error


def _is_dataset(path: str) -> bool:
    """Return whether a path is a dataset rather than a folder with a manifest."""
    return "://" in path or ((Path(path) / "_versions").is_dir() and not (Path(path) / MANIFEST).is_file())
