"""FID and split FID: distances between the set of originals and the set of counterfactuals."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.buckets import BUCKETS, halves, jackknife
from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.moments import Moments, frechet, union, update

ENOUGH = 2048  # rows: below, FID depends more on n than on the images
WIDE = 512  # features: above, the 20 more eigendecompositions for an interval take minutes
# splits: one split of 96 rows deviates by 4 to 5, so the mean of 60 is accurate to .6
REPEATS, WIDE_REPEATS, SEED = 60, 10, 0
WAIT = 256  # rows of a bucket that are summed at once
Floats = NDArray[np.float64]


@dataclass
class BucketMoments:
    """Moments of a set's features in 20 buckets by a hash of the rows' ids.

    Only buckets with rows take memory. A bucket collects 256 rows before their outer products are
    added to its matrix, because a pass over the matrix is slow.
    """

    width: int
    settled: dict[int, Moments] = field(default_factory=dict)
    waiting: dict[int, list[Floats]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[int, Moments]:
        """Return the moments by bucket, the waiting rows included."""
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
        """Add a batch in place: features (B,D), bucket (B,) by `buckets`. ValueError where D is
        not the width."""
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
        """Return the moments of the rows in the chosen buckets."""
        parts = self.parts
        return union((parts[b] for b in chosen if b in parts), self.width)


def fid(originals: BucketMoments, counterfactuals: BucketMoments) -> Estimate:
    """Return FID of two sets of features; n counts the counterfactuals.

    The interval is a jackknife over buckets: it removes one bucket at a time. Where a side has
    fewer than 2,048 rows a note warns of it: FID's bias falls with n, so the FIDs of sets of
    different sizes are not comparable.
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
    """Return split FID: the mean FID between one half of the originals and the counterfactuals of
    the other half, over both pairings and over seeded splits (ACE, CVPR 2023).

    No counterfactual is compared with a set that has its own original. repeats: number of splits;
    None: 60, or 10 where the features are so wide that 60 take minutes. The note has the standard
    error of the mean over splits. It covers the choice of splits only.
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
