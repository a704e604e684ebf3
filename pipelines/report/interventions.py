"""The report's panels of interventions: where decisions lie, and what the answers' cores keep."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.report.cells import AGAINST, FAINT, Grid, draw_cells, full_share
from pipelines.report.charts import Bar, bars
from pipelines.report.data import RunData
from pipelines.report.figures import format_value, percent, plural, short_number
from pipelines.report.pictures import Pixels, data_uri, overlay
from storage.codec import decode

# the most directions and named parts that are drawn, and cells that are listed
MOST_WAYS, MOST_BARS, MOST_CELLS = 6, 12, 64
MEAN_BYTES = 16_000  # bytes of one mean picture
SAME = 0.8  # cosine from which two maps show the same place
ARROW = "\N{RIGHTWARDS ARROW}"


def intervention_panels(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return the panels of the runs whose interventions were measured, on one scale of colour.

    panels: one for each such run. top, middle: the shares at the end and in the middle of the
    scale. pictures: how many mean pictures the panels hold.
    """
    found = [(run, run.interventions) for run in runs if run.interventions]
    top = share_scale(runs)
    panels = [_panel(run, table, top) for run, table in found]
    return {
        "panels": panels,
        "top": percent(top),
        "middle": percent(top / 4),  # colours follow the square root of a share
        "pictures": sum(4 * len(panel["ways"]) for panel in panels),
    }


def share_scale(runs: Sequence[RunData]) -> float:
    """Return the share of a cell that all the page's maps draw in full colour."""
    ways = [way for run in runs if run.interventions for way in _ways(run.interventions)]
    return full_share([way[key] for way in ways for key in ("map", "changed")])


