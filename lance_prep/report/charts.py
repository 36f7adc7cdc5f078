"""Charts as inline SVG. Colours are classes of the page's style, so that they follow light and dark.

Every chart has a role, a label for screen readers, and a title on each mark, which browsers show on hover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

#: Narrow, so that labels stay legible in a column of the page and on a phone, where 480 becomes 330 pixels.
WIDTH, HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 40


def short(number: float) -> str:
    """Format a number in at most five characters: 950, 1.2k, 35M, 1.5G."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def _svg(label: str, body: Sequence[str], *, height: float = HEIGHT, width: float = WIDTH) -> Markup:
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" class="chart">'
    return Markup(opening + "".join(body) + "</svg>")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _cut(text: str, most: int) -> str:
    """Shorten a label. The title of the mark has all of it."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}"'
    return f'<rect {shape} class="{kind}"><title>{escape(title)}</title></rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _ticks(top: float) -> list[float]:
    """Return round numbers from 0 up to at least `top`."""
    if top <= 0:
        return [0, 1]
    step = 10.0 ** math.floor(math.log10(top))
    step = next(step * part for part in (0.2, 0.5, 1, 2.5) if top / (step * part) <= 5.5)
    return [step * i for i in range(math.ceil(top / step) + 1)]


def _left_axis(ticks: Sequence[float], bottom: float) -> list[str]:
    body = []
    for tick in ticks:
        y = bottom - (bottom - _TOP) * tick / ticks[-1]
        body.append(_line(_LEFT, y, WIDTH - _RIGHT, y, "grid"))
        body.append(_text(_LEFT - 6, y + 4, short(tick), "axis", "end"))
    return body


def histogram(bars: Sequence[tuple[float, float, int]], label: str, unit: str) -> Markup:
    """Draw bars of equal width for lengths on a log scale.

    Args:
        bars: from, to, number; each `to` is the next `from`.
    """
    if not bars:
        return Markup("")
    bottom, span = HEIGHT - _BOTTOM, WIDTH - _LEFT - _RIGHT
    ticks = _ticks(max(number for _, _, number in bars))
    body = _left_axis(ticks, bottom)
    width = span / len(bars)
    # Name the powers of two, or each bar if there are few.
    named = [i for i, (low, _, _) in enumerate(bars) if len(bars) < 8 or math.log2(low).is_integer()]
    named = named[:: math.ceil(len(named) / 8) or 1]
    for i, (low, high, number) in enumerate(bars):
        first, last = math.ceil(low - 1e-6), max(math.ceil(low - 1e-6), math.ceil(high - 1e-6) - 1)
        title = f"{first:,} to {last:,} {unit}: {number:,}" if last > first else f"{first:,} {unit}: {number:,}"
        height = (bottom - _TOP) * number / ticks[-1]
        if number:
            body.append(_rect(_LEFT + i * width + 0.5, bottom - height, width - 1, height, "bar", title))
        if i in named:
            body.append(_text(_LEFT + i * width, bottom + 16, short(first), "axis"))
    body.append(_text(_LEFT + span / 2, HEIGHT - 3, unit, "axis"))
    return _svg(label, body)


def ranking(rows: Sequence[tuple[str, float, str]], label: str, *, marks: Sequence[float | None] = ()) -> Markup:
    """Draw a horizontal bar for each row.

    Args:
        rows: name, value, and the text beside the bar.
        marks: target value of each row, drawn as a line across its bar.
    """
    targets = list(marks) or [None] * len(rows)
    top = max([value for _, value, _ in rows] + [mark for mark in targets if mark is not None] + [1e-12])
    step, left = 24, 160
    span = WIDTH - left - 135
    body = []
    for i, ((name, value, beside), target) in enumerate(zip(rows, targets, strict=True)):
        y = 6 + i * step
        body.append(_text(left - 8, y + 14, _cut(name, 20), "label", "end"))
        body.append(_rect(left, y, span * value / top, step - 6, "bar", f"{name}: {beside}"))
        if target is not None:
            x = left + span * target / top
            body.append(f"<g><title>{escape(f'{name}: target {target:.1%}')}</title>")
            body.append(_line(x, y - 2, x, y + step - 4, "target") + "</g>")
        body.append(_text(left + span * max(value, target or 0) / top + 8, y + 14, beside, "axis", "start"))
    return _svg(label, body, height=12 + step * len(rows))


def zipf(frequencies: Sequence[int], label: str) -> Markup:
    """Draw frequency by rank, both on log scales.

    Args:
        frequencies: in descending order, without zeros.
    """
    if len(frequencies) < 2:
        return Markup("")
    bottom, span = HEIGHT - _BOTTOM, WIDTH - _LEFT - _RIGHT
    across, up = math.log10(len(frequencies)), max(math.log10(frequencies[0]), 1e-9)

    def place(rank: float, frequency: float) -> tuple[float, float]:
        x = _LEFT + span * math.log10(rank) / across
        return x, bottom - (bottom - _TOP) * math.log10(max(frequency, 1)) / up

    body = []
    for power in range(math.floor(up) + 1):
        _, y = place(1, 10**power)
        body += [_line(_LEFT, y, WIDTH - _RIGHT, y, "grid"), _text(_LEFT - 6, y + 4, short(10**power), "axis", "end")]
    for power in range(math.floor(across) + 1):
        x, _ = place(10**power, 1)
        body.append(_text(x, bottom + 16, short(10**power), "axis"))
    steps = 160
    ranks = sorted({max(1, round(len(frequencies) ** (i / steps))) for i in range(steps + 1)})
    points = " ".join("{:.1f},{:.1f}".format(*place(rank, frequencies[rank - 1])) for rank in ranks)
    body.append(f'<polyline points="{points}" class="curve"/>')
    body.append(_text(_LEFT + span / 2, HEIGHT - 3, "rank of the token", "axis"))
    return _svg(label, body)


def steps(points: Sequence[tuple[str, float, str]], label: str) -> Markup:
    """Draw a bar for each version.

    Args:
        points: name, value, title.
    """
    bottom, span = HEIGHT - _BOTTOM, WIDTH - _LEFT - _RIGHT
    ticks = _ticks(max((value for _, value, _ in points), default=0))
    body = _left_axis(ticks, bottom)
    width = span / max(len(points), 1)
    every = max(1, math.ceil(len(points) / 10))
    for i, (name, value, title) in enumerate(points):
        height = (bottom - _TOP) * value / ticks[-1]
        thin = min(width - 4, 60.0) if width > 8 else width * 0.8
        body.append(_rect(_LEFT + (i + 0.5) * width - thin / 2, bottom - height, thin, height, "bar", title))
        if i % every == 0:
            body.append(_text(_LEFT + (i + 0.5) * width, bottom + 16, name, "axis"))
    body.append(_text(_LEFT + span / 2, HEIGHT - 3, "version", "axis"))
    return _svg(label, body)


def flow(total: int, parts: Sequence[tuple[str, int, str]], label: str) -> Markup:
    """Draw bands from one block to several, as thick as their counts.

    Args:
        parts: name, count and class of each; the counts sum to `total`.
    """
    shown = [part for part in parts if part[1]]
    if not total or not shown:
        return Markup("")
    # A band for one row in a million is still visible. The gap has room for two lines of text.
    least, gap, left, right = 3.0, 36.0, 108.0, WIDTH - 200.0
    room = 170.0
    sizes = [max(least, room * number / total) for _, number, _ in shown]
    height = sum(sizes) + gap * (len(shown) - 1)
    top = 20 + (height - sum(sizes)) / 2
    body = [
        _rect(left - 14, top, 14, sum(sizes), "source", f"{total:,} rows read"),
        _text(left - 22, top + sum(sizes) / 2 - 2, short(total), "label", "end"),
        _text(left - 22, top + sum(sizes) / 2 + 16, "rows read", "axis", "end"),
    ]
    y_from, y_to, middle = top, 20.0, (left + right) / 2
    for (name, number, kind), size in zip(shown, sizes, strict=True):
        band = (
            f"M{left:.1f},{y_from:.1f} C{middle:.1f},{y_from:.1f} {middle:.1f},{y_to:.1f} {right:.1f},{y_to:.1f} "
            f"V{y_to + size:.1f} C{middle:.1f},{y_to + size:.1f} {middle:.1f},{y_from + size:.1f} "
            f"{left:.1f},{y_from + size:.1f} Z"
        )
        title = f"{name}: {number:,} rows ({number / total:.2%})"
        body.append(f'<path d="{band}" class="band {kind}"><title>{escape(title)}</title></path>')
        body.append(_rect(right, y_to, 10, size, kind, title))
        body.append(_text(right + 18, y_to + size / 2 - 2, _cut(name, 24), "label", "start"))
        body.append(_text(right + 18, y_to + size / 2 + 16, f"{number:,} ({number / total:.1%})", "axis", "start"))
        y_from, y_to = y_from + size, y_to + size + gap
    return _svg(label, body, height=height + 44)
