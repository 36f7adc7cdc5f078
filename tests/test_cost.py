"""What a build will cost is estimated from a small sample, and close to what it then costs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lance_prep
from lance_prep.cli.main import run
from lance_prep.engine import BuildPreview, RunOptions, Silent, preview_build, run_build
from lance_prep.errors import DiskFull
from lance_prep.plan.cost import SAMPLE_BYTES, Estimate, _quantile, _ratio
from lance_prep.recipe import load_recipe
from tests.helpers import leftovers
from tests.loopback_hub import LoopbackHub

TOKENIZER = "lance-prep:sample"


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts whose kind changes along the source, as in sources that were joined."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        kind = i * 4 // count
        words = ["the", "of", "install", "package"] if kind % 2 else ["x9", "{}", "==", "naïve", "0xff"]
        made.append(f"{i} " + " ".join(rng.choices(words, k=rng.randrange(5, 200 + 100 * kind))))
    return made


TEXTS = texts(16_000)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 10 MB of text in several formats."""
    folder = tmp_path_factory.mktemp("sources")
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "a.jsonl").write_text(lines)
    # Hardly compressed, because these few words would otherwise take less than a sample, and be read whole.
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 0))
    (folder / "c.json").write_text(json.dumps([{"id": i, "text": t} for i, t in enumerate(TEXTS)], indent=1))
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, folder / "d.parquet", row_group_size=500, compression="none", use_dictionary=["id"])
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *enumerate(TEXTS)])
    (folder / "e.csv").write_text(out.getvalue())
    (folder / "f.txt").write_text("\n\n".join(TEXTS))
    return folder


def preview(source: object, output: object, **fields: Any) -> BuildPreview:
    recipe = load_recipe(str(source), {"tokenizer": TOKENIZER, **fields})
    return preview_build(recipe, RunOptions(str(output), workers=2), uri=str(output))


def near(estimate: Estimate, actual: float, share: float) -> None:
    assert abs(estimate.value - actual) <= share * actual, (estimate, actual)


def disk_of(uri: str) -> int:
    return sum(path.stat().st_size for path in (Path(uri) / "data").iterdir())


FIELDS: dict[str, dict[str, Any]] = {
    "a.jsonl": {},
    "b.jsonl.gz": {},
    "c.json": {"packing": "best-fit", "block_size": 512},
    "d.parquet": {"layout": "documents", "keep_columns": ("id",)},
    "e.csv": {"layout": "lines"},
    "f.txt": {"text_unit": "paragraph", "block_size": 128},
}


@pytest.mark.parametrize("name", FIELDS)
def test_an_estimate_is_close_to_the_build(sources: Path, tmp_path: Path, name: str) -> None:
    fields = FIELDS[name]
    cost = preview(sources / name, tmp_path / "o.lance", **fields).cost
    assert cost is not None
    report = lance_prep.build(sources / name, output=tmp_path / "o.lance", tokenizer=TOKENIZER, **fields)
    # Only the beginning of some files can be read, and the source changes along the way.
    share = 0.5 if cost.from_beginning else 0.04
    near(cost.tokens, report.tokens, share)
    near(cost.rows, report.rows, share)
    near(cost.disk, disk_of(report.uri), share + 0.1)
    near(cost.source_rows, report.ledger.rows_in, share if cost.source_rows.error != 0 else 0)
    assert cost.from_beginning == (name in ("b.jsonl.gz", "c.json", "e.csv"))
    if cost.from_beginning:
        assert cost.tokens.error is None
    else:
        assert cost.tokens.error is not None
        assert abs(cost.tokens.value - report.tokens) <= 2 * cost.tokens.error
    assert cost.source_bytes == Estimate(
        (sources / name).stat().st_size if name != "d.parquet" else cost.source_bytes.value, 0
    )
    assert cost.sample_bytes <= 1.1 * SAMPLE_BYTES
    assert cost.requests is None
    assert cost.seconds > 0


def test_the_same_pieces_are_read_each_time(sources: Path, tmp_path: Path) -> None:
    one, two = (preview(sources / "a.jsonl", tmp_path / "o.lance").cost for _ in range(2))
    assert one is not None
    assert two is not None
    assert (one.tokens, one.disk, one.source_rows) == (two.tokens, two.disk, two.source_rows)


