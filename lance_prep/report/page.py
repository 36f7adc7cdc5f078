"""The page of a report: one HTML file without any other, in which the text of a corpus is data and never markup.

jinja2 escapes every value. A content security policy names the page's own script and style by their hashes, so that
nothing else would run even if it got in.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lance_prep.dataset import pinned_recipe
from lance_prep.errors import OutputError, counted, size, translating
from lance_prep.layouts import LAYOUTS
from lance_prep.report import charts
from lance_prep.report.charts import short
from lance_prep.report.fragments import css_file, flow_chart, flow_parts
from lance_prep.report.gather import Gathered, ReportOptions, gather
from lance_prep.report.palette import page_colours
from lance_prep.store import versions_in_use
from lance_prep.transport import in_home


@dataclass(frozen=True)
class _Chart:
    """A chart with its title, a sentence about it, and its numbers as a table."""

    title: str
    svg: Markup
    note: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())


def write_report(
    where: str | Path,
    output: str | Path,
    version: int | str | None = None,
    storage_options: dict[str, str] | None = None,
    *,
    options: ReportOptions | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a page about a dataset, or about a collection, and return its path.

    Args:
        where: a dataset, or a folder with a manifest.
        output: path of the page; a file that is there is replaced.
        on_rows: told the number of rows that are read, and of all.

    Raises:
        DatasetError: there is no dataset, or it is damaged.
        OutputError: the page cannot be written.
    """
    page = in_home(output)
    if page.is_dir():
        raise OutputError(f"{page} is a folder", "name the file, such as `report.html`, with `output`")
    text = render(gather(where, version, storage_options, options=options, on_rows=on_rows))
    with translating(f"writing {page}"):
        page.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=page.parent, prefix=f".{page.name}.", delete=False) as file:
            file.write(text)
        try:
            Path(file.name).chmod(0o644)
            Path(file.name).replace(page)
        except BaseException:
            Path(file.name).unlink()
            raise
    return page


def render(data: Gathered) -> str:
    """Return the page as HTML."""
    folder = resources.files("lance_prep.report")
    script = (folder / "page.js").read_text(encoding="utf-8")
    css = page_colours() + css_file("tokens.css") + css_file("page.css")
    policy = "; ".join(
        ("default-src 'none'", f"script-src {_hash(script)}", f"style-src {_hash(css)}", "base-uri 'none'")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    page = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    return page.render(
        data=data,
        policy=policy,
        css=Markup(css),
        script=Markup(script),
        rows=_json(data),
        subtitle=_subtitle(data),
        figures=_figures(data),
        made=_made(data),
        recipe=_recipe(data),
        charts=[chart for chart in _charts(data) if chart.svg],
        sample_note=_sample_note(data),
        left_out=sorted(data.left_out.items()),
        version=versions_in_use()["lance-prep"],
        today=datetime.date.today().isoformat(),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Gathered) -> Markup:
    """Return the sample as JSON that is safe inside a script element: `<` never appears in it."""
    rows = [
        {
            "dataset": row.dataset,
            "row": row.row,
            "num_tokens": row.num_tokens,
            "cut": sum(len(ids) for _, ids, _ in row.pieces) < row.num_tokens,
            "pieces": row.pieces,
            "documents": row.documents,
            "columns": row.columns,
        }
        for row in data.sample
    ]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode("utf-8", "replace").decode())


def _subtitle(data: Gathered) -> str:
    if data.manifest is not None:
        known = f", {counted(len(data.manifest.categories), 'category')}" if data.manifest.categories else ""
        return f"Collection of {counted(len(data.manifest.splits), 'source')}{known}"
    opened = data.opened[""]
    made = opened.metadata.build
    return f"Version {opened.number} of {opened.dataset.latest_version}, {made.how} at {made.created}"


def _figures(data: Gathered) -> list[tuple[str, str, str]]:
    each = [opened.metadata for opened in data.opened.values()]
    rows, tokens = sum(one.rows for one in each), sum(one.tokens for one in each)
    found = [("rows", short(rows), f"{rows:,}")]
    if tokens:
        stored = sum(one.itemsize * (one.tokens + one.ledger.padding) for one in each)
        found.append(("tokens", short(tokens), f"{tokens:,}"))
        found.append(("of token ids on disk", size(stored), f"{stored:,} bytes"))
        found.append(("tokens in a row, on average", f"{tokens / max(rows, 1):,.1f}", ""))
    files = sum(one.files for one in each)
    found.append(("source files", short(files), f"{files:,}"))
    if data.ledger.tokens_learned:
        share = f"{data.ledger.tokens_learned / max(tokens, 1):.1%}"
        found.append(("of the tokens are learned", share, "what an assistant wrote"))
    return found


