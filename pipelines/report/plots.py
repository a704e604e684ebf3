"""Charts of one or several runs.

They show which attributes changed, the probabilities, the sizes of the change and the flips by
direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.report.charts import Bar, Series, bars, histogram
from pipelines.report.data import L1_BINS, RunData
from pipelines.report.figures import format_value, percent, plural, short_number

MOST_DIRECTIONS, MOST_ATTRIBUTES = 12, 20


def attribute_panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return one panel for each run with an oracle: how often each attribute changed in flipped
    rows.

    The attributes have one order in all panels.
    """
    found = [
        (run, run.table["attributes"]) for run in runs if run.table and run.table.get("attributes")
    ]
    highest: dict[str, float] = {}
    for _, part in found:
        for name, rate in zip(part["names"], part["changed"], strict=True):
            highest[name] = max(highest.get(name, 0.0), rate or 0.0)
    order = sorted(highest, key=lambda name: (-highest[name], name))
    panels = []
    for run, part in found:
        place = {name: i for i, name in enumerate(part["names"])}
        rows = []
        for name in order:
            i = place.get(name)
            value, low, high = (
                (None, None, None)
                if i is None
                else (part[key][i] for key in ("changed", "low", "high"))
            )
            kind = "causal" if name in part["causal"] else "spurious"
            rows.append(
                Bar(
                    name.replace("_", " "),
                    value,
                    low,
                    high,
                    kind,
                    format_value("flip_rate", value)[0],
                )
            )
        title = (
            f"{run.name}: share of {plural(part['n'], f'flipped {run.noun}')} in which each"
            " attribute changed"
        )
        table = [
            (
                row.label,
                row.kind,
                row.shown,
                format_value("flip_rate", row.value, row.low, row.high)[1],
            )
            for row in rows
        ]
        panels.append(
            {
                "run": run.name,
                "n": part["n"],
                "noun": f"flipped {run.noun}",
                "svg": bars(rows[:MOST_ATTRIBUTES], title),
                "table": table,
                "unchanged": part.get("unchanged"),
            }
        )
    return panels


def sound(audit: Mapping[str, Any] | None) -> bool | None:
    """Return whether the decision depended on what it should; None where the audit has no
    answer.
    """
    if not audit or not audit.get("expected") or not audit.get("depends_on"):
        return None
    return audit["depends_on"] in audit["expected"] and not audit.get("spurious")


def distributions(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return groups of charts, each with one panel per run on common axes.

    The groups are the probabilities, the size of the change and the flips by direction.
    """
    filled = [run for run in runs if run.tally.rows]
    groups = []
    peak = max(
        (
            float(c.max() / c.sum())
            for run in filled
            for c in (run.tally.before, run.tally.after)
            if c.sum()
        ),
        default=1.0,
    )
    ticks = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]
    if filled:
        panels = []
        for run in filled:
            series = (
                Series("before", run.tally.before, "before"),
                Series("after", run.tally.after, "after"),
            )
            sentence = (
                f"{run.name}: probability of the target class over"
                f" {plural(run.tally.rows, run.noun)}, before and after"
            )
            panels.append(
                (
                    run.name,
                    histogram(series, ticks, sentence, "probability of the target class", peak),
                )
            )
        groups.append(
            {
                "title": "Before and after",
                "legend": [("before", "original"), ("after", "counterfactual")],
                "panels": panels,
            }
        )
    measured = [run for run in filled if run.l1 is not None and run.l1.sum()]
    if measured:
        groups.append(
            {"title": "How much was changed", "legend": [], "panels": _l1_panels(measured)}
        )
    if filled:
        groups.append(
            {
                "title": "Flip rate by direction",
                "legend": [],
                "panels": [(run.name, _directions(run)) for run in filled],
            }
        )
    return groups


def _l1_panels(runs: Sequence[RunData]) -> list[tuple[str, Any]]:
    histograms = [run.l1 for run in runs if run.l1 is not None]
    reach = max(int(np.searchsorted(np.cumsum(one), 0.995 * one.sum())) + 1 for one in histograms)
    merge = next(m for m in (1, 2, 4, 5, 10, 20, 40, 50, 100) if reach / m <= 28)
    bins = math.ceil(reach / merge) + 1
    edge = bins * merge / L1_BINS
    rows = []
    for one in histograms:
        padded = np.concatenate([one, np.zeros((-L1_BINS) % merge, np.int64)])
        merged = padded.reshape(-1, merge).sum(axis=1)
        inside = np.zeros(bins, np.int64)
        inside[: len(merged[:bins])] = merged[:bins]
        inside[-1] += merged[bins:].sum()
        rows.append(inside)
    peak = max(float(row.max() / row.sum()) for row in rows)
    ticks = [(at, short_number(edge * at)) for at in (0.0, 0.25, 0.5, 0.75, 1.0)]
    panels = []
    for run, row in zip(runs, rows, strict=True):
        what = f"flipped {run.noun}s"
        label = f"mean change of a pixel (L1), {what}"
        panels.append(
            (
                run.name,
                histogram([Series(what, row, "after")], ticks, f"{run.name}: {label}", label, peak),
            )
        )
    return panels


def _directions(run: RunData) -> Any:
    pairs = sorted(run.tally.directions.items(), key=lambda item: (-item[1][0], item[0]))
    rows = []
    for (source, target), (n, flipped) in pairs[:MOST_DIRECTIONS]:
        low, high = run.band(flipped, n)
        label = f"{run.class_name(source)} \N{RIGHTWARDS ARROW} {run.class_name(target)}"
        rows.append(Bar(label, flipped / n, low, high, "after", f"{percent(flipped / n)}"))
    more = (
        f", the {MOST_DIRECTIONS} most frequent of {len(pairs)} directions"
        if len(pairs) > MOST_DIRECTIONS
        else ""
    )
    return bars(rows, f"{run.name}: flip rate by direction{more}")