@pytest.mark.parametrize(
    "limits", [{"max_rows": 700}, {"max_source_rows": 3_000}, {"max_tokens": 500_000}, {"max_rows": 10**9}], ids=str
)
def test_limits_are_in_the_estimate(sources: Path, tmp_path: Path, limits: dict[str, int]) -> None:
    fields = {"layout": "documents", **limits}
    cost = preview(sources / "d.parquet", tmp_path / "o.lance", **fields).cost
    assert cost is not None
    report = lance_prep.build(sources / "d.parquet", output=tmp_path / "o.lance", tokenizer=TOKENIZER, **fields)
    # The beginning of the source differs from the average of the sample.
    near(cost.tokens, report.tokens, 0.6)
    near(cost.rows, report.rows, 0.6)
    if "max_rows" in limits and report.rows == limits["max_rows"]:
        assert cost.rows == Estimate(700, 0)
    if "max_tokens" in limits:
        assert cost.tokens == Estimate(500_000, 0)


def test_each_side_of_a_split_has_its_own_cost(sources: Path, tmp_path: Path) -> None:
    found = preview(sources / "a.jsonl", tmp_path / "o.lance", val_fraction=0.1)
    whole = preview(sources / "a.jsonl", tmp_path / "o.lance").cost
    assert found.validation is not None
    train, validation = found.cost, found.validation.cost
    assert train is not None
    assert validation is not None
    assert whole is not None
    assert validation.tokens.value == pytest.approx(0.1 * whole.tokens.value)
    assert train.tokens.value == pytest.approx(0.9 * whole.tokens.value)
    assert train.source_bytes == validation.source_bytes == whole.source_bytes


@pytest.mark.parametrize(
    "fields", [{}, {"layout": "documents"}, {"layout": "blocks", "packing": "best-fit", "block_size": 64}], ids=str
)
def test_a_small_source_is_counted(tmp_path: Path, fields: dict[str, Any]) -> None:
    cost = preview("sample", tmp_path / "o.lance", **fields).cost
    report = lance_prep.build("sample", output=tmp_path / "o.lance", tokenizer=TOKENIZER, **fields)
    assert cost is not None
    assert cost.tokens == Estimate(report.tokens, 0)
    assert cost.rows.value == pytest.approx(report.rows, rel=0.02)
    assert cost.source_rows == Estimate(report.ledger.rows_in, 0)


def test_what_is_built_already_costs_nothing(sources: Path, tmp_path: Path) -> None:
    lance_prep.build(sources / "a.jsonl", output=tmp_path / "o.lance", tokenizer=TOKENIZER)
    found = preview(sources / "a.jsonl", tmp_path / "o.lance")
    assert (found.action, found.cost, found.not_estimated) == ("nothing", None, "")


