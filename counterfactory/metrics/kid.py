"""KID: a distance between two sets of features that is unbiased also for few rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.buckets import BUCKETS, jackknife
from counterfactory.metrics.estimate import NOTHING, Estimate

ROWS = 2000  # of each side
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The features (m,D) of at most `rows` of the n rows seen: those with the smallest hashes (m,),
    in the order of the hashes.

    Sums of the kernel over all pairs of rows do not add over shards. Samples by smallest hash do:
    the same rows are stored for every division into shards and every order of them.
    """

    n: int
    rows: int
    hashes: NDArray[np.uint64]
    features: NDArray[np.floating]

    def __add__(self, other: Sample) -> Sample:
        if self.rows != other.rows:
            raise ValueError(f"expected samples of {self.rows} rows, got {other.rows}")
        keys = np.concatenate([self.hashes, other.hashes])
        features = np.concatenate([self.features, other.features]) if self.n and other.n else None
        if features is None:
            features = self.features if self.n else other.features
        return _smallest(self.n + other.n, self.rows, keys, features)


def update(features: NDArray[np.floating], hashes: NDArray[np.uint64], rows: int = ROWS) -> Sample:
    """Return the sample of a batch: features (B,D), hashes (B,) of the rows' ids."""
    if features.ndim != 2 or len(features) != len(hashes):
        raise ValueError(
            f"expected features (B,D) and hashes (B,), got {features.shape} and {hashes.shape}"
        )
    return _smallest(len(hashes), rows, hashes, features)


def _smallest(
    n: int, rows: int, keys: NDArray[np.uint64], features: NDArray[np.floating]
) -> Sample:
    kept = np.argsort(keys, kind="stable")[:rows]
    return Sample(n, rows, keys[kept], features[kept])


def compute(originals: Sample, counterfactuals: Sample, *, apart: bool = False) -> Estimate:
    """Return the unbiased squared MMD with the kernel (x'y/D + 1)^3; it may be negative.

    This is the usual estimator (Binkowski et al., "Demystifying MMD GANs", ICLR 2018), as in
    torchmetrics. apart: exclude a row's own counterfactual from the cross term, and pairs of
    answers to one row from the counterfactuals' term (Gretton et al., "A Kernel Two-Sample Test",
    JMLR 2012, eq. 4). The value is then unbiased for paired rows, but far larger for few rows, and
    others do not report it. The interval is a jackknife: it removes one of 20 buckets of rows at a
    time.
    """
    n = counterfactuals.n
    if n == 0 or originals.n == 0:
        return NOTHING
    sums = _Sums(originals, counterfactuals, apart)
    value = sums.without(None)
    if value is None:
        return Estimate(None, None, None, n, f"n = {min(n, originals.n)}: no pairs")
    most = max(len(originals.hashes), len(counterfactuals.hashes))
    notes = (
        [f"of {most:,} rows of a side, by hash of their ids"] if max(n, originals.n) > most else []
    )
    left = [sums.without(b) for b in sums.used]
    whole = [v for v in left if v is not None]
    if len(left) < 2 or len(whole) < len(left):
        return Estimate(value, None, None, n, "; ".join([*notes, "no interval"]))
    low, high = jackknife(value, whole)
    return Estimate(value, low, high, n, "; ".join(notes))


class _Sums:
    """Kernel sums between the buckets of rows; the distance of any choice of buckets follows from
    them."""

    def __init__(self, originals: Sample, counterfactuals: Sample, apart: bool) -> None:
        x, y = (np.asarray(s.features, dtype=np.float64) for s in (originals, counterfactuals))
        bx, by = (_one_hot(s.hashes) for s in (originals, counterfactuals))
        xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        np.fill_diagonal(xx, 0.0)
        # excluded terms: a row with itself; where apart also pairs, and answers to one row
        own = np.zeros(xy.shape, dtype=np.bool_)
        same = np.eye(len(yy), dtype=np.bool_)
        if apart:
            own |= originals.hashes[:, None] == counterfactuals.hashes[None, :]
            same |= counterfactuals.hashes[:, None] == counterfactuals.hashes[None, :]
        xy[own], yy[same] = 0.0, 0.0
        self.xx, self.yy, self.xy = bx.T @ xx @ bx, by.T @ yy @ by, bx.T @ xy @ by
        self.own = bx.T @ own.astype(np.float64) @ by
        # all answers to a row are in one bucket
        self.same = (by.T @ same.astype(np.float64) @ by).diagonal()
        self.nx, self.ny = bx.sum(0), by.sum(0)
        self.used = np.flatnonzero(self.nx + self.ny).tolist()

    def without(self, bucket: int | None) -> float | None:
        """Return the distance without a bucket's rows; None where too few rows remain."""
        keep = np.arange(BUCKETS) != (-1 if bucket is None else bucket)
        some = np.ix_(keep, keep)
        m, n = self.nx[keep].sum(), self.ny[keep].sum()
        cross, pairs = m * n - self.own[some].sum(), n * n - self.same[keep].sum()
        if m < 2 or pairs < 1 or cross < 1:
            return None
        inside = self.xx[some].sum() / (m * (m - 1)) + self.yy[some].sum() / pairs
        return float(inside - 2 * self.xy[some].sum() / cross)


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _one_hot(hashes: NDArray[np.uint64]) -> Floats:
    return np.eye(BUCKETS)[(hashes % np.uint64(BUCKETS)).astype(np.int64)]
