"""Agreement of a judge's repeated answers, or of several judges: Krippendorff's alpha."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


def krippendorff_alpha(
    ratings: ArrayLike, level: Literal["nominal", "ordinal", "interval"] = "interval"
) -> float | None:
    """Return 1 - observed / expected disagreement of ratings (units, raters), NaN where one is
    missing; None where no unit has two ratings, or all of these are the same value.

    At most 1; 0 for answers that do not depend on the unit. Source: Krippendorff (2011), Computing
    Krippendorff's Alpha-Reliability.

    >>> krippendorff_alpha([[1, 1], [2, 2], [3, 4]])
    0.8780487804878049
    """
    table = np.asarray(ratings, dtype=np.float64)
    table = table[(~np.isnan(table)).sum(1) >= 2]
    values = np.unique(table[~np.isnan(table)])
    if len(values) < 2:
        return None
    counts = (table[:, :, None] == values).sum(1)  # (units, values)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    seen = (pairs / (counts.sum(1) - 1)[:, None, None]).sum(0)
    n = seen.sum(1)
    expected = (np.outer(n, n) - np.diag(n)) / (n.sum() - 1)
    distance = _distances(values, n, level)
    return float(1 - (seen * distance).sum() / (expected * distance).sum())


def _distances(
    values: NDArray[np.float64], n: NDArray[np.float64], level: str
) -> NDArray[np.float64]:
    """Return the squared differences (values, values) of a level; n: pairable ratings of each."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    places = np.cumsum(n) - n / 2 if level == "ordinal" else values
    return np.square(places[:, None] - places[None, :])
