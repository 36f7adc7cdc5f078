"""`make bench-push`: bytes per second of `push`, beside a plain `upload_folder` of the same dataset.

The Hub is on loopback, in a process of its own, and keeps what it is sent in memory. Each push is a process of its own
and goes to a new repository; the two take turns. What is timed begins when the libraries are imported. `again` is the
same push to the same repository, which hashes everything and sends nothing. Printed are medians.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

SERVER = """
from tests.loopback_hub import LoopbackHub
with LoopbackHub() as hub:
    print(hub.url, flush=True)
    for name in iter(input, "end"):
        print(len(hub.history(name)) - 1, len(hub.requests(f"{name}[/.]")), flush=True)
"""
WAYS = ("push", "upload_folder", "again")


def dataset(folder: Path, size: int, shards: int) -> Path:
    """Build a `raw` dataset of random text with this many bytes and shards."""
    import lance_prep

    rng = np.random.default_rng(0)
    rows = size // shards // 1024
    for shard in range(shards):
        texts = [base64.b64encode(rng.bytes(768)).decode() for _ in range(rows)]
        pq.write_table(pa.table({"text": texts}), folder / f"{shard:03d}.parquet", compression="none")
    lance_prep.build(str(folder / "*.parquet"), output=folder / "x.lance", layout="raw", shard_size=size // shards)
    return folder / "x.lance"


def send(way: str, source: str, repo: str) -> float:
    """Return the seconds that one push takes. Runs in a process of its own."""
    import huggingface_hub
    import lance

    from lance_prep.hub import push

    for name in ("jinja2", "yaml", "lance_prep.recipe"):
        import_module(name)
    lance.dataset(source)
    started = time.perf_counter()
    if way == "upload_folder":
        api = huggingface_hub.HfApi()
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=source, path_in_repo="data/train.lance")
    else:
        push(source, repo)
    return time.perf_counter() - started


@contextmanager
def loopback() -> Iterator[subprocess.Popen[str]]:
    """Start a Hub, and point this process and its children to it."""
    from tests.loopback_hub import TOKEN

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HF_ENDPOINT=server.stdout.readline().strip(), HF_TOKEN=TOKEN, HF_HOME=home)
        os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
        try:
            yield server
        finally:
            server.terminate()
            server.wait()


def measure(runs: int, size: int, shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder, loopback() as server:
        source = dataset(Path(folder), size, shards)
        sent = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        print(f"{sent / 1e6:.0f} MB in {shards} data files; {platform.machine()}, {os.cpu_count()} cores")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        commits: dict[str, str] = {}
        for number in range(runs):
            for way in WAYS:
                repo = f"owner/{'push' if way == 'again' else way}{number}"
                command = [sys.executable, __file__, "--send", way, str(source), repo]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds[way].append(json.loads(done.stdout.splitlines()[-1]))
                assert server.stdin is not None
                assert server.stdout is not None
                print(repo, file=server.stdin, flush=True)
                commits[way] = server.stdout.readline().strip()
        for way in WAYS:
            made, requests = commits[way].split()
            middle = statistics.median(seconds[way])
            print(f"{way:14} {middle:6.2f} s  {sent / 1e6 / middle:6.0f} MB/s  {made} commits, {requests} requests")
        print(f"ratio push / upload_folder, bytes per second: {ratio(seconds):.2f}")


def ratio(seconds: dict[str, list[float]]) -> float:
    return statistics.median(seconds["upload_folder"]) / statistics.median(seconds["push"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="MB of text")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        print(json.dumps(send(*arguments.send)))
    else:
        measure(arguments.runs, arguments.size * 10**6, arguments.shards)


if __name__ == "__main__":
    main()
