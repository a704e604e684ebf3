"""Turns the sums of the experiment into table.json and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from counterfactory.interventions.switches import KINDS
from counterfactory.metrics import effects, rates, table
from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.audit import audit
from counterfactory.metrics.catalogue import FIGURES as ALL_FIGURES
from counterfactory.metrics.decides import Fit, Place, decide
from counterfactory.metrics.effects import EffectSums, estimate
from counterfactory.metrics.estimate import SUBSETS, Estimate, Measure
from counterfactory.metrics.rates import RateSums
from pipelines.engine.committed import class_name
from pipelines.interventions.sums import FIGURES, Sums
from pipelines.score.table import build_line

Floats = NDArray[np.float64]
REPLICATES = 200  # at most: a map is solved for each
ROWS = ("top", "upper part", "middle", "lower part", "bottom")
COLUMNS = ("left", "left half", "centre", "right half", "right")


def build_table(
    sums: Sums, grid: tuple[int, int], regions: Sequence[str], config: RunConfig
) -> dict[str, Any]:
    """Return the table's parts, from sums.

    grid: columns and rows of cells. regions: the names of the masks' values; empty without masks.
    """
    weights = effects.replicates(min(config.score.bootstrap, REPLICATES))
    whole = sums.whole
    causal, expected = config.score.causal, config.interventions.places
    names = sums.attributes
    if whole is None:
        nothing = AttributeSums.zero(len(names))
        base = audit(names, causal, nothing) if names else None
        return {
            "n": 0,
            "whole": None,
            "directions": [],
            "control": None,
            "kinds": None,
            "kinds_changed": None,
            "places": [],
            "rings": [],
            "attributes": [],
            "alike": [],
            "core": None,
            **_figures(sums, Estimate(None, None, None, 0, "n = 0"), None, ""),
            "audit": decide(
                base, n=0, fits=[], causal=causal, places=[], spread=None, expected=expected
            ),
        }
    drawn = effects.maps(whole.classifier, weights)[..., 0]
    found = effects.shares(drawn)
    inside = effects.region_shares(whole, weights) if regions and whole.places.any() else None
    places = _regions(whole, regions, inside)
    rings = _rings(found, whole, grid)
    fits = _fits(sums, weights)
    kinds = _kinds(sums, weights)
    few = [line for line in (*places, *rings) if line["name"] == "border" or line in places]
    main = _map(whole, weights, drawn, [_estimate(line["share"]) for line in few])
    lies = [Place(line["name"], _estimate(line["share"])) for line in places]
    lies = lies or _places_of_cells(found, whole.rows, grid)
    base = audit(names, causal, sums.changed) if names and sums.changed is not None else None
    share, place = _place_share(lies, whole.rows, regions, expected, inside)
    verdict = decide(
        base,
        n=whole.rows,
        fits=fits,
        causal=causal,
        places=lies,
        spread=main["spread"],
        kinds=[Place(name, _estimate(kinds[name])) for name in KINDS] if kinds else (),
        expected=expected,
    )
    return {
        "n": whole.rows,
        "whole": main,
        "directions": [
            {
                "source": None if way is None else class_name(sums.classes, way[0]),
                "target": None if way is None else class_name(sums.classes, way[1]),
                "way": way,
                **_map(part, weights, effects.maps(part.classifier, weights)[..., 0]),
            }
            for way, part in sorted(
                sums.ways.items(), key=lambda item: (item[0] is None, -item[1].rows, item[0])
            )
        ],
        "control": _control(sums, whole, weights),
        "kinds": kinds,
        "kinds_changed": (
            dict(zip(KINDS, (sums.kinds_changed / sums.kinds_n.sum()).tolist(), strict=True))
            if kinds
            else None
        ),
        "places": places,
        "rings": rings,
        "attributes": [
            {"name": fit.name, "similarity": _json(fit.similarity), "rate": _json(fit.rate)}
            for fit in sorted(fits, key=lambda fit: -(fit.similarity.value or 0.0))
        ],
        "alike": [verdict["alike"]] if verdict["alike"] else [],
        "core": _core(sums),
        **_figures(sums, _estimate(main["concentration"]), share, place),
        "audit": verdict,
    }


def format_table(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the table as lines of text."""
    if not found["n"]:
        yield "no flipped row to measure"
        return
    yield found["audit"]["verdict"]
    whole = found["whole"]
    yield (
        f"concentration {_text(whole['concentration'])} of the effect in a tenth of the cells,"
        f" which hold {100 * whole['changed_concentration']:.0f} % of the change"
    )
    if found["control"]:
        yield f"unrelated pairs: {_text(found['control']['concentration'])}"
    for head, lines in (("places", found["places"]), ("rings", found["rings"])):
        told = [
            f"{line['name']} {_text(line['share'])} (change {100 * line['changed']:.0f} %)"
            for line in lines[:4]
        ]
        if told:
            yield f"{head}: {', '.join(told)}"
    if found["kinds"]:
        yield "kinds: " + ", ".join(f"{name} {_text(found['kinds'][name])}" for name in KINDS)
    for line in found["attributes"][:5]:
        yield (
            f"  {line['name']:24s} map {_text(line['similarity'], percent=False)}"
            f"  changed {_text(line['rate'])}"
        )
    core = found["core"]
    if core:
        yield (
            f"cores: {core['cells']:g} of {len(whole['map'])} cells in the median,"
            f" L1 {core['full_l1']['value']:.4f} -> {core['l1']['value']:.4f}"
        )
        if core["second"]:
            yield (
                f"second classifier: sees the target in {100 * core['second']['full']:.0f} % of"
                f" answers and {100 * core['second']['core']:.0f} % of cores"
            )


