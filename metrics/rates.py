"""Shares of rows, and Wilson's interval for them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from metrics.estimate import NOTHING, Estimate

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class RateSums:
    """Rows measured and rows that hit; sums of two batches are the sums of both."""

    n: int = 0
    hits: int = 0

    def __add__(self, other: RateSums) -> RateSums:
        return RateSums(self.n + other.n, self.hits + other.hits)


def update(values: NDArray[np.float64]) -> RateSums:
    """Count a batch; values: (B,) of 0, 1, or NaN where a row was not measured."""
    seen = values[~np.isnan(values)]
    return RateSums(len(seen), int(seen.sum()))


def compute(sums: RateSums) -> Estimate:
    """The share with its 95 % Wilson interval."""
    if sums.n == 0:
        return NOTHING
    low, high = wilson(sums.hits, sums.n)
    return Estimate(sums.hits / sums.n, low, high, sums.n)


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share within [0,1]; n >= 1 (Wilson 1927, without continuity correction)."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n hits the formula gives 0 and 1 but for rounding.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high
