"""`make bench-pipeline`: a folder of JSONL in 12 sources to a collection, beside two peers; medians and ratios.

Peers are some twenty times slower, so they get a tenth of each source, with the same number of sources. Each contender
is one process for all sources, and ratios are of MB of JSONL a second. datatrove and `datasets` run one process for
each core.

`bench_pipeline.py run NAME DATA TOKENIZER OUT` is one contender.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.bench_build import Run, make_corpus, measure, median

TARGET = 20
BLOCK_SIZE = 1024
#: Categories and parts of the whole: sources of very different sizes, as collections have them.
SOURCES = {
    "chat": {"openhermes": 16, "ultrachat": 20, "openorca": 14},
    "code": {"starcoder": 12, "codealpaca": 2, "apps": 6},
    "math": {"numinamath": 9, "gsm8k": 1, "metamath": 6},
    "qa": {"squad": 5, "hotpotqa": 7, "triviaqa": 2},
}
PEER_PART = 10


def lance_prep(data: str, tokenizer: str, out: str) -> None:
    from lance_prep.cli.main import run

    arguments = ["--recursive", "--tokenizer", tokenizer, "--block-size", str(BLOCK_SIZE)]
    if code := run(["build", data, "-o", out, *arguments]):
        sys.exit(code)


def datasets_map(data: str, tokenizer: str, out: str) -> None:
    """What `run_clm.py` of transformers does: `datasets.map` with a fast tokenizer, and blocks, for each source."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>")

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = [token for one in fast(batch["text"])["input_ids"] for token in [*one, fast.eos_token_id]]
        whole = len(ids) // BLOCK_SIZE * BLOCK_SIZE
        return {"input_ids": [ids[at : at + BLOCK_SIZE] for at in range(0, whole, BLOCK_SIZE)]}

    for path in sorted(Path(data).rglob("*.jsonl")):
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=f"{out}.cache")
        rows = rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=os.cpu_count())
        rows.save_to_disk(f"{out}/{path.stem}")


def datatrove(data: str, tokenizer: str, out: str) -> None:
    """datatrove's `DocumentTokenizer` behind its `JsonlReader`, for each source."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    files = sorted(str(path.relative_to(data)) for path in Path(data).rglob("*.jsonl"))
    names = Path(f"{out}.files")
    names.write_text("\n".join(files))
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(data, paths_file=str(names)),
            DocumentTokenizer(out, tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
        tasks=len(files),
        workers=os.cpu_count() or 1,
        logging_dir=f"{out}.logs",
    ).run()


OURS = "lance-prep build --recursive"
CONTENDERS: dict[str, Callable[[str, str, str], None]] = {
    OURS: lance_prep,
    "datasets.map, transformers' fast tokenizer": datasets_map,
    "datatrove DocumentTokenizer": datatrove,
}


def write_sources(corpus: Path, folder: Path, size: float) -> float:
    """Write the sources, as `download` writes them, of this many bytes in all. Returns their MB."""
    texts = pq.read_table(corpus)["text"].to_pylist()
    total = sum(part for parts in SOURCES.values() for part in parts.values())
    draw, at, written = random.Random(1), 0, 0
    for category, parts in SOURCES.items():
        (folder / category).mkdir(parents=True)
        for name, part in parts.items():
            left = size * part / total
            with (folder / category / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                while left > 0:
                    at = (at + draw.randint(1, 3)) % len(texts)
                    record = {"text": texts[at], "id": f"{name}-{at}", "source": name, "category": category}
                    line = json.dumps({**record, "metadata": {"row": at}}, ensure_ascii=False)
                    left -= file.write(f"{line}\n")
            written += (folder / category / f"{name}.jsonl").stat().st_size
    return written / 1e6


def report(results: dict[str, list[Run]], sizes: dict[str, float]) -> list[str]:
    """The table in Markdown, and whether the target is met."""
    speeds = {name: sizes[name] / median(runs).seconds for name, runs in results.items()}
    fastest = max(speed for name, speed in speeds.items() if name != OURS) if len(speeds) > 1 else speeds[OURS]
    lines = [
        "| what | JSONL | median | MB/s | times the faster peer | CPU s/GB | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        run = median(runs)
        seconds = [each.seconds for each in runs]
        spread = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(runs) > 1 else ""
        cells = (name, f"{sizes[name]:,.0f} MB", f"{run.seconds:.1f} s{spread}", f"{speeds[name]:.1f}")
        rest = (f"{speeds[name] / fastest:.1f}", f"{run.cpu / sizes[name] * 1000:.1f}", f"{run.peak_mb:,.0f} MB")
        lines.append(f"| {' | '.join((*cells, *rest))} |")
    ratio = speeds[OURS] / fastest
    if len(speeds) > 1:
        # On a machine that other programs use, wall times of contenders cannot be compared, but CPU seconds can.
        least = min(median(runs).cpu / sizes[name] for name, runs in results.items() if name != OURS)
        lines.append(f"by CPU seconds: {least / (median(results[OURS]).cpu / sizes[OURS]):.1f} times the cheaper peer")
    lines.append(f"{'met' if ratio >= TARGET else 'MISSED'}: {ratio:.1f} times the faster peer; target {TARGET}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=float, default=1000, help="MB of JSONL")
    parser.add_argument("--only", action="append", help="start of a contender's name; by default all")
    parser.add_argument("--keep", type=Path, help="make the data in this folder, or use what is there, and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as made:
        work = options.keep or Path(made)
        work.mkdir(exist_ok=True)
        if not (work / "sizes.json").exists():
            make_corpus(work / "corpus.parquet", work / "tokenizer.json")
            whole = write_sources(work / "corpus.parquet", work / "whole", options.size * 1e6)
            part = write_sources(work / "corpus.parquet", work / "part", options.size * 1e6 / PEER_PART)
            (work / "sizes.json").write_text(json.dumps([whole, part]))
        whole, part = json.loads((work / "sizes.json").read_text())
        chosen = [name for name in CONTENDERS if name.startswith(tuple(options.only or ("",)))]
        print(f"{platform.python_version()}, {os.cpu_count()} cores, {options.runs} runs in turn", flush=True)
        results: dict[str, list[Run]] = {name: [] for name in chosen}
        for _ in range(options.runs):
            for name in chosen:
                data = work / ("whole" if name == OURS else "part")
                for left in work.glob("out*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                arguments = [__file__, "run", name, str(data), str(work / "tokenizer.json"), str(work / "out")]
                run = measure([sys.executable, *arguments], HF_DATASETS_CACHE=str(work / "out.hf"))
                print(f"{name}: {run.seconds:.1f} s, CPU {run.cpu:.1f} s", flush=True)
                results[name].append(run)
        print("\n".join(report(results, {name: whole if name == OURS else part for name in chosen})))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        CONTENDERS[sys.argv[2]](*sys.argv[3:])
    else:
        main()
