"""Effect maps: how much each part of a change adds to the classifier's decision, over many rows.

A change x' - x is cut into parts, and switches turn the parts on and off. The log-odds of the
mixtures are regressed on the switches, over all rows together, under the constraint that the parts'
effects sum to the effect of the whole change. The sums of the regression add, so shards are
measured apart.

This is KernelSHAP (Lundberg & Lee 2017) with another weight: every number of parts is as frequent.
The effects are Shapley values where parts act alone or in pairs, and least square values in general
(Ruiz, Valenciano & Zarzuelo 1998). Shapley's weight needs more rows, since its sets are mostly of
one part or of all parts but one. Simulated with 64 parts, of which 1 to 6 decide, and 16 mixtures a
row, the largest share is within this of its Shapley value (root mean square, worst game; the worst
is a sigmoid of the sum of six parts):

    rows                         8    16    64   256
    every number as frequent   .15   .09   .04   .05
    Shapley's weight           .17   .11   .04   .02
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import factorial

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]
GROUPS = 64  # the bootstrap draws groups of rows, so that its size does not grow with the rows
RIDGE = 1.0  # strength of the prior that all parts have one effect, in rows
# A part stands out where its squared distance from the mean is this many times that of all parts.
OUTSTANDING = 2.0
# An effect with less than this share in a tenth of the parts has no place. Simulated with .5 and 64
# parts, the effect of 1 to 6 parts is called placed in 60 to 85 % of trials at 16 rows and in 98 %
# or more from 32 rows on, and never spread. That of 24, 28 or 64 parts is called spread in 87 % or
# more of trials from 16 rows on, and never placed. That of 12 parts is between.
# On classifiers of drawn and real faces (benchmarks/planted.md) .5 called 2 of 16 right classifiers
# spread, since a smile on a photograph is mouth, cheeks and eyes; .45 calls none, and 11 of 16
# causes without a place (tint, blur, brightness, grey).
SPREAD = 0.45
# With the look (benchmarks/planted.md: chosen on one seed; on three others 58 of 60 placed and
# right causes have a place, and 22 of 24 others have none).
HELD, APART = 0.6, 0.1
SPREAD_ROWS = 16  # at 8 rows the effect of 6 parts looks spread in 3 % of trials, of 12 in 53 %


@dataclass(frozen=True)
class EffectSums(Sums):
    """The sums of a regression of F functions on C switches, in GROUPS groups of rows.

    n: (G,) rows. gram: (G,C,C), products of row-centred switches. cross: (G,C,F), their products
    with the outcomes. total: (G,F) effect of the whole change, in log-odds. changed: (G,C) share
    of |x'-x| in each part. places: (G,C,R) share of each part's change that lies in each of R
    regions, 0 where a row's part does not change; R is 0 without regions. The first function is
    the classifier.
    """

    n: Floats
    gram: Floats
    cross: Floats
    total: Floats
    changed: Floats
    places: Floats

    @classmethod
    def zero(cls, parts: int, functions: int, regions: int = 0) -> EffectSums:
        """Return the sums of no rows."""
        shapes = ((), (parts, parts), (parts, functions), (functions,), (parts,), (parts, regions))
        return cls(*(np.zeros((GROUPS, *shape)) for shape in shapes))

    def __add__(self, other: EffectSums) -> EffectSums:
        """Return the sums of both; ValueError where parts, functions or regions differ in number.

        numpy would repeat the sums of one part or one region without an error.
        """
        mine, theirs = ((part.cross.shape[1:], part.places.shape[2]) for part in (self, other))
        if mine != theirs:
            raise ValueError(
                f"expected sums of {mine[0][0]} parts, {mine[0][1]} functions and {mine[1]}"
                f" regions, got {theirs[0][0]}, {theirs[0][1]} and {theirs[1]}"
            )
        return super().__add__(other)

    @property
    def classifier(self) -> EffectSums:
        """Return the sums of the first function alone."""
        return replace(self, cross=self.cross[..., :1], total=self.total[..., :1])

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.n.sum())


def group_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the group (B,) of each row, 0 to GROUPS - 1, by a hash of its id.

    Several answers to one row are in one group, so the bootstrap draws them together.
    """
    digests = (hashlib.sha256(name.encode()).digest() for name in ids)
    return np.array([digest[8] % GROUPS for digest in digests], dtype=np.int64)


