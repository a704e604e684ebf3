"""The report's gallery: original, counterfactual and change side by side.

Each row has a card with every run's answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.report.attribution import importance_chips
from pipelines.report.cells import Grid, overlay_cells
from pipelines.report.data import Pick, RunData, balanced
from pipelines.report.figures import probability
from pipelines.report.pictures import Pixels, amplified, change, data_uri, full_scale, overlay
from pipelines.report.rows import answers_to, fetch
from storage.codec import decode, sides

PAGE_BYTES = 3_200_000  # bytes of all pictures, before base64 makes them a third longer
MOST_CHIPS = 6
SCORED = ("attributes_before", "attributes_after", "second_agrees")
PROVEN = ("core", "core_cells", "core_p_target", "own_map", "second_full", "second_core")


class Shown(NamedTuple):
    """A picked row of one run with its pictures."""

    run: RunData
    pick: Pick
    before: Pixels
    after: Pixels
    stored: tuple[bytes, bytes]
    changed: NDArray[np.float32]
    scored: Mapping[str, Any] | None
    importance: Sequence[float] | None
    proven: Mapping[str, Any] | None  # columns PROVEN; None where interventions did not reach it


def choose(runs: Sequence[RunData], wanted: int) -> list[list[tuple[RunData, Pick]]]:
    """Return rows for the gallery, balanced over directions, with flipped rows first.

    Where there are several runs, returns rows that all of them have. Deterministic: within a
    direction the rows with the lowest hash of their id come first.
    """
    if len(runs) == 1:
        return [[(runs[0], pick)] for pick in _of_one(runs[0], wanted)]
    by_id = [{pick.row["id"]: pick for pick in reversed(_all(run))} for run in runs]
    common = set(by_id[0]).intersection(*by_id[1:])
    groups: dict[tuple[bool, tuple[int, int]], list[Pick]] = {}
    for pick in sorted((by_id[0][name] for name in common), key=lambda pick: pick.rank):
        flipped = all(picks[pick.row["id"]].row["flipped"] for picks in by_id)
        groups.setdefault((not flipped, pick.direction), []).append(pick)
    flipped_first = [
        [groups[key] for key in sorted(groups) if key[0] is missed] for missed in (False, True)
    ]
    chosen = balanced(flipped_first[0], wanted)
    chosen += balanced(flipped_first[1], wanted - len(chosen))
    if chosen or not wanted:
        return [
            [(run, picks[pick.row["id"]]) for run, picks in zip(runs, by_id, strict=True)]
            for pick in chosen
        ]
    return [[(run, pick)] for run in runs for pick in _of_one(run, max(wanted // len(runs), 1))]


def with_answers(
    cards: Sequence[Sequence[tuple[RunData, Pick]]],
) -> list[list[tuple[RunData, Pick]]]:
    """Return the cards, with one pick per run, extended by all answers of the run to that row."""
    found = {
        id(run): answers_to(run, [pick for card in cards for other, pick in card if other is run])
        for run in {id(run): run for card in cards for run, _ in card}.values()
        if run.each > 1
    }
    return [
        [
            (run, answer)
            for run, pick in card
            for answer in found.get(id(run), {}).get(pick.row["id"], [pick])
        ]
        for card in cards
    ]


def pictures(cards: Sequence[Sequence[tuple[RunData, Pick]]]) -> list[list[Shown]]:
    """Read images and scores of the chosen rows."""
    found: dict[tuple[int, str], Shown] = {}
    for run in {id(run): run for card in cards for run, _ in card}.values():
        picks = [pick for card in cards for other, pick in card if other is run]
        images = fetch(run, picks, ("original", "counterfactual"))
        scores = fetch(run, picks, SCORED, stage=str(run.table["stage"])) if run.table else {}
        moved = (
            fetch(run, picks, ("importance",), stage=str(run.attribution["stage"]))
            if run.attribution
            else {}
        )
        proven = (
            fetch(run, picks, PROVEN, stage=str(run.interventions["stage"]))
            if run.interventions
            else {}
        )
        for pick in picks:
            key = pick.row["cf_id"]
            pair = (images[key]["original"]["bytes"], images[key]["counterfactual"]["bytes"])
            size = run.config["data"]["size"]
            most = 16 * math.prod(sides(size))
            before, after = (decode(data, size=size, crop=None, max_pixels=most) for data in pair)
            told = scores.get(key), moved.get(key, {}).get("importance"), proven.get(key)
            found[id(run), key] = Shown(
                run, pick, before, after, pair, change(before, after), *told
            )
    return [[found[id(run), pick.row["cf_id"]] for run, pick in card] for card in cards]


def gallery(
    runs: Sequence[RunData], wanted: int, failures: int, share: float, others: int
) -> dict[str, Any]:
    """Return everything that is shown of single rows.

    These are the gallery's cards, each run's cards of rows that did not flip, and the scale.
    share: the share of a cell that is drawn in full colour. others: pictures elsewhere on the page.
    """
    proven = any(run.interventions for run in runs)
    most = max((run.each for run in runs), default=1)
    # else the page would grow with the answers
    rows = wanted if most == 1 else min(wanted, 2 * wanted // most + 1)
    chosen = pictures(with_answers(choose(runs, rows)))
    failed = [
        pictures(
            [[(run, pick)] for pick in balanced(list(run.tally.failed_groups().values()), failures)]
        )
        for run in runs
    ]
    everything = [*chosen, *(card for cards in failed for card in cards)]
    scale = full_scale([shown.changed for card in everything for shown in card])
    each = 4 if proven else 3
    budget = PAGE_BYTES // max(others + sum(1 + each * len(card) for card in everything), 1)
    return {
        "cards": [_card(card, scale, budget, share if proven else None) for card in chosen],
        "failed": [[_card(card, scale, budget, None) for card in cards] for cards in failed],
        "proven": proven,
        "answers": max((len(card) for card in chosen), default=1),
        "each": most,
        "scale": f"{scale:.2g}",
        "times": f"{1 / scale:.2g}",
    }


def _card(card: Sequence[Shown], scale: float, budget: int, share: float | None) -> dict[str, Any]:
    """Return a row with its answers; share: None where their cores are not shown."""
    first = card[0]
    row = first.pick.row
    return {
        "id": row["id"],
        "label": None if row["label"] is None else first.run.class_name(row["label"]),
        "original": data_uri(first.before, budget, first.stored[0]),
        "alt": f"original, classified as {first.run.class_name(row['source'])}",
        "direction": (
            f"{first.run.class_name(row['source'])} → {first.run.class_name(row['target'])}"
        ),
        "answers": [_answer(shown, scale, budget, share) for shown in card],
        "proven": share is not None,
    }


def _answer(shown: Shown, scale: float, budget: int, share: float | None) -> dict[str, Any]:
    row, run = shown.pick.row, shown.run
    which = f"counterfactual {row['k']}" if run.each > 1 else "counterfactual"
    chips = _chips(shown)
    scored = shown.scored or {}
    return {
        "run": run.name,
        "k": row["k"] if run.each > 1 else None,
        "source": run.class_name(row["source"]),
        "target": run.class_name(row["target"]),
        "p_before": probability(row["p_target_before"]),
        "p_after": probability(row["p_target_after"]),
        "steps": row["steps"],
        "flipped": row["flipped"],
        "reason": row["reason"],
        "chips": chips[:MOST_CHIPS],
        "more": max(len(chips) - MOST_CHIPS, 0),
        "moved": importance_chips(run, shown.importance),
        "oracle": scored.get("attributes_after") is not None,
        "second": None if scored.get("second_agrees") is None else bool(scored["second_agrees"]),
        "counterfactual": data_uri(shown.after, budget, shown.stored[1]),
        "heat": data_uri(overlay(shown.before, shown.changed, scale), budget),
        "difference": (
            data_uri(amplified(shown.before, shown.after, scale), budget) if share is None else None
        ),
        **({} if share is None else _proof(shown, share, budget)),
        "alt": f"{which} by {run.name}, classified as {run.class_name(row['predicted'])}",
    }


def _proof(shown: Shown, share: float, budget: int) -> dict[str, Any]:
    """Return an answer's core and where its change counts; None for each that it does not have."""
    row, table = shown.proven or {}, shown.run.interventions
    found: dict[str, Any] = {"core": None, "where": None, "kept": None}
    if table is None or not shown.pick.row["flipped"]:
        return found
    grid = Grid(*table["grid"], *table["size"])
    if row.get("core") and row["core"]["bytes"]:
        stored = row["core"]["bytes"]
        size = (grid.width, grid.height)
        core = decode(stored, size=size, crop=None, max_pixels=16 * math.prod(size))
        kept = f"{len(row['core_cells'])} of {grid.columns * grid.rows} cells"
        found |= {
            "core": data_uri(core, budget, stored),
            "core_alt": f"core of the counterfactual, {kept}",
            "kept": kept,
            "core_p": probability(row["core_p_target"]),
            "doubted": bool(row["second_full"]) and row["second_core"] is False,
        }
    effect = sum(row.get("own_map") or ())
    if effect > 0:
        shares = [part / effect for part in row["own_map"]]
        drawn = overlay_cells(shown.before, shares, (grid.columns, grid.rows), share)
        found |= {
            "where": data_uri(drawn, budget),
            "where_alt": f"where the change counts: {grid.peak(shares, 'effect')}",
        }
    return found


