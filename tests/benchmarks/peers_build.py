"""One contender of `bench_build.py`, run as a process of its own: `peers_build.py NAME SOURCE TOKENIZER OUT`.

Each is the straightforward program that a user of that library would write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def memmap(source: str, tokenizer: str, out: str) -> None:
    """nanoGPT's way: `encode_batch_fast`, ids into a uint16 memmap."""
    import numpy as np
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(tokenizer).encode_batch_fast
    file = pq.ParquetFile(source)
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    ids = np.memmap(out, np.uint16, "w+", shape=(size,))  # more than there can be
    at = 0
    for batch in file.iter_batches(8192, columns=["text"]):
        for encoding in encode(batch.column(0).to_pylist()):
            ids[at : at + len(encoding.ids)] = encoding.ids
            at += len(encoding.ids)
    ids.flush()


def rust_example(source: str, tokenizer: str, out: str) -> None:
    """The Lance Rust example's way: a RecordBatchReader, `encode` a line, shuffle a batch, int64 lists."""
    import random

    import lance
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(tokenizer).encode
    schema = pa.schema([("input_ids", pa.list_(pa.int64()))])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in pq.ParquetFile(source).iter_batches(8192, columns=["text"]):
            lines = [line for text in batch.column(0).to_pylist() for line in text.split("\n") if line.strip()]
            rows = [encode(line).ids for line in lines]
            random.shuffle(rows)
            yield pa.RecordBatch.from_arrays([pa.array(rows, schema.field(0).type)], schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), out)


def datasets_map(source: str, tokenizer: str, out: str) -> None:
    """`datasets.map` in batches with `tokenizers`, then `save_to_disk`."""
    import datasets
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(tokenizer).encode_batch_fast
    cache = str(Path(out).with_suffix(".cache"))
    data = datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=cache)
    data = data.map(
        lambda batch: {"input_ids": [e.ids for e in encode(batch["text"])]}, batched=True, remove_columns=["text"]
    )
    data.save_to_disk(out)


def datatrove(source: str, tokenizer: str, out: str) -> None:
    """datatrove's `DocumentTokenizer` behind its `ParquetReader`."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    folder = Path(source).parent
    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(str(folder), glob_pattern=Path(source).name),
            DocumentTokenizer(out, tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
        logging_dir=f"{out}.logs",
    ).run()


def gigatoken(source: str, tokenizer: str, out: str) -> None:
    """The limit: `gigatoken.encode_files` on the file, which writes nothing."""
    import gigatoken as library

    library.Tokenizer(tokenizer).encode_files(library.ParquetFileSource([source]))


def lance_prep_lines(source: str, tokenizer: str, out: str) -> None:
    _lance_prep(source, tokenizer, out, "lines")


def lance_prep_blocks(source: str, tokenizer: str, out: str) -> None:
    _lance_prep(source, tokenizer, out, "blocks")


def _lance_prep(source: str, tokenizer: str, out: str, layout: str) -> None:
    from lance_prep.cli.main import run

    code = run(["build", source, "-o", out, "--tokenizer", tokenizer, "--layout", layout])
    if code:
        sys.exit(code)


CONTENDERS: dict[str, Callable[[str, str, str], Any]] = {
    "lance-prep, lines": lance_prep_lines,
    "lance-prep, blocks": lance_prep_blocks,
    "tokenizers, memmap (nanoGPT's way)": memmap,
    "tokenizers, int64 lists (Rust example's way)": rust_example,
    "datasets.map, save_to_disk": datasets_map,
    "datatrove DocumentTokenizer": datatrove,
    "gigatoken.encode_files (writes nothing)": gigatoken,
}

if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