def update(
    on: NDArray[np.bool_],
    outcomes: Floats,
    ends: Floats,
    groups: NDArray[np.int64],
    changed: Floats | None = None,
    places: Floats | None = None,
) -> EffectSums:
    """Return the sums of a batch of rows.

    on: (B,M,C) the switches of M mixtures. outcomes: (B,M,F) their log-odds. ends: (B,2,F) the
    log-odds of x and x', which count as two more mixtures. groups: (B,) by `group_of`. changed:
    (B,C). places: (B,C,R). Remove rows with values that are not finite before.
    """
    rows, _, parts = on.shape
    regions = 0 if places is None else places.shape[2]
    switches = np.concatenate(
        [on.astype(np.float64), np.zeros((rows, 1, parts)), np.ones((rows, 1, parts))], 1
    )
    values = np.concatenate([outcomes, ends], 1)  # centred switches need no centred values
    switches -= switches.mean(1, keepdims=True)
    across = switches.transpose(0, 2, 1)
    found = EffectSums.zero(parts, ends.shape[2], regions)
    np.add.at(found.n, groups, 1.0)
    np.add.at(found.gram, groups, across @ switches)
    np.add.at(found.cross, groups, across @ values)
    np.add.at(found.total, groups, ends[:, 1] - ends[:, 0])
    if changed is not None:
        np.add.at(found.changed, groups, changed)
    if places is not None:
        np.add.at(found.places, groups, places)
    return found


def solve(gram: Floats, cross: Floats, total: Floats, penalty: Floats) -> Floats:
    """Return effects (...,C,F) whose sum over the parts is `total` (...,F).

    gram: (...,C,C). cross: (...,C,F). penalty: (...,C,C), of the effects' squares. Least squares
    with a penalty, under the constraint that the effects add up to that of the whole change, as
    Shapley values do (efficiency). Covert & Lee 2021 solve it in the same way, without a penalty.
    """
    both = np.concatenate([cross, np.ones((*cross.shape[:-1], 1))], -1)
    solved = np.linalg.solve(gram + penalty, both)
    free, ones = solved[..., :-1], solved[..., -1:]
    missing = total[..., None, :] - free.sum(-2, keepdims=True)
    return np.asarray(free + ones * missing / ones.sum(-2, keepdims=True))


def replicates(number: int, seed: int = 0) -> Floats:
    """Return the weights (number + 1, G) of a Poisson bootstrap over groups; first the data's, 1.

    They are the same for all sums, so that differences of two figures have an interval too.
    """
    drawn = np.random.default_rng(seed).poisson(1.0, (number, GROUPS)).astype(np.float64)
    return np.concatenate([np.ones((1, GROUPS)), drawn])


def maps(sums: EffectSums, weights: Floats, apart: NDArray[np.bool_] | None = None) -> Floats:
    """Return the mean effects per row (N,C,F), for weights (N,G) of the groups.

    A replicate without rows is NaN. apart: (C,), parts whose mean effect is not drawn towards that
    of the others, so that their sum has no bias.

    Few rows cannot tell parts apart: the penalty draws effects towards their mean. A second fit
    penalises the parts that stood out in the first fit less (weights by a first fit as in an
    adaptive ridge; Grandvalet 1998).
    """
    n = weights @ sums.n
    there = n > 0
    parts, functions = sums.cross.shape[1:]
    result = np.full((len(weights), parts, functions), np.nan)
    if not there.any():
        return result
    gram, cross, total = (
        np.tensordot(weights[there], part, 1) / n[there].reshape(-1, *[1] * (part.ndim - 1))
        for part in (sums.gram, sums.cross, sums.total)
    )
    ridge = RIDGE * np.trace(gram, axis1=1, axis2=2) / parts / n[there] + 1e-9
    # The constraint holds the mean of all effects, so one penalty draws each towards that mean.
    same = np.eye(parts)
    for group in () if apart is None else (apart, ~apart):
        same = same - np.outer(group, group) / max(group.sum(), 1)
    first = solve(gram, cross, total, ridge[:, None, None] * same)
    if apart is not None:
        result[there] = first
        return result
    away = (first - first.mean(1, keepdims=True)) ** 2
    usual = away.mean(1, keepdims=True) + 1e-12
    outstanding = np.maximum(away - OUTSTANDING * usual, 0)
    drawn = ridge[:, None, None] * usual / (usual + outstanding)
    for at in range(functions):
        mine = slice(at, at + 1)
        penalty = drawn[..., mine] * np.eye(parts)
        result[there, :, mine] = solve(gram, cross[..., mine], total[..., mine], penalty)
    return result


def shares(effects: Floats) -> Floats:
    """Return the effects (...,C) of one function as shares of their sum; they sum to 1.

    NaN where the sum is not positive: the change then has no effect that could be divided.
    """
    total = effects.sum(-1, keepdims=True)
    return np.where(total > 1e-6, effects / np.where(total > 1e-6, total, 1.0), np.nan)


