"""Effect maps: how much each part of a change adds to the classifier's decision, over many rows.

A change x' - x is cut into parts, and switches turn the parts on and off. The log-odds of the
mixtures are regressed on the switches, over all rows together. The sums of the regression add, so
shards are measured apart. The parts' effects sum to the effect of the whole change, as Shapley
values do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]
GROUPS = 64  # the bootstrap draws groups of rows, so that its size does not grow with the rows
RIDGE = 1.0  # strength of the prior that all parts have one effect, in rows


@dataclass(frozen=True)
class EffectSums(Sums):
    """The sums of a regression of F functions on C switches, in GROUPS groups of rows.

    n: (G,) rows. gram: (G,C,C), cross: (G,C,F), of row-centred switches and outcomes. total: (G,F)
    effect of the whole change. changed: (G,C) share of |x'-x| in each part. places: (G,C,R) share
    of each part's change that lies in each of R regions; R is 0 without regions.
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

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.n.sum())


def group_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the group (B,) of each row by a hash of its id."""
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
    log-odds of x and x'. groups: (B,) by `group_of`. changed: (B,C). places: (B,C,R). Remove rows
    with values that are not finite before.
    """
    rows, _, parts = on.shape
    regions = 0 if places is None else places.shape[2]
    switches = np.concatenate(
        [on.astype(np.float64), np.zeros((rows, 1, parts)), np.ones((rows, 1, parts))], 1
    )
    values = np.concatenate([outcomes, ends], 1)
    switches -= switches.mean(1, keepdims=True)
    values = values - values.mean(1, keepdims=True)
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


def solve(gram: Floats, cross: Floats, total: Floats, ridge: Floats) -> Floats:
    """Return effects (...,C,F) whose sum over the parts is `total` (...,F).

    gram: (...,C,C). cross: (...,C,F). ridge: (...,C) or (...,1), the penalty of each part. Least
    squares with a penalty, under the constraint that Shapley values satisfy (efficiency).
    """
    parts = gram.shape[-1]
    penalised = gram + np.eye(parts) * ridge[..., None, :]
    both = np.concatenate([cross, np.ones((*cross.shape[:-1], 1))], -1)
    solved = np.linalg.solve(penalised, both)
    free, ones = solved[..., :-1], solved[..., -1:]
    missing = total[..., None, :] - free.sum(-2, keepdims=True)
    return np.asarray(free + ones * missing / ones.sum(-2, keepdims=True))


def replicates(number: int, seed: int = 0) -> Floats:
    """Return the weights (number, G) of a bootstrap over groups; the first replicate is the data.

    The same for all sums, so that differences of two figures have an interval too.
    """
    drawn = np.random.default_rng(seed).poisson(1.0, (number, GROUPS)).astype(np.float64)
    return np.concatenate([np.ones((1, GROUPS)), drawn])


def maps(sums: EffectSums, weights: Floats) -> Floats:
    """Return the mean effects per row (N,C,F), for weights (N,G) of the groups.

    A replicate without rows is NaN.
    """
    n = weights @ sums.n
    there = n > 0
    result = np.full((len(weights), *sums.cross.shape[1:]), np.nan)
    if not there.any():
        return result
    gram, cross, total = (
        np.tensordot(weights[there], part, 1) / n[there].reshape(-1, *[1] * (part.ndim - 1))
        for part in (sums.gram, sums.cross, sums.total)
    )
    size = np.trace(gram, axis1=1, axis2=2) / gram.shape[-1]
    ridge = (RIDGE * size / n[there])[:, None] + 1e-9
    result[there] = solve(gram, cross, total, ridge)
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
    are chosen and measured on the same rows would look concentrated by chance.
    """
    half = np.arange(GROUPS) % 2 == 0
    both = [shares(maps(sums, weights * mine)[..., 0]) for mine in (half, ~half)]
    top = max(1, round(sums.gram.shape[1] / 10))
    found = []
    for chosen, measured in (both, both[::-1]):
        order = np.argsort(-np.nan_to_num(chosen, nan=-np.inf), axis=1)[:, :top]
        found.append(np.take_along_axis(measured, order, 1).sum(1))
    return np.asarray((found[0] + found[1]) / 2)


def similarity(directions: Sequence[EffectSums], weights: Floats) -> Floats:
    """Return the cosine (N,F-1) of each further function's map to the first function's.

    The maps of all directions are compared together. A function may rise or fall with the first
    one, so every direction's product counts without its sign.
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
    """Return the share (N,R) of the classifier's effect in each region.

    A part that covers several regions counts for each by the share of its change there.
    """
    n = (weights @ sums.n)[:, None, None]
    inside = np.tensordot(weights, sums.places, 1) / np.where(n > 0, n, 1.0)
    found = np.einsum("nc,ncr->nr", shares(maps(sums, weights)[..., 0]), inside)
    return np.asarray(found, dtype=np.float64)


def estimate(values: Floats, n: int) -> Estimate:
    """Return the first of values (N,) as the figure and the others' percentiles as its interval."""
    if n == 0 or not np.isfinite(values[0]):
        return NOTHING
    drawn = values[1:][np.isfinite(values[1:])]
    if n == 1 or not len(drawn):
        return Estimate(float(values[0]), None, None, n, "n = 1: no interval")
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(values[0])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def shapley(worths: Floats) -> Floats:
    """Return each part's exact Shapley value (B,P).

    worths: (B,2^P), the value of every set of the parts; the bits of its index are the set, the
    first part the lowest bit.
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
