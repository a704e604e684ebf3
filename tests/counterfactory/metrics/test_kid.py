"""KID against torchmetrics and the definition; what its sample keeps; that pairs do not draw it
down.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import t
from torchmetrics.image.kid import poly_mmd

from counterfactory.metrics import buckets, kid

D = 8


def features(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, D)) + shift


def sample(values: np.ndarray, prefix: str = "row", rows: int = kid.ROWS) -> kid.Sample:
    return kid.update(values, buckets.hashes([f"{prefix}-{i}" for i in range(len(values))]), rows)


def definition(a: np.ndarray, b: np.ndarray, own: set[tuple[int, int]]) -> float:
    """Term by term."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / D + 1) ** 3)

    xx = [k(x, y) for x, y in itertools.permutations(a, 2)]
    yy = [k(x, y) for x, y in itertools.permutations(b, 2)]
    xy = [k(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if (i, j) not in own]
    return float(np.mean(xx) + np.mean(yy) - 2 * np.mean(xy))


@pytest.mark.parametrize(("other", "apart"), [("row", False), ("other", False), ("other", True)])
def test_kid_is_the_usual_estimator(other: str, apart: bool) -> None:
    """Apart too where the sets share no rows."""
    a, b = features(60, 0), features(60, 1, 0.3)
    got = kid.compute(sample(a), sample(b, other), apart=apart)
    assert got.value == pytest.approx(float(poly_mmd(torch.tensor(a), torch.tensor(b))), rel=1e-9)
    assert got.value == pytest.approx(definition(a, b, set()), rel=1e-9)
    assert got.n == 60
    uneven = kid.compute(sample(a), sample(b[:40], other), apart=apart)
    assert uneven.value == pytest.approx(definition(a, b[:40], set()), rel=1e-9)


def test_apart_leaves_out_a_rows_own_counterfactual() -> None:
    a, b = features(30, 2), features(30, 2) + 0.2 * features(30, 3)
    got = kid.compute(sample(a), sample(b[:20]), apart=True)
    assert got.value == pytest.approx(definition(a, b[:20], {(i, i) for i in range(20)}), rel=1e-9)
    assert kid.compute(sample(a), sample(a.copy()), apart=True).value == pytest.approx(0, abs=1e-9)
    # paired sets of one distribution: 0 on the mean, where the usual estimator would be drawn down
    rng = np.random.default_rng(5)
    ours, usual = [], []
    for _ in range(200):
        x = rng.normal(size=(25, D))
        y = 0.9 * x + np.sqrt(1 - 0.81) * rng.normal(size=(25, D))
        ours.append(kid.compute(sample(x), sample(y), apart=True).value)
        usual.append(float(poly_mmd(torch.tensor(x), torch.tensor(y))))
    error = np.std(ours) / np.sqrt(200)  # type: ignore[arg-type]
    assert abs(np.mean(ours)) < 4 * error  # type: ignore[arg-type]
    assert np.mean(usual) < -4 * error


def test_one_shard_is_seven_shards_and_the_sample_is_the_smallest_hashes() -> None:
    a, b = features(300, 6), features(300, 7, 0.2)
    names = [f"row-{i}" for i in range(300)]
    keys = buckets.hashes(names)
    whole = kid.update(a, keys, 100), kid.update(b, keys, 100)
    chosen = np.argsort(keys)[:100]
    assert (whole[0].features == a[chosen]).all()
    parts = [kid.update(a[:0], keys[:0], 100), kid.update(b[:0], keys[:0], 100)]
    for rows in np.array_split(np.random.default_rng(1).permutation(300), 7):
        parts[0] += kid.update(a[rows], keys[rows], 100)
        parts[1] += kid.update(b[rows], keys[rows], 100)
    assert kid.compute(*parts) == kid.compute(*whole)
    got = kid.compute(*whole)
    assert (got.n, got.note) == (300, "of 100 rows of a side, by hash of their ids")
    assert got.value == pytest.approx(definition(a[chosen], b[chosen], set()), rel=1e-9)


def test_the_interval_leaves_out_each_bucket_once() -> None:
    a, b = features(80, 8), features(80, 9, 0.2)
    names = [f"row-{i}" for i in range(80)]
    of = buckets.buckets(names)
    got = kid.compute(sample(a), sample(b))
    left = []
    for k in np.unique(of):
        keep = np.flatnonzero(of != k)
        left.append(definition(a[keep], b[keep], set()))
    g = len(left)
    half = t.ppf(0.975, g - 1) * np.sqrt(
        (g - 1) / g * np.square(np.array(left) - np.mean(left)).sum()
    )
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), rel=1e-4)  # type: ignore[operator]


def test_no_rows_and_one_row() -> None:
    some = sample(features(20, 0))
    none = kid.compute(some, sample(features(0, 0)))
    assert (none.value, none.n, none.note) == (None, 0, "n = 0")
    one = kid.compute(some, sample(features(1, 0)))
    assert (one.value, one.n, one.note) == (None, 1, "n = 1: no pairs")
    with pytest.raises(ValueError, match="expected samples of 2000 rows, got 5"):
        _ = some + sample(features(3, 0), rows=5)
