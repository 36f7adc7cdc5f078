"""`make bench-chat`: from conversations in Parquet to token ids, compared with transformers.

For each chat template, transformers calls `apply_chat_template` once per conversation, on conversations that are in
memory already. lance-prep reads, renders and encodes the same ones from a Parquet file with `lance_prep.stream`. It
also records which tokens the assistant wrote, which this call of transformers does not. Both run in turn in one
process, and the median of the rounds counts. Compare CPU seconds: other processes of the machine disturb them least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

import lance_prep
from tests import chat_conversations as chats
from tests import tokenizers_made as made


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Return conversations of seven messages with 500 words, no two of them equal."""
    found = []
    for number in range(count):
        talk = [{"role": "system", "content": f"Be brief. {number}"}]
        for turn in range(3):
            asked = f"What is {turn} + {turn}? {'word ' * 40}{number}"
            talk.append({"role": "user", "content": asked})
            talk.append({"role": "assistant", "content": f"It is {2 * turn}. {'word ' * 120}{number}"})
        found.append(talk)
    return found


def measured(run: Callable[[], int]) -> tuple[int, float, float]:
    """Return what a function returns, its seconds, and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return tokens, time.perf_counter() - wall, time.process_time() - cpu


def compare(stem: str, talks: list[Any], folder: Path, rounds: int) -> str:
    """Measure both with one template, and return the result as a line."""
    model = chats.model(stem)
    tokenizer = made.save(folder / stem, model.file, **model.config, chat_template=model.stock)
    source = folder / "chat.parquet"

    def theirs() -> int:
        apply = model.tokenizer.apply_chat_template
        return sum(len(apply(talk, chat_template=model.training)["input_ids"]) for talk in talks)

    def ours() -> int:
        read = lance_prep.stream(source, tokenizer=tokenizer, messages="messages", layout="documents", shuffle=False)
        return sum(pc.sum(batch["num_tokens"]).as_py() for batch in read)

    runs: dict[str, list[tuple[int, float, float]]] = {"theirs": [], "ours": []}
    for _ in range(rounds):
        runs["theirs"].append(measured(theirs))
        runs["ours"].append(measured(ours))
    counts = {tokens for each in runs.values() for tokens, _, _ in each}
    if len(counts) != 1:
        raise SystemExit(f"{stem}: the numbers of tokens differ: {counts}")
    wall, cpu = (
        {name: statistics.median(run[which] for run in each) for name, each in runs.items()} for which in (1, 2)
    )
    return (
        f"{stem:10} transformers {cpu['theirs']:.2f} s of CPU, lance-prep {cpu['ours']:.2f} s: "
        f"{cpu['theirs'] / cpu['ours']:.1f} times as fast ({wall['theirs'] / wall['ours']:.1f} by wall time)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--templates", default="llama3,qwen3", help="names of trl's training templates")
    options = parser.parse_args()
    talks = conversations(options.conversations)
    print(f"{len(talks):,} conversations of {len(talks[0])} messages, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="lance-prep-bench-") as folder:
        pq.write_table(pa.table({"messages": talks}), Path(folder) / "chat.parquet")
        for stem in options.templates.split(","):
            print(compare(stem, talks, Path(folder), options.runs), flush=True)


if __name__ == "__main__":
    main()
