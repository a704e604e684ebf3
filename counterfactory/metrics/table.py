"""Sums of many measures over the four subsets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics import means, rates
from counterfactory.metrics.estimate import SUBSETS, Estimate, Measure, Subset
from counterfactory.metrics.means import MeanSums
from counterfactory.metrics.rates import RateSums

Floats = NDArray[np.float64]
Sums = dict[tuple[str, Subset], RateSums | MeanSums]


def zero(measures: Sequence[Measure], replicates: int) -> Sums:
    """Return the sums of no rows."""
    return {
        (m.name, subset): RateSums() if m.kind == "rate" else MeanSums.zero(replicates)
        for m in measures
        for subset in SUBSETS
    }


def update(
    measures: Sequence[Measure],
    columns: Mapping[str, Floats],
    weights: Floats,
    rows: NDArray[np.int64] | None = None,
) -> Sums:
    """Return the sums of a batch.

    columns: (B,) each, NaN where not measured. `correct` and `flipped` must be among them, as 0, 1
    or NaN (a row without a label is neither correct nor wrong). weights: (B,R) of the bootstrap.
    rows: (B,) the row that each answer belongs to, where rows have several answers.
    """
    sums: Sums = {}
    for subset, mask in masks(columns).items():
        drawn, mine = weights[mask], None if rows is None else rows[mask]
        for m in measures:
            values = columns[m.column][mask]
            sums[m.name, subset] = (
                rates.update(values, mine) if m.kind == "rate" else means.update(values, drawn)
            )
    return sums


def masks(columns: Mapping[str, Floats]) -> dict[Subset, NDArray[np.bool_]]:
    """Return which rows are in each subset, (B,) bool each, by `correct` and `flipped`."""
    correct, flipped = columns["correct"] == 1, columns["flipped"] == 1
    return {
        "all": np.ones(len(flipped), np.bool_),
        "correct": correct,
        "flipped": flipped,
        "correct & flipped": correct & flipped,
    }


def add(left: Sums, right: Sums) -> Sums:
    """Return the sums of both; ValueError where they are of different measures."""
    if left.keys() != right.keys():
        raise ValueError(f"expected sums of one table, got {sorted(left)} and {sorted(right)}")
    return {key: left[key] + right[key] for key in left}  # type: ignore[operator]


def compute(sums: Sums, measure: Measure, subset: Subset) -> Estimate:
    """Return one figure of the table."""
    found = sums[measure.name, subset]
    return rates.compute(found) if isinstance(found, RateSums) else means.compute(found)