def concentration(sums: EffectSums, weights: Floats) -> Floats:
    """Return the share (N,) of the classifier's effect in the tenth of the parts with most of it.

    The parts are chosen on one half of the rows and measured on the other, both ways. Parts that
    are chosen and measured on the same rows would look concentrated by chance. weights: (N,G), the
    first one the data. The choice is the data's in every replicate, since a replicate has fewer
    rows to choose by. NaN where a half has no rows; all replicates but the data are NaN where a
    half has fewer than three groups of rows, whose interval would be too narrow.
    """
    filled = np.flatnonzero(sums.n)
    half = np.zeros(GROUPS, dtype=np.bool_)
    half[filled[::2]] = True
    parts = sums.gram.shape[1]
    top = max(1, round(parts / 10))
    found = np.zeros(len(weights))
    for chosen, measured in ((half, ~half), (~half, half)):
        effects = maps(sums.classifier, weights[:1] * chosen)[0, :, 0]
        best = np.zeros(parts, dtype=np.bool_)
        best[np.argsort(-effects, kind="stable")[:top]] = True
        found += shares(maps(sums.classifier, weights * measured, best)[..., 0])[:, best].sum(1) / 2
    if len(filled) < 6:
        found[1:] = np.nan
    return found


def is_spread(
    found: Estimate, places: Sequence[Estimate] = (), look: Estimate = NOTHING
) -> bool | None:
    """Return whether an effect has no place, from its concentration; None where that is open.

    places: the effect's shares of places that are larger than a few parts and smaller than half the
    image, such as the border or a named region. An effect of which one of them clearly has HELD has
    a place. look: the share of the effect that the image's colour and contrast have. With it, an
    effect has a place where a tenth of the parts holds more of it than the look does, by APART.
    Without it, where the concentration's interval is above SPREAD, and none where it is below.
    Fewer than SPREAD_ROWS rows do not choose all parts of a place: they do not say spread.
    """
    enough = min(found.n, look.n or found.n) >= SPREAD_ROWS
    if any(place.low is not None and place.low > HELD for place in places):
        return False
    if found.low is None or found.high is None or found.value is None:
        return None
    if look.value is not None:
        return False if found.value - look.value > APART else True if enough else None
    if found.high < SPREAD:
        return True if enough else None
    return False if found.low > SPREAD else None


def similarity(directions: Sequence[EffectSums], weights: Floats) -> Floats:
    """Return the cosine (N,F-1) of each further function's map to the first function's.

    The maps of all directions are compared together, each by its number of rows. A function may
    rise or fall with the first one, so every direction's product counts without its sign: the range
    is 0 to 1. NaN where one of the maps is 0.
    """
    product: Floats | float = 0.0
    first: Floats | float = 0.0
    other: Floats | float = 0.0
    for sums in directions:
        n = (weights @ sums.n)[:, None]
        found = np.nan_to_num(maps(sums, weights))
        mine, others = found[..., :1], found[..., 1:]
        product = product + n * np.abs((mine * others).sum(1))
        first = first + n * (mine**2).sum(1)
        other = other + n * (others**2).sum(1)
    size = np.sqrt(first * other)
    return np.asarray(np.where(size > 0, product / np.where(size > 0, size, 1.0), np.nan))


def region_shares(sums: EffectSums, weights: Floats) -> Floats:
    """Return the share (N,R) of the classifier's effect in each of regions that cover everything.

    The shares sum to 1. A part that covers several regions counts for each by the share of its
    change there, over the rows in which the part changes; a part that changes in no row counts for
    none. NaN where there is no effect to divide.
    """
    inside = np.tensordot(weights, sums.places, 1)
    size = inside.sum(2, keepdims=True)
    inside = inside / np.where(size > 0, size, 1.0)
    return shares(np.einsum("nc,ncr->nr", maps(sums.classifier, weights)[..., 0], inside))


def estimate(values: Floats, n: int) -> Estimate:
    """Return the first of values (N,) as the figure and the others' percentiles as its interval.

    n: rows. The figure is missing where the first value is NaN. One row, or rows of one group, have
    no interval.
    """
    if n == 0:
        return NOTHING
    value = float(values[0])
    if not np.isfinite(value):
        return Estimate(None, None, None, n, "cannot be computed from these rows")
    if n == 1:
        return Estimate(value, None, None, n, "n = 1: no interval")
    drawn = values[1:][np.isfinite(values[1:])]
    # Replicates of one group of rows differ by rounding alone.
    if not len(drawn) or np.ptp(drawn) < 1e-12 * abs(value):
        return Estimate(value, None, None, n, "no interval")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def shapley(worths: Floats) -> Floats:
    """Return each part's exact Shapley value (B,P).

    worths: (B,2^P), the value of every set of the parts; the bits of its index are the set, the
    first part the lowest bit. The values of a row sum to the worth of all parts less that of none
    (Shapley 1953).
    """
    sets = worths.shape[-1]
    parts = sets.bit_length() - 1
    found = np.zeros((*worths.shape[:-1], parts))
    for part in range(parts):
        for bits in (bits for bits in range(sets) if not bits >> part & 1):
            size = bits.bit_count()
            weight = factorial(size) * factorial(parts - size - 1) / factorial(parts)
            found[..., part] += weight * (worths[..., bits | 1 << part] - worths[..., bits])
    return found
