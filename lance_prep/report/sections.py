"""The sections of a report: each a chart with a title, a sentence about it, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from lance_prep.errors import counted
from lance_prep.layouts import LAYOUTS
from lance_prep.report import charts
from lance_prep.report.charts import short
from lance_prep.report.fragments import flow_chart, flow_parts
from lance_prep.report.gather import Gathered
from lance_prep.report.hits import Item, dedup_rules

#: The reason under which the ledger counts rows that were dropped for a benchmark.
CONTAMINATED = "benchmark text"


@dataclass(frozen=True)
class Section:
    """A chart with its title, a sentence about it, and its numbers as a table."""

    title: str
    svg: Markup
    note: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())


def commit_time(stamp: str) -> str:
    """Return a time of ISO 8601 in UTC to the minute."""
    return stamp[:16].replace("T", " ") + " UTC"


def sections(data: Gathered) -> list[Section]:
    """Return the sections of a page, in order."""
    found = [*_source_charts(data), _lengths(data), *_packing(data), *_flow(data), *_tokens(data)]
    return [*found, *_duplicates(data), *_hits(data), *_growth(data)]


def _source_charts(data: Gathered) -> list[Section]:
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
        note = "A mixture draws rows by the target shares, which the marks show." if any(targets) else ""
        table = tuple(
            (name or "none", f"{tokens:,}", f"{tokens / total:.2%}", "" if target is None else f"{target:.2%}")
            for name, (tokens, target) in ordered
        )
        drawn = charts.ranking(rows[:30], f"Tokens by {what}", marks=targets[:30])
        found.append(Section(f"Tokens by {what}", drawn, note, (what, "tokens", "share", "target"), table))
    return found


def _lengths(data: Gathered) -> Section:
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
    return Section(
        f"Lengths of {noun}",
        charts.histogram(bars, f"Lengths of {noun} in tokens", f"tokens in a {noun[:-1]}"),
        note,
        ("tokens", noun),
        rows,
    )


def _packing(data: Gathered) -> list[Section]:
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
    return [Section("Packing", drawn, note, ("what", "number"), table)]


def _flow(data: Gathered) -> list[Section]:
    """Draw the ledger: from source rows to rows written."""
    ledger = data.ledger
    parts = flow_parts(ledger)
    table = tuple((name, f"{number:,}") for name, number, _ in parts)
    unused = ledger.rows_in - ledger.rows_used
    became = f"{unused:,} of them did not become" if unused else "all of them became"
    note = f"{counted(ledger.rows_in, 'source row')} were read, and {became} part of the dataset."
    if ledger.lines_dropped:
        note += f" {ledger.lines_dropped:,} lines were dropped from documents."
    return [Section("From rows read to rows written", flow_chart(ledger), note, ("rows", "number"), table)]


def _duplicates(data: Gathered) -> list[Section]:
    """Draw the share of duplicates, exact or near."""
    compared = {name: (rules, each) for name, each in data.opened.items() if (rules := dedup_rules(each))}
    if not compared:
        return []
    bars, rows = [], []
    for name, (rules, each) in compared.items():
        ledger = each.metadata.ledger
        dropped, lines = ledger.dropped_for.get("duplicate", 0), ledger.lines_dropped
        read = ledger.lines_in if lines and LAYOUTS[each.metadata.layout].splits else ledger.rows_in
        share = (lines if lines and LAYOUTS[each.metadata.layout].splits else dropped) / max(read, 1)
        bars.append((name or each.metadata.source.asked, share, f"{share:.2%}, {short(dropped + lines)}"))
        rows.append((name or each.metadata.source.asked, f"{dropped:,}", f"{lines:,}", f"{share:.2%}", rules))
    ledgers = [each.metadata.ledger for _, each in compared.values()]
    dropped, lines = (
        sum(one.dropped_for.get("duplicate", 0) for one in ledgers),
        sum(one.lines_dropped for one in ledgers),
    )
    removed = f" {counted(lines, 'line')} removed." if lines else ""
    how = " and ".join(sorted({rules for rules, _ in compared.values()}))
    note = f"Compared with {how}. {counted(dropped, 'document')} dropped as repeats of earlier ones.{removed}"
    drawn = charts.ranking(bars[:30], "Share of duplicates")
    header = ("source", "documents dropped", "lines removed", "share", "compared by")
    return [Section("Duplicates", drawn, note, header, tuple(rows))]


def _hits(data: Gathered) -> list[Section]:
    """Draw the number of hits for each item of a benchmark."""
    hits, ledger = data.hits, data.ledger
    benchmarks = {each.metadata.recipe.get("decontaminate") for each in data.opened.values()} - {None}
    if not benchmarks:
        return []
    dropped = ledger.dropped_for.get(CONTAMINATED, 0)
    note = f"{counted(ledger.contaminated, 'source row')} share text with {', '.join(sorted(map(str, benchmarks)))}"
    note += f"; {dropped:,} of them were dropped." if dropped else "; none was dropped for it."
    if hits.number_of_items:
        note += f" {counted(hits.number, 'hit')} of {counted(hits.number_of_items, 'item')}."
    note += "".join(f" {name or 'The list of hits'} is not shown: {why}." for name, why in hits.not_read.items())
    bars = [(_item_name(item), float(item.hits), counted(item.hits, "hit")) for item in hits.items]
    rows = tuple(
        (
            _item_name(item),
            f"{item.hits:,}",
            f"{item.words:,}",
            f"shard {item.where[0]} row {item.where[1]}, characters {item.where[2]:,} to {item.where[3]:,}",
            item.text,
        )
        for item in hits.items
    )
    header = ("item", "hits", "words", "longest hit", "text")
    share = ledger.contaminated / max(ledger.rows_in, 1)
    empty = [("source rows with a hit", share, f"{share:.2%}, {short(ledger.contaminated)}")]
    drawn = charts.ranking(bars or empty, "Items of the benchmark by number of hits")
    return [Section("Found in a benchmark", drawn, note, header if rows else (), rows)]


def _item_name(item: Item) -> str:
    name = f"item {item.row}, {item.column}"
    return f"{item.dataset}: {name}" if item.dataset else name


def _tokens(data: Gathered) -> list[Section]:
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
    most = Section(
        "Most frequent tokens",
        charts.ranking(rows, "Share of the most frequent tokens"),
        f"Of {of} tokens. The id is in brackets.",
        ("token", "id", "number"),
        table,
    )
    used = -np.sort(-statistics.frequencies[statistics.frequencies > 0])
    size_of = len(statistics.frequencies)
    curve = Section(
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


def _growth(data: Gathered) -> list[Section]:
    known = [version for version in data.versions if version.rows is not None]
    if len(known) < 2:
        return []  # a single bar shows no growth
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
        (str(v.number), commit_time(v.time), v.made, f"{v.rows or 0:,}", f"{v.tokens or 0:,}", ", ".join(v.tags))
        for v in known
    )
    header = ("version", "time", "made by", "rows", "tokens", "tags")
    drawn = charts.steps(points, f"Number of {what} in each version")
    return [Section("Versions", drawn, f"Number of {what} in each version.", header, table)]