def test_a_long_document_is_not_read_for_the_sample(tmp_path: Path) -> None:
    """Nor does it spoil the estimate: it has 3 of 8 MB."""
    rows = texts(10_000, seed=1)
    rows[5_000:5_000] = [" ".join(texts(4_000, seed=2))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    cost = preview(tmp_path / "a.jsonl", tmp_path / "o.lance").cost
    report = lance_prep.build(tmp_path / "a.jsonl", output=tmp_path / "o.lance", tokenizer=TOKENIZER)
    assert cost is not None
    assert cost.sample_bytes <= SAMPLE_BYTES
    near(cost.tokens, report.tokens, 0.05)
    near(cost.source_rows, report.ledger.rows_in, 0.2)


@pytest.mark.parametrize("name", ["d.parquet", "a.jsonl", "b.jsonl.gz"])
def test_a_sample_from_the_hub_is_small(sources: Path, tmp_path: Path, hub: LoopbackHub, name: str) -> None:
    data = (sources / name).read_bytes()
    hub.add_dataset("owner/data", {f"data/train.{name.partition('.')[2]}": data})
    hub.log.clear()
    cost = preview("owner/data", tmp_path / "o.lance").cost
    assert cost is not None
    sent = hub.bytes_sent(r"resolve|_lfs")
    # A page of a Parquet column is read whole, and planning reads the first MiB of JSON.
    assert sent <= 2.5 * SAMPLE_BYTES
    assert 0 < cost.sample_bytes <= sent
    assert sent < len(data) or name == "b.jsonl.gz"
    assert 0 < cost.sample_requests <= 64
    hub.log.clear()
    report = lance_prep.build("owner/data", output=tmp_path / "o.lance", tokenizer=TOKENIZER)
    near(cost.tokens, report.tokens, 0.6)
    made = sum(entry["range"] is not None and entry["sent"] > 0 for entry in hub.log)
    assert cost.requests is not None
    assert made / 3 <= cost.requests.value <= made * 3


def test_a_plan_is_shown_although_the_tokenizer_is_missing(tmp_path: Path, hub: LoopbackHub, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    command = ["build", str(tmp_path / "a.txt"), "--tokenizer", "no/such", "-o", str(tmp_path / "o.lance"), "--dry-run"]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "not estimated: tokenizer no/such: " in said
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_estimated"].startswith("tokenizer no/such: ")


def test_a_dry_run_prints_the_cost(sources: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["build", str(sources / "a.jsonl"), "--tokenizer", TOKENIZER, "-o", str(tmp_path / "o.lance")]
    assert run([*command, "--dry-run"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert "±" in said["tokens"]
    assert said["disk"].endswith(" free")
    assert "as measured on the sample" in said["time"]
    assert "at 64 places" in said["sample"]
    assert run([*command, "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert cost["tokens"]["error"] > 0
    assert not (tmp_path / "o.lance").exists()


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warned(self, message: str) -> None:
        self.said.append(message)


def test_too_little_disk_is_found_before_the_start(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    free = {"bytes": 0}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free["bytes"]))
    output = tmp_path / "o.lance"
    recipe = load_recipe(str(sources / "a.jsonl"), {"tokenizer": TOKENIZER})
    needed = preview(sources / "a.jsonl", output).cost.disk.value  # type: ignore[union-attr]

    free["bytes"] = int(needed / 4)
    with pytest.raises(DiskFull, match=r"o\.lance needs about .* MB, and .* are free on the disk") as caught:
        run_build(recipe, RunOptions(output), uri=str(output))
    assert "max_rows" in caught.value.advice
    command = ["build", str(sources / "a.jsonl"), "--tokenizer", TOKENIZER, "-o", str(output)]
    assert run([*command, "--dry-run"]) == 0
    assert "which is too little; free some space, choose another output" in capsys.readouterr().out
    assert run(command) == 1
    assert "--max-rows" in capsys.readouterr().err
    # Its advice can be followed on the same output.
    small = lance_prep.build(sources / "a.jsonl", output=output, tokenizer=TOKENIZER, max_rows=20)
    assert small.rows == 20
    assert leftovers(small.uri) == []
    shutil.rmtree(output)

    free["bytes"] = int(needed * 0.9)  # may do on a file system that compresses
    listener = Warnings()
    assert run_build(recipe, RunOptions(output, progress=listener), uri=str(output)).status == "built"
    (warning,) = listener.said
    assert "are free on the disk; free some space" in warning
    shutil.rmtree(output)

    free["bytes"] = int(needed * 1.3)
    listener = Warnings()
    assert run_build(recipe, RunOptions(output, progress=listener), uri=str(output)).status == "built"
    assert listener.said == []


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 5)), min_size=2, max_size=40))
def test_ratio_estimates_are_exact_for_what_is_proportional(pairs: list[tuple[float, float]]) -> None:
    x, noise = np.array(pairs).T
    values = {"size": x, "begun": x, "tokens": 3 * x, "rows": x + noise}
    found = _ratio(values, "tokens", "size", 1000.0 * x.sum(), round(1000 * x.sum()) or 1)
    assert found.value == pytest.approx(3000 * x.sum())
    assert found.error == pytest.approx(0, abs=1e-6 * found.value)
    loose = _ratio(values, "rows", "size", 1000.0 * x.sum(), round(1000 * x.sum()) or 1)
    assert loose.error is not None
    assert loose.error >= 0


def test_errors_cover_most_totals() -> None:
    """Of 95 % intervals of sums, about 95 % hold the sum."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        x = rng.uniform(50, 150, 2000)
        y = x * rng.normal(3, 1, 2000)
        at = np.arange(30, 2000, 2000 // 30)
        values = {"size": x[at], "begun": x[at], "tokens": y[at]}
        found = _ratio(values, "tokens", "size", float(x.sum()), round(x.sum()))
        assert found.error is not None
        held += abs(found.value - y.sum()) <= found.error
    assert 0.92 <= held / 400 <= 0.98


def test_quantiles_are_those_of_student() -> None:
    for freedom, want in ((3, 3.182), (10, 2.228), (15, 2.131), (63, 1.998)):
        assert _quantile(freedom) == pytest.approx(want, rel=0.012)
