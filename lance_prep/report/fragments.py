"""Pieces of HTML that the report page and notebooks share: tinted tokens, a table of facts, the flow of a ledger.

Every text is escaped: a token such as `</script>` is shown, not run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import resources

from markupsafe import Markup, escape

from lance_prep.ledger import Ledger
from lance_prep.report import charts
from lance_prep.report.palette import TINTS, notebook_colours

#: The class around what is shown in a notebook. The rest of the notebook keeps its own style.
SCOPE = "lance-prep"

#: Text, ids, and whether it is learned (None if the dataset does not say), of one or more tokens.
Shown = tuple[str, Sequence[int], bool | None]


@cache
def css_file(name: str) -> str:
    """Return a style: `tokens.css` for tokens and charts, `notebook.css`, or `page.css`."""
    return (resources.files("lance_prep.report") / name).read_text(encoding="utf-8")


def in_notebook(*parts: str) -> str:
    """Return parts of HTML with the style that they need, for one output of a notebook."""
    css = f"{notebook_colours(SCOPE)}{css_file('notebook.css')}{css_file('tokens.css')}"
    return f'<style>{css}</style><div class="{SCOPE}">{"".join(parts)}</div>'


def tokens_html(pieces: Iterable[Shown], documents: Collection[int] = ()) -> Markup:
    """Return tokens tinted in turn, with their ids on hover, and underlined if they are learned.

    Args:
        documents: the pieces that a document begins with, after the first.
    """
    found = []
    for i, (text, ids, learned) in enumerate(pieces):
        if i in documents:
            found.append('<span class="document">next document</span>')
        known = "" if learned is None else ", learned" if learned else ", not learned"
        title = f"id {', '.join(map(str, ids))}{known}"
        kind = f"c{i % TINTS}{' learned' if learned else ''}"
        found.append(f'<span class="{kind}" title="{escape(title)}">{escape(text)}</span>')
    return Markup(f'<div class="tokens">{"".join(found)}</div>')


def facts_html(title: str, facts: Iterable[tuple[str, str]]) -> Markup:
    """Return a title and a table of names and values."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
    return Markup(f"<b>{escape(title)}</b>" + (f"<table>{rows}</table>" if rows else ""))


def table_html(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table; all columns but the first are numbers."""

    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if at else ''}>{escape(value)}</{tag}>" for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return Markup(f"<table><tr>{cells(header, 'th')}</tr>{body}</table>")


def flow_parts(ledger: Ledger) -> list[tuple[str, int, str]]:
    """Return where source rows went: name, number, and class of the band. The numbers add up to `rows_in`."""
    parts: list[tuple[str, int, str]] = [("written", ledger.rows_used, "used")]
    parts += [("empty", ledger.empty, "idle"), ("filtered", ledger.filtered, "idle")]
    parts += [(f"dropped: {reason}", number, "lost") for reason, number in sorted(ledger.dropped_for.items())]
    parts += [(f"rejected: {reason[:40]}", number, "lost") for reason, number in sorted(ledger.reasons.items())]
    parts += [("held out for validation", ledger.held_out, "idle"), ("beyond a limit", ledger.over_limit, "idle")]
    rest = ledger.rows_in - sum(number for _, number, _ in parts)
    if rest:  # reasons of lines rather than rows, or a ledger of another version
        parts.append(("other", rest, "idle"))
    return [part for part in parts if part[1]]


def flow_chart(ledger: Ledger) -> Markup:
    """Draw the ledger as a flow from the rows read to the rows written."""
    return charts.flow(ledger.rows_in, flow_parts(ledger), "From rows read to rows written")
