"""Draws a trade-off as a separate SVG: one metric against another, with a mark for each cell and a
line along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from configs.sweep import PlotConfig
from pipelines.sweep.table import ARROWS, select_figures, short

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 420, 70, 380, 20, 60
# colours of Okabe & Ito 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
Point = dict[str, Any]


def plot(
    lines: Sequence[dict[str, Any]], config: PlotConfig, axes: Sequence[str], by: Sequence[str]
) -> str:
    """Return an SVG without the cells that lack a figure; whiskers are 95 % intervals.

    The axes `by` get marks of their own. config.along: the axis along which a line joins the cells
    that agree in all other axes. Each mark has its value of this axis as a label, except where the
    axis is the plot's x.
    """
    points = [
        p
        for p in _points(lines, config, axes)
        if p["x"]["value"] is not None and p["y"]["value"] is not None
    ]
    if not points:
        return _svg(['<text x="20" y="30">No cell has both figures.</text>'])
    x, y = (_scale([p[side] for p in points]) for side in ("x", "y"))
    across = (LEFT, WIDTH - RIGHT)
    up = (HEIGHT - BOTTOM, TOP)
    parts = [*_axis(x, across, points[0]["x"], True), *_axis(y, up, points[0]["y"], False)]
    lanes = list(dict.fromkeys(p["lane"] for p in points))
    for lane, key in enumerate(lanes):
        colour, mine = COLOURS[lane % len(COLOURS)], [p for p in points if p["lane"] == key]
        at = [(_at(p["x"]["value"], x, across), _at(p["y"]["value"], y, up)) for p in mine]
        if config.along and len(at) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            )
        for p, (a, b) in zip(mine, at, strict=True):
            parts += _whiskers(p, (a, b), (x, across), (y, up), colour)
            tip = escape(
                f"{p['cell']}: {config.x} {short(p['x']['value'])}, {config.y}"
                f" {short(p['y']['value'])}"
            )
            parts.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5"'
                f' fill="{colour}"><title>{tip}</title></circle>'
            )
            if config.along and config.along != config.x:
                parts.append(
                    f'<text x="{a + 7:.1f}" y="{b - 6:.1f}"'
                    f' font-size="11">{escape(p["along"])}</text>'
                )
        legend = TOP + 10 + 20 * lane
        parts.append(
            f'<circle cx="{WIDTH - RIGHT + 20}" cy="{legend - 4}" r="4.5" fill="{colour}"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 32}" y="{legend}">{escape(key)}</text>')
    return _svg(parts)


def _points(
    lines: Sequence[dict[str, Any]], config: PlotConfig, axes: Sequence[str]
) -> list[Point]:
    cells: dict[str, Point] = {}
    known = list(dict.fromkeys(line["metric"] for line in lines))
    for line in lines:
        point = cells.setdefault(line["cell"], {"cell": line["cell"]})
        left_out = (config.along, config.x)
        point["lane"] = ", ".join(
            str(line[name]) for name in axes if name not in left_out and line[name] != ""
        )
        if config.x in axes:
            value = _number(line[config.x])
            point["x"] = {
                "metric": config.x,
                "value": value,
                "low": None,
                "high": None,
                "better": None,
            }
        point["along"] = str(line.get(config.along, "")) if config.along else ""
        for side, metric in (("x", config.x), ("y", config.y)):
            if [line["metric"]] == select_figures([metric], known)[:1]:
                point[side] = line
    return [point for point in cells.values() if "x" in point and "y" in point]


def _number(setting: Any) -> float | None:
    """Return a setting's value as a number; None where it is not one.

    A cell without a number has no place on the axis.
    """
    try:
        return float(setting)
    except ValueError:
        return None


def _scale(figures: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the axis' ends: all values and intervals with a little room on both sides."""
    ends = [end for f in figures for end in (f["value"], f["low"], f["high"]) if end is not None]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _at(value: float, scale: tuple[float, float], span: tuple[int, int]) -> float:
    return span[0] + (span[1] - span[0]) * (value - scale[0]) / (scale[1] - scale[0])


def _axis(
    scale: tuple[float, float], span: tuple[int, int], figure: dict[str, Any], across: bool
) -> list[str]:
    step = 10 ** math.floor(math.log10((scale[1] - scale[0]) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (scale[1] - scale[0]) / s <= 6)
    first = math.ceil(scale[0] / step)
    ticks = [step * i for i in range(first, math.floor(scale[1] / step) + 1)]
    parts = []
    for tick in ticks:
        p, text = _at(tick, scale, span), f"{tick:.6g}"
        if across:
            parts.append(
                f'<line x1="{p:.1f}" y1="{TOP}" x2="{p:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            )
            parts.append(
                f'<text x="{p:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'
            )
        else:
            parts.append(
                f'<line x1="{LEFT}" y1="{p:.1f}" x2="{WIDTH - RIGHT}" y2="{p:.1f}" stroke="#ddd"/>'
            )
            parts.append(f'<text x="{LEFT - 8}" y="{p + 4:.1f}" text-anchor="end">{text}</text>')
    name = escape(f"{figure['metric']} {ARROWS.get(figure['better'] or '', '')}".strip())
    middle = (span[0] + span[1]) / 2
    if across:
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle"'
            f' font-weight="600">{name}</text>'
        )
    else:
        turned = f'transform="rotate(-90 18 {middle})"'
        parts.append(
            f'<text x="18" y="{middle}" text-anchor="middle" font-weight="600"'
            f" {turned}>{name}</text>"
        )
    return parts


def _whiskers(point: Point, at: tuple[float, float], x: Any, y: Any, colour: str) -> list[str]:
    a, b = at
    parts = []
    for figure, (scale, span), across in ((point["x"], x, True), (point["y"], y, False)):
        if figure["low"] is None or figure["high"] is None:
            continue
        low, high = (_at(figure[end], scale, span) for end in ("low", "high"))
        ends = (low, b, high, b) if across else (a, low, a, high)
        x1, y1, x2, y2 = (f"{end:.1f}" for end in ends)
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"'
            ' stroke-opacity="0.4"/>'
        )
    return parts


def _svg(parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        ' role="img"'
    )
    return f'{head} font-family="system-ui,sans-serif" font-size="13">{"".join(parts)}</svg>\n'
