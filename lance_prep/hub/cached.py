"""The local copies of datasets on the Hub that training reads.

    $HF_HOME/assets/lance-prep/datasets--owner--name/<commit>/<path>      a pull of each commit that was asked for
    $HF_HOME/assets/lance-prep/datasets--owner--name/refs/<revision>      the commit that it named last, for offline use

This is where huggingface_hub wants libraries to keep what they make of the Hub's files (`HF_ASSETS_CACHE` moves it).
Its own cache of files is not used: it keeps them as links. A commit's folder never changes, so that a run of training
is not disturbed by a push; files that two commits share are linked, and need their space once.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lance_prep.errors import HubUnreachable, SourceNotFound, UsageError
from lance_prep.hub.pull import pull_snapshot
from lance_prep.hub.pulled import has_commit
from lance_prep.hub.snapshot import Snapshot, find_snapshot
from lance_prep.hub_path import COMMIT, HubPath, parse_hub_url, pinned_uri
from lance_prep.transport import Transport


class _Bar:
    """Shows the progress of a pull like huggingface_hub's downloads; shows nothing if its progress bars are off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None

    def waiting(self, folder: str) -> None: ...

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None:
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        self._bar = tqdm(total=bytes, unit="B", unit_scale=True, desc=snapshot.at.path)  # type: ignore[no-untyped-call]

    def advanced(self, bytes: int) -> None:
        with self._lock:
            self._bar.update(bytes)

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.close()


def cached_dataset(uri: str, transport: Transport) -> str:
    """Return the local folder with a dataset on the Hub, at the commit that its revision names now.

    What is missing is fetched. Processes that ask for the same dataset at once wait for the first of them. If the Hub
    does not answer, the commit that the revision named last is used, if it is there.

    Args:
        uri: `hf://datasets/owner/name@revision/path`; the revision is `main` by default.
        transport: its options `hf_revision` and `hf_token` are used.

    Raises:
        SourceNotFound: no such repository, revision or dataset, or it is a collection.
        HubUnreachable: the Hub does not answer, and the dataset is not there.
        BadFile, DiskFull, OutputError: see `pull`.
    """
    asked = parse_hub_url(uri)
    if not asked.path:
        raise UsageError(f"{uri} names a repository", f"name the dataset in it, such as {uri}/data/train.lance")
    home = _home(asked)
    ref = home / "refs" / quote(asked.revision or transport.storage_options.get("hf_revision") or "main", safe="")
    try:
        at = parse_hub_url(pinned_uri(uri, transport))
    except HubUnreachable:
        named = ref.read_text() if ref.is_file() else ""
        if not COMMIT.fullmatch(named) or not has_commit(place := home / named / asked.path, named, any_time=True):
            raise
        return str(place)
    place = home / at.revision / at.path
    if not has_commit(place, at.revision):
        snapshot = find_snapshot(at, transport)
        if snapshot.at != at:
            advice = f"name one, such as {replace(at, path=f'{at.path}/{snapshot.datasets[0]}'.rstrip('/')).url}"
            raise SourceNotFound(f"{uri} is not a dataset: it holds others", advice)
        others = tuple(sorted(path / at.path for path in home.iterdir() if COMMIT.fullmatch(path.name)))
        with closing(_Bar()) as bar:
            pull_snapshot(snapshot, place, progress=bar, reuse=others, transport=transport)
    if not COMMIT.fullmatch(ref.name):
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(at.revision)
    return str(place)


def _home(at: HubPath) -> Path:
    from huggingface_hub import cached_assets_path

    if ".." in at.path.split("/"):
        raise UsageError(f"{at.url} leads out of the repository", "remove `..` from the path")
    name = f"datasets--{at.repo.replace('/', '--')}"
    folder = Path(cached_assets_path("lance-prep", name, ""))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
