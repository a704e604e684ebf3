"""Numbers of one or several runs as the report shows them: cards, tables and charts, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.charts import Bar, Series, bars, histogram, interval
from metrics.rates import wilson
from pipelines.report_data import JUDGED, L1_BINS, RunData

THIN = "\N{NARROW NO-BREAK SPACE}"
MOST_DIRECTIONS, MOST_ATTRIBUTES = 12, 20


class Meaning(NamedTuple):
    """How a metric is named, written and explained.

    kind: rate, number or seconds. subset: over which rows it is told by default. axis: of its interval; None: from 0 to what is there.
    """

    label: str
    kind: str
    help: str
    subset: str = "all"
    axis: tuple[float, float] | None = None


RATE = (0.0, 1.0)
METRICS = {
    "flip_rate": Meaning(
        "Flip rate", "rate", "rows whose stored counterfactual is classified as the target", axis=RATE
    ),
    "flip_rate[p>0.75]": Meaning("Flip rate at p > 0.75", "rate", "the same, with a probability above 0.75", axis=RATE),
    "p_target": Meaning(
        "Confidence", "rate", "mean probability of the target class on the stored counterfactual", axis=RATE
    ),
    "cout": Meaning(
        "COUT",
        "number",
        "how soon the decision turns as the most changed pixels are carried over, \N{MINUS SIGN}1 to 1",
        "correct",
        (-1.0, 1.0),
    ),
    "l1": Meaning("L1 change", "number", "mean absolute change of a pixel, on a scale of 1"),
    "l2": Meaning("L2 change", "number", "root mean square change of a pixel, on a scale of 1"),
    "linf": Meaning("Largest change", "number", "of any pixel, on a scale of 1"),
    "sparsity": Meaning("Pixels changed", "rate", "share of pixels that moved by more than 1/255", axis=RATE),
    "second_agrees": Meaning(
        "Second classifier agrees", "rate", "one that was never attacked sees the target class too", "flipped", RATE
    ),
    "second_agrees_on_originals": Meaning(
        "Second classifier agrees before", "rate", "sees the same class in the original", axis=RATE
    ),
    "causal_share": Meaning(
        "Causal share", "rate", "part of the attribute change that falls on the causal attribute", "flipped", RATE
    ),
    "changed_causal": Meaning("Causal attributes changed", "number", "per row", "flipped"),
    "changed_spurious": Meaning("Other attributes changed", "number", "per row", "flipped"),
    "seconds": Meaning("Time per row", "seconds", "wall clock of the method, shared over its batch"),
    "forward": Meaning("Model evaluations", "number", "of the classifier, forward, per row"),
    "backward": Meaning("Backward passes", "number", "of the classifier, per row"),
    "judge": Meaning("Judge", "number", "mean of a vision-language model's four scores, 1 to 10", axis=(1.0, 10.0)),
    **{f"judge_{name}": Meaning(f"Judge: {name}", "number", "score of 1 to 10", axis=(1.0, 10.0)) for name in JUDGED},
}
CARDS = ("flip_rate", "cout", "l1", "sparsity", "second_agrees", "causal_share", "seconds", "forward")
ARROWS = {"higher": ("\N{UPWARDS ARROW}", "higher is better"), "lower": ("\N{DOWNWARDS ARROW}", "lower is better")}


def meaning(metric: str) -> Meaning:
    """The entry of a metric; an unknown one goes by its own name."""
    return METRICS.get(metric) or Meaning(metric, "number", "")


def percent(share: float) -> str:
    """0.9766 as 97.7 %."""
    text = f"{100 * share:.1f}".removesuffix(".0")
    return f"{text.replace('-', chr(0x2212))}{THIN}%"


def short_number(value: float) -> str:
    """Three significant digits, thousands apart, a real minus sign."""
    if not math.isfinite(value):
        return "\N{EM DASH}"
    text = f"{value:,.0f}".replace(",", THIN) if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    if "e" in text:
        text = f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def shown(metric: str, value: float | None) -> str:
    """A metric's value in its own notation."""
    if value is None:
        return "\N{EM DASH}"
    kind = meaning(metric).kind
    if kind == "rate":
        return percent(value)
    if kind == "seconds":
        return f"{short_number(value)}{THIN}s" if value >= 0.1 else f"{short_number(1000 * value)}{THIN}ms"
    return short_number(value)


