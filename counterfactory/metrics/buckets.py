"""Buckets of rows by a hash of their ids, and a jackknife interval that removes one at a time.

The sums of buckets add. A bootstrap would need every sum once per replicate, which is too much for
moments of 2,048 features. Its repeated rows would also bias distances between distributions
upwards. The jackknife has neither problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

BUCKETS = 20
# the 97.5 % points of Student's t at 1 to 19 degrees of freedom
T95: tuple[float, ...] = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.306, 2.2622, 2.2281),
    *(2.201, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.093),
)


def hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return 64 hash bits of each id, (B,). They are other bits than those of the bootstrap."""
    digests = (hashlib.sha256(name.encode()).digest()[8:16] for name in ids)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def buckets(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the bucket of each id, (B,) in [0,20). It is the same in every shard."""
    return (hashes(ids) % np.uint64(BUCKETS)).astype(np.int64)


def halves(repeats: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return seeded splits of the buckets into two halves of 10."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(BUCKETS) for _ in range(repeats)]
    return [(sorted(p[: BUCKETS // 2].tolist()), sorted(p[BUCKETS // 2 :].tolist())) for p in drawn]


def jackknife(value: float, without: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % jackknife interval around a value (Student's t).

    without: the value without each bucket, one by one; ValueError unless there are 2 to 20.
    """
    left, g = np.asarray(without, dtype=np.float64), len(without)
    if not 2 <= g <= BUCKETS:
        raise ValueError(f"expected values without 2 to {BUCKETS} buckets, got {g}")
    half = T95[g - 2] * sqrt((g - 1) / g * float(np.square(left - left.mean()).sum()))
    return value - half, value + half