def _made(data: Gathered) -> list[tuple[str, str]]:
    first = next(iter(data.opened.values())).metadata
    rows = [("made by", ", ".join(f"{name} {version}" for name, version in first.versions.items()))]
    if data.manifest is None:
        source = first.source
        named = "".join(f", {value}" for value in (source.config, source.split) if value)
        rows.append(("source", f"{source.asked}{named}"))
        if source.commit:
            rows.append(("commit", f"{source.commit} (asked for: {source.revision})"))
    else:
        rows.append(("source", data.manifest.input_path))
    if first.tokenizer is not None:
        commit = f" at {first.tokenizer.commit}" if first.tokenizer.commit else ""
        rows.append(("tokenizer", f"{first.tokenizer.name}{commit}, {first.tokenizer.vocab_size:,} ids"))
        if first.tokenizer.chat is not None:
            rows.append(("chat template", first.tokenizer.chat.origin))
    rows.append(("layout", LAYOUTS[first.layout].name + (f", {first.block_size} tokens" if first.block_size else "")))
    if data.manifest is None:
        rows.append(("content hash", first.content_hash))
    return rows


def _recipe(data: Gathered) -> str:
    import yaml

    if data.manifest is not None:
        return data.manifest.text()
    text: str = yaml.safe_dump(pinned_recipe(data.opened[""]), sort_keys=False, allow_unicode=True)
    return text


def _sample_note(data: Gathered) -> str:
    rows = sum(opened.metadata.rows for opened in data.opened.values())
    shown = len(data.sample)
    whole = "all rows" if shown == rows else f"{counted(shown, 'row')} drawn at random from {rows:,}"
    learned = " Underlined tokens are learned." if data.has_chat else ""
    return f"The sample has {whole}. Hover over a token for its id; ← and → go to the row before and after.{learned}"


def _charts(data: Gathered) -> list[_Chart]:
    found = [*_source_charts(data), _lengths(data), *_packing(data), *_flow(data), *_tokens(data)]
    return [*found, *_growth(data)]


def _source_charts(data: Gathered) -> list[_Chart]:
    """Tokens by category and by source, beside their targets."""
    total = sum(source.split.tokens for source in data.sources)
    if not data.sources or not total:
        return []
    found = []
    groups: dict[str, tuple[int, float | None]] = {}
    for source in data.sources:
        name = source.split.category or ""
        tokens, _ = groups.get(name, (0, None))
        groups[name] = tokens + source.split.tokens, data.manifest.categories.get(name) if data.manifest else None
    sources = {source.name: (source.split.tokens, source.target) for source in data.sources}
    for what, known in (("category", groups), ("source", sources)):
        if what == "category" and set(known) == {""}:
            continue
        ordered = sorted(known.items(), key=lambda each: -each[1][0])
        rows = [(name or "none", each / total, f"{each / total:.1%}, {short(each)}") for name, (each, _) in ordered]
        targets = [target for _, (_, target) in ordered]
        note = "The mark is the target share, which a mixture draws by." if any(targets) else ""
        table = tuple(
            (name or "none", f"{tokens:,}", f"{tokens / total:.2%}", "" if target is None else f"{target:.2%}")
            for name, (tokens, target) in ordered
        )
        drawn = charts.ranking(rows[:30], f"Tokens by {what}", marks=targets[:30])
        found.append(_Chart(f"Tokens by {what}", drawn, note, (what, "tokens", "share", "target"), table))
    return found


def _lengths(data: Gathered) -> _Chart:
    documents = data.statistics.measured.documents
    lines = all(opened.metadata.layout == "lines" for opened in data.opened.values())
    noun = "lines" if lines else "documents"
    packed = any(LAYOUTS[opened.metadata.layout].packed for opened in data.opened.values())
    bars = documents.bars()
    rows = tuple((f"{low:,.0f} to {high:,.0f}", f"{number:,}") for low, high, number in bars if number)
    number = documents.number
    mean = f"{documents.total / number:,.1f} on average, " if number else ""
    note = f"{number:,} {noun}: {mean}{documents.longest:,} in the longest. The scale across is logarithmic."
    note += " A document that is cut counts once for each block." if packed else ""
    return _Chart(
        f"Lengths of {noun}",
        charts.histogram(bars, f"Lengths of {noun} in tokens", f"tokens in a {noun[:-1]}"),
        note,
        ("tokens", noun),
        rows,
    )


