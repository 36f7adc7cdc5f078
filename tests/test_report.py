"""The report page, as people meet it: in a browser, in light and dark, on a phone, with a hostile corpus."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import Histogram
from lance_prep.report import gather
from lance_prep.report.gather import _ranges
from lance_prep.tokenizer import text_pieces
from tests import tokenizers_made as made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCRIPT = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'> <!-- "
SIZES = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def hostile(tmp_path: Path, tokenizer: str) -> Path:
    """A dataset whose texts and columns try to be markup, with rows of each kind in its ledger."""
    texts = [f"row {i}: a text about numbers, naïve 😀" for i in range(40)] + [
        SCRIPT,
        "",
        "row 3: equal",
        "row 3: equal",
    ]
    table = pa.table({"text": texts, "note": [SCRIPT] * len(texts)})
    pq.write_table(table, tmp_path / "a.parquet")
    lance_prep.build(
        str(tmp_path / "a.parquet"),
        output=tmp_path / "x.lance",
        tokenizer=tokenizer,
        layout="documents",
        keep_columns=["note"],
        dedup="exact",
    )
    return tmp_path / "x.lance"


def write(*arguments: object) -> str:
    assert run(["report", *map(str, arguments)]) == 0
    return Path(arguments[list(arguments).index("-o") + 1]).read_text()  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_a_hostile_corpus_in_a_browser(browser: Any, hostile: Path, tmp_path: Path, scheme: str) -> None:
    page_file = tmp_path / "page.html"
    write(hostile, "-o", page_file)
    for width, height in SIZES:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        said = listen(page)
        page.goto(page_file.as_uri())
        assert page.locator("svg.chart").count() >= 5
        assert page.locator("svg.chart path.band").count() == 3  # written, empty, duplicates
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.fill("#search", "onerror")
        assert re.fullmatch(r"1 of \d+ rows of the sample", page.text_content("#answer"))
        assert SCRIPT in page.text_content("#tokens")
        assert SCRIPT[:100] in page.text_content("#columns")
        assert page.locator("#tokens .found").count() >= 1
        assert page.evaluate("window.broken") is None
        assert said == []
        context.close()


def violations(page: Any) -> list[tuple[str, str]]:
    """Return what axe-core finds: the rule, and the first element that breaks it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "best-practice"]})
    return [(each["id"], each["nodes"][0]["html"]) for each in found.response["violations"]]


