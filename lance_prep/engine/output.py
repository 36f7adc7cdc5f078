"""What is at the output already, and whether a build may go there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.engine.shard import BuildJob
from lance_prep.errors import OutputExists, SourceChanged
from lance_prep.store.files import is_local
from lance_prep.store.lance_io import open_dataset
from lance_prep.store.metadata import FOLDER, KEY, read_metadata

HOW_TO_GO_ON = "--overwrite makes a new version with the new content; or give another output with -o"


@dataclass(frozen=True)
class Existing:
    """The output before a build.

    Attributes:
        version: of the dataset that is there; 0 where there is none.
        metadata: of that version; None where there is none, or none of ours.
    """

    version: int = 0
    metadata: dict[str, Any] | None = None

    def is_this_build(self, key: str) -> bool:
        """The latest version is what the build with this key makes."""
        return self.metadata is not None and [build["key"] for build in self.metadata["builds"]] == [key]


def inspect_output(job: BuildJob, *, overwrite: bool) -> Existing:
    """Look at the output and decide.

    Raises:
        OutputExists: it holds something that this build may not replace.
        SourceChanged: it was built by the same recipe from another state of the source.
    """
    dataset = open_dataset(job.uri, storage_options=job.storage_options)
    if dataset is None:
        return Existing()
    if KEY not in (dataset.schema.metadata or {}):
        if overwrite:
            return Existing(int(dataset.version))
        raise OutputExists(f"{job.uri} is a Lance dataset that lance-prep did not make", HOW_TO_GO_ON)
    existing = Existing(int(dataset.version), read_metadata(dataset.schema))
    if not overwrite and not existing.is_this_build(job.key):
        _refuse(job, existing.metadata or {})
    return existing


def check_folder(uri: str) -> None:
    """Refuse a path that holds something else, before anything is made there.

    Raises:
        OutputExists: it is a file, or a folder with other things in it.
    """
    if not is_local(uri):
        return
    path = Path(uri)
    if path.is_file():
        raise OutputExists(f"{uri} is a file", "give another output with -o")
    if path.is_dir() and any(path.iterdir()) and not any((path / known).is_dir() for known in (FOLDER, "_versions")):
        raise OutputExists(f"{uri} is a folder with other things in it", "give another output with -o")


def _refuse(job: BuildJob, metadata: dict[str, Any]) -> None:
    then, now = metadata["recipe"], job.plan.recipe.as_json()
    differences = [f"{name} was {then.get(name)!r}, now {now[name]!r}" for name in now if then.get(name) != now[name]]
    if differences:
        raise OutputExists(f"{job.uri} was built by another recipe: {'; '.join(differences)}", HOW_TO_GO_ON)
    was, tokenizer = metadata["tokenizer"], job.spec
    if was and tokenizer and was["sha256"] != tokenizer.sha256:
        raise OutputExists(
            f"{job.uri} was built with tokenizer {was['name']} {was['sha256'][:12]}, "
            f"which is now {tokenizer.sha256[:12]}",
            HOW_TO_GO_ON,
        )
    raise SourceChanged(f"the source of {job.uri} has changed: {_source_change(job, metadata)}", HOW_TO_GO_ON)


def _source_change(job: BuildJob, metadata: dict[str, Any]) -> str:
    then = {f["url"]: (f["size"], f["identity"]) for f in metadata["source"]["files"]}
    now = {f.url: (f.size, f.identity) for f in job.plan.files}
    was, commit = metadata["source"].get("commit"), job.plan.source.commit
    if was != commit:
        return f"commit was {was}, now {commit}"
    new, gone = sorted(now.keys() - then.keys()), sorted(then.keys() - now.keys())
    changed = sorted(url for url in now.keys() & then.keys() if now[url] != then[url])
    parts = [
        f"{len(urls)} {what} ({urls[0]}{', ...' if len(urls) > 1 else ''})"
        for what, urls in (("new", new), ("gone", gone), ("changed", changed))
        if urls
    ]
    return ", ".join(parts) or "its files are cut into other shards"
