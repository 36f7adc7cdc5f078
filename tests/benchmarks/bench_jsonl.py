"""How fast random records of JSONL files are read in place by a plain DataLoader: `JsonlDataset` beside data-forager.

    python tests/benchmarks/bench_jsonl.py [--megabytes 200] [--rounds 5] [--batches 8,64,512] [--workers 0,2]
                                           [--records 300,3000] [--seconds 2] [--json PATH]

The same files are indexed by both, and read in random order with `DataLoader(ds, batch_size, shuffle=True)`, page cache
warm. The readers take turns, and the clock runs from the second batch on. Medians of the rounds are printed: records a
second and, for one process, a CPU second. `lance-prep index` is timed too, from a warm cache.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lance_prep.dataset import index_jsonl
from lance_prep.train import JsonlDataset

FILES = 4
NAMES = ("lance-prep", "data-forager")


def write_files(folder: Path, megabytes: int, record_bytes: int) -> int:
    """Write made-up texts whose lengths vary around `record_bytes`; return the bytes."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    folder.mkdir(parents=True)
    for number in range(FILES):
        with (folder / f"part-{number}.jsonl").open("w") as file:
            written = i = 0
            while written < megabytes * 1_000_000 // FILES:
                text = " ".join(draw.choices(words, k=max(1, int(record_bytes / 6.5 * draw.uniform(0.3, 1.7)))))
                written += file.write(json.dumps({"id": f"{number}-{i}", "text": text, "source": "made up"}) + "\n")
                i += 1
    return sum(path.stat().st_size for path in folder.iterdir())


def index_forager(folder: Path) -> float:
    """Index with data-forager; return the seconds."""
    from data_forager.indexers.jsonl_indexer import create_default_jsonl_indexer

    logging.disable(logging.DEBUG)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        create_default_jsonl_indexer(str(folder))()
    return time.perf_counter() - started


def open_forager(folder: Path) -> Any:
    from data_forager.datasets.jsonl import JsonlDataset as Forager

    return Forager.create_from_index_on_filesystem(str(folder))


def rate(dataset: Any, batch: int, workers: int, seconds: float) -> tuple[float, float]:
    """Records a second, and a CPU second of this process."""
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
    batches = iter(loader)
    next(batches)
    count, cpu, started = 0, resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in batches:
        count += batch
        if time.perf_counter() - started > seconds:
            break
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return count / passed, count / used


def measure(folder: Path, record_bytes: int, options: argparse.Namespace) -> dict[str, Any]:
    size = write_files(folder, options.megabytes, record_bytes)
    index_jsonl(folder)  # warms the cache, and imports Lance
    scans = [index_jsonl(folder, rescan=True).seconds for _ in range(options.rounds)]
    ours, forager_seconds = JsonlDataset(folder), index_forager(folder)
    # Opened anew each time: workers that are forked after data-forager has read share its positions in the files.
    readers = dict(zip(NAMES, (JsonlDataset, open_forager), strict=True))
    index = sum(path.stat().st_size for path in (folder / ".jsonl_index.lance").rglob("*") if path.is_file())
    found: dict[str, Any] = {
        "record_bytes": size / len(ours),
        "index": {
            "gb_s": size / statistics.median(scans) / 1e9,
            "forager_gb_s": size / forager_seconds / 1e9,
            "bytes_a_record": index / len(ours),
        },
        "read": [],
    }
    for workers in options.workers:
        for batch in options.batches:
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
            for _ in range(options.rounds):
                for name, open_dataset in readers.items():
                    rates[name].append(rate(open_dataset(folder), batch, workers, options.seconds))
            wall, cpu = (
                {name: statistics.median(one[which] for one in rates[name]) for name in NAMES} for which in (0, 1)
            )
            found["read"].append({"workers": workers, "batch": batch, "records_s": wall, "records_cpu_s": cpu})
    return found


def report(found: dict[str, Any]) -> str:
    index = found["index"]
    lines = [
        f"records of {found['record_bytes']:,.0f} bytes",
        f"  indexing: {index['gb_s']:.2f} GB/s, {index['bytes_a_record']:.1f} bytes a record "
        f"(data-forager: {index['forager_gb_s']:.3f} GB/s)",
    ]
    for row in found["read"]:
        ours, theirs = (row["records_s"][name] for name in NAMES)
        line = f"  {row['workers']} workers, batches of {row['batch']:>3}: {ours:>9,.0f} records/s, data-forager "
        line += f"{theirs:>9,.0f}: {ours / theirs:.2f} times"
        if not row["workers"]:
            ours, theirs = (row["records_cpu_s"][name] for name in NAMES)
            line += f" ({ours / theirs:.2f} by CPU time)"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=numbers, default=[8, 64, 512])
    parser.add_argument("--workers", type=numbers, default=[0, 2])
    parser.add_argument("--records", type=numbers, default=[300, 3000])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-jsonl-") as folder:
        for record_bytes in options.records:
            results.append(measure(Path(folder) / str(record_bytes), record_bytes, options))
            print(report(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
