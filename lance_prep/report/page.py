"""Renders a report as one self-contained HTML file. The text of a corpus is data there, never markup.

jinja2 escapes every value. A content security policy names the page's own script and style by their hashes, so that
nothing else would run even if it got in.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from tempfile import NamedTemporaryFile

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lance_prep.dataset import pinned_recipe
from lance_prep.errors import OutputError, counted, size, translating
from lance_prep.layouts import LAYOUTS
from lance_prep.report.charts import short
from lance_prep.report.fragments import css_file
from lance_prep.report.gather import Gathered, ReportOptions, gather
from lance_prep.report.palette import page_colours
from lance_prep.report.sections import commit_time, sections
from lance_prep.store import versions_in_use
from lance_prep.transport import in_home

#: How to look at the rows of the sample.
_HINT = "Hover over a token for its id, or show all ids. ← and → go to the row before and after."


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
        output: path of the page; an existing file is replaced.
        on_rows: called with the number of rows read so far, and the total.

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
        charts=[section for section in sections(data) if section.svg],
        sample_note=_sample_note(data),
        datasets=list(dict.fromkeys(row.dataset for row in data.sample if row.dataset)),
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
        known = f" in {_categories(len(data.manifest.categories))}" if data.manifest.categories else ""
        return f"Collection of {counted(len(data.manifest.splits), 'source')}{known}"
    opened = data.opened[""]
    made = opened.metadata.build
    return f"Version {opened.number} of {opened.dataset.latest_version}, {made.how} of {commit_time(made.created)}"


def _categories(number: int) -> str:
    return "1 category" if number == 1 else f"{number:,} categories"


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
        found.append(("of the tokens are learned", share, f"{data.ledger.tokens_learned:,}"))
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
        made_with = (each.metadata.tokenizer for each in data.opened.values())
        templates = {each.chat.origin for each in made_with if each is not None and each.chat is not None}
        if templates:
            rows.append(("chat template", ", ".join(sorted(templates))))
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
    learned = " Underlined tokens are learned: they are what an assistant said." if data.has_chat else ""
    return f"The sample has {whole}. {_HINT}{learned}"
