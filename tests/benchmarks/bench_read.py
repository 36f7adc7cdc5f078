"""How fast random blocks of 1,024 tokens become int64 `[batch, 1024]` tensors: lance-prep beside its peers.

    python tests/benchmarks/bench_read.py [--blocks 30000] [--rounds 5] [--batches 8,64,512] [--workers 0,2]
                                          [--only PART_OF_A_NAME,...] [--folder DIR] [--json PATH]

The same random tokens are written once in every format. Each round reads, one reader after the other, `--tokens` tokens
(or for `--seconds`) of an epoch in random order, page cache warm, the clock running from the first batch on; the
consumer keeps a batch until it has the next, as a training loop does. Medians of the rounds are printed, of tokens a
second and, for one process, a CPU second, and their ratio to nanoGPT's loop. A reader whose package is missing says so
in the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from lance_prep.store.metadata import TokenizerRecord
from tests.metadata import metadata_of

SIZE = 1024
SHARDS = 4
EOS = 50256

Batches = Iterator[torch.Tensor]
Reader = Callable[[int, int], Batches]
READERS: dict[str, Callable[[Path, np.ndarray], Reader]] = {}


def reader(name: str) -> Callable[[Any], Any]:
    """Register `prepare(folder, blocks) -> read(batch, workers) -> batches`."""

    def register(prepare: Any) -> Any:
        READERS[name] = prepare
        return prepare

    return register


def single_process(read: Callable[[int], Batches]) -> Reader:
    def reading(batch: int, workers: int) -> Batches:
        if workers:
            raise NotImplementedError("one process only")
        return read(batch)

    return reading


def batches_of(loader: Any) -> Batches:
    for batch in loader:
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        yield ids if ids.dtype == torch.int64 else ids.to(torch.int64)


# The limit, and nanoGPT.


def flat_file(folder: Path, blocks: np.ndarray) -> np.ndarray:
    path = folder / "flat.bin"
    if not path.exists():
        blocks.tofile(path)
    return np.memmap(path, dtype=np.uint16, mode="r")


@reader("raw gather from one memmap (the limit)")
def raw_gather(folder: Path, blocks: np.ndarray) -> Reader:
    rows = np.asarray(flat_file(folder, blocks)).reshape(-1, SIZE)

    def read(batch: int) -> Batches:
        order = np.random.default_rng(0).permutation(len(rows))
        for i in range(0, len(order) - batch + 1, batch):
            yield torch.from_numpy(rows[order[i : i + batch]].astype(np.int64))

    return single_process(read)


@reader("nanoGPT's loop, indices as ints (x and y)")
def nanogpt(folder: Path, blocks: np.ndarray) -> Reader:
    return nanogpt_loop(folder, blocks, as_ints=True)


@reader("nanoGPT's get_batch as it stands (x and y)")
def nanogpt_verbatim(folder: Path, blocks: np.ndarray) -> Reader:
    return nanogpt_loop(folder, blocks, as_ints=False)


def nanogpt_loop(folder: Path, blocks: np.ndarray, *, as_ints: bool) -> Reader:
    """train.py of karpathy/nanoGPT, whose indices are 0-d tensors; as ints it is two to three times faster."""
    data = flat_file(folder, blocks)

    def read(batch: int) -> Batches:
        for _ in range(len(data) // SIZE // batch):
            ix: Any = torch.randint(len(data) - SIZE, (batch,))
            ix = ix.tolist() if as_ints else ix
            x = torch.stack([torch.from_numpy((data[i : i + SIZE]).astype(np.int64)) for i in ix])
            y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + SIZE]).astype(np.int64)) for i in ix])
            assert len(y) == batch
            yield x

    return single_process(read)


# lance-prep.


def our_dataset(folder: Path, blocks: np.ndarray, layout: str) -> Path:
    """The tokens as a dataset of ours: blocks, or documents of 20 to 100 tokens."""
    import lance
    from lance.fragment import write_fragments

    path = folder / f"{layout}.lance"
    if path.exists():
        return path
    inner = pa.field("item", pa.uint16(), nullable=False)
    kind = pa.list_(pa.uint16(), SIZE) if layout == "blocks" else pa.list_(inner)
    facts = metadata_of(
        layout=layout,
        block_size=SIZE if layout == "blocks" else None,
        dtype="uint16",
        content_hash="bench",
        tokenizer=TokenizerRecord("bench", None, "0" * 64, EOS + 1, None, EOS, EOS, (), (), True),
    )
    fields = {"input_ids": kind, "num_tokens": pa.uint32(), "doc_id": pa.uint64()}
    if layout == "blocks":
        fields = {"input_ids": kind, "num_tokens": pa.uint32()}
        fields |= {"seq_lengths": pa.list_(pa.uint32()), "doc_ids": pa.list_(pa.uint64())}
    schema = pa.schema(
        [pa.field(name, type_, nullable=False) for name, type_ in fields.items()],
        metadata={b"lance_prep": json.dumps(facts.as_json()).encode()},
    )
    fragments = []
    for shard, part in enumerate(np.array_split(blocks, SHARDS)):
        flat = part.reshape(-1)
        if layout == "blocks":
            lengths = np.full(len(part), SIZE)
            ids = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
            documents = pieces_of(part)
        else:
            ends = np.cumsum(np.random.default_rng(shard).integers(20, 101, len(flat) // 20))
            bounds = np.concatenate([[0], ends[ends < len(flat)], [len(flat)]]).astype(np.int32)
            lengths = np.diff(bounds)
            ids = pa.ListArray.from_arrays(pa.array(bounds), pa.array(flat), type=kind)
        doc_ids = pa.array((np.uint64(shard) << np.uint64(40)) + np.arange(len(lengths), dtype=np.uint64))
        last = documents if layout == "blocks" else [doc_ids]
        batch = pa.record_batch([ids, pa.array(lengths, pa.uint32()), *last], schema=schema)
        stream = pa.RecordBatchReader.from_batches(schema, [batch])
        fragments += write_fragments(stream, str(path), schema=schema, data_storage_version="2.0")
    lance.LanceDataset.commit(str(path), lance.LanceOperation.Overwrite(schema, fragments))
    return path


def pieces_of(blocks: np.ndarray) -> list[pa.Array]:
    """`seq_lengths` and `doc_ids` of blocks whose documents end with EOS."""
    ends = blocks == EOS
    ends[:, -1] = True
    stops = np.flatnonzero(ends)
    lengths = np.diff(stops, prepend=-1).astype(np.uint32)
    bounds = pa.array(np.concatenate([[0], np.cumsum(ends.sum(axis=1))]).astype(np.int32))
    docs = np.arange(len(stops), dtype=np.uint64)
    return [pa.ListArray.from_arrays(bounds, pa.array(values)) for values in (lengths, docs)]


def our_loader(layout: str, loader: str, **options: Any) -> Callable[[Path, np.ndarray], Reader]:
    def prepare(folder: Path, blocks: np.ndarray) -> Reader:
        from lance_prep.train import LanceDataset, TakeSampler, TokenLoader

        ds = LanceDataset(our_dataset(folder, blocks, layout), block_size=SIZE, **options)

        def read(batch: int, workers: int) -> Batches:
            if loader == "DataLoader":
                return batches_of(DataLoader(ds, batch_sampler=TakeSampler(ds, batch), num_workers=workers))
            return batches_of(TokenLoader(ds, batch, num_workers=workers))

        return read

    return prepare


for label, labels in (("input_ids", None), ("input_ids and labels", "same")):
    READERS[f"lance-prep DataLoader, {label}"] = our_loader("blocks", "DataLoader", labels=labels)
    READERS[f"lance-prep TokenLoader, {label}"] = our_loader("blocks", "TokenLoader", labels=labels)
READERS["lance-prep TokenLoader, by take alone"] = our_loader("blocks", "TokenLoader", labels=None, access="take")
READERS["lance-prep TokenLoader, ragged as blocks"] = our_loader("documents", "TokenLoader", labels=None)


# Peers.


def _stack_lists(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["input_ids"] for row in rows])


@reader("pylance SafeLanceDataset")
def safe_lance(folder: Path, blocks: np.ndarray) -> Reader:
    from lance.torch.data import SafeLanceDataset

    ds = SafeLanceDataset(str(our_dataset(folder, blocks, "blocks")))

    return lambda batch, workers: batches_of(
        DataLoader(ds, batch_size=batch, shuffle=True, num_workers=workers, collate_fn=_stack_lists, **spawned(workers))
    )


@reader("pylance LanceDataset (whole batches shuffled, not rows)")
def lance_iterable(folder: Path, blocks: np.ndarray) -> Reader:
    from lance.sampler import ShardedFixedBatchSampler
    from lance.torch.data import LanceDataset

    path = str(our_dataset(folder, blocks, "blocks"))
    sampler = ShardedFixedBatchSampler(0, 1, randomize=True)
    return single_process(
        lambda batch: batches_of(
            LanceDataset(path, batch, columns=["input_ids"], sampler=sampler, rank=0, world_size=1)
        )
    )


@reader("LanceDB StreamingDataset")
def lancedb_streaming(folder: Path, blocks: np.ndarray) -> Reader:
    import lancedb
    from lancedb.streaming import StreamingDataset

    connection = lancedb.connect(str(folder / "lancedb"))
    if not (folder / "lancedb").exists() or "tokens" not in connection.table_names():
        kind = pa.list_(pa.uint16(), SIZE)
        table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), type=kind)})
        connection.create_table("tokens", table)

    def tensors(rows: pa.RecordBatch) -> list[torch.Tensor]:
        values = rows["input_ids"].flatten().to_numpy().astype(np.int64)
        return list(torch.from_numpy(values).view(-1, SIZE))

    def read(batch: int) -> Batches:
        ds = StreamingDataset(connection.open_table("tokens"), columns=["input_ids"], transform=tensors, shuffle_seed=0)
        return batches_of(DataLoader(ds, batch_size=batch))

    return single_process(read)


@reader("Hugging Face datasets")
def hugging_face(folder: Path, blocks: np.ndarray) -> Reader:
    import datasets

    path = folder / "datasets"
    if not path.exists():
        features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("uint16"), length=SIZE)})
        kind = pa.list_(pa.uint16(), SIZE)
        table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), type=kind)})
        datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(str(path))
    ds = datasets.load_from_disk(str(path)).with_format("torch")
    return lambda batch, workers: batches_of(DataLoader(ds, batch_size=batch, shuffle=True, num_workers=workers))


def _as_tensor(block: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(block.astype(np.int32))


class _Blocks:
    """Blocks of a file by index, for litdata's worker processes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, index: int) -> Iterator[torch.Tensor]:
        data = np.memmap(self.path, dtype=np.uint16, mode="r").reshape(-1, SIZE)
        for block in data[index * 500 : (index + 1) * 500]:
            yield _as_tensor(block)


