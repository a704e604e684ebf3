"""The Poisson bootstrap: its weights, its coverage, and that its sums add."""

import numpy as np
import pytest
from scipy.stats import chisquare, poisson

from counterfactory.metrics import means


def ids(n: int, prefix: str = "row") -> list[str]:
    return [f"{prefix}-{i}" for i in range(n)]


def test_weights_are_poisson_1_and_independent() -> None:
    weights = means.bootstrap_weights(ids(2000), 100)
    counts = np.bincount(np.minimum(weights, 5).astype(int).ravel(), minlength=6)
    expected = np.append(poisson.pmf(range(5), 1), poisson.sf(4, 1)) * weights.size
    assert chisquare(counts, expected).pvalue > 1e-3
    axes: list[np.ndarray] = [weights[:, :20], weights[:20].T]
    for axis in axes:
        correlation = np.asarray(np.corrcoef(axis.T))[np.triu_indices(20, 1)]
        assert np.abs(correlation).max() < 5 / np.sqrt(len(axis))


def test_a_weight_depends_on_its_id_and_replicate_only() -> None:
    whole = means.bootstrap_weights(ids(50), 40)
    assert (means.bootstrap_weights(ids(50)[::-1], 40) == whole[::-1]).all()
    assert (means.bootstrap_weights(["row-17"], 25)[0] == whole[17, :25]).all()
    assert (whole[0] != whole[1]).any()


def test_mean_and_interval_do_not_depend_on_shards() -> None:
    values = np.random.default_rng(1).normal(size=301)
    values[::9] = np.nan
    weights = means.bootstrap_weights(ids(301), 400)
    whole = means.compute(means.update(values, weights))
    parts = means.MeanSums.zero(400)
    for part in np.array_split(np.random.default_rng(2).permutation(301), 7):
        parts += means.update(values[part], weights[part])
    split = means.compute(parts)
    assert split.n == whole.n == 267
    assert (split.value, split.low, split.high) == pytest.approx(
        (whole.value, whole.low, whole.high), rel=1e-12
    )
    assert whole.value == pytest.approx(np.nanmean(values))


def test_answers_to_one_row_have_no_interval() -> None:
    weights = means.bootstrap_weights(["row"] * 3, 400)
    several = means.compute(means.update(np.array([0.25, 0.5, 0.75]), weights))
    assert (several.value, several.low, several.high) == (0.5, None, None)
    assert (several.n, several.note) == (3, "one row: no interval")
    two = means.bootstrap_weights(["row", "row", "other"], 400)
    estimate = means.compute(means.update(np.arange(3.0), two))
    assert (estimate.low, estimate.high) == (0.5, 2.0)  # of the one row, and of the other


def test_interval_is_that_of_an_ordinary_bootstrap() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(size=400)
    estimate = means.compute(means.update(values, means.bootstrap_weights(ids(400), 4000)))
    draws = values[rng.integers(0, 400, (4000, 400))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.08 * width)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(300):
        values = rng.normal(2.0, 1.0, 80)
        estimate = means.compute(
            means.update(values, means.bootstrap_weights(ids(80, f"t{trial}"), 200))
        )
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 2.0 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.98


def test_several_answers_to_one_row_are_resampled_together() -> None:
    values = np.random.default_rng(5).normal(size=60)
    once = means.compute(means.update(values, means.bootstrap_weights(ids(60), 400)))
    twice = means.compute(
        means.update(
            np.repeat(values, 2), means.bootstrap_weights(list(np.repeat(ids(60), 2)), 400)
        )
    )
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-12)


def test_empty_and_single_rows() -> None:
    none = means.compute(means.MeanSums.zero(10))
    assert (none.value, none.low, none.high, none.n, none.note) == (None, None, None, 0, "n = 0")
    one = means.compute(means.update(np.array([0.25]), means.bootstrap_weights(["a"], 10)))
    assert (one.value, one.low, one.high, one.n) == (0.25, None, None, 1)
    assert one.note
    same = means.compute(means.update(np.full(9, 0.1), means.bootstrap_weights(ids(9), 50)))
    assert (same.value, same.low, same.high) == pytest.approx((0.1, 0.1, 0.1))