def _ways(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the most frequent directions that have rows; those that share a map come last."""
    there = [way for way in table["directions"] if way["n"]]
    return sorted(there, key=lambda way: (way["source"] is None, -way["n"]))[:MOST_WAYS]


def _panel(run: RunData, table: Mapping[str, Any], top: float) -> dict[str, Any]:
    grid = Grid(*table["grid"], *table["size"])
    ways = _ways(table)
    return {
        "run": run.name,
        "n": table["n"],
        "noun": f"flipped {run.noun}",
        "sentences": [*_core(run, table, grid), *_alike(table), *_control(table)],
        "ways": [_way(run, way, grid, top) for way in ways],
        "more": sum(1 for way in table["directions"] if way["n"]) - len(ways),
        "charts": _charts(run, table, ways),
    }


def _name(way: Mapping[str, Any]) -> str:
    """Return a direction as text, with the names of its classes."""
    if way["source"] is None:
        return "other directions"
    return f"{way['source']} {ARROW} {way['target']}"


def _way(run: RunData, way: Mapping[str, Any], grid: Grid, top: float) -> dict[str, Any]:
    """Return one direction: the mean pair, both maps and the table of their cells.

    The mean pair is None where the table has none, as for directions that share one map.
    """
    before, after = mean_of(way["before"], grid), mean_of(way["after"], grid)
    ground = ground_of(before)
    shares, changed, name = way["map"], way["changed"], _name(way)
    marks = [mark(*ends) for ends in zip(way["low"], way["high"], strict=True)]
    tips = [
        f"{grid.place(cell)}: {_figure(shares[cell], way['low'][cell], way['high'][cell])} of the"
        f" effect, {_figure(changed[cell])} of the change"
        for cell in range(len(shares))
    ]
    maps = [
        (
            "Where decisions lie",
            draw_cells(
                ground,
                grid,
                shares,
                tips,
                marks,
                top,
                f"{run.name}, {name}: where decisions lie, {grid.peak(shares, 'effect')}",
            ),
        ),
        (
            "What changed",
            draw_cells(
                ground,
                grid,
                changed,
                tips,
                [""] * len(changed),
                top,
                f"{run.name}, {name}: what changed, {grid.peak(changed, 'change')}",
            ),
        ),
    ]
    return {
        "name": name,
        "n": way["n"],
        "effect": None if way["effect"] is None else short_number(way["effect"], 1),
        "spread": way["spread"],
        "before": None if before is None else data_uri(before.pixels, MEAN_BYTES, before.stored),
        "before_alt": f"mean original, classified as {way['source']}",
        "after": None if after is None else data_uri(after.pixels, MEAN_BYTES, after.stored),
        "after_alt": f"mean counterfactual, classified as {way['target']}",
        "maps": maps,
        "faint": FAINT in marks,
        "against": AGAINST in marks,
        "cells": _cells(way, grid),
        "left": max(len(shares) - MOST_CELLS, 0),
    }


def mark(low: float | None, high: float | None) -> str:
    """Return how a cell is drawn: faint where its interval holds 0, outlined where all of it is
    below.
    """
    if low is None or high is None:
        return ""
    return AGAINST if high < 0 else FAINT if low <= 0 else ""


class Mean(NamedTuple):
    """A mean picture, and its PNG."""

    pixels: Pixels
    stored: bytes


def mean_of(text: str | None, grid: Grid) -> Mean | None:
    """Return the picture of a table's base64; None where it has none."""
    if text is None:
        return None
    size, stored = (grid.width, grid.height), base64.b64decode(text, validate=True)
    return Mean(decode(stored, size=size, crop=None, max_pixels=16 * math.prod(size)), stored)


def ground_of(mean: Mean | None) -> str | None:
    """Return the dim picture under a map, as data URI."""
    if mean is None:
        return None
    dim = overlay(mean.pixels, np.zeros(mean.pixels.shape[:2], np.float32), 1.0)
    return data_uri(dim, MEAN_BYTES)


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a share with its interval as text: `45 % (40 to 51 %)`."""
    if value is None:
        return "not measured"
    figure, band = format_value("flip_rate", value, low, high)
    return f"{figure} ({band})" if band else figure


def _cells(way: Mapping[str, Any], grid: Grid) -> list[tuple[str, str, str, str]]:
    """Return (place, share of the effect, its interval, share of the change) of the cells, those
    with the largest effect first.
    """
    shares = way["map"]
    order = sorted(range(len(shares)), key=lambda cell: -(shares[cell] or 0.0))[:MOST_CELLS]
    return [
        (
            grid.place(cell),
            *format_value("flip_rate", shares[cell], way["low"][cell], way["high"][cell]),
            format_value("flip_rate", way["changed"][cell])[0],
        )
        for cell in order
    ]


def _core(run: RunData, table: Mapping[str, Any], grid: Grid) -> list[str]:
    """Return sentences on what the cores keep."""
    core = table["core"]
    if not core or not core["n"]:
        return []
    noun = f"flipped {run.noun}"
    cells, all_cells = short_number(core["cells"]), grid.columns * grid.rows
    full, kept = (short_number(core[key]["value"], 4) for key in ("full_l1", "l1"))
    share = _figure(*(core["share"][key] for key in ("value", "low", "high")))
    told = [
        f"The core keeps {cells} of {all_cells} cells in the median of {plural(core['n'], noun)};"
        f" in the mean, {share} of the change, L1 {full} {ARROW} {kept}."
    ]
    second = core.get("second")
    if second and second["n"]:
        told.append(
            f"The second classifier believes {percent(second['full'])} of the full answers and"
            f" {percent(second['core'])} of the cores (n = {second['n']})."
        )
    return told


def _control(table: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the pairs of unrelated originals, which no generator made."""
    control = table["control"]
    like = control and control["similarity"]["value"]
    if like is None:
        return []
    told = f"(cosine of the maps {like:.2f}, n = {control['n']})"
    if like >= SAME:
        return [
            f"Pairs of unrelated originals show the same place {told}: it does not come from the"
            " counterfactuals."
        ]
    return [
        f"Pairs of unrelated originals show another map {told}: they differ everywhere, or the"
        " place comes from the counterfactuals."
    ]


def _alike(table: Mapping[str, Any]) -> list[str]:
    return [
        f"The oracle cannot tell {_listed(names)} apart: the maps of these attributes are alike."
        for names in table["alike"]
    ]


def _listed(names: Sequence[str]) -> str:
    shown = [name.replace("_", " ") for name in names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _charts(
    run: RunData, table: Mapping[str, Any], ways: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the charts of figures that have no place in the maps, each with its table."""
    parts = [(_name(way), way["concentration"], way["changed_concentration"]) for way in ways]
    whole = table["whole"]
    if whole and len(table["directions"]) > 1:
        every = ("all directions", whole["concentration"], whole["changed_concentration"])
        parts = [every, *parts]
    if table["control"]:
        parts.append(("control: unrelated pairs", table["control"]["concentration"], None))
    kinds, changed = table["kinds"], table["kinds_changed"] or {}
    charts = [
        _shares(run, "How concentrated the effect is", "the tenth of the cells with most", parts)
    ]
    title = "Regions" if table["places"] else "Border and halves"
    found = [
        (part["name"], part["share"], part["changed"]) for part in table["places"] or table["rings"]
    ]
    charts.append(_shares(run, title, title.lower(), found))
    if kinds:
        found = [(name, kinds[name], changed.get(name)) for name in kinds]
        look = table.get("look")
        if look and look["value"] is not None:
            found.append(("look: colour, contrast", look, None))
        charts.append(_shares(run, "Kinds of change", "each kind of change", found))
    if table["attributes"]:
        charts.append(_attributes(run, table["attributes"]))
    return [chart for chart in charts if chart["table"]]


def _shares(
    run: RunData,
    title: str,
    what: str,
    parts: Sequence[tuple[str, Mapping[str, Any], float | None]],
) -> dict[str, Any]:
    """Return a chart of shares of the effect, each beside its share of the change."""
    rows = [
        Bar(
            name.replace("_", " "),
            part["value"],
            part["low"],
            part["high"],
            "plain" if name.startswith("control") else "after",
            format_value("flip_rate", part["value"])[0],
            beside,
        )
        for name, part, beside in parts
    ]
    return {
        "title": title,
        "legend": [("after", "of the effect"), ("before", "of the change")],
        "svg": bars(rows[:MOST_BARS], f"{run.name}: {title}, share of the effect in {what}"),
        "columns": ("share of the effect", "of the change"),
        "table": [
            (
                name.replace("_", " "),
                *format_value("flip_rate", part["value"], part["low"], part["high"]),
                format_value("flip_rate", beside)[0],
                part["n"],
            )
            for name, part, beside in parts
        ],
    }


def _attributes(run: RunData, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a chart of how alike each attribute's map is to the classifier's."""
    causal = run.config["score"]["causal"]
    rows, table = [], []
    for part in parts:
        name, like, rate = part["name"], part["similarity"], part["rate"]
        kind = "after" if not causal else "causal" if name in causal else "spurious"
        shown, band = format_value("similarity", like["value"], like["low"], like["high"])
        label = name.replace("_", " ")
        rows.append(Bar(label, like["value"], like["low"], like["high"], kind, shown))
        table.append((label, shown, band, _figure(rate["value"]), like["n"]))
    legend = [("causal", "causal: should decide"), ("spurious", "any other attribute")]
    title = "Attributes by likeness to the classifier's map"
    return {
        "title": title,
        "legend": legend if causal else [],
        "svg": bars(
            rows[:MOST_BARS],
            f"{run.name}: cosine of each attribute's map to the classifier's",
            ("0", "0.5", "1"),
        ),
        "columns": ("similarity", "changed in"),
        "table": table,
    }