def _chips(shown: Shown) -> list[dict[str, Any]]:
    """Return the attributes that changed according to the oracle, the causal one first."""
    attributes = shown.run.table.get("attributes") if shown.run.table else None
    if (
        not attributes
        or not shown.scored
        or shown.scored["attributes_before"] is None
        or shown.scored["attributes_after"] is None
    ):
        return []
    return attribute_chips(
        shown.scored["attributes_before"],
        shown.scored["attributes_after"],
        attributes["names"],
        attributes["causal"],
        shown.run.config["score"]["threshold"],
    )


def attribute_chips(
    before: Sequence[float],
    after: Sequence[float],
    names: Sequence[str],
    causal: Sequence[str],
    threshold: float,
) -> list[dict[str, Any]]:
    """Return the attributes that are on another side of the threshold after than before, the
    causal ones first.
    """
    had, has = (np.asarray(values) > threshold for values in (before, after))
    chips = [
        {"name": name.replace("_", " "), "gained": bool(now), "causal": name in causal}
        for name, then, now in zip(names, had, has, strict=True)
        if then != now
    ]
    return sorted(chips, key=lambda chip: not chip["causal"])


def _of_one(run: RunData, wanted: int) -> list[Pick]:
    chosen = balanced(run.tally.flipped_groups(), wanted)
    there = {pick.row["id"] for pick in chosen}  # a row with several answers may be in both
    failed = [
        [pick for pick in group if pick.row["id"] not in there]
        for group in run.tally.failed_groups().values()
    ]
    return chosen + balanced(failed, wanted - len(chosen))


def _all(run: RunData) -> list[Pick]:
    groups = [*run.tally.flipped_groups(), *run.tally.failed_groups().values()]
    picks = (pick for group in groups for pick in group)
    return sorted(picks, key=lambda pick: (not pick.row["flipped"], pick.k, pick.rank))
