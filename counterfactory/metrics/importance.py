"""Global importances: the mean over rows of how far a counterfactual moved each descriptor, with
its interval.
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
    """n rows and their totals (D,), and in each replicate the rows' weight (R,) and weighted totals
    (D,R).
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
    """Sum a batch (B,D); weights: (B,R) by `means.bootstrap_weights`. Rows with NaN must be left
    out before.
    """
    return ImportanceSums(
        len(importances), importances.sum(0), weights.sum(0), importances.T @ weights
    )


def compute(sums: ImportanceSums) -> list[Estimate]:
    """Each descriptor's mean with its 95 % percentile interval (Goldwasser & Hooker 2025: global
    importances).
    """
    columns = zip(sums.total, sums.weighted, strict=True)
    return [
        means.compute(MeanSums(sums.n, float(total), sums.weight, drawn))
        for total, drawn in columns
    ]


def ranked(found: Sequence[Estimate]) -> list[int]:
    """Places of the descriptors, the farthest moved first, whichever way."""
    return sorted(range(len(found)), key=lambda d: -abs(found[d].value or 0.0))


def clear(found: Sequence[Estimate]) -> bool | None:
    """Whether the first descriptor moved farther than the second for sure: the intervals of their
    sizes do not meet.

    None where there is no second, or no interval.
    """
    order = ranked(found)[:2]
    spans = [_sizes(found[d]) for d in order]
    if len(spans) < 2 or spans[0] is None or spans[1] is None:
        return None
    return spans[0][0] > spans[1][1]


def _sizes(found: Estimate) -> tuple[float, float] | None:
    """The interval of a mean's size."""
    if found.low is None or found.high is None:
        return None
    near, far = sorted((abs(found.low), abs(found.high)))
    return (0.0 if found.low <= 0 <= found.high else near), far
