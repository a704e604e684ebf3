"""Global importances: means and intervals that add over shards, and what is first for sure."""

import numpy as np
import pytest

from counterfactory.metrics import importance, means
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.importance import ImportanceSums

IDS = [f"row-{i}" for i in range(90)]
VALUES = np.random.default_rng(0).normal([0.9, -0.3, 0.0], [0.2, 0.5, 0.1], (90, 3))


def test_each_column_is_told_as_a_mean_of_its_own_whatever_the_shards() -> None:
    weights = means.bootstrap_weights(IDS, 200)
    parts = [
        importance.update(VALUES[part], weights[part])
        for part in (slice(0, 7), slice(7, 7), slice(7, 90))
    ]
    found = importance.compute(sum(parts, ImportanceSums.zero(3, 200)))
    for column, told in zip(VALUES.T, found, strict=True):
        alone = means.compute(means.update(column, weights))
        assert (told.value, told.low, told.high, told.n) == pytest.approx(
            (alone.value, alone.low, alone.high, 90)
        )
    assert [told.value for told in found] == pytest.approx(VALUES.mean(0).tolist())


def test_no_row_is_no_number() -> None:
    found = importance.compute(ImportanceSums.zero(2, 20))
    assert [(told.value, told.n) for told in found] == [(None, 0), (None, 0)]
    assert importance.clear(found) is None


def test_what_moved_farthest_is_first_whichever_way_and_clear_only_where_sizes_do_not_meet() -> (
    None
):
    def told(value: float, half: float) -> Estimate:
        return Estimate(value, value - half, value + half, 9)

    found = [told(0.1, 0.3), told(-0.9, 0.1), told(0.5, 0.2)]
    assert importance.ranked(found) == [1, 2, 0]
    assert importance.clear(found) is True
    assert importance.clear([told(-0.9, 0.1), told(0.75, 0.2)]) is False
    assert importance.clear([told(0.9, 0.1), told(-0.2, 0.5)]) is True, "its size reaches 0.7"
    assert importance.clear([told(0.6, 0.1), told(-0.2, 0.5)]) is False
    assert importance.clear(found[:1]) is None
