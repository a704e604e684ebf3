"""FID, split FID and their moments against SciPy's matrix root, torchmetrics and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import t
from torchmetrics.image.fid import FrechetInceptionDistance

from counterfactory.metrics import buckets, moments
from counterfactory.metrics.fid import BucketMoments, fid, sfid
from counterfactory.metrics.moments import frechet

D = 12


def features(rows: int, seed: int, shift: float = 0.0, width: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return rng.normal(size=(rows, width)) @ mix + shift


def ids(rows: int) -> list[str]:
    return [f"row-{i}" for i in range(rows)]


def put(values: np.ndarray, names: list[str]) -> BucketMoments:
    found = BucketMoments(values.shape[1])
    found.put(values, buckets.buckets(names))
    return found


def definition(a: np.ndarray, b: np.ndarray) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(ca @ cb)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * np.real(root)))


def test_against_scipy_and_torchmetrics() -> None:
    a, b = features(300, 0), features(200, 1, 0.4) * 1.2
    got = fid(put(a, ids(300)), put(b, ids(200)))
    assert got.value == pytest.approx(definition(a, b), rel=1e-9)

    class Flat(torch.nn.Module):
        num_features = D

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.double().reshape(len(images), -1)

    theirs = FrechetInceptionDistance(
        feature=Flat(), normalize=False, input_img_size=(1, 1, D)
    ).set_dtype(torch.float64)
    theirs.update(torch.tensor(a).view(300, 1, 1, D), real=True)
    theirs.update(torch.tensor(b).view(200, 1, 1, D), real=False)
    assert got.value == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_closed_form_of_shifted_and_scaled_normals_and_of_few_rows() -> None:
    a = features(400, 2)
    exact = frechet(moments.update(a), moments.update(a * 2 + 3))
    cov = np.cov(a.T)
    assert exact == pytest.approx(
        np.square(a.mean(0) - (a * 2 + 3).mean(0)).sum() + np.trace(cov), rel=1e-9
    )
    assert frechet(moments.update(a), moments.update(a)) == pytest.approx(0, abs=1e-9)
    # fewer rows than features: singular covariances, whose common root's trace is a sum of singular
    # values
    x, y = features(7, 3, width=30), features(5, 4, width=30)
    xc, yc = (x - x.mean(0)) / np.sqrt(6), (y - y.mean(0)) / np.sqrt(4)
    shared = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    expected = (
        np.square(x.mean(0) - y.mean(0)).sum()
        + np.square(xc).sum()
        + np.square(yc).sum()
        - 2 * shared
    )
    assert frechet(moments.update(x), moments.update(y)) == pytest.approx(expected, rel=1e-6)


def test_one_shard_is_seven_shards() -> None:
    a, b, names = features(260, 5), features(260, 6, 0.3), ids(260)
    whole = put(a, names), put(b, names)
    parts = BucketMoments(D), BucketMoments(D)
    for rows in np.array_split(np.random.default_rng(0).permutation(260), 7):
        mine = [names[i] for i in rows]
        parts = parts[0] + put(a[rows], mine), parts[1] + put(b[rows], mine)
    for metric in (fid, sfid):
        one, seven = metric(*whole), metric(*parts)
        assert (one.n, one.note) == (seven.n, seven.note)
        for left, right in ((one.value, seven.value), (one.low, seven.low), (one.high, seven.high)):
            assert left == (None if right is None else pytest.approx(right, rel=1e-9))


def test_split_fid_is_the_mean_over_both_pairings_of_seeded_halves() -> None:
    names = ids(200)
    a, b = features(200, 7), features(200, 8, 0.5)
    of = buckets.buckets(names)
    values = []
    for one, other in buckets.halves(60, 0):
        first, second = np.isin(of, one), np.isin(of, other)
        assert (first ^ second).all()
        values += [definition(a[first], b[second]), definition(a[second], b[first])]
    got = sfid(put(a, names), put(b, names))
    assert got.value == pytest.approx(np.mean(values), rel=1e-9)
    assert (got.n, got.low) == (200, None)
    error = np.std(np.reshape(values, (60, 2)).mean(1), ddof=1) / np.sqrt(60)
    assert got.note.startswith(f"mean of 60 splits, standard error {error:.2g}, no interval")
    assert sfid(put(a, names), put(b, names), 1).note.startswith("mean of 1 splits, no interval")


def test_split_fid_does_not_reward_copies_of_the_originals() -> None:
    a, names = features(150, 9), ids(150)
    assert fid(put(a, names), put(a.copy(), names)).value == pytest.approx(0, abs=1e-9)
    assert sfid(put(a, names), put(a.copy(), names)).value > 1  # type: ignore[operator]


def test_the_interval_leaves_out_each_bucket_once() -> None:
    names = ids(300)
    a, b, of = features(300, 10), features(300, 11, 0.2), buckets.buckets(names)
    got = fid(put(a, names), put(b, names))
    left = np.array([definition(a[of != k], b[of != k]) for k in range(20)])
    half = t.ppf(0.975, 19) * np.sqrt(19 / 20 * np.square(left - left.mean()).sum())
    assert (got.low, got.high) == pytest.approx(
        (max(0, got.value - half), got.value + half), rel=1e-4
    )  # type: ignore[operator]


def test_few_rows_carry_a_warning_and_many_do_not() -> None:
    warned = "n < 2,048: too few rows for FID, compare KID"
    small = put(features(2047, 1, width=2), ids(2047))
    large = put(features(2048, 2, width=2), ids(2048))
    assert warned in fid(small, large).note
    assert warned in fid(large, small).note
    assert fid(large, large).note == ""
    assert "n < 2,048 a half" in sfid(large, large).note
    wide = np.random.default_rng(0).normal(size=(40, 513))
    assert "no interval" in fid(put(wide, ids(40)), put(wide, ids(40))).note


def test_no_rows_and_one_row() -> None:
    some, none, one = put(features(50, 0), ids(50)), BucketMoments(D), put(features(1, 0), ids(1))
    for metric in (fid, sfid):
        assert (metric(some, none).value, metric(some, none).note) == (None, "n = 0")
        assert (metric(some, one).value, metric(some, one).n) == (None, 1)
        assert metric(some, one).note
    with pytest.raises(ValueError, match=r"expected features \(B,12\), got \(3, 4\)"):
        BucketMoments(D).put(np.zeros((3, 4)), np.zeros(3, np.int64))


def test_buckets_are_even_and_t_is_students() -> None:
    counts = np.bincount(buckets.buckets(ids(20_000)), minlength=20)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert [t.ppf(0.975, d) for d in range(1, 20)] == pytest.approx(buckets.T95, abs=1e-4)
    with pytest.raises(ValueError, match="expected values without 2 to 20 buckets, got 1"):
        buckets.jackknife(1.0, [1.0])
