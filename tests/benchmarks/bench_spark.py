"""`make bench-spark`: 1 GB of Parquet through the local engine and through Spark, with one core and with two.

Each engine builds the corpus several times in one process. The first build of a process is cold: it starts Java and
the Python workers, which load the libraries and the tokenizer. The others are warm. The engines take turns, process by
process; medians and ratios of warm builds are printed. The goal is a ratio of at most 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.benchmarks.bench_build import REPEAT, Bench  # noqa: E402

LAYOUTS = {"lines": {}, "blocks": {"block_size": 1024}}


def build(engine: str, cores: int, layout: str, source: Path, tokenizer: Path, builds: int) -> list[float]:
    """Return the wall seconds of each build in this process."""
    import lance_prep

    seconds, hashes = [], set()
    for _ in range(builds):
        out = source.parent / "out.lance"
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        report = lance_prep.build(
            source,
            output=out,
            engine=engine,
            workers=cores,
            layout=layout,
            tokenizer=str(tokenizer),
            shard_size="32MiB",
            **LAYOUTS[layout],
        )
        seconds.append(time.perf_counter() - started)
        hashes.add(report.content_hash)
    assert len(hashes) == 1
    print(json.dumps({"seconds": seconds, "hash": hashes.pop()}))
    return seconds


def run(engine: str, cores: int, layout: str, bench: Bench, builds: int) -> tuple[list[float], str]:
    """Run `build` in a process of its own. Return its seconds, and the content hash."""
    arguments = [engine, str(cores), layout, str(bench.large), str(bench.tokenizer), str(builds)]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "jemalloc", "LANCE_LOG": "error"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    return said["seconds"], said["hash"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="processes of each engine")
    parser.add_argument("--builds", type=int, default=3, help="builds in a process, of which the first is cold")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, cores, layout, source, tokenizer, builds = options.one
        build(engine, int(cores), layout, Path(source), Path(tokenizer), int(builds))
        return
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as folder:
        bench = Bench(Path(folder))
        print(
            f"{platform.python_version()}, {os.cpu_count()} cores, {options.runs} processes of {options.builds} builds"
        )
        print("| layout | cores | engine | cold | warm, median | MB/s | times the local engine |")
        print("|---|---|---|---|---|---|---|")
        for layout in LAYOUTS:
            for cores in (1, 2):
                cold: dict[str, list[float]] = {"local": [], "spark": []}
                warm: dict[str, list[float]] = {"local": [], "spark": []}
                hashes = set()
                for _ in range(options.runs):
                    for engine in cold:
                        seconds, content = run(engine, cores, layout, bench, options.builds)
                        cold[engine].append(seconds[0])
                        warm[engine] += seconds[1:]
                        hashes.add(content)
                assert len(hashes) == 1, hashes
                base = statistics.median(warm["local"])
                for engine in cold:
                    middle = statistics.median(warm[engine])
                    speed, first = bench.text_mb * REPEAT / middle, statistics.median(cold[engine])
                    cells = (
                        layout,
                        cores,
                        engine,
                        f"{first:.1f} s",
                        f"{middle:.1f} s",
                        f"{speed:.0f}",
                        f"{middle / base:.2f}",
                    )
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
