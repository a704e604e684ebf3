"""The expected calibration error against its definition, bin by bin."""

import numpy as np
import pytest

from counterfactory.metrics.calibration import expected_calibration_error


def by_definition(p: np.ndarray, labels: np.ndarray, bins: int) -> float:
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for k in range(bins):
        low, high = k / bins, (k + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (k == bins - 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_it_is_the_mean_gap_of_the_bins() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], size=500)
    labels = rng.integers(0, 3, 500)
    for bins in (1, 10, 15):
        expected = pytest.approx(by_definition(p, labels, bins))
        assert expected_calibration_error(p, labels, bins) == expected


def test_sure_and_right_is_0_and_sure_and_wrong_is_1() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(p, np.array([0, 1])) == 0
    assert expected_calibration_error(p, np.array([1, 0])) == 1
