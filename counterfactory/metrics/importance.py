"""Global importances: the mean change of each descriptor by the counterfactuals, with its
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics import means
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.means import MeanSums
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImportanceSums(Sums):
    """Number of rows n and their totals (D,); for each replicate the rows' weight (R,) and weighted
    totals (D,R).
    """

    n: int
    total: Floats
    weight: Floats
    weighted: Floats

    @classmethod
    def zero(cls, descriptors: int, replicates: int) -> ImportanceSums:
        return cls(
            0, np.zeros(descriptors), np.zeros(replicates), np.zeros((descriptors, replicates))
        )


def update(importances: Floats, weights: Floats) -> ImportanceSums:
    """Return the sums of a batch (B,D) without NaN; weights: (B,R) by `means.bootstrap_weights`.

    Remove rows with NaN before.
    """
    return ImportanceSums(
        len(importances), importances.sum(0), weights.sum(0), importances.T @ weights
    )


def compute(sums: ImportanceSums) -> list[Estimate]:
    """Return each descriptor's mean with its 95 % percentile interval (Goldwasser & Hooker 2025:
    global importances).
    """
    columns = zip(sums.total, sums.weighted, strict=True)
    return [
        means.compute(MeanSums(sums.n, float(total), sums.weight, drawn))
        for total, drawn in columns
    ]


def ranked(found: Sequence[Estimate]) -> list[int]:
    """Return the descriptors' indices by the size of their mean change, largest first."""
    return sorted(range(len(found)), key=lambda d: -abs(found[d].value or 0.0))


def clear(found: Sequence[Estimate]) -> bool | None:
    """Return whether the largest mean change is clearly larger than the second: the intervals of
    their sizes do not overlap.

    Returns None where there is no second descriptor, or no interval.
    """
    order = ranked(found)[:2]
    spans = [_sizes(found[d]) for d in order]
    if len(spans) < 2 or spans[0] is None or spans[1] is None:
        return None
    return spans[0][0] > spans[1][1]


def _sizes(found: Estimate) -> tuple[float, float] | None:
    """Return the interval of a mean's absolute value; None where the mean has none."""
    if found.low is None or found.high is None:
        return None
    near, far = sorted((abs(found.low), abs(found.high)))
    return (0.0 if found.low <= 0 <= found.high else near), far
