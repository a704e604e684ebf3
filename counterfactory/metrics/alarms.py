"""Tests for a scheduled audit: whether the counterfactuals of two samples of rows differ.

Every test is two-sided and returns a p-value. `holm` corrects for several tests at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, erfc, exp, isfinite, lgamma, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NORMAL = NormalDist()
SAME = 1e-9  # tables whose probabilities differ by less than this part count as equally likely
STEP = 0.0005  # of the integral of Student's density, in radians


def fisher_midp(hits: int, n: int, other_hits: int, other_n: int) -> float:
    """Return the two-sided mid-p value of Fisher's exact test of two shares.

    hits of n against other_hits of other_n. Sums the tables that are less likely than this one and
    half of those as likely (Lancaster 1961), which is less conservative than the exact test and
    keeps its level on average. 1 where a sample is empty.
    """
    if not 0 <= hits <= n or not 0 <= other_hits <= other_n:
        raise ValueError(
            f"expected 0 <= hits <= n, got {hits} of {n} and {other_hits} of {other_n}"
        )
    total, found = n + other_n, hits + other_hits
    if not n or not other_n:
        return 1.0
    low, high = max(0, found - other_n), min(n, found)
    of_all = _log_choose(total, found)
    logs = np.array(
        [_log_choose(n, k) + _log_choose(other_n, found - k) - of_all for k in range(low, high + 1)]
    )
    p = np.exp(logs)
    own = p[hits - low]
    less, same = p < own * (1 - SAME), np.abs(p - own) <= own * SAME
    return float(min(1.0, p[less].sum() + p[same].sum() / 2))


def mann_whitney(first: Floats, other: Floats) -> float:
    """Return the two-sided p-value of the Mann-Whitney test of two samples (B,) and (D,).

    The normal approximation with a correction for ties and for continuity (Mann & Whitney 1947).
    From 8 values a side on, it is conservative in the tail: without overlap it gives .0009 where
    the exact value is .00016. 1 where all values are equal or a sample is empty. ValueError where a
    value is not finite.
    """
    both = np.concatenate([first, other]).astype(np.float64)
    if not np.isfinite(both).all():
        raise ValueError("expected finite values, got NaN or infinity")
    n, m = len(first), len(other)
    if not n or not m:
        return 1.0
    _, places, counts = np.unique(both, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places]
    u = ranks[:n].sum() - n * (n + 1) / 2
    size = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (size * (size - 1))
    variance = n * m / 12 * (size + 1 - ties)
    if variance <= 0:
        return 1.0
    z = max(abs(u - n * m / 2) - 0.5, 0.0) / sqrt(variance)
    return min(1.0, erfc(z / sqrt(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together, in the same order (Holm 1979).

    A difference is found at level alpha where its value is at most alpha; the chance of one false
    find or more is then at most alpha, whatever the tests' dependence.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def difference(first: Floats, other: Floats, freedom: float) -> tuple[float, float, float]:
    """Return (difference, standard error, p-value) of two figures with bootstrap replicates.

    first, other: (N,), the figure of the data and then its replicates. freedom: of Student's t: the
    groups of rows that the bootstrap draws from, less one. The replicates of one sample are not the
    other's. NaN replicates are left out. The p-value is 1 where no error can be computed.
    """
    apart = float(first[0] - other[0])
    drawn = [sample[1:][np.isfinite(sample[1:])] for sample in (first, other)]
    if not isfinite(apart) or min(map(len, drawn)) < 2 or freedom < 1:
        return apart, float("nan"), 1.0
    error = sqrt(sum(float(values.var(ddof=1)) for values in drawn))
    if error < 1e-12:
        return apart, error, 1.0
    return apart, error, student(abs(apart) / error, freedom)


def student(t: float, freedom: float) -> float:
    """Return the probability that Student's t is above t or below -t; t >= 0.

    The integral of the density over the angle arctan(t / sqrt(freedom)), by the midpoint rule.
    """
    angle = np.arctan(t / sqrt(freedom))
    width = np.pi / 2 - angle
    steps = max(1, ceil(width / STEP))
    middles = angle + width * (np.arange(steps) + 0.5) / steps
    log_scale = lgamma((freedom + 1) / 2) - lgamma(freedom / 2)
    density = exp(log_scale) / sqrt(np.pi) * np.cos(middles) ** (freedom - 1)
    return float(min(1.0, 2 * density.sum() * width / steps))


def flips_needed(
    before: float, after: float, alpha: float, power: float = 0.9, tests: int = 1
) -> int:
    """Return the flips that each of two samples needs to show that a share moved.

    before, after: the shares. alpha: level of all tests together, of which Holm allots alpha /
    tests to the first. The normal approximation of two proportions with a pooled variance under the
    null hypothesis (Fleiss, Levin & Paik 2003, eq. 4.14). ValueError where the shares are equal.
    """
    if before == after or not 0 <= before <= 1 or not 0 <= after <= 1:
        raise ValueError(f"expected two different shares in [0,1], got {before} and {after}")
    mean = (before + after) / 2
    null = NORMAL.inv_cdf(1 - alpha / tests / 2) * sqrt(2 * mean * (1 - mean))
    other = NORMAL.inv_cdf(power) * sqrt(before * (1 - before) + after * (1 - after))
    return ceil(((null + other) / (after - before)) ** 2)


def alpha_of(per_year: float, audits: int) -> float:
    """Return the level of one audit so that `audits` audits raise a false alarm with the chance
    `per_year` at most (Sidak 1967).
    """
    return float(1 - (1 - per_year) ** (1 / audits))


def effective(weights: Floats) -> float:
    """Return the number of equally weighted rows that weighted rows are worth (Kish 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
