"""Figures of one or several runs in the report: the notation of each metric, the cards, the
table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from counterfactory.metrics.catalogue import FIGURES
from counterfactory.metrics.estimate import Measure
from pipelines.report.charts import interval
from pipelines.report.data import RunData
from storage.records import Line

THIN = "\N{NARROW NO-BREAK SPACE}"


CARDS = (
    *(
        "flip_rate",
        "flip_rate[any]",
        "cout",
        "l1",
        "sparsity",
        "lpips_diversity",
        "second_agrees",
        "causal_share",
    ),
    *("seconds", "forward"),
)
ARROWS = {
    "higher": ("\N{UPWARDS ARROW}", "higher is better"),
    "lower": ("\N{DOWNWARDS ARROW}", "lower is better"),
}


def declaration(metric: str) -> Measure:
    """Return the declaration of a figure.

    `fid[NETWORK]` has the declaration of fid with the network in its name. An unknown metric has
    one with its own name.
    """
    base, bracket, other = metric.partition("[")
    if metric in FIGURES or base not in FIGURES:
        return FIGURES.get(metric) or Measure(metric, "", "set", "all", None, label=metric)
    about = FIGURES[base]
    return replace(about, label=f"{about.label} {bracket}{other}")


def declaration_for(metric: str, runs: Sequence[RunData]) -> Measure:
    """Return `declaration`, with a meaning that also holds where rows have several answers."""
    about = declaration(metric)
    if about.of_rows or all(run.each < 2 for run in runs):
        return about
    label, told = (text.replace("per row", "per answer") for text in (about.label, about.help))
    return replace(about, label=label, help=told.replace("rows whose", "answers whose"))


def percent(share: float) -> str:
    """Return a share as a percentage: 0.9766 as 97.7 %; the minus sign is the typographic one."""
    text = f"{100 * share:.1f}".replace("-", "\N{MINUS SIGN}")
    if text in ("0.0", "\N{MINUS SIGN}0.0", "100.0"):
        text = text.removesuffix(".0").removeprefix("\N{MINUS SIGN}")
    return f"{text}{THIN}%"


def short_number(value: float, digits: int | None = None) -> str:
    """Return a number with three significant digits, or with `digits` decimals.

    Thousands are separated, and the minus sign is the typographic one.
    """
    if digits is not None:
        text = f"{value:,.{digits}f}"
    elif value == int(value) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return text.replace(",", THIN).replace("-", "\N{MINUS SIGN}")


def format_value(
    metric: str, value: float | None, low: float | None = None, high: float | None = None
) -> tuple[str, str]:
    """Return a figure and its interval in the metric's notation.

    For example `97.7 %` and `94.2 to 99.1 %`; the interval is empty where there is none. Numbers
    have the same decimals in both: three significant digits of the largest.
    """
    if value is None:
        return "\N{EM DASH}", ""
    kind = declaration(metric).form
    size = max(abs(number) for number in (value, low or 0.0, high or 0.0)) or 1.0
    unit, scale = {
        "rate": ("%", 100.0),
        "seconds": ("s", 1.0) if size >= 0.1 else ("ms", 1000.0),
    }.get(kind, ("", 1.0))
    digits = min(max(2 - math.floor(math.log10(scale * size)), 0), 8)

    def bare(number: float) -> str:
        return (
            percent(number).rpartition(THIN)[0]
            if kind == "rate"
            else short_number(scale * number, digits)
        )

    end = THIN + unit if unit else ""
    return bare(value) + end, (
        "" if low is None or high is None else f"{bare(low)} to {bare(high)}{end}"
    )


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 row`, `1 200 rows`."""
    return f"{count:,}".replace(",", THIN) + f" {noun}{'' if count == 1 else 's'}"


def metrics_of(run: RunData) -> list[Line]:
    """Return the lines of a run's score table; BadRecord where one is not a line.

    Where the run has not been scored, returns the figures that its generated rows allow.
    """
    if run.table is not None:
        main, rest = (
            [
                Line.from_json(value, f"{run.name}: score/table.json: {part}[{i}]")
                for i, value in enumerate(run.table.get(part) or ())
            ]
            for part in ("metrics", "subsets")
        )
        known = {(line.metric, line.subset) for line in main if not line.by}
        return main + [line for line in rest if (line.metric, line.subset) not in known]
    tally, n = run.tally, run.tally.rows
    low, high = (run.band(tally.flipped, n) if n else None) or (None, None)
    plain: dict[str, Any] = {"subset": "all", "n": n, "note": "not scored yet"}
    rate = tally.flipped / n if n else None
    return [
        Line(metric="flip_rate", value=rate, low=low, high=high, better="higher", **plain),
        *(
            Line(metric=name, value=tally.sums[name] / n if n else None, better="lower", **plain)
            for name in ("seconds", "forward", "backward")
        ),
    ]