def _packing(data: Gathered) -> list[_Chart]:
    packed = [opened.metadata for opened in data.opened.values() if LAYOUTS[opened.metadata.layout].packed]
    tokens, padding = sum(each.tokens for each in packed), sum(each.ledger.padding for each in packed)
    if not packed or not tokens:
        return []
    slots = tokens + padding
    cut = sum(each.ledger.documents_cut for each in packed)
    documents = data.statistics.measured.documents.number
    rows = [
        ("tokens", tokens / slots, f"{tokens / slots:.2%}, {short(tokens)}"),
        ("padding", padding / slots, f"{padding / slots:.2%}, {short(padding)}"),
    ]
    table = (("tokens", f"{tokens:,}"), ("padding", f"{padding:,}"), ("documents cut", f"{cut:,}"))
    note = (
        f"Of {slots:,} places in blocks, which have {documents:,} documents or parts of one. {cut:,} documents are cut."
    )
    drawn = charts.ranking(rows, "Share of tokens and padding in blocks")
    return [_Chart("Packing", drawn, note, ("what", "number"), table)]


def _flow(data: Gathered) -> list[_Chart]:
    """Where each source row went."""
    ledger = data.ledger
    parts = flow_parts(ledger)
    table = tuple((name, f"{number:,}") for name, number, _ in parts)
    unused = ledger.rows_in - ledger.rows_used
    note = f"{ledger.rows_in:,} source rows were read, and {unused:,} of them did not become part of the dataset."
    if ledger.lines_dropped:
        note += f" {ledger.lines_dropped:,} lines were dropped from documents."
    return [_Chart("From rows read to rows written", flow_chart(ledger), note, ("rows", "number"), table)]


def _tokens(data: Gathered) -> list[_Chart]:
    statistics = data.statistics
    if not statistics.counted:
        return []
    counted_all = statistics.counted == sum(opened.metadata.tokens for opened in data.opened.values())
    of = "all" if counted_all else f"a sample of {statistics.counted:,}"
    rows = []
    for token, text, number in data.top:
        share = number / statistics.counted
        rows.append((f"{_visible(text)}  ({token})", share, f"{share:.2%}, {short(number)}"))
    table = tuple((_visible(text), str(token), f"{number:,}") for token, text, number in data.top)
    most = _Chart(
        "Most frequent tokens",
        charts.ranking(rows, "Share of the most frequent tokens"),
        f"Of {of} tokens. The id is in brackets.",
        ("token", "id", "number"),
        table,
    )
    used = -np.sort(-statistics.frequencies[statistics.frequencies > 0])
    size_of = len(statistics.frequencies)
    curve = _Chart(
        "Frequency by rank",
        charts.zipf(used.tolist(), "Number of uses of each token by rank, on log scales"),
        f"{len(used):,} of {size_of:,} ids appear. Text in one language is near a straight line (Zipf's law).",
        ("rank", "number"),
        tuple((f"{rank:,}", f"{int(used[rank - 1]):,}") for rank in _ranks(len(used))),
    )
    return [most, curve]


def _ranks(most: int) -> Sequence[int]:
    return sorted({min(most, step * 10**power) for power in range(7) for step in (1, 2, 5) if most})


def _visible(text: str) -> str:
    """Return a token's text with white space made visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return shown if shown.isprintable() and shown else repr(text)[1:-1]


def _growth(data: Gathered) -> list[_Chart]:
    known = [version for version in data.versions if version.rows is not None]
    if not known:
        return []
    tokens = any(version.tokens for version in known)
    what = "tokens" if tokens else "rows"
    points = [
        (
            str(version.number),
            float((version.tokens if tokens else version.rows) or 0),
            f"version {version.number}, {version.made}: {version.rows or 0:,} rows, {version.tokens or 0:,} tokens",
        )
        for version in known
    ]
    table = tuple(
        (str(v.number), v.time, v.made, f"{v.rows or 0:,}", f"{v.tokens or 0:,}", ", ".join(v.tags)) for v in known
    )
    header = ("version", "time", "made by", "rows", "tokens", "tags")
    drawn = charts.steps(points, f"Number of {what} in each version")
    return [_Chart("Versions", drawn, f"Number of {what} in each version.", header, table)]
