"""The Hub: what is resolved, what is fetched (by the server's log), and what happens when it fails."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lance_prep import transport
from lance_prep.errors import AccessDenied, BadFile, HubUnreachable, LancePrepError, SourceNotFound, UsageError
from lance_prep.ledger import Tally
from lance_prep.recipe import Recipe
from lance_prep.source import read_shard
from lance_prep.tokenizer import load_tokenizer
from tests import tokenizers_made as made
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.sources import parquet_bytes, plan_of, read, read_plan

TEXTS = [f"text {i}" for i in range(1000)]
REPO = "owner/name"
LFS = r"GET /_lfs/"


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def two_columns(rows: int = 1000, **options: Any) -> bytes:
    """A small `text`, a large `image` that does not compress, and `n`, ascending."""
    images = [noise(2000, i) for i in range(rows)]
    return parquet_bytes({"image": images, "text": TEXTS[:rows], "n": list(range(rows))}, **options)


def fetched(hub: LoopbackHub) -> list[tuple[int, int]]:
    """Byte ranges of LFS files that were asked for, half-open, in order."""
    ranges = []
    for entry in hub.requests(LFS):
        start, stop = entry["range"].removeprefix("bytes=").split("-")
        ranges.append((int(start), int(stop) + 1))
    return sorted(ranges)


def test_only_the_text_column_is_fetched_and_once(hub: LoopbackHub) -> None:
    data = two_columns()
    hub.add_dataset(REPO, {"data/train-00000.parquet": data})
    texts, tally, _ = read(REPO)
    assert texts == TEXTS
    assert tally.retries == 0
    assert hub.bytes_sent(LFS) < len(data) * 0.1
    assert all(a[1] <= b[0] for a, b in pairwise(fetched(hub)))
    footer = pq.read_metadata(io.BytesIO(data))
    chunks = [footer.row_group(g).column(1) for g in range(footer.num_row_groups)]
    wanted = sum(chunk.total_compressed_size for chunk in chunks)
    assert hub.bytes_sent(LFS) <= wanted + (64 << 10)  # the footer comes with what is before it, up to 64 KiB


def test_a_single_column_file_takes_few_requests(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": TEXTS * 100}, row_group_size=1000)})
    assert read(REPO)[0] == TEXTS * 100
    assert len(hub.requests(LFS)) <= 2  # the footer, and all row groups together


def test_row_groups_that_cannot_match_are_not_fetched(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"train.parquet": two_columns()})
    plan = plan_of(REPO, filter="n between 450 and 460", keep_columns=("image",))
    hub.log.clear()
    batches, tally, _ = read_plan(plan)
    assert [row for batch in batches for row in batch.rows.tolist()] == list(range(450, 461))
    assert tally.ledger.rows_in == 1000
    assert tally.ledger.filtered == 989
    assert hub.bytes_sent(LFS) < 300_000  # one row group of ten


def test_a_giant_row_group_streams(hub: LoopbackHub) -> None:
    texts = [noise(3000, i).hex() for i in range(4000)]
    hub.add_dataset(REPO, {"x.parquet": parquet_bytes({"text": texts}, row_group_size=4000, compression="none")})
    plan = plan_of(REPO, shuffle_batch_size=10)
    hub.log.clear()
    reader = read_shard(plan, plan.shards[0], Tally())
    first = next(reader)
    assert first.columns.column(0).to_pylist() == texts[:10]
    assert [t for batch in reader for t in batch.columns.column(0).to_pylist()] == texts[10:]
    assert len(hub.requests(LFS)) >= 3
    assert all(a[1] == b[0] for a, b in pairwise(fetched(hub)))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.txt"])
def test_other_formats_are_read_from_the_hub(hub: LoopbackHub, name: str) -> None:
    lines = "".join(f'{{"text": "{text}"}}\n' if "json" in name else f"{text}\n" for text in TEXTS)
    data = (("text\n" if name == "x.csv" else "") + lines).encode()
    hub.add_dataset(REPO, {name: gzip.compress(data) if name.endswith("gz") else data})
    unit = {"text_unit": "line"} if name == "x.txt" else {}
    assert read(REPO, **unit)[0] == TEXTS
    assert read(f"hf://datasets/{REPO}/{name}", **unit)[0] == TEXTS


def test_plan_is_pinned_to_a_commit(hub: LoopbackHub) -> None:
    old = hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": ["old"]})})
    plan = plan_of(REPO)
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": ["new"]})})
    assert plan.source.commit == old
    assert plan.source.revision == "main"
    assert plan.files[0].url == f"hf://datasets/{REPO}@{old}/train.parquet"
    assert read_plan(plan)[0][0].columns.column(0).to_pylist() == ["old"]
    assert read(REPO, revision=old)[0] == ["old"]
    assert read(f"hf://datasets/{REPO}@{old}/train.parquet")[0] == ["old"]
    assert read(REPO)[0] == ["new"]


README = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*.parquet}
  - {split: test, path: en/test.parquet}
- config_name: de
  data_files:
  - {split: validation, path: de/*.parquet}
---
"""