def listen(page: Any) -> list[str]:
    """Return a list that gets what the page writes to the console, its errors, and the URLs that it asks for."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    return said


def test_rows_are_browsed_with_the_mouse_and_the_keyboard(
    browser: Any, hostile: Path, tmp_path: Path, tokenizer: str
) -> None:
    page_file = tmp_path / "page.html"
    write(hostile, "-o", page_file, "--seed", "3")
    page = browser.new_page()
    page.goto(page_file.as_uri())
    ids = lance.dataset(str(hostile)).take([0]).column("input_ids")[0].as_py()
    first = page.locator("#tokens span:not(.document)").first
    assert first.get_attribute("title") == f"id {ids[0]}"
    text = Tokenizer.from_file(f"{tokenizer}/tokenizer.json" if Path(tokenizer).is_dir() else tokenizer).decode(ids)
    shown = "".join(page.locator("#tokens span:not(.document)").all_text_contents())
    assert shown == text
    assert page.is_disabled("#previous")
    page.click("#next")
    assert page.text_content("#which").startswith("row 1,")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#which").startswith("row 2,")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#which").startswith("row 1,")
    page.fill("#jump", "30")
    page.keyboard.press("Enter")
    assert page.text_content("#which").startswith("row 30,")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.close()


@pytest.mark.parametrize("layout", ["lines", "documents", "blocks", "raw"])
def test_the_numbers_are_those_of_the_dataset(tmp_path: Path, tokenizer: str, layout: str) -> None:
    texts = [f"line {i}\nand {'more ' * (i % 50)}" for i in range(500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    options = {} if layout == "raw" else {"tokenizer": tokenizer}
    sized = {"block_size": 64} if layout == "blocks" else {}
    lance_prep.build(str(tmp_path / "a.parquet"), output=tmp_path / "x.lance", layout=layout, **options, **sized)
    page = write(tmp_path / "x.lance", "-o", tmp_path / "page.html")
    assert "500" in page
    data = gather(tmp_path / "x.lance")
    assert data.ledger.rows_in == 500
    if layout == "raw":
        assert len(data.sample) == 100
        assert data.statistics.counted == 0
        return
    rows = lance.dataset(str(tmp_path / "x.lance")).to_table().to_pylist()
    ids = np.concatenate([np.array(row["input_ids"][: row["num_tokens"]]) for row in rows])
    assert np.array_equal(data.statistics.frequencies, np.bincount(ids, minlength=len(data.statistics.frequencies)))
    assert (
        data.statistics.counted
        == len(ids)
        == data.statistics.measured.rows.total
        == data.statistics.measured.documents.total
    )
    assert int(data.statistics.measured.rows.counts.sum()) == len(rows)
    assert data.statistics.measured.rows.longest == max(row["num_tokens"] for row in rows)


def test_a_collection_with_chat_shows_shares_beside_their_targets(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = made.save(tmp_path / "model", made.chat(("<|im_start|>", "<|im_end|>"), ()), eos_token="<|im_end|>")
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    (tmp_path / "maths.jsonl").write_text("\n".join(json.dumps({"text": f"maths {i} <b>"}) for i in range(30)))
    talk = [{"role": "user", "content": "What is <i>?"}, {"role": "assistant", "content": "It is a tag, and so on."}]
    (tmp_path / "talks.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 90))
    recipe = {
        "name": "mixed",
        "defaults": {"tokenizer": str(model), "chat_template": "own.jinja", "block_size": 64},
        "categories": {
            "text": {"share": 75, "sources": {"maths": {"source": "maths.jsonl"}}},
            "talk": {
                "share": 25,
                "chat": True,
                "sources": {"talks": {"source": "talks.jsonl", "messages": "messages"}},
            },
        },
    }
    (tmp_path / "mixed.yaml").write_text(json.dumps(recipe))
    arguments = ["build", tmp_path / "mixed.yaml", "-o", tmp_path / "out", "--val-fraction", "0.2"]
    assert run([*map(str, arguments)]) == 0
    text = write(tmp_path / "out", "-o", tmp_path / "page.html")
    assert "Collection of 2 sources in 2 categories" in text
    assert "validation sets are not counted" in text
    capsys.readouterr()
    assert run(["info", str(tmp_path / "out")]) == 0
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(r"text \d+ \d+\.\d% 75\.0%", said)
    assert len(said.splitlines()) < 24
    data = gather(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert data.statistics.counted == sum(split["tokens"] for split in manifest["splits"].values())
    assert data.ledger.rows_in == 120
    assert {source.name: source.target for source in data.sources} == {"maths": 0.75, "talks": 0.25}
    assert {row.dataset for row in data.sample} == {"maths", "talks"}

    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.goto((tmp_path / "page.html").as_uri())
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    marks = page.locator("section", has_text="Tokens by source").locator("g title").all_text_contents()
    assert sorted(marks) == ["maths: target 75.0%", "talks: target 25.0%"]
    page.select_option("#source", "talks")
    assert page.text_content("#which").startswith("talks: row 0,")
    learned = "".join(page.locator("#tokens .learned").all_text_contents())
    assert "It is a tag, and so on.<|im_end|>It is" in learned
    assert "What" not in learned
    assert "What is <i>?" in str(page.text_content("#tokens"))
    page.close()


def test_hits_of_a_benchmark_and_duplicates_have_details(browser: Any, tmp_path: Path, tokenizer: str) -> None:
    item = "the quick brown fox jumps over the lazy dog and then runs away from the very angry bear"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": f"{item} <b>", "answer": "none of the above"}))
    texts = [f"number {i} has words of its own {i * 7919} {item if i % 4 == 0 else ''}" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*texts, *texts[:3]]))
    uri = tmp_path / "x.lance"
    options = {"decontaminate": str(tmp_path / "bench.jsonl"), "dedup": "exact", "layout": "documents"}
    lance_prep.build(tmp_path / "a.jsonl", output=uri, tokenizer=tokenizer, **options)
    hits = gather(uri).hits
    recorded = [json.loads(line) for line in (tmp_path / "x.contaminated.jsonl").read_text().splitlines()]
    assert hits.number == len(recorded) >= 10
    assert [(each.row, each.column, each.hits) for each in hits.items] == [(0, "question", len(recorded))]
    shard, row, start, stop = hits.items[0].where
    assert shard == 0
    assert texts[row][start:stop] == hits.items[0].text == item
    page = browser.new_page()
    page_file = tmp_path / "page.html"
    write(uri, "-o", page_file)
    page.goto(page_file.as_uri())
    assert violations(page) == []
    section = page.locator("section", has_text="Found in a benchmark")
    section.locator("summary").click()
    assert section.locator("td").all_text_contents()[:3] == ["item 0, question", f"{len(recorded)}", "18"]
    assert item in section.locator("td").all_text_contents()
    assert "3 documents dropped" in str(page.locator("section", has_text="Duplicates").text_content())
    page.click("#ids")
    ids = lance.dataset(str(uri)).take([0]).column("input_ids")[0].as_py()
    shown = page.locator("#tokens small").all_text_contents()
    assert [int(each) for text in shown for each in text.split(",")] == ids
    page.close()
    # The list is named by the dataset, so only what the build wrote is shown.
    (tmp_path / "x.contaminated.jsonl").write_text('{"secret": 1}')
    assert "missing or was changed" in write(uri, "-o", page_file)


def test_a_page_stays_below_a_megabyte(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(3000))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i} {words}"}) for i in range(300)))
    assert (
        run(["build", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "x.lance"), "--tokenizer", "lance-prep:sample"])
        == 0
    )
    page = write(tmp_path / "x.lance", "-o", tmp_path / "page.html", "--sample", "1000")
    assert len(page.encode()) < 1_000_000


def test_what_cannot_be_reported_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path / "none.lance")]) == 1
    assert "there is no dataset at" in capsys.readouterr().err
    assert not Path("report.html").exists()
    assert run(["build", "sample", "-o", str(tmp_path / "s.lance"), "--max-rows", "5"]) == 0
    assert run(["report", str(tmp_path / "s.lance"), "-o", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


@given(st.integers(0, 10**9), st.floats(1e-6, 1))
def test_ranges_are_in_order_and_never_overlap(rows: int, share: float) -> None:
    ranges = [each for each in _ranges(rows, share) if each[0] < each[1]]
    assert all(0 <= start < stop <= rows for start, stop in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert sum(stop - start for start, stop in ranges) <= max(64, rows * share + 1)
    assert bool(ranges) == bool(rows)


@given(st.lists(st.integers(0, 2**24), min_size=1))
def test_a_histogram_counts_each_length_once(lengths: list[int]) -> None:
    histogram = Histogram()
    histogram.add(np.array(lengths, np.uint32))
    assert sum(number for _, _, number in histogram.bars()) == len(lengths)
    assert histogram.total == sum(lengths)
    for low, high, number in histogram.bars():
        assert number == sum(math.ceil(low - 1e-6) <= max(length, 1) < math.ceil(high - 1e-6) for length in lengths)


@given(st.text(max_size=200), st.lists(st.integers(0, 5000), max_size=5))
def test_pieces_are_the_decoded_text(text: str, stray: list[int]) -> None:
    reference = Tokenizer.from_buffer(made.byte_level())
    ids = reference.encode(text).ids
    pieces = text_pieces(reference, ids)
    assert "".join(piece.text for piece in pieces) == reference.decode(ids, skip_special_tokens=False)
    for found in (pieces, text_pieces(reference, [*stray, *ids])):
        assert [piece.start for piece in found[1:]] == [piece.stop for piece in found[:-1]]
        assert not found or found[0].start == 0
