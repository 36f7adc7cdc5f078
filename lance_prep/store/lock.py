"""One process builds into an output at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from lance_prep.errors import OutputLocked
from lance_prep.store.files import is_local
from lance_prep.store.metadata import FOLDER


@contextmanager
def output_lock(uri: str) -> Iterator[None]:
    """Hold the output's lock while the block runs.

    On a local disk it is the kernel's (`flock`), which goes with its process however that ends: a dead one's is never
    in the way. In an object store there is none: the commit itself lets one of two win.

    Raises:
        OutputLocked: another process holds it: says which and since when.
    """
    if not is_local(uri):
        yield
        return
    import fcntl

    path = Path(uri) / FOLDER / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputLocked(f"{uri} is being built by {_holder(file.read())}", "wait for it, or end it") from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):
        return "another process"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
