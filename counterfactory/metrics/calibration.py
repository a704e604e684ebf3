"""Expected calibration error: how far a classifier's confidence is from its accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def expected_calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = BINS
) -> float:
    """Return the mean of |accuracy - confidence| over bins of equal width, weighted by their rows.

    probabilities: (N,K); labels: (N,) class indices; N >= 1. The confidence is the largest
    probability of a row. In [0,1], 0 is best (Guo et al. 2017, equation 3).

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))
