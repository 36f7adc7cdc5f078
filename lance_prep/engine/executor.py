"""What an executor of Spark does for a build: it makes shards, and tells the driver of each.

The driver's half is `engine.spark`.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.engine.report import Silent
from lance_prep.engine.shard import BuildJob, Built, Encoders, Hooks, ShardTask, make_shard
from lance_prep.errors import EngineError, LancePrepError, translate, translate_output
from lance_prep.recipe import Limit
from lance_prep.store import FOLDER, versions_in_use
from lance_prep.transport import held_credentials, hold_credentials

#: Variables that sources and object stores are reached with. Executors get them from the driver, unless they have them.
ENVIRONMENT = (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_XET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
)


@dataclass(frozen=True)
class Result:
    """What an executor sends back of a shard: what it built, or why it could not."""

    shard: int
    built: Built | None = None
    error: LancePrepError | None = None
    warnings: tuple[str, ...] = ()


#: Variables of this Python worker that a driver has set, so that its next build may change them.
_applied: set[str] = set()


@dataclass(frozen=True)
class ExecutorSetup:
    """What a shard needs in an executor beside its task. Part of the function that Spark sends there.

    What may be secret (passwords in URLs, tokens) travels in this, which Spark keeps in memory.

    Attributes:
        versions: of the libraries that the driver uses.
        urls: that were given with credentials.
        environment: variables that reach sources and stores.
    """

    versions: Mapping[str, str]
    urls: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def of_driver(cls) -> ExecutorSetup:
        """Return what executors need to work as this process would."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        if "HF_TOKEN" not in environment and (token := _hub_token()):
            environment["HF_TOKEN"] = token
        return cls(versions_in_use(), tuple(held_credentials()), environment)

    def apply(self) -> None:
        """Set up this process, before it imports huggingface_hub, which copies the environment."""
        for name, value in self.environment.items():
            if name not in os.environ or name in _applied:
                os.environ[name] = value
                _applied.add(name)
        for url in self.urls:
            hold_credentials(url)

    def make(self, task: ShardTask, limit: Limit) -> tuple[Built, tuple[str, ...]]:
        """Make a shard in an executor. Return it, and what the user should know.

        Raises:
            LancePrepError: as `build_shard`, also for errors of other libraries that we know.
            EngineError: this machine has other versions, or does not see the output.
        """
        heard = _Heard()
        try:
            self._check(task)
            built = make_shard(task, limit, Hooks(heard, encoders=_encoders(task)))
        except Exception as error:  # raised again, as an error of ours where it is a known one
            shard = f"building shard {task.shard.index}"
            if (ours := translate_output(error, task.uri) or translate(error, shard)) is None:
                raise
            raise ours from error
        return built, tuple(heard.warnings)

    def _check(self, task: ShardTask) -> None:
        host, here = socket.gethostname(), versions_in_use()
        if task.output.is_local and not (Path(task.uri) / FOLDER).is_dir():
            said = f"the executor on {host} does not see {task.uri}"
            raise EngineError(said, "use an output on a file system that all machines share, or in an object store")
        other = [name for name, version in self.versions.items() if here.get(name) != version]
        if other:
            there = ", ".join(f"{name} {here.get(name)} (driver: {self.versions[name]})" for name in other)
            said = f"the executor on {host} has other versions: {there}"
            raise EngineError(said, "install the driver's versions on the executors")


class Work:
    """Builds shards of one build in an executor. The plans come as items, which Spark writes to a temporary file."""

    def __init__(self, job: BuildJob, arrivals: Any) -> None:
        self._job = (job.spec and replace(job.spec, file=b""), job.origin, job.output, job.key)
        self._arrivals = arrivals
        self._setup = ExecutorSetup.of_driver()

    def __call__(self, items: Iterator[bytes]) -> Iterator[None]:
        self._setup.apply()
        for item in items:
            plan, limit = pickle.loads(item)
            self._arrivals.add([pickle.dumps(self._build(ShardTask(plan, *self._job), limit))])
        return iter(())

    def _build(self, task: ShardTask, limit: Limit) -> Result:
        try:
            built, warnings = self._setup.make(task, limit)
            return Result(task.shard.index, built, warnings=warnings)
        except LancePrepError as error:
            return Result(task.shard.index, error=error)


@dataclass
class _Heard(Silent):
    """Keeps warnings for the driver."""

    warnings: list[str] = field(default_factory=list)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


#: The encoders of this Python worker, which Spark uses for many tasks, one after the other. They take 0.2 s to make and
#: get faster with each shard. Those of the latest tokenizer alone: they take up to 200 MB.
_kept: dict[tuple[object, ...], Encoders] = {}


def _encoders(task: ShardTask) -> Encoders:
    recipe = task.plan.recipe
    sha256 = task.spec.sha256 if task.spec else ""
    key = (sha256, recipe.tokenizer_backend, recipe.add_special_tokens, recipe.special_tokens)
    if key not in _kept:
        _kept.clear()
        _kept[key] = Encoders()
    return _kept[key]


def _hub_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