@reader("litdata")
def litdata_tokens(folder: Path, blocks: np.ndarray) -> Reader:
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    path = folder / "litdata"
    if not path.exists():
        flat_file(folder, blocks)
        litdata.optimize(
            _Blocks(str(folder / "flat.bin")),
            list(range(-(-len(blocks) // 500))),
            output_dir=str(path),
            chunk_size=SIZE * 8192,
            item_loader=TokensLoader(block_size=SIZE),
            num_workers=1,
            start_method="fork",
        )

    def read(batch: int, workers: int) -> Batches:
        ds = litdata.StreamingDataset(str(path), item_loader=TokensLoader(block_size=SIZE), shuffle=True)
        return batches_of(litdata.StreamingDataLoader(ds, batch_size=batch, num_workers=workers))

    return read


@reader("MosaicML streaming")
def mosaic(folder: Path, blocks: np.ndarray) -> Reader:
    import streaming

    path = folder / "mds"
    if not path.exists():
        with streaming.MDSWriter(out=str(path), columns={"input_ids": f"ndarray:uint16:{SIZE}"}) as out:
            for block in blocks:
                out.write({"input_ids": block})

    def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))

    def read(batch: int, workers: int) -> Batches:
        streaming.base.util.clean_stale_shared_memory()
        ds = streaming.StreamingDataset(local=str(path), shuffle=True, batch_size=batch)
        return batches_of(DataLoader(ds, batch_size=batch, num_workers=workers, collate_fn=collate))

    return read


@reader("data-forager")
def forager(folder: Path, blocks: np.ndarray) -> Reader:
    from data_forager.datasets.tokens import TokensDataset
    from data_forager.index_stores.fs_based import IndexStore

    path = folder / "forager"
    if not path.exists():
        path.mkdir()
        blocks.tofile(path / "tokens.bin")
        store = IndexStore(str(path))
        store.init_store()
        for i in range(len(blocks)):
            store.add_sample(str(path / "tokens.bin"), i * 2 * SIZE, 2 * SIZE)
        store.close()

    class Samples(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.tokens = TokensDataset.create_from_index_on_filesystem(str(path), token_dtype=np.uint16)

        def __len__(self) -> int:
            return len(self.tokens)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(self.tokens[index].astype(np.int64))

    ds = Samples()
    return single_process(lambda batch: batches_of(DataLoader(ds, batch_size=batch, shuffle=True)))


def spawned(workers: int) -> dict[str, Any]:
    return {"multiprocessing_context": "forkserver"} if workers else {}


# Measuring.


def rate(batches: Batches, tokens: int, seconds: float) -> tuple[float, float]:
    """Mtok a second from the first batch on, and a second of this process's CPU."""
    held = next(batches)
    assert held.dtype == torch.int64
    assert held.shape[1] == SIZE
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    for held in batches:
        done += held.numel()
        if done >= tokens or time.perf_counter() - started > seconds:
            break
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return done / wall / 1e6, done / cpu / 1e6


def measure(options: argparse.Namespace, folder: Path, blocks: np.ndarray) -> list[dict[str, Any]]:
    only = [part for part in options.only.split(",") if part]
    prepared: dict[str, Reader] = {}
    results: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    notes: dict[str, str] = {}
    for name, prepare in READERS.items():
        if only and not any(part in name for part in only):
            continue
        try:
            prepared[name] = prepare(folder, blocks)
        except ImportError as error:
            notes[name] = f"not installed ({error})"
        except Exception as error:  # a peer that fails must not hide the others
            notes[name] = f"failed ({type(error).__name__}: {str(error)[:80]})"
        print(f"prepared {name} {notes.get(name, '')}", file=sys.stderr)
    for turn in range(options.rounds):
        for batch in options.batches:
            for workers in options.workers:
                for name, read in prepared.items():
                    try:
                        found = rate(iter(read(batch, workers)), options.tokens, options.seconds)
                    except NotImplementedError:
                        continue
                    except Exception as error:
                        notes[name] = f"failed ({type(error).__name__}: {str(error)[:80]})"
                        continue
                    results.setdefault((name, batch, workers), []).append(found)
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    rows = [
        {
            "reader": name,
            "batch": batch,
            "workers": workers,
            "mtok_s": statistics.median(wall for wall, _ in runs),
            "mtok_cpu_s": statistics.median(cpu for _, cpu in runs) if not workers else None,
            "runs": [round(wall, 1) for wall, _ in runs],
        }
        for (name, batch, workers), runs in results.items()
    ]
    return rows + [{"reader": name, "note": note} for name, note in notes.items()]


def table(rows: list[dict[str, Any]], columns: list[tuple[int, int]], measure: str, title: str) -> str:
    found = {(r["reader"], r["batch"], r["workers"]): r[measure] for r in rows if "mtok_s" in r}
    notes = {r["reader"]: r["note"] for r in rows if "note" in r}
    head = [title, *(f"batch {b}" + (f", {w} workers" if w else "") for b, w in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    base = next(name for name in READERS if name.startswith("nanoGPT"))
    for name in READERS:
        cells = []
        for batch, workers in columns:
            value, nano = found.get((name, batch, workers)), found.get((base, batch, 0))
            cells.append("" if value is None else f"{value:.0f}" + (f" ({value / nano:.2f})" if nano else ""))
        if any(cells) or name in notes:
            note = f" ({notes[name]})" if name in notes else ""
            lines.append("| " + " | ".join([name + note, *cells]) + " |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    names = ("torch", "numpy", "pylance", "lancedb", "datasets", "litdata", "mosaicml-streaming", "data-forager")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=numbers, default=[8, 64, 512])
    parser.add_argument("--workers", type=numbers, default=[0, 2])
    parser.add_argument("--tokens", type=int, default=24_000_000)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bench-read-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        blocks = np.random.default_rng(0).integers(0, EOS, (options.blocks, SIZE), dtype=np.uint16)
        rows = measure(options, folder, blocks)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    every = [(b, w) for w in options.workers for b in options.batches]
    print(table(rows, every, "mtok_s", "Mtok/s (times nanoGPT's loop)"))
    # On a machine that others use too, the CPU spent says more than the time that passed.
    one = [(b, 0) for b in options.batches if 0 in options.workers]
    print("\n" + table(rows, one, "mtok_cpu_s", "Mtok a CPU second (times nanoGPT's loop)"))
    if options.json:
        facts = {"blocks": options.blocks, "rounds": options.rounds, "versions": versions(), "results": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
