"""The report's cards of themes: groups of flips whose cores are alike, for a person to name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.interventions.lines import attribute_of, look_of, places_of, theme_summary
from pipelines.report.cells import Grid, draw_cells, full_share
from pipelines.report.data import Pick, RunData
from pipelines.report.figures import format_value, percent, short_number
from pipelines.report.interventions import ground_of, mark, mean_of
from pipelines.report.pictures import data_uri
from pipelines.report.rows import fetch
from storage.codec import decode

MOST_WAYS, MOST_CARDS = 4, 6  # directions of a run and themes of a direction that are drawn
PICTURE_BYTES = 9_000  # of each picture, before base64
ARROW = "\N{RIGHTWARDS ARROW}"


def theme_panels(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return the panels of the runs whose flips were grouped, and how many pictures they hold."""
    panels = [_panel(run) for run in runs if run.themes and run.themes["directions"]]
    cards = [card for panel in panels for way in panel["ways"] for card in way["cards"]]
    return {"panels": panels, "pictures": sum(3 * len(card["rows"]) for card in cards)}


def _panel(run: RunData) -> dict[str, Any]:
    themes = run.themes
    assert themes is not None
    ways = themes["directions"][:MOST_WAYS]
    shown = [theme for way in ways for theme in way["themes"][:MOST_CARDS]]
    picks = [
        Pick(0, 0, row["shard"], {"cf_id": row["cf_id"]})
        for theme in shown
        for row in theme["exemplars"]
    ]
    pairs = fetch(run, picks, ("original", "counterfactual"))
    cores = fetch(run, picks, ("core", "core_cells"), stage=str(themes["stage"]))
    top = full_share([theme["map"] for theme in shown])
    return {
        "run": run.name,
        "top": percent(top),
        "ways": [
            {
                "name": f"{way['source']} {ARROW} {way['target']}",
                "told": _sentence(theme_summary(way)),
                "cards": [
                    _card(run, way, number, theme, pairs, cores, top)
                    for number, theme in enumerate(way["themes"][:MOST_CARDS], 1)
                ],
            }
            for way in ways
        ],
        "more": len(themes["directions"]) + themes["directions_left"] - len(ways),
    }


def _card(
    run: RunData,
    way: Mapping[str, Any],
    number: int,
    theme: Mapping[str, Any],
    pairs: Mapping[str, Mapping[str, Any]],
    cores: Mapping[str, Mapping[str, Any]],
    top: float,
) -> dict[str, Any]:
    """Return a theme's figures, its mean map and its exemplars."""
    table = run.interventions
    assert table is not None
    assert run.themes is not None
    grid, shares = Grid(*table["grid"], *table["size"]), theme["map"]
    name = f"{way['source']} {ARROW} {way['target']}, theme {number}"
    share, band = format_value("flip_rate", *_ends(theme["share"]))
    effect = short_number(theme["effect"]["value"], 1)
    if theme["effect"]["low"] is not None:
        ends = (short_number(theme["effect"][end], 1) for end in ("low", "high"))
        effect += f" ({' to '.join(ends)})"
    return {
        "title": f"Theme {number}",
        "share": share,
        "band": band,
        "n": theme["n"],
        "of": way["n"],
        "effect": effect,
        "kept": percent(theme["core_share"]["value"]),
        "places": [
            (place.replace("_", " "), percent(part)) for place, part in places_of(theme, run.themes)
        ],
        "look": look_of(theme),
        "attributes": [
            (
                attribute_of(one).replace("_", " ").replace("-", "\N{MINUS SIGN}", 1),
                percent(one["rate"]["value"]),
            )
            for one in theme["attributes"]
        ],
        "map": draw_cells(
            ground_of(mean_of(_before(table, way), grid)),
            grid,
            shares,
            [f"{grid.place(at)}: {percent(part)} of the effect" for at, part in enumerate(shares)],
            [mark(*ends) for ends in zip(theme["low"], theme["high"], strict=True)],
            top,
            f"{run.name}, {name}: where its effect lies, {grid.peak(shares, 'effect')}",
        ),
        "rows": [
            _row(row, pairs[row["cf_id"]], cores[row["cf_id"]], way, grid)
            for row in theme["exemplars"]
            if row["cf_id"] in pairs and row["cf_id"] in cores
        ],
    }


def _row(
    row: Mapping[str, Any],
    pair: Mapping[str, Any],
    core: Mapping[str, Any],
    way: Mapping[str, Any],
    grid: Grid,
) -> dict[str, Any]:
    """Return an exemplar's three pictures."""
    sides = ("original", "counterfactual", "core")
    stored = [{**pair, **core}[side]["bytes"] for side in sides]
    told = (f"classified as {way['source']}", f"classified as {way['target']}", "what decided")
    size = (grid.width, grid.height)
    return {
        "id": row["id"],
        "pictures": [
            (
                side,
                data_uri(
                    decode(data, size=size, crop=None, max_pixels=16 * math.prod(size)),
                    PICTURE_BYTES,
                    data,
                ),
                f"{side}, {text}",
            )
            for side, data, text in zip(sides, stored, told, strict=True)
        ],
    }


def _ends(found: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return found["value"], found["low"], found["high"]


def _before(table: Mapping[str, Any], way: Mapping[str, Any]) -> str | None:
    """Return the mean original of a direction; None where its map is shared with others."""
    names = (way["source"], way["target"])
    found = (
        one["before"] for one in table["directions"] if (one["source"], one["target"]) == names
    )
    return next(found, None)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