def summary(found: Mapping[str, Any]) -> str:
    """Return one line: what the stage found."""
    if not found["n"]:
        return "no flipped row to measure"
    core = found["core"]
    told = f"; cores keep {100 * core['share']['value']:.0f} % of the change" if core else ""
    return (
        f"{_text(found['whole']['concentration'])} of the effect in a tenth of the cells"
        f" (n {found['n']}){told}"
    )


def _map(
    sums: EffectSums, weights: Floats, drawn: Floats, places: Sequence[Estimate] = ()
) -> dict[str, Any]:
    """Return one effect map with intervals; drawn: the replicates' maps (N,C). places: shares of
    the effect in places that are larger than a few parts.
    """
    found = effects.shares(drawn)
    spans = [estimate(found[:, part], sums.rows) for part in range(found.shape[1])]
    concentrated = estimate(effects.concentration(sums, weights), sums.rows)
    changed = sums.changed.sum(0) / max(sums.rows, 1)
    top = np.argsort(-np.nan_to_num(found[0], nan=-np.inf))[: max(1, round(len(changed) / 10))]
    return {
        "n": sums.rows,
        "effect": float(drawn[0].sum()),
        "map": [span.value for span in spans],
        "low": [span.low for span in spans],
        "high": [span.high for span in spans],
        "changed": changed.tolist(),
        "concentration": _json(concentrated),
        "changed_concentration": float(changed[top].sum()),
        "spread": effects.is_spread(concentrated, places),
    }


def _regions(
    sums: EffectSums, regions: Sequence[str], inside: Floats | None
) -> list[dict[str, Any]]:
    """Return the regions with their shares of the effect and the change; inside: (N,R)."""
    if inside is None:
        return []
    changed = (sums.changed.sum(0)[:, None] * sums.places.sum(0)).sum(0) / max(sums.rows, 1) ** 2
    lines = [
        {
            "name": name,
            "share": _json(estimate(inside[:, place], sums.rows)),
            "changed": float(changed[place]),
        }
        for place, name in enumerate(regions)
    ]
    return sorted(lines, key=lambda line: -(line["share"]["value"] or 0.0))


def rings_of(columns: int, rows: int) -> dict[str, NDArray[np.bool_]]:
    """Return named sets of cells, (rows*columns,) bool each: the border and the four halves."""
    across, down = np.meshgrid(np.arange(columns), np.arange(rows))
    border = (across == 0) | (across == columns - 1) | (down == 0) | (down == rows - 1)
    sets = {
        "border": border,
        "upper half": down < rows / 2,
        "lower half": down >= rows / 2,
        "left half": across < columns / 2,
        "right half": across >= columns / 2,
    }
    return {name: cells.ravel() for name, cells in sets.items()}


def _rings(found: Floats, sums: EffectSums, grid: tuple[int, int]) -> list[dict[str, Any]]:
    if grid[0] * grid[1] != found.shape[1]:
        return []
    changed = sums.changed.sum(0) / max(sums.rows, 1)
    lines = [
        {
            "name": name,
            "share": _json(estimate(found[:, cells].sum(1), sums.rows)),
            "changed": float(changed[cells].sum()),
        }
        for name, cells in rings_of(*grid).items()
    ]
    return sorted(lines, key=lambda line: -(line["share"]["value"] or 0.0))


def _places_of_cells(found: Floats, n: int, grid: tuple[int, int]) -> list[Place]:
    """Return the three cells with the largest share of the effect, in words; the border where it
    holds more.
    """
    columns, rows = grid
    if columns * rows != found.shape[1]:
        return []
    order = np.argsort(-np.nan_to_num(found[0], nan=-np.inf))[:3]
    cells = [
        Place(_cell_name(int(cell), columns, rows), estimate(found[:, cell], n)) for cell in order
    ]
    border = rings_of(columns, rows)["border"]
    ring = Place("border", estimate(found[:, border].sum(1), n))
    top = sum(cell.share.value or 0.0 for cell in cells)
    if (ring.share.value or 0.0) > top and border[order].all():
        return [ring, *cells]
    return cells


