"""Mean and covariance of features as sums that add, and the Frechet distance of two of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterfactory.metrics.pairs import Pairs, finite_pairs
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments(Sums):
    """Number of rows (n), sum of their features (D,) and of the outer products (D,D), float64."""

    n: int
    total: Floats
    outer: Floats

    @classmethod
    def zero(cls, width: int) -> Moments:
        return cls(0, np.zeros(width), np.zeros((width, width)))

    def __sub__(self, other: Moments) -> Moments:
        """Return the moments without the rows of `other`, which must be among these rows."""
        return Moments(self.n - other.n, self.total - other.total, self.outer - other.outer)


def update(features: NDArray[np.floating]) -> Moments:
    """Return the sums of a batch of features (B,D), in float64."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"expected features (B,D), got {x.shape}")
    return Moments(len(x), x.sum(0), x.T @ x)


def union(parts: Iterable[Moments], width: int) -> Moments:
    """Return the sum of all parts."""
    return reduce(Moments.__add__, parts, Moments.zero(width))


def mean_and_covariance(sums: Moments) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the unbiased covariance (D,D); n >= 2."""
    mean = sums.total / sums.n
    return mean, (sums.outer - sums.n * np.outer(mean, mean)) / (sums.n - 1)


def frechet(a: Moments, b: Moments) -> float | None:
    """Return the Frechet distance of the normal distributions with these moments; None where a side
    has fewer than two rows.

    It is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2). The trace of the root is computed as that of
    (C1^1/2 C2 C1^1/2)^1/2, a symmetric matrix. So there are no complex numbers, and the covariance
    of fewer rows than features needs no added diagonal. Heusel et al., "GANs Trained by a Two
    Time-Scale Update Rule", NeurIPS 2017.
    """
    if min(a.n, b.n) < 2:
        return None
    (mean_a, cov_a), (mean_b, cov_b) = mean_and_covariance(a), mean_and_covariance(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = root @ cov_b @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
    found = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    return max(0.0, float(found))  # rounding can make that of equal moments negative


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """Return the columns features_before and features_after of a batch, (B,D)."""
    see = pairs.networks["fid"]
    before, after = finite_pairs(see(pairs.original).cpu(), see(pairs.counterfactual).cpu())
    return {"features_before": before, "features_after": after}
