"""`make bench-export`: blocks of 1,024 uint16 tokens to Parquet and JSONL, beside Arrow's own Parquet writer.

    python tests/benchmarks/bench_export.py [--runs 5] [--copies 10] [--json PATH]

The text is `--shared`'s corpus if there is one, otherwise Python's documentation, several times over. Each
contender writes the same dataset in a process of its own, in turn, page cache warm. The clock runs from the call to the
last durable file. Medians of millions of input tokens per second, of the whole process too, and bytes per token.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pydoc_data.topics
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "data"
sys.path.insert(0, str(HERE.parents[1]))


def by_lance_prep(source: Path, output: Path) -> None:
    from lance_prep.exchange import export

    export(source, output)


def by_lance_prep_on_one_thread(source: Path, output: Path) -> None:
    from lance_prep.exchange import export

    export(source, output, workers=1)


def by_lance_prep_with_boundaries(source: Path, output: Path) -> None:
    from lance_prep.exchange import ExportOptions, export

    export(source, output, options=ExportOptions(mask_boundaries=True))


def as_jsonl(source: Path, output: Path) -> None:
    from lance_prep.exchange import export

    export(source, output, format="jsonl")


def by_arrow(source: Path, output: Path) -> None:
    """Write the three columns as one writes them with pyarrow: expand with numpy, write row groups."""
    import lance
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    output.mkdir()
    names = ("input_ids", "attention_mask", "labels")
    scanner = lance.dataset(str(source)).scanner(columns=["input_ids", "num_tokens"], batch_size=4096)
    writer = None
    for batch in scanner.to_batches():
        size = batch.schema.field("input_ids").type.list_size
        ids = batch["input_ids"].flatten().to_numpy().astype(np.int32).reshape(-1, size)
        valid = batch["num_tokens"].to_numpy().astype(np.int64)[:, None]
        labels = np.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        labels[np.arange(size) >= valid - 1] = -100
        mask = (np.arange(size) < valid).astype(np.int32)
        columns = [pa.FixedSizeListArray.from_arrays(part.reshape(-1), size) for part in (ids, mask, labels)]
        table = pa.table(columns, names)
        writer = writer or pq.ParquetWriter(output / "shard_0000.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


CONTENDERS = {
    "lance-prep export": by_lance_prep,
    "lance-prep export, 1 thread": by_lance_prep_on_one_thread,
    "lance-prep export --mask-boundaries": by_lance_prep_with_boundaries,
    "lance-prep export --format jsonl": as_jsonl,
    "pyarrow.parquet.ParquetWriter": by_arrow,
}


def build(folder: Path, shared: Path, copies: int) -> tuple[Path, int]:
    """Build the dataset; returns its path and number of tokens."""
    import lance_prep

    output, tokenizer = folder / "corpus.lance", shared / "gpt2.tokenizer.json"
    corpus = shared / "corpus.parquet"
    fields: dict[str, Any] = {"layout": "blocks", "block_size": 1024, "tokenizer": str(tokenizer)}
    if not corpus.exists():
        text = "\n".join(pydoc_data.topics.topics.values())
        corpus = folder / "topics.jsonl"
        corpus.write_text((json.dumps({"text": text}) + "\n") * 50)
        fields["tokenizer"] = "lance-prep:sample"
    for i in range(copies):
        (folder / f"{i}{corpus.suffix}").symlink_to(corpus)
    source = [str(folder / f"{i}{corpus.suffix}") for i in range(copies)]
    return output, lance_prep.build(source, output=output, **fields).tokens


def measure(name: str, source: Path, output: Path) -> dict[str, float]:
    """Run a contender in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--contender", name, str(source), str(output)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    found["process"] = time.perf_counter() - started
    found["bytes"] = sum(path.stat().st_size for path in output.rglob("shard_*"))
    shutil.rmtree(output)
    return found


def run_contender(name: str, source: Path, output: Path) -> None:
    """Export once, and print seconds and CPU seconds."""
    import lance
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    lance.dataset(str(source)).head(1)
    started, cpu = time.perf_counter(), time.process_time()
    CONTENDERS[name](source, output)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=10, help="of the corpus")
    parser.add_argument(
        "--shared", type=Path, default=SHARED, help="folder with corpus.parquet and gpt2.tokenizer.json"
    )
    parser.add_argument("--only", help="part of a contender's name")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        name, source, output = options.contender
        return run_contender(name, Path(source), Path(output))
    names = [name for name in CONTENDERS if (options.only or "") in name]
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as work:
        source, tokens = build(Path(work), options.shared, options.copies)
        print(f"{tokens / 1e6:.0f} M tokens, {os.cpu_count()} cores, {platform.python_version()}, {options.runs} runs")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(options.runs):
            for name in names:
                runs[name].append(measure(name, source, Path(work) / "out"))
    print(f"{'':38} {'Mtok/s':>8} {'CPU':>8} {'process':>8} {'B/token':>8}")
    figures = {}
    for name, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        speeds = [tokens / 1e6 / middle[key] for key in ("seconds", "cpu", "process")]
        figures[name] = [*speeds, middle["bytes"] / tokens]
        print(f"{name:38} {speeds[0]:8.1f} {speeds[1]:8.1f} {speeds[2]:8.1f} {middle['bytes'] / tokens:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return None


if __name__ == "__main__":
    main()
