"""Shares of answers, with Wilson's interval.

Several answers to one row are not independent, so the interval is computed for the number of rows.
It is exact where all answers to a row agree, and wider than necessary where they do not: the
variance of a row's mean share p is at most p (1 - p).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.sums import Sums

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class RateSums(Sums):
    """Number of measured answers (n) and of those with the value 1 (hits).

    again: number of the n that are further answers to a row already counted; 0 where each row has
    one answer.
    """

    n: int = 0
    hits: int = 0
    again: int = 0


def update(values: NDArray[np.float64], rows: NDArray[np.int64] | None = None) -> RateSums:
    """Return the counts of a batch.

    values: (B,) of 0, 1, or NaN where an answer was not measured. rows: (B,) the number of the row
    that each answer belongs to, in any numbering; None where each answer has its own row. All
    answers to a row must be in one batch.
    """
    there = ~np.isnan(values)
    n = int(there.sum())
    return RateSums(
        n, int(values[there].sum()), 0 if rows is None else n - len(np.unique(rows[there]))
    )


def compute(sums: RateSums) -> Estimate:
    """Return the share of answers, with the 95 % Wilson interval for the number of rows."""
    if sums.n == 0:
        return NOTHING
    share, rows = sums.hits / sums.n, sums.n - sums.again
    low, high = wilson(share * rows if sums.again else sums.hits, rows)
    return Estimate(share, low, high, sums.n)


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a share, within [0,1]; n >= 1 (Wilson 1927, without
    continuity correction).
    """
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n hits the bounds are exactly 0 and 1; the formula has rounding errors there.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high
