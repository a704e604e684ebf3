"""Means over rows, with an interval by a Poisson bootstrap whose sums add.

Every row has a Poisson(1) weight in each of R replicates. The weight is a hash of the row's id and
the replicate's number (Chamandy et al., "Estimating uncertainty for massive data streams", 2012).
So a row has the same weight in every shard, several answers to one row are resampled together, and
the replicates of two shards add.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]
# P(Poisson(1) <= k), as thresholds for 64 uniform bits; above k = 18 it is 1 as a double.
POISSON = np.cumsum([exp(-1) / factorial(k) for k in range(19)])
THRESHOLDS = np.array([min(int(p * 2.0**64), 2**64 - 1) for p in POISSON], dtype=np.uint64)
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class MeanSums(Sums):
    """Number of rows n and their total; for each replicate the rows' weight (R,) and weighted
    total (R,)."""

    n: int
    total: float
    weight: Floats
    weighted: Floats

    @classmethod
    def zero(cls, replicates: int) -> MeanSums:
        return cls(0, 0.0, np.zeros(replicates), np.zeros(replicates))


def bootstrap_weights(ids: Sequence[str], replicates: int) -> Floats:
    """Return the Poisson(1) weights (B,R) of rows by their ids."""
    seeds = np.array(
        [int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "little") for i in ids],
        dtype=np.uint64,
    )
    steps = np.array([(GOLDEN * (r + 1)) % 2**64 for r in range(replicates)], dtype=np.uint64)
    bits = seeds[:, None] + steps[None, :]  # splitmix64; replicate r takes its r-th number
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (
        np.searchsorted(THRESHOLDS, bits.ravel(), side="right")
        .reshape(bits.shape)
        .astype(np.float64)
    )


def update(values: Floats, weights: Floats) -> MeanSums:
    """Return the sums of a batch.

    values: (B,), NaN where a row was not measured. weights: (B,R) by `bootstrap_weights`.
    """
    seen = ~np.isnan(values)
    if not seen.all():
        values, weights = values[seen], weights[seen]
    return MeanSums(len(values), float(values.sum()), weights.sum(0), values @ weights)


def compute(sums: MeanSums) -> Estimate:
    """Return the mean with its 95 % percentile interval.

    One row has a mean and no interval, also where it has several answers.
    """
    if sums.n == 0:
        return NOTHING
    value = sums.total / sums.n
    if sums.n == 1:
        return Estimate(value, None, None, 1, "n = 1: no interval")
    drawn = sums.weight > 0
    if not drawn.any():
        return Estimate(value, None, None, sums.n, "no interval")
    if not (sums.weight % sums.n).any():  # each a multiple of n: answers to one row
        return Estimate(value, None, None, sums.n, "one row: no interval")
    low, high = np.quantile(sums.weighted[drawn] / sums.weight[drawn], [0.025, 0.975])
    # Rounding can move the interval of equal values slightly away from their mean.
    return Estimate(value, min(float(low), value), max(float(high), value), sums.n)
