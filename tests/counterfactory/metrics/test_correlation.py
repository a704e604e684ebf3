"""Correlation difference against NumPy's and SciPy's Pearson, its interval, and one shard against
seven.
"""

import numpy as np
import pytest
from scipy.stats import pearsonr

from counterfactory.metrics import correlation
from counterfactory.metrics.correlation import CorrelationSums, signed_changes
from counterfactory.metrics.means import bootstrap_weights

A, QUERY, R = 6, 2, 300


def weights(rows: int) -> np.ndarray:
    return bootstrap_weights([f"r{i}" for i in range(rows)], R)


def made(rows: int, seed: int) -> np.ndarray:
    """Changes of six attributes, of which the last never changes."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 1))
    values = np.sign(np.round(rng.normal(size=(rows, A)) + shared * np.arange(A) / 3))
    values[:, -1] = 0
    return values


def labels(rows: int) -> np.ndarray:
    rng = np.random.default_rng(9)
    base = rng.random((rows, 1))
    return (rng.random((rows, A)) * 0.7 + base * 0.6 > 0.6).astype(float)


def by_scipy(values: np.ndarray, truth: np.ndarray, *, target: bool) -> float:
    total = 0.0
    for i in range(A):
        if i == QUERY and not target:
            continue
        cf = (
            0.0 if np.ptp(values[:, i]) == 0 else pearsonr(values[:, i], values[:, QUERY]).statistic
        )
        total += abs(cf - pearsonr(truth[:, i], truth[:, QUERY]).statistic)
    return total


def sums_of(values: np.ndarray) -> CorrelationSums:
    return correlation.update(values, QUERY, weights(len(values)))


def data_of(truth: np.ndarray) -> CorrelationSums:
    return correlation.update(truth, QUERY, np.zeros((len(truth), 0)))


def test_changes_have_a_sign() -> None:
    before, after = np.array([[0.2, 0.9, 0.5, 0.6]]), np.array([[0.7, 0.1, 0.4, 0.9]])
    assert signed_changes(before, after, 0.5).tolist() == [[1.0, -1.0, 0.0, 0.0]]


@pytest.mark.parametrize("target", [True, False])
def test_against_scipy(target: bool) -> None:
    values, truth = made(120, 0), labels(200)
    found = correlation.compute(sums_of(values), data_of(truth), QUERY, target=target)
    assert found.estimate.value == pytest.approx(by_scipy(values, truth, target=target), abs=1e-12)
    assert found.estimate.n == 120
    assert found.changes[QUERY] == pytest.approx(1)
    assert found.changes[-1] == 0  # a constant counts as no correlation


def test_a_replicate_is_the_metric_of_the_rows_drawn() -> None:
    values, truth = made(90, 1), labels(200)
    w = weights(90)
    found = correlation.correlations(sums_of(values), QUERY)
    for r in (0, 7, 150):
        drawn = np.repeat(values, w[:, r].astype(int), axis=0)
        truths = correlation.correlations(data_of(truth), QUERY)[0]
        assert np.abs(found[1 + r] - truths).sum() == pytest.approx(
            by_scipy(drawn, truth, target=True), abs=1e-12
        )
    estimate = correlation.compute(sums_of(values), data_of(truth), QUERY, target=False).estimate
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high  # type: ignore[operator]


def test_a_target_that_never_changes_costs_1_where_it_is_counted() -> None:
    values, truth = made(50, 2), labels(100)
    values[:, QUERY] = 0
    with_target = correlation.compute(
        sums_of(values), data_of(truth), QUERY, target=True
    ).estimate.value
    without = correlation.compute(
        sums_of(values), data_of(truth), QUERY, target=False
    ).estimate.value
    assert with_target == pytest.approx(without + 1)  # type: ignore[operator]


def test_one_shard_is_seven_shards() -> None:
    values, truth, w = made(211, 3), labels(300), weights(211)
    parts = CorrelationSums.zero(A, R)
    for part in np.array_split(np.random.default_rng(4).permutation(211), 7):
        parts += correlation.update(values[part], QUERY, w[part])
    a = correlation.compute(sums_of(values), data_of(truth), QUERY, target=False)
    b = correlation.compute(parts, data_of(truth), QUERY, target=False)
    assert a.estimate == b.estimate  # whole numbers add exactly
    assert (a.changes == b.changes).all()


def test_no_rows_one_row_no_labels() -> None:
    truth = data_of(labels(50))
    none = correlation.compute(sums_of(made(0, 0)), truth, QUERY, target=True).estimate
    assert (none.value, none.n, none.note) == (None, 0, "n = 0")
    one = correlation.compute(sums_of(made(1, 0)), truth, QUERY, target=True).estimate
    assert (one.n, one.low, one.note) == (1, None, "n = 1: no interval")
    assert one.value is not None
    assert np.isfinite(one.value)
    lost = correlation.compute(
        sums_of(made(9, 0)), CorrelationSums.zero(A, 0), QUERY, target=True
    ).estimate
    assert (lost.value, lost.n) == (None, 9)
    with pytest.raises(ValueError, match="expected values"):
        correlation.update(made(3, 0), A, weights(3))
