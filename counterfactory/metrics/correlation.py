"""Correlation difference: compares how attributes correlate in the changes and in the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CorrelationSums(Sums):
    """Sums over n rows (index 0) and over each of R bootstrap replicates (1 to R): weight (1+R,),
    and sums (1+R,A) of the values, of their squares and of their products with the query
    attribute's value."""

    n: int
    weight: Floats
    total: Floats
    square: Floats
    product: Floats

    @classmethod
    def zero(cls, attributes: int, replicates: int) -> CorrelationSums:
        empty = np.zeros((1 + replicates, attributes))
        return cls(0, np.zeros(1 + replicates), empty, empty, empty)


def update(values: Floats, query: int, weights: Floats) -> CorrelationSums:
    """Return the sums of a batch.

    values: (B,A), the changes (-1, 0, 1) of attributes by `signed_changes`, or labels 0 and 1.
    query: the column of the attribute that the classifier decides on. weights: (B,R) of the
    bootstrap. ValueError where shapes or the column do not fit.
    """
    if values.ndim != 2 or len(values) != len(weights) or not 0 <= query < values.shape[1]:
        raise ValueError(
            f"expected values (B,A), weights (B,R) and a column, got {values.shape},"
            f" {weights.shape} and {query}"
        )
    drawn = np.concatenate([np.ones((len(values), 1)), weights], axis=1).T
    asked = values[:, query : query + 1]
    return CorrelationSums(
        len(values),
        drawn.sum(1),
        drawn @ values,
        drawn @ np.square(values),
        drawn @ (values * asked),
    )


def signed_changes(before: Floats, after: Floats, threshold: float) -> Floats:
    """Return how each attribute crossed the threshold, (B,A): -1 down, 0 not, 1 up.

    before, after: an oracle's probabilities (B,A).
    """
    return (after > threshold).astype(np.float64) - (before > threshold).astype(np.float64)


def correlations(sums: CorrelationSums, query: int) -> Floats:
    """Return Pearson's correlation of each attribute with the query attribute, (1+R,A); 0 where one
    of the two is constant.
    """
    n = np.maximum(sums.weight, 1)[:, None]
    # n^2 times the (co)variances, in whole numbers: exactly 0 for a constant
    variance = n * sums.square - np.square(sums.total)
    covariance = n * sums.product - sums.total * sums.total[:, query : query + 1]
    scale = np.sqrt(np.maximum(variance, 0) * np.maximum(variance[:, query : query + 1], 0))
    found = np.zeros_like(covariance)
    np.divide(covariance, scale, out=found, where=scale > 0)
    return np.clip(found, -1, 1)


class Difference(NamedTuple):
    """Correlation difference over all attributes, and each attribute's correlation with the query
    attribute in the changes and in the data, (A,) each."""

    estimate: Estimate
    changes: Floats
    data: Floats


def compute(
    changes: CorrelationSums, data: CorrelationSums, query: int, *, target: bool
) -> Difference:
    """Return the sum over attributes of |corr_cf - corr_data|, with the percentile interval of
    resampled rows; lower is better.

    data: sums of labels, or of an oracle's predictions of originals. target: whether the query
    attribute's own difference counts, as in public code; it is 0, or 1 where the attribute never
    changes. Jeanneret et al., "Diffusion Models for Counterfactual Explanations", ACCV 2022.
    """
    truth = correlations(data, query)[0]
    found = correlations(changes, query)
    kept = np.ones(len(truth), np.bool_)
    kept[query] = target
    values = np.abs(found - truth)[:, kept].sum(1)
    if changes.n == 0:
        return Difference(NOTHING, found[0], truth)
    if data.n == 0:
        return Difference(
            Estimate(None, None, None, changes.n, "no row to learn the data's from"),
            found[0],
            truth,
        )
    value = float(values[0])
    drawn = values[1:][changes.weight[1:] > 0]
    if changes.n == 1 or not len(drawn):
        return Difference(
            Estimate(value, None, None, changes.n, f"n = {changes.n}: no interval"), found[0], truth
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(
        Estimate(value, min(float(low), value), max(float(high), value), changes.n), found[0], truth
    )