def cards(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return the key figures, one card for each, with a line per run.

    A metric that no run measured has no card.
    """
    out = []
    for name in CARDS:
        entries = [_first(metrics_of(run), name) for run in runs]
        known = [entry for entry in entries if entry and entry.value is not None]
        if not known:
            continue
        called = {entry.metric for entry in known}
        about = declaration_for(called.pop() if len(called) == 1 else name, runs)
        reach = max(v for entry in known for v in (entry.high, entry.value, 1e-9) if v is not None)
        axis = about.span or (0.0, 1.12 * reach)
        lines = [
            _card_line(run, name, entry, axis) for run, entry in zip(runs, entries, strict=True)
        ]
        facts = list(dict.fromkeys(line["facts"] for line in lines))
        arrow = ARROWS.get(known[0].better or "")
        out.append(
            {
                "label": about.label,
                "help": about.help,
                "arrow": arrow,
                "lines": lines,
                "facts": facts,
            }
        )
    return out


def metric_rows(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the table's rows, with the runs as columns.

    The first list has each metric over its own subset, the second one all other subsets and groups.
    """
    tables = [{(m.metric, m.subset, m.by): m for m in metrics_of(run)} for run in runs]
    main: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for metric, subset, by in dict.fromkeys(key for table in tables for key in table):
        entries = [table.get((metric, subset, by)) for table in tables]
        about = declaration_for(metric, runs)
        row: dict[str, Any] = {
            "label": about.label,
            "help": about.help,
            "subset": subset if by is None else f"{subset}, {by}",
        }
        row["notes"] = [
            (run.name, e.note) for run, e in zip(runs, entries, strict=True) if e and e.note
        ]
        row["arrow"] = next((ARROWS.get(entry.better or "") for entry in entries if entry), None)
        row["cells"] = [_cell(metric, entry) for entry in entries]
        # A metric over other rows only stands there with what it has.
        alone = not any((metric, about.subset, None) in table for table in tables)
        (main if by is None and (subset == about.subset or alone) else rest).append(row)
    return main, rest


def _first(entries: Sequence[Line], metric: str) -> Line | None:
    """Return the metric's entry over its own subset, or else its first entry.

    Where no entry has this name, uses the entries that are named after the metric's network.
    """
    whole = [entry for entry in entries if not entry.by]
    found = [entry for entry in whole if entry.metric == metric]
    found = found or [entry for entry in whole if entry.metric.startswith(f"{metric}[")]
    return next(
        (entry for entry in found if entry.subset == declaration(metric).subset),
        found[0] if found else None,
    )


def _card_line(
    run: RunData, metric: str, entry: Line | None, axis: tuple[float, float]
) -> dict[str, Any]:
    if entry is None:
        return {
            "run": run.name,
            "value": "\N{EM DASH}",
            "interval": "",
            "svg": None,
            "facts": "not measured",
        }
    value, low, high = entry.value, entry.low, entry.high
    figure, band = format_value(metric, value, low, high)
    drawn = None
    if value is not None and low is not None and high is not None:
        drawn = interval((value, low, high), axis, f"{figure}, 95 % interval {band}")
    noun = "row" if declaration(metric).of_rows else run.noun
    facts = f"{entry.subset} {noun}s, n{THIN}={THIN}{entry.n}"
    return {"run": run.name, "value": figure, "interval": band, "svg": drawn, "facts": facts}


def _cell(metric: str, entry: Line | None) -> dict[str, Any]:
    if entry is None:
        return {"value": "\N{EM DASH}", "interval": "", "n": ""}
    figure, band = format_value(metric, entry.value, entry.low, entry.high)
    return {"value": figure, "interval": band, "n": entry.n}


def probability(value: float | None) -> str:
    """Return a probability with two digits, or with more where two would read as exactly 0 or 1.

    Returns a dash where there is no number.
    """
    if value is None or math.isnan(value):
        return "\N{EM DASH}"
    return f"{value:.2f}" if 0.005 <= value <= 0.995 else "<0.01" if value < 0.5 else ">0.99"
