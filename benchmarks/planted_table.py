"""The table of the planted causes, from the results of all cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Case = dict[str, Any]
READ = 0.5  # a cue that changes fewer of the decisions when it is exchanged alone was not learnt
CELLS = 64
BORDER = 0.6  # share of the effect in the ring of border cells, from which the border is a place
MARGIN = 0.1  # between the share in a tenth of the cells and the look's


def table(cases: Sequence[Case]) -> str:
    """Return the table as Markdown."""
    return "\n".join(_lines(cases)) + "\n"


def top(values: Sequence[float]) -> int:
    """Return the cell with the largest share."""
    return int(np.argmax(values))


def place_of(case: Case) -> list[int]:
    """Return the cells that the classifier of a case should be explained by: those of the cue that
    it reads, else the mouth's.
    """
    return case["mouth"] if case["kind"] == "right" else sorted(set().union(*case["places"]))


def hit(case: Case, method: str) -> bool:
    """Return whether a method's first cell lies in the true place."""
    values = case["maps"][method]
    return bool(np.isfinite(values).all()) and top(values) in place_of(case)


def share(case: Case, method: str) -> float:
    """Return a map's share in the true place."""
    return float(np.asarray(case["maps"][method])[place_of(case)].sum())


def inner(case: Case, method: str) -> float:
    """Return the share of a map's first cells that lie in the true place: as many as the place
    has, at most a tenth of the grid.
    """
    count = min(len(place_of(case)), CELLS // 10)
    order = np.argsort(-np.asarray(case["maps"][method]))[:count]
    return float(np.isin(order, place_of(case)).mean())


def named_by_rate(case: Case) -> bool:
    """Return whether the attribute that changed most often, by an oracle that knows all cues, is
    the one that the classifier reads.
    """
    return _first(case, 0) in names_of(case)


def named_by_map(case: Case) -> bool:
    """Return whether the attribute whose effect map is the classifier's is the one it reads."""
    return _first(case, 1) in names_of(case)


def names_of(case: Case) -> list[str]:
    """Return the oracle's names of what a classifier reads."""
    return ["Smiling"] if case["kind"] == "right" else case["names"]


def _first(case: Case, column: int) -> str:
    found: dict[str, list[float]] = case["attributes"]
    return max(found, key=lambda name: found[name][column])


def _lines(cases: Sequence[Case]) -> Iterator[str]:
    learnt = [c for c in cases if c["kind"] == "right" or c["truth"]["cue"] >= READ]
    placed = [c for c in learnt if c["kind"] == "placed"]
    right = [c for c in learnt if c["kind"] == "right"]
    methods = [name for name in cases[0]["maps"]] if cases else []
    yield from _counts(cases, learnt)
    for world in sorted({c["world"] for c in cases}):
        mine = [c for c in placed if c["world"] == world]
        yield from ["", f"## {world} faces: the first cell lies in the planted place", ""]
        yield from _table(mine, methods, hit)
        yield from ["", f"## {world} faces: share of the map in the planted place, mean", ""]
        yield from _table(mine, methods, share, mean=True)
    if placed:
        yield from ["", "## All placed causes", ""]
        yield from _summary(placed, right, methods)
        yield from _two([c for c in placed if len(c["places"]) > 1])
    yield from ["", "## Place or appearance", ""]
    yield from _spread(learnt)
    yield from ["", "## Every case", ""]
    yield from _every(cases)


def _counts(cases: Sequence[Case], learnt: Sequence[Case]) -> Iterator[str]:
    kinds = ("placed", "appearance", "right")
    told = ", ".join(f"{sum(c['kind'] == k for c in learnt)} {k}" for k in kinds)
    rows = [c["n"] for c in learnt]
    yield f"{len(cases)} cases, of which the classifier reads the cue or is right in {len(learnt)}:"
    yield f"{told}. Flipped rows: {min(rows, default=0)} to {max(rows, default=0)}."
    for case in cases:
        if case not in learnt:
            yield (
                f"- not learnt: {label(case)}: the cue alone changes"
                f" {100 * case['truth']['cue']:.0f} % of the decisions"
            )


def label(case: Case) -> str:
    """Return a case's name in the table."""
    return f"{case['world']}, {case['cause']}, seed {case['seed']}"


def _table(
    cases: Sequence[Case],
    methods: Sequence[str],
    figure: Callable[[Case, str], float],
    *,
    mean: bool = False,
) -> Iterator[str]:
    yield f"| cause | cells | {' | '.join(methods)} |"
    yield "|---" * (len(methods) + 2) + "|"
    for cause in dict.fromkeys(c["cause"] for c in cases):
        mine = [c for c in cases if c["cause"] == cause]
        cells = np.mean([len(place_of(c)) for c in mine])
        told = []
        for method in methods:
            values = [float(figure(c, method)) for c in mine]
            told.append(
                f"{100 * np.nanmean(values):.0f} %" if mean else f"{sum(values):.0f}/{len(mine)}"
            )
        yield f"| {cause} | {cells:.0f} | {' | '.join(told)} |"


def _summary(
    placed: Sequence[Case], right: Sequence[Case], methods: Sequence[str]
) -> Iterator[str]:
    yield (
        "| method | first cell in the place | half of the map in the place | first cells in the"
        " place | share in the place | right classifiers: first cell outside the mouth |"
    )
    yield "|---|---|---|---|---|---|"
    for method in methods:
        hits = sum(hit(c, method) for c in placed)
        halves = sum(share(c, method) > 0.5 for c in placed)
        false = sum(not hit(c, method) for c in right)
        shares, inners = (np.nanmean([f(c, method) for c in placed]) for f in (share, inner))
        yield (
            f"| {method} | {hits}/{len(placed)} ({100 * hits / max(len(placed), 1):.0f} %)"
            f" | {halves}/{len(placed)} | {100 * inners:.0f} % | {100 * shares:.0f} % |"
            f" {false}/{len(right)} |"
        )
    chance = np.mean([len(place_of(c)) for c in placed]) / CELLS
    far = 1 - np.mean([len(place_of(c)) for c in right]) / CELLS if right else 0.0
    percent = f"{100 * chance:.0f} %"
    yield f"| chance | {percent} | | {percent} | {percent} | {100 * far:.0f} % |"
    known = [c for c in placed if "attributes" in c]
    if known:
        yield ""
        for told, figure in (
            ("changed most often", named_by_rate),
            ("whose effect map is most similar to the classifier's", named_by_map),
        ):
            good = sum(figure(c) for c in known)
            false = sum(not figure(c) for c in right)
            yield (
                f"- by an oracle that was trained to know every cue, the attribute {told}: names"
                f" the cue in {good} of {len(known)}, is not the smile in {false} of"
                f" {len(right)} right classifiers"
            )


def _two(cases: Sequence[Case]) -> Iterator[str]:
    """Yield how the map is divided between two cues, and what each alone flips."""
    if cases:
        yield from ["", "| two cues | share of each in the map | flips by each alone |"]
        yield "|---|---|---|"
    for case in cases:
        effect = np.asarray(case["maps"]["effect"])
        divided = " and ".join(f"{100 * effect[place].sum():.0f} %" for place in case["places"])
        alone = " and ".join(f"{100 * value:.0f} %" for value in case["reads_each"])
        yield f"| {label(case)} | {divided} | {alone} |"


def by_place(case: Case) -> bool | None:
    """Return the library's verdict from places alone: True where the cause has a place."""
    return None if case["spread"] is None else not case["spread"]


def by_look(case: Case) -> bool | None:
    """Return whether a cause has a place, by the look of the picture too.

    It has one where the border holds most of the effect, or where a tenth of the cells holds more
    of it than the look does, by a margin that was chosen on seed 0.
    """
    if (case["border"][1] or 0.0) > BORDER:
        return True
    return bool(case["concentration"][0] - case["look"] > MARGIN)


def _spread(cases: Sequence[Case]) -> Iterator[str]:
    kinds = ("right", "placed", "appearance")
    yield "| rule | seeds | true kind | said: a place | said: spread | open |"
    yield "|---|---|---|---|---|---|"
    for rule, said in (("places alone", by_place), ("places and look", by_look)):
        for seeds, chosen in (("0, which thresholds were chosen on", True), ("others", False)):
            for kind in kinds:
                mine = [c for c in cases if c["kind"] == kind and (c["seed"] == 0) is chosen]
                found = [said(c) for c in mine]
                counts = (sum(f is value for f in found) for value in (True, False, None))
                if mine:
                    told = " | ".join(str(n) for n in counts)
                    yield f"| {rule} | {seeds} | {kind} | {told} |"
    yield from ["", "| cause | n | concentration | border | look | colour | coarse | fine |"]
    yield "|---|---|---|---|---|---|---|---|"
    for kind in kinds:
        for cause in dict.fromkeys(c["cause"] for c in cases if c["kind"] == kind):
            mine = [c for c in cases if c["cause"] == cause and c["kind"] == kind]
            spans = (
                [c["concentration"][0] for c in mine],
                [c["border"][0] for c in mine],
                [c["look"] for c in mine],
                *([c["kinds"][place] for c in mine] for place in range(3)),
            )
            told = " | ".join(f"{min(span):.2f} to {max(span):.2f}" for span in spans)
            yield f"| {cause} | {len(mine)} | {told} |"


def _every(cases: Sequence[Case]) -> Iterator[str]:
    yield (
        "| world | cause | seed | n | accuracy | the cue alone flips | conflict rows follow it |"
        " first cell (row, column), share | in the place | concentration | most changed attribute |"
    )
    yield "|---" * 11 + "|"
    for c in cases:
        best = top(c["maps"]["effect"])
        there = "" if c["kind"] == "appearance" else "yes" if hit(c, "effect") else "**no**"
        truth = c["truth"]
        rates = c.get("attributes")
        first = f"{_first(c, 0)} {rates[_first(c, 0)][0]:.2f}" if rates else ""
        yield (
            f"| {c['world']} | {c['cause']} | {c['seed']} | {c['n']} | {truth['accuracy']:.2f} |"
            f" {truth['cue']:.2f} | {truth['conflict']:.2f} |"
            f" {best // 8}, {best % 8}: {c['maps']['effect'][best]:.2f} | {there} |"
            f" {c['concentration'][0]:.2f} | {first} |"
        )