def shown_interval(metric: str, low: float | None, high: float | None) -> str:
    """`94.2 to 99.1 %`; empty where there is none."""
    if low is None or high is None:
        return ""
    first, last = shown(metric, low), shown(metric, high)
    if metric == "seconds" and first[-2:] != last[-2:]:
        return f"{first} to {last}"
    return f"{first.split(THIN)[0] if meaning(metric).kind != 'number' else first} to {last}"


def plural(count: int, noun: str) -> str:
    """`1 row`, `1 200 rows`."""
    return f"{count:,}".replace(",", THIN) + f" {noun}{'' if count == 1 else 's'}"


def metrics_of(run: RunData) -> list[dict[str, Any]]:
    """The entries of a run's score table, or, where it has not been scored, what generating alone can tell."""
    if run.table is not None:
        return list(run.table["metrics"])
    tally, n = run.tally, run.tally.rows
    band = wilson(tally.flipped, n) if n else None
    plain = {"subset": "all", "n": n, "by": None, "note": "not scored yet", "low": None, "high": None}
    rows = [{**plain, "metric": "flip_rate", "value": tally.flipped / n if n else None, "better": "higher"}]
    if band:
        rows[0].update(low=band[0], high=band[1])
    for name in ("seconds", "forward", "backward"):
        rows.append({**plain, "metric": name, "value": tally.sums[name] / n if n else None, "better": "lower"})
    return rows


