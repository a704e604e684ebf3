"""FID and split FID: how far counterfactuals as a set are from originals as a set."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.buckets import BUCKETS, halves, jackknife
from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.moments import Moments, frechet, union, update

ENOUGH = 2048  # rows: below, FID says more about n than about the images
WIDE = 512  # features: beyond, 20 more eigendecompositions for an interval take minutes
# splits: one of 96 rows deviates by 4 to 5, so the mean of 60 is right to .6
REPEATS, WIDE_REPEATS, SEED = 60, 10, 0
WAIT = 256  # rows of a bucket that are summed at once
Floats = NDArray[np.float64]


@dataclass
class BucketMoments:
    """Moments of a set's features in 20 buckets by a hash of the rows' ids; only buckets with rows
    take memory.

    A bucket's few rows of a shard wait until their outer products are worth a pass over a matrix.
    """

    width: int
    settled: dict[int, Moments] = field(default_factory=dict)
    waiting: dict[int, list[Floats]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[int, Moments]:
        """Moments by bucket."""
        for bucket in list(self.waiting):
            self._settle(bucket)
        return self.settled

    def __add__(self, other: BucketMoments) -> BucketMoments:
        if self.width != other.width:
            raise ValueError(f"expected features of {self.width}, got {other.width}")
        found = dict(self.parts)
        for bucket, part in other.parts.items():
            found[bucket] = found[bucket] + part if bucket in found else part
        return BucketMoments(self.width, found)

    def put(self, features: NDArray[np.floating], bucket: NDArray[np.int64]) -> None:
        """Add a batch in place: features (B,D), bucket (B,) by `buckets`."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"expected features (B,{self.width}), got {features.shape}")
        for b in np.unique(bucket).tolist():
            rows = self.waiting.setdefault(b, [])
            rows.append(np.asarray(features[bucket == b], dtype=np.float64))
            if sum(map(len, rows)) >= WAIT:
                self._settle(b)

    def _settle(self, bucket: int) -> None:
        more = update(np.concatenate(self.waiting.pop(bucket)))
        self.settled[bucket] = self.settled[bucket] + more if bucket in self.settled else more

    def of(self, chosen: list[int] | range) -> Moments:
        """Moments of the rows in some buckets."""
        parts = self.parts
        return union((parts[b] for b in chosen if b in parts), self.width)


def fid(originals: BucketMoments, counterfactuals: BucketMoments) -> Estimate:
    """FID of two sets of features, n counts the counterfactuals; the interval leaves out a bucket
    at a time.

    Below 2,048 rows on a side a note warns: FID's bias falls with n, so sets of different sizes do
    not compare.
    """
    a, b = originals.of(range(BUCKETS)), counterfactuals.of(range(BUCKETS))
    value = frechet(a, b)
    if b.n == 0 or a.n == 0:
        return NOTHING
    if value is None:
        return Estimate(None, None, None, b.n, f"n = {min(a.n, b.n)}: no covariance")
    notes = [f"n < {ENOUGH:,}: too few rows for FID, compare KID"] if min(a.n, b.n) < ENOUGH else []
    used = sorted(set(originals.parts) | set(counterfactuals.parts))
    empty = Moments.zero(originals.width)
    if originals.width > WIDE or len(used) < 2:
        return Estimate(value, None, None, b.n, "; ".join([*notes, "no interval"]))
    left = [
        frechet(a - originals.parts.get(k, empty), b - counterfactuals.parts.get(k, empty))
        for k in used
    ]
    whole = [v for v in left if v is not None]
    if len(whole) < len(used):
        return Estimate(value, None, None, b.n, "; ".join([*notes, "no interval"]))
    low, high = jackknife(value, whole)
    return Estimate(value, max(0.0, low), high, b.n, "; ".join(notes))


def sfid(
    originals: BucketMoments,
    counterfactuals: BucketMoments,
    repeats: int | None = None,
    seed: int = SEED,
) -> Estimate:
    """Split FID: a half of the originals against the other half's counterfactuals, both pairings,
    mean over seeded splits, so that no counterfactual is compared with a set that holds its own
    original (ACE, CVPR 2023).

    repeats: splits; None: 60, and 10 of features so wide that 60 take minutes. The note has the
    standard error of the mean over splits, which is of the choice of splits alone.
    """
    a, b = originals.of(range(BUCKETS)), counterfactuals.of(range(BUCKETS))
    if b.n == 0 or a.n == 0:
        return NOTHING
    if repeats is None:
        repeats = WIDE_REPEATS if originals.width > WIDE else REPEATS
    values = []
    for one, _ in halves(repeats, seed):
        mine, yours = originals.of(one), counterfactuals.of(one)
        pair = frechet(mine, b - yours), frechet(a - mine, yours)
        if pair[0] is None or pair[1] is None:
            return Estimate(None, None, None, b.n, f"n = {b.n}: too few rows to split")
        values.append((pair[0] + pair[1]) / 2)
    note = f"mean of {repeats} splits"
    if repeats > 1:
        note += f", standard error {np.std(values, ddof=1) / sqrt(repeats):.2g}"
    few = (
        f"; n < {ENOUGH:,} a half: too few rows for FID, compare KID"
        if min(a.n, b.n) < 2 * ENOUGH
        else ""
    )
    return Estimate(float(np.mean(values)), None, None, b.n, f"{note}, no interval{few}")
