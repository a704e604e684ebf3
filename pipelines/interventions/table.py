"""Turns the sums of the experiment into table.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from counterfactory.metrics.estimate import NOTHING, SUBSETS, Estimate, Measure
from counterfactory.metrics.rates import RateSums
from pipelines.engine.committed import class_name
from pipelines.interventions.places import BORDER, places_of_cells, ring_shares, rings_of
from pipelines.interventions.sums import FIGURES, Sums
from pipelines.score.table import build_line

Floats = NDArray[np.float64]
HALF = 0.5
REPLICATES = 200  # at most: a map is solved for each


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
            "look": None,
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
    around = ring_shares(whole, weights, grid)
    rings = _rings(around, whole, grid)
    fits = _fits(sums, weights)
    kinds = _kinds(sums, weights)
    # places that an effect which is everywhere cannot fill
    some = [line for line in places if line["changed"] < HALF]
    some += [line for line in rings if line["name"] == BORDER]
    look = _look(sums, weights)
    main = _map(whole, weights, drawn, [_estimate(line["share"]) for line in some], look)
    lies = [Place(line["name"], _estimate(line["share"])) for line in places]
    lies = lies or places_of_cells(found, around, whole.rows, grid)
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
                "spread": main["spread"],
            }
            for way, part in sorted(
                sums.ways.items(), key=lambda item: (item[0] is None, -item[1].rows, item[0])
            )
        ],
        "control": _control(sums, whole, weights),
        "look": _json(look),
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


def _map(
    sums: EffectSums,
    weights: Floats,
    drawn: Floats,
    places: Sequence[Estimate] = (),
    look: Estimate = NOTHING,
) -> dict[str, Any]:
    """Return one effect map with intervals; drawn: the replicates' maps (N,C). places: shares of
    the effect in places that are larger than a few parts. look: the look's share.
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
        "spread": effects.is_spread(concentrated, places, look),
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


def _rings(
    rings: Mapping[str, Floats], sums: EffectSums, grid: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return the border and the halves; rings: shares of the effect (N,) of each."""
    changed, cells = sums.changed.sum(0) / max(sums.rows, 1), rings_of(*grid)
    lines = [
        {
            "name": name,
            "share": _json(estimate(found, sums.rows)),
            "changed": float(changed[cells[name]].sum()),
        }
        for name, found in rings.items()
    ]
    return sorted(lines, key=lambda line: -(line["share"]["value"] or 0.0))


def _fits(sums: Sums, weights: Floats) -> list[Fit]:
    if not sums.attributes or sums.changed is None:
        return []
    ways = list(sums.fits.values())
    if not ways:
        return []
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


def _look(sums: Sums, weights: Floats) -> Estimate:
    """Return the share of the effect that the look has: colour and contrast of the whole."""
    if not sums.look_n:
        return NOTHING
    found = weights @ sums.look
    return estimate(found[:, 0] / np.where(found[:, 1] > 0, found[:, 1], np.nan), sums.look_n)


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