@pytest.fixture
def configs(hub: LoopbackHub) -> LoopbackHub:
    names = ["en/train-0", "en/train-1", "en/test", "de/all"]
    files = {f"{name}.parquet": parquet_bytes({"text": [name]}) for name in names}
    hub.add_dataset(REPO, {"README.md": README, **files})
    return hub


def test_configs_and_splits_choose_the_files(configs: LoopbackHub) -> None:
    assert read(REPO, config="en")[0] == ["en/train-0", "en/train-1"]
    assert read(REPO, config="en", split="test")[0] == ["en/test"]
    plan = plan_of(REPO, config="de")
    assert plan.recipe.split == plan.source.split == "validation"
    assert read(f"hf://datasets/{REPO}/en/*.parquet")[0] == ["en/test", "en/train-0", "en/train-1"]


@pytest.mark.parametrize(
    ("source", "fields", "error", "said"),
    [
        (REPO, {}, SourceNotFound, "several configs | choose one with `config`: en, de"),
        (REPO, {"config": "fr"}, SourceNotFound, "no config 'fr' | there are en, de"),
        (REPO, {"config": "en", "split": "x"}, SourceNotFound, "no split 'x' | there are train, test"),
        (REPO, {"revision": "v9"}, SourceNotFound, "no revision 'v9' | one of: main"),
        ("owner/nothing", {}, SourceNotFound, "no such repository | HF_TOKEN"),
        (f"hf://datasets/{REPO}/fr/*.parquet", {}, SourceNotFound, "no data file | de/all.parquet, en/test.parquet"),
        (f"hf://datasets/{REPO}/en", {"split": "train"}, UsageError, "`config` and `split` cannot | remove"),
        (f"hf://datasets/{REPO}@main/en", {"revision": "x"}, UsageError, "two revisions | one of them"),
        ("hf://datasets/owner", {}, SourceNotFound, "not a dataset | owner/name"),
    ],
)
def test_what_is_missing_on_the_hub_is_named(
    configs: LoopbackHub, source: str, fields: dict[str, Any], error: type[LancePrepError], said: str
) -> None:
    with pytest.raises(error) as caught:
        plan_of(source, **fields)
    message, advice = said.split(" | ")
    assert message in str(caught.value)
    assert advice in caught.value.advice


def test_a_gated_repository_asks_for_a_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": TEXTS})}, gated=True)
    with pytest.raises(AccessDenied, match="gated") as caught:
        plan_of(REPO)
    assert "HF_TOKEN" in caught.value.advice
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read(REPO)[0] == TEXTS


def test_private_needs_a_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": TEXTS})}, private=True)
    with pytest.raises(SourceNotFound, match="private"):
        plan_of(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read(REPO)[0] == TEXTS


def test_the_converted_branch_is_read_if_nothing_else_can_be(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"name.py": b"a loading script"})
    with pytest.raises(SourceNotFound):
        plan_of(REPO)
    hub.add_dataset(REPO, {"default/train/0000.parquet": parquet_bytes({"text": TEXTS})}, branch="refs/convert/parquet")
    plan = plan_of(REPO)
    assert plan.source.revision == "refs/convert/parquet"
    assert [t for b in read_plan(plan)[0] for t in b.columns.column(0).to_pylist()] == TEXTS


def test_streaming_for_what_only_datasets_reads(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"train.fasta": b">one first\nACGT\n>two second\nTTGA\n"})
    plan = plan_of(REPO, text_column="sequence")
    assert plan.files[0].format == "streaming"
    assert [t for b in read_plan(plan)[0] for t in b.columns.column(0).to_pylist()] == ["ACGT", "TTGA"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"cut_after": 0},
        {"cut_after": 1000},
    ],
    ids=str,
)
def test_passing_faults_are_retried(hub: LoopbackHub, fault: dict[str, Any]) -> None:
    texts = [noise(100, i).hex() for i in range(1000)]  # more than the 64 KiB that come along with the footer
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": texts}, compression="none")})
    plan = plan_of(REPO)
    hub.log.clear()
    hub.fault(LFS, times=2, **fault)
    batches, tally, _ = read_plan(plan)
    assert [t for b in batches for t in b.columns.column(0).to_pylist()] == texts
    assert tally.retries == 2
    if fault.get("cut_after"):  # goes on where it was cut: nothing is sent twice
        first, *later = fetched(hub)
        assert hub.bytes_sent(LFS) == first[1] - first[0]
        assert [start for start, _ in later] == [first[0] + 1000, first[0] + 2000]


