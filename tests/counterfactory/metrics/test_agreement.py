"""Krippendorff's alpha: published values, and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from counterfactory.metrics.agreement import krippendorff_alpha

NAN = np.nan
# Krippendorff (2011), section E: four observers, twelve units, missing data
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
# Three coders, fifteen units: the example of Wikipedia's article on the coefficient.
CODERS = np.array(
    [
        [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
        [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
        [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
    ]
).T


@pytest.mark.parametrize(
    ("ratings", "level", "alpha"),
    [
        (PUBLISHED, "nominal", 0.743),
        (PUBLISHED, "ordinal", 0.815),
        (PUBLISHED, "interval", 0.849),
        (CODERS, "nominal", 0.691),
        (CODERS, "interval", 0.811),
    ],
)
def test_published_values(ratings: np.ndarray, level: str, alpha: float) -> None:
    found = krippendorff_alpha(ratings, level)  # type: ignore[arg-type]
    assert found == pytest.approx(alpha, abs=5e-4)


def test_by_hand() -> None:
    # Observed: only 3-4 differs, in 2 of 6 ordered pairs by 1: 1/3. Expected: the squares of all 30
    # ordered pairs of 1 1 2 2 3 4 sum to 2 (6 * 35 - 13^2) = 82, so 82/30. 1 - 10/82 = 36/41.
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 4]]) == pytest.approx(36 / 41)


def test_the_ends() -> None:
    assert krippendorff_alpha([[1, 1], [9, 9]]) == 1
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(1, 11, (4000, 3))) or 1) < 0.03
    below = krippendorff_alpha([[1, 9], [9, 1]])
    assert below is not None
    assert below < 0


@pytest.mark.parametrize("ratings", [[[7, 7], [7, 7]], [[1, NAN], [NAN, 5]], np.zeros((0, 2))])
def test_without_variation_or_pairs_there_is_none(ratings: object) -> None:
    assert krippendorff_alpha(ratings) is None  # type: ignore[arg-type]
