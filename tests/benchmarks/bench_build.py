"""`make bench-build`: the same Parquet, this program and its peers, whole processes in turn; medians and ratios.

Peers are some forty times slower, so they get the corpus once (about 100 MB) where this program and the limit get it
ten times over too; ratios are of MB of text a second. Also measured: peak memory for 100 MB, for 1 GB and for 400 MB of
words that never repeat, one line of 50 MB against the same bytes in many lines, `--help`, and `build sample`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "data"
sys.path.insert(0, str(HERE.parents[1]))

from tests.benchmarks.peers_build import CONTENDERS  # noqa: E402

OURS = ("lance-prep, lines", "lance-prep, blocks")
LIMIT = "gigatoken.encode_files (writes nothing)"
REPEAT = 10


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, peak resident MB, and CPU seconds with those of its children."""

    seconds: float
    peak_mb: float
    cpu: float = 0.0


#: Starts a process from a small one: a child's peak counts what its parent held when it was forked. On Linux it also
#: adopts and waits for processes that the child leaves behind, such as a fork server, so that their CPU time counts.
WRAPPER = """
import ctypes, os, resource, subprocess, sys, time
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
started = time.perf_counter()
code = subprocess.run(sys.argv[2:]).returncode
seconds = time.perf_counter() - started
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
with open(sys.argv[1], "w") as file:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(seconds, used.ru_maxrss, used.ru_utime + used.ru_stime, file=file)
sys.exit(code)
"""


def measure(arguments: list[str], **environment: str) -> Run:
    """Run a process to its end and read the kernel's count of its memory."""
    with tempfile.NamedTemporaryFile("r") as figures:
        done = subprocess.run(
            [sys.executable, "-c", WRAPPER, figures.name, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        if done.returncode:
            raise RuntimeError(f"{arguments} failed:\n{done.stdout.decode(errors='replace')[-2000:]}")
        seconds, peak, cpu = map(float, figures.read().split())
    return Run(seconds, peak / (1e6 if sys.platform == "darwin" else 1e3), cpu)


def make_corpus(corpus: Path, tokenizer: Path) -> None:
    """Write about 100 MB of text as Parquet, and a tokenizer for it: the shared ones, or made from Python's pages."""
    if (SHARED / "corpus.parquet").exists():
        shutil.copyfile(SHARED / "corpus.parquet", corpus)
        shutil.copyfile(SHARED / "gpt2.tokenizer.json", tokenizer)
        return
    from pydoc_data.topics import topics

    from lance_prep.tokenizer.made import train_sample_tokenizer

    tokenizer.write_bytes(train_sample_tokenizer())
    sentences = [line for text in topics.values() for line in text.split("\n") if line.strip()]
    draw = random.Random(1)
    texts = [" ".join(draw.sample(sentences, 4)) for _ in range(450_000)]
    pq.write_table(pa.table({"text": texts}), corpus, compression="zstd", row_group_size=20_000)


class Bench:
    """Inputs and outputs in one folder; a contender's output goes before it runs again."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.tokenizer = work / "tokenizer.json"
        self.corpus = work / "corpus.parquet"
        make_corpus(self.corpus, self.tokenizer)
        self.large = work / "large.parquet"
        table = pq.read_table(self.corpus)
        self.text_mb = table["text"].nbytes / 1e6
        with pq.ParquetWriter(self.large, table.schema, compression="zstd") as writer:
            for _ in range(REPEAT):
                writer.write_table(table, row_group_size=20_000)

    def run(self, name: str, source: Path) -> Run:
        out = self.work / "out"
        for left in self.work.glob("out*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        return measure(
            [sys.executable, str(HERE / "peers_build.py"), name, str(source), str(self.tokenizer), str(out)],
            HF_DATASETS_CACHE=str(self.work / "out.hf"),
        )


def median(runs: list[Run]) -> Run:
    middle = statistics.median
    return Run(middle(r.seconds for r in runs), max(r.peak_mb for r in runs), middle(r.cpu for r in runs))


def compare(bench: Bench, runs: int) -> dict[str, Run]:
    """Every contender on the corpus, in turn, `runs` times; and ours and the limit on ten times that."""
    results: dict[str, list[Run]] = {}
    for _ in range(runs):
        for name in CONTENDERS:
            results.setdefault(f"{name} @ 1", []).append(bench.run(name, bench.corpus))
        for name in (*OURS, LIMIT):
            results.setdefault(f"{name} @ {REPEAT}", []).append(bench.run(name, bench.large))
    return {name: median(measured) for name, measured in results.items()}


def report(bench: Bench, results: dict[str, Run]) -> list[str]:
    """The table in Markdown."""
    fastest = min(results[f"{name} @ 1"].seconds for name in CONTENDERS if name not in OURS and name != LIMIT)
    peer_speed = bench.text_mb / fastest
    lines = [
        "| what | text | median | MB/s | times the fastest `tokenizers` peer | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in results.items():
        what, _, times = name.rpartition(" @ ")
        size = bench.text_mb * int(times)
        speed = size / run.seconds
        cells = (what, f"{size:,.0f} MB", f"{run.seconds:.1f} s", f"{speed:.1f}", f"{speed / peer_speed:.1f}")
        lines.append(f"| {' | '.join(cells)} | {run.peak_mb:,.0f} MB |")
    return lines


def extremes(bench: Bench) -> list[str]:
    """Memory and time on inputs that hurt."""
    never = bench.work / "never.parquet"
    draw = random.Random(2)
    rows = (" ".join(f"{draw.getrandbits(48):012x}" for _ in range(200)) for _ in range(160_000))
    pq.write_table(pa.table({"text": list(rows)}), never, row_group_size=5_000)
    lines = [f"400 MB of words that never repeat: {_both(bench.run(OURS[0], never))}"]

    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", ""]
    long = " ".join(draw.choice(words) for _ in range(11_500_000))[: 50 << 20]
    one, many = bench.work / "one.jsonl", bench.work / "many.jsonl"
    one.write_text(json.dumps({"text": long}))
    many.write_text("\n".join(json.dumps({"text": long[i : i + 500]}) for i in range(0, len(long), 500)))
    first, second = bench.run(OURS[0], one), bench.run(OURS[0], many)
    lines.append(f"one line of 50 MB: {_both(first)}; the same in lines of 500 bytes: {_both(second)}")
    program = str(Path(sys.executable).with_name("lance-prep"))
    help_ = median([measure([program, "--help"]) for _ in range(5)])
    shutil.rmtree(bench.work / "sample.lance", ignore_errors=True)
    sample = measure([program, "build", "sample", "-o", str(bench.work / "sample.lance")])
    lines.append(f"lance-prep --help: {help_.seconds:.2f} s; lance-prep build sample: {sample.seconds:.1f} s")
    return lines


def _both(run: Run) -> str:
    return f"{run.seconds:.1f} s, peak {run.peak_mb:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as folder:
        bench = Bench(Path(folder))
        print(f"{platform.python_version()}, {os.cpu_count()} cores, {options.runs} runs in turn, medians", flush=True)
        print("\n".join(extremes(bench)), flush=True)
        results = compare(bench, options.runs)
        print("\n".join(report(bench, results)))
        if options.json:
            options.json.write_text(json.dumps({name: vars(run) for name, run in results.items()}, indent=2))


if __name__ == "__main__":
    main()