def test_a_stalled_answer_is_given_up(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add_dataset(REPO, {"train.jsonl": b'{"text": "a"}\n'})
    plan = plan_of(REPO)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fault("GET .*/resolve/.*jsonl", stall=True)
    batches, tally, _ = read_plan(plan)
    assert batches[0].columns.column(0).to_pylist() == ["a"]
    assert tally.retries == 1


def test_closing_early_ends_the_requests(hub: LoopbackHub) -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, b"x" * 1000) for i in range(60_000))
    hub.add_dataset(REPO, {"train.jsonl": lines})
    plan = plan_of(REPO, shuffle_batch_size=8)
    reader = read_shard(plan, plan.shards[0], Tally())
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lance-prep")]


def test_faults_while_planning_are_retried(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": TEXTS})})
    hub.fault(r"GET /api/datasets/owner/name", status=503)
    hub.fault(r"/resolve/.*README.md", status=503)
    hub.fault(r"paths-info", status=429, headers={"Retry-After": "0"})
    hub.fault(LFS, cut_after=100)
    assert read(REPO)[0] == TEXTS


def test_a_fault_that_stays(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BASE_SECONDS", 0.001)
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": [noise(100, i).hex() for i in range(1000)]})})
    plan = plan_of(REPO)
    hub.fault(LFS, times=1000, status=503)
    with pytest.raises(HubUnreachable, match="tried 7 times") as caught:
        read_plan(plan)
    for remedy in ("lance-prep build sample", "local path", "HF_ENDPOINT"):
        assert remedy in caught.value.advice


def test_a_damaged_file_on_the_hub_is_named(hub: LoopbackHub) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": TEXTS})[:-9]})
    with pytest.raises(BadFile, match=r"train\.parquet"):
        plan_of(REPO)


def in_another_process(code: str, **environment: str) -> str:
    """What a fresh Python prints; huggingface_hub reads its environment when it is imported."""
    program = "\n".join(
        [
            "from tests.sources import plan_of, read",
            "try:",
            f"    {code}",
            "except Exception as error:",
            "    print(type(error).__name__, error)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_no_hub_at_all() -> None:
    said = in_another_process(
        "import lance_prep.transport as r; r.BASE_SECONDS = 0.001; plan_of('owner/name')",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert said.startswith("HubUnreachable")


def test_offline_mode_reads_the_cache(hub: LoopbackHub, tmp_path: Any) -> None:
    hub.add_dataset(REPO, {"train.parquet": parquet_bytes({"text": ["cached"]})})
    fill = "from huggingface_hub import snapshot_download as d; print(d('owner/name', repo_type='dataset'))"
    in_another_process(fill, HF_HOME=str(tmp_path))
    hub.log.clear()
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert "['cached']" in in_another_process("print(read('owner/name')[0])", **offline)
    assert in_another_process("plan_of('owner/other')", **offline).startswith("HubUnreachable")
    assert not hub.log


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("value", ["../../../escaped", "..", "a/escaped"])
def test_names_that_lead_out_of_the_cache_are_refused(
    hub: LoopbackHub, tmp_path: Path, header: str, value: str
) -> None:
    hub.add_model("owner/tok", {"tokenizer.json": made.byte_level()})
    home = Path(os.environ["HF_HOME"])
    before = set(home.rglob("*"))  # other tests have cached their tokenizers
    hub.fault(
        r"(GET|HEAD) .*/resolve/", times=100, extra={header: value if header == "X-Repo-Commit" else f'"{value}"'}
    )
    with pytest.raises(BadFile, match=f"invalid {header}"):
        load_tokenizer(Recipe(source="x", tokenizer="owner/tok"))
    assert not list(home.rglob("*escaped*"))
    written = [path for path in set(home.rglob("*")) - before if path.is_file()]
    assert not [path for path in written if b"byte_fallback" in path.read_bytes()]


def test_the_token_stays_with_its_host(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the next page of a listing is on another one."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = {f"data/{i}.jsonl": b'{"text": "x"}' for i in (0, 1, 2, 9)}
    sha = hub.add_dataset(REPO, files)
    with LoopbackHub() as other:
        other.add_dataset(REPO, {"data/9.jsonl": b'{"text": "x"}'})
        link = f'<{other.url}/api/datasets/{REPO}/tree/main?recursive=true>; rel="next"'
        hub.fault(f"GET /api/datasets/{REPO}/tree/{sha}", extra={"Link": link})
        plan = plan_of(f"hf://datasets/{REPO}/data/*.jsonl")
        assert len(plan.files) == 4
        assert [entry["authorization"] for entry in other.requests("/tree/")] == [None]
    assert {entry["authorization"] for entry in hub.requests("/tree/")} == {f"Bearer {TOKEN}"}