def cards(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The key figures, one card each with a line per run; a metric that no run measured has no card."""
    out = []
    for name in CARDS:
        entries = [_first(metrics_of(run), name) for run in runs]
        if not any(entry and entry["value"] is not None for entry in entries):
            continue
        known = [entry for entry in entries if entry]
        axis = meaning(name).axis or (
            0.0,
            1.12 * max(v for e in known for v in (e["high"], e["value"], 1e-9) if v is not None),
        )
        lines = []
        for run, entry in zip(runs, entries, strict=True):
            value = entry["value"] if entry else None
            band = (entry["low"], entry["high"]) if entry else (None, None)
            text = shown_interval(name, *band)
            drawn = None
            if value is not None and None not in band:
                drawn = interval(value, *band, *axis, f"{shown(name, value)}, 95 % interval {text}")
            facts = f"n{THIN}={THIN}{entry['n']}, {entry['subset']}" if entry else "not measured"
            lines.append({"run": run.name, "value": shown(name, value), "interval": text, "svg": drawn, "facts": facts})
        out.append(
            {
                "label": meaning(name).label,
                "help": meaning(name).help,
                "arrow": ARROWS.get(known[0]["better"]),
                "lines": lines,
            }
        )
    return out


def metric_rows(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, metric and subset down, runs across: each metric over its own subset; then the other subsets and groups."""
    tables = [{(m["metric"], m["subset"], m.get("by")): m for m in metrics_of(run)} for run in runs]
    main, rest = [], []
    for metric, subset, by in dict.fromkeys(key for table in tables for key in table):
        entries = [table.get((metric, subset, by)) for table in tables]
        told = meaning(metric)
        row = {"label": told.label, "help": told.help, "subset": subset if by is None else f"{subset}, {by}"}
        row["arrow"] = next((ARROWS.get(entry["better"]) for entry in entries if entry), None)
        row["cells"] = [_cell(metric, entry) for entry in entries]
        # A metric that is told over other rows only stands there with what it has.
        alone = not any((metric, told.subset, None) in table for table in tables)
        (main if by is None and (subset == told.subset or alone) else rest).append(row)
    return main, rest


def attribute_panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Per run with an oracle: chart and table of how often each attribute changed among flipped rows; one order for all runs."""
    found = [(run, run.table["attributes"]) for run in runs if run.table and run.table.get("attributes")]
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
            value, low, high = (None, None, None) if i is None else (part[key][i] for key in ("changed", "low", "high"))
            kind = "causal" if name in part["causal"] else "spurious"
            rows.append(Bar(name.replace("_", " "), value, low, high, kind, shown("flip_rate", value)))
        title = f"{run.name}: share of {plural(part['n'], 'flipped row')} in which each attribute changed"
        table = [(row.label, row.kind, row.shown, shown_interval("flip_rate", row.low, row.high)) for row in rows]
        audit = run.table["audit"] if run.table else None
        panels.append(
            {
                "run": run.name,
                "n": part["n"],
                "svg": bars(rows[:MOST_ATTRIBUTES], title),
                "table": table,
                "causal": part["causal"],
                "audit": audit,
                "sound": sound(audit),
            }
        )
    return panels


def sound(audit: Mapping[str, Any] | None) -> bool | None:
    """Whether the decision depended on what it should; None where the audit cannot say."""
    if not audit or not audit.get("expected") or not audit.get("depends_on"):
        return None
    return audit["depends_on"] in audit["expected"] and not audit.get("spurious")


def distributions(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Charts in groups, each with a panel per run on common axes: probabilities, sizes of the change, flips by direction."""
    filled = [run for run in runs if run.tally.rows]
    groups = []
    peak = max(
        (float(c.max() / c.sum()) for run in filled for c in (run.tally.before, run.tally.after) if c.sum()),
        default=1.0,
    )
    ticks = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]
    if filled:
        panels = []
        for run in filled:
            series = (Series("before", run.tally.before, "before"), Series("after", run.tally.after, "after"))
            sentence = (
                f"{run.name}: probability of the target class over {plural(run.tally.rows, 'row')}, before and after"
            )
            panels.append((run.name, histogram(series, ticks, sentence, "probability of the target class", peak)))
        groups.append(
            {
                "title": "Before and after",
                "legend": [("before", "original"), ("after", "counterfactual")],
                "panels": panels,
            }
        )
    measured = [run for run in filled if run.l1 is not None and run.l1.sum()]
    if measured:
        groups.append({"title": "How much was changed", "legend": [], "panels": _l1_panels(measured)})
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
    label = "mean absolute change of a pixel (L1), flipped rows"
    return [
        (run.name, histogram([Series("flipped rows", row, "after")], ticks, f"{run.name}: {label}", label, peak))
        for run, row in zip(runs, rows, strict=True)
    ]


def _directions(run: RunData) -> Any:
    pairs = sorted(run.tally.directions.items(), key=lambda item: (-item[1][0], item[0]))
    rows = []
    for (source, target), (n, flipped) in pairs[:MOST_DIRECTIONS]:
        low, high = wilson(flipped, n)
        label = f"{run.class_name(source)} \N{RIGHTWARDS ARROW} {run.class_name(target)}"
        rows.append(Bar(label, flipped / n, low, high, "after", f"{percent(flipped / n)}"))
    more = f", the {MOST_DIRECTIONS} most frequent of {len(pairs)} directions" if len(pairs) > MOST_DIRECTIONS else ""
    return bars(rows, f"{run.name}: flip rate by direction{more}")


def _first(entries: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    found = [entry for entry in entries if entry["metric"] == metric and not entry.get("by")]
    return next((entry for entry in found if entry["subset"] == meaning(metric).subset), found[0] if found else None)


def _cell(metric: str, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"value": "\N{EM DASH}", "interval": "", "n": "", "note": ""}
    text = shown_interval(metric, entry["low"], entry["high"])
    return {"value": shown(metric, entry["value"]), "interval": text, "n": entry["n"], "note": entry.get("note") or ""}