def _cell_name(cell: int, columns: int, rows: int) -> str:
    down, across = divmod(cell, columns)
    where = f"{_word(down, rows, ROWS)} {_word(across, columns, COLUMNS)}"
    return f"cell {down + 1},{across + 1} of {rows}x{columns} ({where})"


def _word(place: int, of: int, words: Sequence[str]) -> str:
    if place == 0:
        return words[0]
    if place == of - 1:
        return words[-1]
    return words[1 + min(2, 3 * place // of)]


def _fits(sums: Sums, weights: Floats) -> list[Fit]:
    if not sums.attributes or sums.changed is None:
        return []
    ways = list(sums.ways.values())
    found = effects.similarity(ways, weights)
    seen, n = sums.changed, sum(way.rows for way in ways)
    return [
        Fit(
            name,
            estimate(found[:, place], n),
            rates.compute(RateSums(seen.n, int(seen.changed[place]), seen.again)),
        )
        for place, name in enumerate(sums.attributes)
    ]


def _kinds(sums: Sums, weights: Floats) -> dict[str, Any] | None:
    n = int(sums.kinds_n.sum())
    if not n:
        return None
    total = weights @ sums.kinds
    found = effects.shares(total)
    return {name: _json(estimate(found[:, at], n)) for at, name in enumerate(KINDS)}


def _control(sums: Sums, whole: EffectSums, weights: Floats) -> dict[str, Any] | None:
    """Return the control's concentration, and how similar its map is to the whole map."""
    if sums.control is None:
        return None
    maps = [effects.maps(part.classifier, weights)[..., 0] for part in (whole, sums.control)]
    size = np.linalg.norm(maps[0], axis=1) * np.linalg.norm(maps[1], axis=1)
    cosine = (maps[0] * maps[1]).sum(1) / np.where(size > 0, size, 1.0)
    n = sums.control.rows
    return {
        "n": n,
        "concentration": _json(estimate(effects.concentration(sums.control, weights), n)),
        "similarity": _json(estimate(cosine, n)),
    }


def _core(sums: Sums) -> dict[str, Any] | None:
    n = int(sums.cells.sum())
    if not n:
        return None
    by_name = {m.name: table.compute(sums.figures, m, "flipped") for m in FIGURES}
    seen, full, core, lost = (int(count) for count in sums.second)
    middle = np.searchsorted(np.cumsum(sums.cells), n / 2)
    return {
        "n": n,
        "share": _json(by_name["core_share"]),
        "l1": _json(by_name["core_l1"]),
        "full_l1": _json(Estimate(sums.full_l1[0] / sums.full_l1[1], None, None, n)),
        "cells": int(middle),
        "evaluations": sums.evaluations / n,
        "second": {"n": seen, "full": full / seen, "core": core / seen, "lost": lost}
        if seen
        else None,
    }


def _place_share(
    places: Sequence[Place],
    n: int,
    regions: Sequence[str],
    expected: Sequence[str],
    inside: Floats | None,
) -> tuple[Estimate | None, str]:
    """Return the share of the effect in the expected regions, else in the first, and its name."""
    if inside is None:
        return None, ""
    wanted = [name for name in expected if name in regions] or [places[0].name]
    mine = [list(regions).index(name) for name in wanted]
    return estimate(inside[:, mine].sum(1), n), "+".join(wanted)


def _figures(
    sums: Sums, concentrated: Estimate, place: Estimate | None, name: str
) -> dict[str, Any]:
    """Return the figures as lines of the score table."""
    sets: list[tuple[Measure, Estimate]] = [(ALL_FIGURES["concentration"], concentrated)]
    main = [build_line(m, m.subset, table.compute(sums.figures, m, m.subset)) for m in FIGURES]
    main += [build_line(m, m.subset, found) for m, found in sets]
    if place is not None:
        line = build_line(ALL_FIGURES["place_share"], "flipped", place)
        main.append(type(line)(**{**line.to_json(), "metric": f"place_share[{name}]"}))
    subsets = [
        build_line(m, s, table.compute(sums.figures, m, s)) for m in FIGURES for s in SUBSETS
    ]
    return {
        "metrics": [line.to_json() for line in main],
        "subsets": [line.to_json() for line in subsets],
    }


def _json(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _estimate(found: Mapping[str, Any]) -> Estimate:
    return Estimate(found["value"], found["low"], found["high"], found["n"])


def _text(found: Mapping[str, Any], *, percent: bool = True) -> str:
    if found["value"] is None:
        return "unknown"
    scale, unit = (100, " %") if percent else (1, "")
    digits = 0 if percent else 2
    span = (
        ""
        if found["low"] is None
        else f" [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"
    )
    return f"{scale * found['value']:.{digits}f}{unit}{span}"
