"""Datasets, mixtures and build reports in a notebook."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import lance
import numpy as np
import pytest

import lance_prep
from lance_prep.errors import UsageError
from lance_prep.train import LanceDataset, Mixture
from tests import tokenizers_made as made

SCRIPT = "</div><script>alert(1)</script>"


def build(tmp_path: Path, tokenizer: str, layout: str, name: str = "x", **fields: object) -> lance_prep.BuildReport:
    texts = [f"{SCRIPT} text {i} about naïve 😀 things " + "and more " * (i % 9) for i in range(40)]
    source = tmp_path / f"{name}.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in [*texts, ""]))
    return lance_prep.build(source, output=tmp_path / f"{name}.lance", tokenizer=tokenizer, layout=layout, **fields)


def tokens_of(page: str) -> list[tuple[str, str, str]]:
    """Return class, title and text of each token of a page."""
    found = re.findall(r'<span class="(c\d[^"]*)" title="([^"]*)">([^<]*)</span>', page)
    return [(kind, title, html.unescape(text)) for kind, title, text in found]


@pytest.mark.parametrize(("layout", "block_size"), [("documents", None), ("documents", 48), ("blocks", 48)])
def test_a_sample_shows_its_tokens_and_documents(
    tmp_path: Path, tokenizer: str, layout: str, block_size: int | None
) -> None:
    fields = {"block_size": block_size} if layout == "blocks" else {}
    ds = LanceDataset(build(tmp_path, tokenizer, layout, **fields).uri, block_size=block_size)
    for index in (0, len(ds) // 2, -1):
        page, sample = ds.html(index), ds[index]
        assert "<script>" not in page
        shown = tokens_of(page)
        assert "".join(text for _, _, text in shown) == ds.text(index)
        ids = [int(each) for _, title, _ in shown for each in title.removeprefix("id ").split(", ")]
        assert ids == sample["input_ids"][: sample.valid].tolist()
        documents = LanceDataset(ds.uri, block_size=block_size, document_ids=True)[index]["document_ids"]
        assert page.count('class="document"') == len(np.unique(documents[: sample.valid])) - 1
    with pytest.raises(IndexError):
        ds.html(len(ds))


def test_what_is_learned_of_a_conversation_is_underlined(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_bytes(made.chat(("<|im_start|>", "<|im_end|>")))
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    turns = [{"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "A drink, of leaves."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    report = lance_prep.build(
        tmp_path / "a.jsonl",
        output=tmp_path / "x.lance",
        tokenizer=str(tmp_path / "model"),
        messages=["messages"],
        chat_template=str(tmp_path / "chat.jinja"),
        layout="documents",
    )
    shown = tokens_of(LanceDataset(report.uri).html(0))
    learned = "".join(text for kind, _, text in shown if "learned" in kind)
    assert learned == "A drink, of leaves.<|im_end|>"
    assert {title.endswith(", not learned") for kind, title, _ in shown if "learned" not in kind} == {True}


def test_reprs_say_what_things_are(tmp_path: Path, tokenizer: str) -> None:
    report = build(tmp_path, tokenizer, "documents")
    other = build(tmp_path, tokenizer, "lines", "<b>")
    ds = LanceDataset(report.uri)
    assert report.content_hash in ds._repr_html_()
    said = report._repr_html_()
    assert "<svg" in said
    assert "empty: 1" in said
    mixture = Mixture({report.uri: 0.25, other.uri: 0.75}, block_size=32)
    said = mixture._repr_html_()
    assert "75.00%" in said
    assert f"{mixture.counts(len(mixture))[other.uri]:,}</td>" in said
    for page in (said, LanceDataset(other.uri)._repr_html_(), other._repr_html_()):
        assert "&lt;b&gt;.lance" in page
        assert "<b>.lance" not in page


def test_lengths_are_plotted(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    uri = build(tmp_path, tokenizer, "documents").uri
    lengths = lance.dataset(uri).to_table(columns=["num_tokens"])["num_tokens"].to_numpy()
    for filter, expected in ((None, lengths), ("num_tokens > 40", lengths[lengths > 40])):
        axes = LanceDataset(uri, filter=filter).plot_lengths()
        values = axes.patches[0].get_data().values
        assert sum(values) == len(expected)
        assert f"{expected.max():,} tokens at most" in axes.get_title()
    assert LanceDataset(uri).plot_lengths(ax=axes) is axes
    pyplot.close("all")
    (tmp_path / "raw.jsonl").write_text('{"n": 1}')
    raw = LanceDataset(lance_prep.build(tmp_path / "raw.jsonl", output=tmp_path / "r.lance", layout="raw").uri)
    for call in (raw.plot_lengths, lambda: raw.html(0)):
        with pytest.raises(UsageError, match="no tokens"):
            call()
    assert "raw" in raw._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        LanceDataset(uri).plot_lengths()
    assert "lance-prep[viz]" in error.value.advice
