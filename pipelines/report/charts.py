"""SVG charts for the report.

x is in per cent of the width and y in pixels, so that text keeps its size at any width. Colours
come from the page's style sheet by CSS class, so they follow light and dark mode. Every string is
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray


class Bar(NamedTuple):
    """One bar of a rate in [0,1] with its interval.

    kind: the CSS class of its colour. beside: a second rate, drawn as a thin grey bar below.
    """

    label: str
    value: float | None
    low: float | None
    high: float | None
    kind: str = "plain"
    shown: str = ""  # the value as text, at the right end
    beside: float | None = None


class Series(NamedTuple):
    """One of several histograms on the same bins."""

    label: str
    counts: NDArray[np.int64]
    kind: str


LABELS, BARS, VALUES = 40.0, 42.0, 86.0  # per cent: labels end, bars start and end
STEP, TALL_STEP = 26, 42  # pixels per bar, with its label beside it or above it
# characters of a label that fit beside its bar and above it on a narrow screen
SHORT, LONG = 24, 46
PERCENT = ("0 %", "50 %", "100 %")


def bars(rows: Sequence[Bar], title: str, ticks: Sequence[str] = PERCENT) -> Markup:
    """Return horizontal bars on an axis from 0 to 1, with whiskers for intervals.

    ticks: texts at 0, 0.5 and 1. Values stand on the right. Labels stand on the left, or above the
    bars where one is long.
    """
    above = any(len(row.label) > SHORT for row in rows)
    step, left = (TALL_STEP, 0.5) if above else (STEP, BARS)
    height = step * len(rows) + 26

    def x(share: float) -> float:
        return left + (VALUES - left) * min(max(share, 0.0), 1.0)

    parts = []
    for tick, told in zip((0.0, 0.5, 1.0), ticks, strict=True):
        anchor = "start" if above and not tick else "middle"
        parts.append(_line(x(tick), 4, x(tick), height - 20, "grid"))
        parts.append(_text(x(tick), height - 6, told, "tick", anchor))
    for i, row in enumerate(rows):
        middle = step * (i + 1) - STEP / 2 + 4
        kind = f"label {row.kind}"
        parts.append(
            _text(0, middle - 14, row.label, kind, "start")
            if above
            else _text(LABELS, middle + 4, row.label, kind, "end")
        )
        if row.value is None:
            parts.append(_text(left + 1, middle + 4, "not measured", "tick", "start"))
            continue
        parts.append(
            _rect(
                left,
                middle - 7,
                x(row.value) - left,
                14,
                f"bar {row.kind}",
                f"{row.label}: {row.shown}",
            )
        )
        if row.beside is not None:
            tip = f"{row.label}, beside: {100 * row.beside:.1f} %"
            parts.append(_rect(left, middle + 8, x(row.beside) - left, 4, "bar before", tip))
        if row.low is not None and row.high is not None:
            parts.append(_whisker(x(row.low), x(row.high), middle, 3))
        parts.append(_text(100, middle + 4, row.shown, f"value {row.kind}", "end"))
    return _svg(parts, height, title)


def signed_bars(rows: Sequence[Bar], reach: float, title: str) -> Markup:
    """Return horizontal bars to both sides of 0, on an axis from -reach to reach.

    The rest is drawn as by `bars`, with labels on the left.
    """
    height = STEP * len(rows) + 26
    middle_of = (BARS + VALUES) / 2

    def x(value: float) -> float:
        return middle_of + (VALUES - BARS) / 2 * min(max(value / reach, -1.0), 1.0)

    parts = []
    for tick in (-reach, 0.0, reach):
        parts.append(_line(x(tick), 4, x(tick), height - 20, "grid"))
        parts.append(
            _text(
                x(tick),
                height - 6,
                f"{tick:+g}".replace("-", "\N{MINUS SIGN}") if tick else "0",
                "tick",
                "middle",
            )
        )
    for i, row in enumerate(rows):
        middle = STEP * (i + 1) - STEP / 2 + 4
        label = (
            row.label
            if len(row.label) <= SHORT
            else row.label[: SHORT - 1] + "\N{HORIZONTAL ELLIPSIS}"
        )
        parts.append(_text(LABELS, middle + 4, label, f"label {row.kind}", "end"))
        if row.value is None:
            continue
        left, right = sorted((x(0.0), x(row.value)))
        parts.append(
            _rect(
                left, middle - 7, right - left, 14, f"bar {row.kind}", f"{row.label}: {row.shown}"
            )
        )
        if row.low is not None and row.high is not None:
            parts.append(_whisker(x(row.low), x(row.high), middle, 3))
        parts.append(_text(100, middle + 4, row.shown, f"value {row.kind}", "end"))
    return _svg(parts, height, title)


def histogram(
    series: Sequence[Series],
    ticks: Sequence[tuple[float, str]],
    title: str,
    x_label: str,
    top: float | None = None,
) -> Markup:
    """Return histograms on the same bins, drawn over one another, each as a share of its rows.

    ticks: (position in [0,1] along the axis, text). top: the highest share on the axis; set it to
    make several panels comparable.
    """
    height, base, head = 190, 148, 14
    shares = [s.counts / max(int(s.counts.sum()), 1) for s in series]
    peak = top or max((float(share.max()) for share in shares if len(share)), default=0.0) or 1.0
    left, right = 9.0, 98.5
    parts = []
    for level in _levels(peak):
        y = base - (base - head) * level / peak
        parts += [
            _line(left, y, right, y, "grid"),
            _text(left - 1, y + 4, f"{100 * level:.3g} %", "tick", "end"),
        ]
    for one, share in zip(series, shares, strict=True):
        width = (right - left) / len(share)
        for i, value in enumerate(share):
            if value > 0:
                tall = max((base - head) * float(value) / peak, 1.0)
                tip = f"{one.label}: {int(one.counts[i])} rows"
                parts.append(
                    _rect(
                        left + width * i + 0.12,
                        base - tall,
                        width - 0.24,
                        tall,
                        f"bin {one.kind}",
                        tip,
                    )
                )
    parts.append(_line(left, base, right, base, "axis"))
    for at, label in ticks:
        anchor = "start" if at <= 0.02 else "end" if at >= 0.98 else "middle"
        parts.append(_text(left + (right - left) * at, base + 16, label, "tick", anchor))
    parts.append(_text((left + right) / 2, base + 34, x_label, "label", "middle"))
    return _svg(parts, height, title)


def interval(figure: tuple[float, float, float], axis: tuple[float, float], title: str) -> Markup:
    """Return a dot on a thin band. figure: (value, low, high); axis: (start, end)."""
    value, low, high = figure
    start, span = axis[0], (axis[1] - axis[0]) or 1.0

    def x(number: float) -> float:
        return 1.5 + 97 * min(max((number - start) / span, 0.0), 1.0)

    wide = max(x(high) - x(low), 0.6)
    parts = [_line(1.5, 7, 98.5, 7, "rail"), _rect(x(low), 5, wide, 4, "band", None)]
    parts.append(Markup('<circle cx="{}%" cy="7" r="4.5" class="dot"/>').format(_n(x(value))))
    return _svg(parts, 14, title, "mini")


def _levels(peak: float) -> list[float]:
    """Return two to five round values up to the peak, for grid lines."""
    step = 10 ** math.floor(math.log10(peak))
    # peak / step is below 10
    step = next(s for s in (step / 5, step / 2, step, step * 2) if peak / s <= 5)
    return [step * i for i in range(1, int(peak / step + 1e-9) + 1)]


def _svg(parts: Sequence[Markup], height: float, title: str, kind: str = "chart") -> Markup:
    head = Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">').format(
        kind, _n(height), title
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _rect(x: float, y: float, width: float, height: float, kind: str, tip: str | None) -> Markup:
    inside = Markup("<title>{}</title>").format(tip) if tip else ""
    template = '<rect x="{}%" y="{}" width="{}%" height="{}" class="{}">{}</rect>'
    return Markup(template).format(_n(x), _n(y), _n(max(width, 0)), _n(height), kind, inside)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{}%" y1="{}" x2="{}%" y2="{}" class="{}"/>').format(
        _n(x1), _n(y1), _n(x2), _n(y2), kind
    )


def _whisker(x1: float, x2: float, y: float, half: float) -> Markup:
    lines = (
        _line(x1, y, x2, y, "whisker"),
        _line(x1, y - half, x1, y + half, "whisker"),
        _line(x2, y - half, x2, y + half, "whisker"),
    )
    return Markup("").join(lines)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    short = text if len(text) <= LONG else text[: LONG - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Markup('<text x="{}%" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        _n(x), _n(y), kind, anchor, short
    )


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
