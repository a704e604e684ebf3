"""Wilson's interval against SciPy's."""

import numpy as np
import pytest
from scipy.stats import binomtest

from counterfactory.metrics import rates


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (1, 7), (93, 100), (499, 1000)]
)
def test_wilson_against_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert rates.wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_rows_that_were_not_measured_do_not_count() -> None:
    estimate = rates.compute(rates.update(np.array([1.0, np.nan, 0.0, 1.0])))
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.n == 3


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    values = np.random.default_rng(0).integers(0, 2, 101).astype(float)
    parts = sum((rates.update(part) for part in np.array_split(values, 7)), rates.RateSums())
    assert parts == rates.update(values)


def test_no_rows_give_none() -> None:
    estimate = rates.compute(rates.RateSums())
    assert (estimate.value, estimate.low, estimate.high, estimate.n, estimate.note) == (
        None,
        None,
        None,
        0,
        "n = 0",
    )
