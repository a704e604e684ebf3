"""Compares what an audit measured with its reference: one test for each figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics import alarms, effects
from pipelines.audit.effects import Effects, kind_shares, place_shares
from pipelines.audit.measure import Answers, Measured

Floats = NDArray[np.float64]
Weighted = tuple[Floats, Floats]  # values and weights, (B,) each
FEWEST = 8  # flips on either side below which nothing is tested
REPLICATES = 200  # of the bootstrap behind an effect's share
SEEDS = (0, 1)  # the replicates of the two audits are not the same draws
POINTS = ("flip_rate", "attribute", "place", "kind")  # figures that are shares


@dataclass(frozen=True)
class Comparison:
    """One comparison of this audit with its reference.

    kind: flip_rate, the share of rows that flipped; attribute, of flips in which it changed; place
    and kind, of the effect; effect, both of them where too few rows flipped; distance, the median
    |x'-x| of the flips of a class and group. n, value: of this audit, and those of the reference.
    p: of the test, adjusted: by Holm over all.
    """

    kind: str
    name: str
    n: int
    reference_n: int
    value: float | None = None
    reference_value: float | None = None
    p: float | None = None
    adjusted: float | None = None
    alarm: bool = False
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Return value - reference_value; None where one is missing."""
        if self.value is None or self.reference_value is None:
            return None
        return self.value - self.reference_value

    def to_json(self) -> dict[str, Any]:
        """Return the test as it is stored in findings.json."""
        return {**asdict(self), "difference": self.difference, "tested": self.p is not None}


def compare(now: Measured, reference: Measured, level: float, least: float) -> list[Comparison]:
    """Return every test, in the order of the kinds.

    level: the chance of one false alarm or more among them. least: how far a share must have moved
    for an alarm, [0,1].
    """
    tests = [
        *_rates(now.answers, reference.answers),
        *_shares(now.effects, reference.effects),
        *_distances(now.answers, reference.answers),
    ]
    found = [at for at, test in enumerate(tests) if test.p is not None]
    adjusted = alarms.holm([tests[at].p or 0.0 for at in found])
    for at, value in zip(found, adjusted, strict=True):
        moved = tests[at].kind not in POINTS or abs(tests[at].difference or 0.0) > least
        tests[at] = replace(tests[at], adjusted=value, alarm=value <= level and moved)
    return tests


def _rates(now: Answers, reference: Answers) -> Iterator[Comparison]:
    """Yield the tests of the flip rate and of the attributes' rates among flips."""
    yield _rate(Comparison("flip_rate", "flip rate", 0, 0), flips_of(now), flips_of(reference), 1)
    for name in now.attributes:
        if name in reference.attributes:
            here, there = changes_of(now, name), changes_of(reference, name)
            yield _rate(Comparison("attribute", name, 0, 0), here, there, FEWEST)


def flips_of(answers: Answers) -> Weighted:
    """Return 1 for each row that flipped and 0 for the others, and the rows' weights."""
    return answers.flipped.astype(np.float64), answers.weights


def changes_of(answers: Answers, name: str) -> Weighted:
    """Return 1 for each flip that changed an attribute and 0 for the others, and the weights."""
    values = answers.changed[:, answers.attributes.index(name)]
    rows = answers.flipped & np.isfinite(values)
    return values[rows], answers.weights[rows]


def _rate(test: Comparison, now: Weighted, reference: Weighted, fewest: int) -> Comparison:
    """Return the test of a rate; weighted rows count as the number that they are worth (Kish)."""
    test = replace(test, n=len(now[0]), reference_n=len(reference[0]))
    if min(test.n, test.reference_n) < fewest:
        return _untested(test, fewest)
    mine, theirs = (float(np.average(values, weights=each)) for values, each in (now, reference))
    worth, other = (round(alarms.effective(weights)) for _, weights in (now, reference))
    p = alarms.fisher_midp(round(mine * worth), worth, round(theirs * other), other)
    return replace(test, value=mine, reference_value=theirs, p=p)


def _shares(now: Effects | None, reference: Effects | None) -> Iterator[Comparison]:
    """Yield the tests of the effect's shares by place and by kind of change."""
    n, other_n = (0 if found is None else found.n for found in (now, reference))
    if now is None or reference is None or min(n, other_n) < FEWEST:
        if n or other_n:
            yield _untested(Comparison("effect", "", n, other_n), FEWEST)
        return
    mine, theirs = (effects.replicates(REPLICATES, seed) for seed in SEEDS)
    freedom = min(int(np.count_nonzero(found.sums.n)) for found in (now, reference)) - 1
    for kind, shares_of in (("place", place_shares), ("kind", kind_shares)):
        here, there = shares_of(now, mine), shares_of(reference, theirs)
        for name in here:
            if name in there:
                test = Comparison(kind, name, n, other_n)
                yield _share(test, here[name], there[name], freedom)


def _share(test: Comparison, now: Floats, reference: Floats, freedom: int) -> Comparison:
    """Return the test of a share; now, reference: (N,), the figure and its replicates."""
    if not np.isfinite(now[0]) or not np.isfinite(reference[0]):
        return replace(test, note="not tested: no effect to divide")
    p = alarms.difference(now, reference, freedom)[2]
    return replace(test, value=float(now[0]), reference_value=float(reference[0]), p=p)


def _distances(now: Answers, reference: Answers) -> Iterator[Comparison]:
    """Yield the tests of the flips' distance for each class and group."""
    here, there = distances_of(now), distances_of(reference)
    for key in sorted({*here, *there}):
        mine, theirs = here.get(key, np.zeros(0)), there.get(key, np.zeros(0))
        test = Comparison("distance", ", ".join(filter(None, key)), len(mine), len(theirs))
        if min(test.n, test.reference_n) < FEWEST:
            yield _untested(test, FEWEST)
            continue
        p = alarms.mann_whitney(mine, theirs)
        middles = float(np.median(mine)), float(np.median(theirs))
        yield replace(test, value=middles[0], reference_value=middles[1], p=p)


def distances_of(answers: Answers) -> dict[tuple[str, str], Floats]:
    """Return the distances of the flips of each class and group."""
    found: dict[tuple[str, str], list[float]] = {}
    for at in np.flatnonzero(answers.flipped & np.isfinite(answers.distance)):
        key = answers.classes[at], answers.groups[at]
        found.setdefault(key, []).append(float(answers.distance[at]))
    return {key: np.array(values) for key, values in found.items()}


def _untested(test: Comparison, fewest: int) -> Comparison:
    what = "rows" if test.kind == "flip_rate" else "flips"
    told = f"{test.n} {what} here and {test.reference_n} in the reference"
    return replace(test, note=f"not tested: {told}, expected {fewest} or more")
