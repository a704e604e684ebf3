"""The report's charts of importances by direction, and its labels of the importances of single
rows.

An importance is how far the flips moved a descriptor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.attribution.table import arrow
from pipelines.report.charts import Bar, signed_bars
from pipelines.report.data import RunData
from pipelines.report.figures import short_number

# the most directions that are drawn, descriptors in each direction, and chips of a row
MOST_WAYS, MOST_BARS, MOST_CHIPS = 6, 12, 3
LEAST = 0.1  # least importance of a chip: a tenth of the way from surely absent to surely present


def importance_panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return one dict for each run that was attributed.

    It holds a chart of all flips, one chart for each direction, all on one axis, and the same
    numbers as a table.
    """
    found = [(run, run.attribution) for run in runs if run.attribution and run.attribution["n"]]
    parts = [lines for _, table in found for _, _, lines in _parts(table)]
    reach = _reach(parts)
    return [
        {
            "run": run.name,
            "predictors": table["predictors"],
            "encoder": table["encoder"],
            "panels": [
                (head, n, _chart(run, head, lines, reach)) for head, n, lines in _parts(table)
            ],
            "more": max(len(table["directions"]) - MOST_WAYS, 0),
            "close": not table["clear"],
            "table": [
                (head, line["descriptor"], *_cells(line))
                for head, _, lines in _parts(table)
                for line in lines
            ],
        }
        for run, table in found
    ]


def importance_chips(run: RunData, importances: Sequence[float] | None) -> list[dict[str, Any]]:
    """Return the descriptors that a row's counterfactual moved farthest, with signed values.

    Returns an empty list where it moved no descriptor by LEAST or more.
    """
    if importances is None or run.attribution is None:
        return []
    pairs = sorted(
        zip(run.attribution["descriptors"], importances, strict=True),
        key=lambda pair: -abs(pair[1]),
    )
    kinds = _kinds(run)
    return [
        {"name": name.replace("_", " "), "value": signed(value), "kind": kinds(name)}
        for name, value in pairs[:MOST_CHIPS]
        if abs(value) >= LEAST
    ]


def signed(value: float) -> str:
    """Return a value as text with two decimals and its sign; 0 has no sign."""
    text = short_number(value, 2)
    return "0.00" if text.endswith("0.00") and abs(value) < 1 else text if value < 0 else f"+{text}"


def _parts(table: Mapping[str, Any]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Return (heading, rows, lines) of the most frequent directions.

    Where there are several directions, all flips together come first.
    """
    ways = table["directions"]
    towards = (
        f"all flips, signed towards {table['towards']}"
        if table["towards"]
        else "all flips, sizes without signs"
    )
    whole = [(towards, table["n"], table["global"])] if len(ways) > 1 else []
    return whole + [
        (arrow(way).replace("->", "\N{RIGHTWARDS ARROW}"), way["n"], way["importances"])
        for way in ways[:MOST_WAYS]
    ]


def _chart(run: RunData, head: str, lines: Sequence[Mapping[str, Any]], reach: float) -> Any:
    kinds, rows = _kinds(run), []
    for line in lines[:MOST_BARS]:
        name, value = line["descriptor"], line["value"]
        rows.append(
            Bar(
                name.replace("_", " "), value, line["low"], line["high"], kinds(name), signed(value)
            )
        )
    return signed_bars(rows, reach, f"{run.name}: mean importance, {head}")


def _kinds(run: RunData) -> Callable[[str], str]:
    causal = run.config["score"]["causal"]
    return lambda name: "after" if not causal else "causal" if name in causal else "spurious"


def _reach(parts: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """Return where the axis ends on both sides: a round number beyond every interval."""
    ends = [
        abs(line[key] or 0.0)
        for lines in parts
        for line in lines[:MOST_BARS]
        for key in ("value", "low", "high")
    ]
    most = max([*ends, 0.01])
    step = 10.0 ** math.floor(math.log10(most))
    return next(step * times for times in (1, 1.5, 2, 3, 5, 7.5, 10) if step * times >= most)


def _cells(line: Mapping[str, Any]) -> tuple[str, str]:
    low, high = line["low"], line["high"]
    return signed(
        line["value"]
    ), "" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def heading(panels: Sequence[Mapping[str, Any]]) -> str:
    """Return the predictors and the encoder of all runs as text."""
    said = dict.fromkeys(
        f"{panel['predictors']} on the latents of {panel['encoder']}" for panel in panels
    )
    return " and ".join(said)
