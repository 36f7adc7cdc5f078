"""Datasets, mixtures and build reports in a notebook: as HTML, and as a plot of lengths.

`LanceDataset.html`, `LanceDataset.plot_lengths` and the `_repr_html_` of several classes call these functions. Nothing
here is loaded before that. Plots need matplotlib, which the extra `viz` installs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lance_prep.dataset import Measured
from lance_prep.errors import UsageError
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import Ledger
from lance_prep.process import install_advice
from lance_prep.report import LIGHT, Shown, facts_html, flow_chart, in_notebook, table_html, tokens_html
from lance_prep.store import open_at
from lance_prep.tokenizer import text_pieces
from lance_prep.transport import Transport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["build_html", "facts", "plot_lengths", "sample_html", "table"]


def sample_html(
    tokenizer: Any,
    ids: Sequence[int],
    learned: npt.NDArray[np.bool_] | None = None,
    documents: npt.NDArray[np.integer[Any]] | None = None,
) -> str:
    """Return a sample as HTML: each token tinted, with its id on hover, and a line where a document begins.

    Args:
        tokenizer: of the `tokenizers` library.
        learned: `[len(ids)]`, the tokens that are learned, which are underlined.
        documents: `[len(ids)]`, number of each token's document.
    """
    pieces = text_pieces(tokenizer, ids)
    shown: list[Shown] = [
        (p.text, ids[p.start : p.stop], None if learned is None else bool(learned[p.start : p.stop].any()))
        for p in pieces
    ]
    begins = set() if documents is None else set((np.flatnonzero(np.diff(documents)) + 1).tolist())
    first = [i for i, piece in enumerate(pieces) if begins & set(range(piece.start, piece.stop))]
    return in_notebook(tokens_html(shown, first))


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a title and a table of names and values as HTML. Integers get thousands separators."""
    return in_notebook(facts_html(title, [(name, _text(value)) for name, value in rows]))


def build_html(title: str, rows: Iterable[tuple[str, object]], ledger: Ledger) -> str:
    """Return the facts about a build, and its ledger as a flow, as HTML."""
    return in_notebook(facts_html(title, [(name, _text(value)) for name, value in rows]), flow_chart(ledger))


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a titled table as HTML; all columns but the first are numbers."""
    return in_notebook(facts_html(title, []), table_html(header, [[_text(value) for value in row] for row in rows]))


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def plot_lengths(
    uri: str, version: int, transport: Transport, *, filter: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how long the documents of a dataset are, on a logarithmic scale, and return matplotlib's axes.

    Args:
        filter: only of the rows that pass it, in SQL.
        ax: axes to draw on; new ones by default.

    Raises:
        UsageError: matplotlib is not installed, or the dataset has no tokens.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("a plot needs matplotlib, which is not installed", install_advice("viz")) from error
    opened = open_at(uri, version, transport)
    layout = LAYOUTS[opened.metadata.layout]
    if not layout.tokens:
        raise UsageError(f"layout {layout.name!r} has no tokens, and so no lengths", "build it with another layout")
    measured = Measured()
    measured.scan(opened, filter=filter)
    bars = measured.documents.bars()
    axes: Axes = ax if ax is not None else pyplot.subplots(figsize=(7, 3))[1]
    edges = [low for low, _, _ in bars] + [high for _, high, _ in bars[-1:]]
    if bars:
        axes.stairs([number for _, _, number in bars], edges, fill=True, color=LIGHT["bar"])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    axes.set_xlabel(f"tokens in a {layout.unit}" + (" or in a part of one in a block" if layout.packed else ""))
    axes.set_ylabel(f"{layout.unit}s")
    axes.set_title(f"{measured.documents.number:,} {layout.unit}s, {measured.documents.longest:,} tokens at most")
    return axes
