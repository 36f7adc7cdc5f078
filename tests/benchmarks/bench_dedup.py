"""`make bench-dedup`: what dropping duplicates adds to a build, and the memory of minhash.

The corpus (about 100 MB of paragraphs, none of which is equal to another) is built without and with `dedup=exact`, each
as a process of its own, in turn. The best of the runs counts, in CPU seconds, which other processes of the machine
disturb least. Then two million short documents, one in five of which is nearly a copy of an earlier one, are built with
`dedup=minhash`; the peak of the memory counts.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.benchmarks.bench_build import Run, make_corpus, measure  # noqa: E402

PROGRAM = str(Path(sys.executable).with_name("lance-prep"))
SHORT_DOCUMENTS = 2_000_000
WORDS = 30


def repeat_corpus(corpus: Path, times: int) -> None:
    """Write a corpus several times over, with a number before each text, so that no text is repeated."""
    table = pq.read_table(corpus)
    texts = table["text"].combine_chunks()
    with pq.ParquetWriter(corpus.with_name("large.parquet"), table.schema, compression="zstd") as writer:
        for number in range(times):
            more = pc.binary_join_element_wise(f"{number}", texts, " ")
            writer.write_table(pa.table({"text": more.cast(table.schema.field("text").type)}), row_group_size=65_536)


def write_short_documents(path: Path, count: int) -> None:
    """Write documents of 30 words. Every fifth has one word that an earlier one of about a thousand before it lacks."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(20_000)]
    schema = pa.schema([("text", pa.large_string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, count, 100_000):
            texts: list[str] = []
            for number in range(min(100_000, count - start)):
                if number % 5 == 4:
                    words_of = texts[draw.randrange(max(0, number - 1000), number)].split()
                    words_of[draw.randrange(WORDS)] = draw.choice(words)
                    texts.append(" ".join(words_of))
                else:
                    texts.append(" ".join(draw.choices(words, k=WORDS)))
            writer.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), row_group_size=50_000)


def build(source: Path, tokenizer: Path, dedup: str) -> Run:
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        output = ["-o", f"{folder}/out.lance", "--tokenizer", str(tokenizer)]
        return measure([PROGRAM, "build", str(source), *output, "--dedup", dedup])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--times", type=int, default=1, help="how often the corpus is repeated")
    parser.add_argument("--documents", type=int, default=SHORT_DOCUMENTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as folder:
        corpus, tokenizer = Path(folder) / "corpus.parquet", Path(folder) / "tokenizer.json"
        make_corpus(corpus, tokenizer)
        repeat_corpus(corpus, options.times)
        runs: dict[str, list[Run]] = {"none": [], "exact": []}
        for _ in range(options.runs):
            for dedup, measured in runs.items():
                measured.append(build(corpus.with_name("large.parquet"), tokenizer, dedup))
        for what in ("cpu", "seconds"):
            none, exact = (min(getattr(run, what) for run in measured) for measured in runs.values())
            said = f"{none:.2f} s without, {exact:.2f} s with dedup=exact: {exact / none - 1:+.1%}"
            print(f"{what}: {said} (at most a fifth)", flush=True)
        short = Path(folder) / "short.parquet"
        write_short_documents(short, options.documents)
        run = build(short, tokenizer, "minhash")
        print(
            f"dedup=minhash, {options.documents:,} documents of {WORDS} words: {run.seconds:.0f} s, "
            f"{run.cpu:.0f} s of CPU, peak {run.peak_mb:,.0f} MB (at most 2,000)"
        )


if __name__ == "__main__":
    main()
