"""Sums over scored shards for figures of many rows at once: fid, sfid, kid and cd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics import correlation, fid, kid
from counterfactory.metrics.buckets import BUCKETS, hashes
from counterfactory.metrics.catalogue import FIGURES
from counterfactory.metrics.correlation import CorrelationSums, Difference, signed_changes
from counterfactory.metrics.estimate import NOTHING, SUBSETS, Estimate, Subset
from counterfactory.metrics.fid import BucketMoments
from counterfactory.metrics.kid import Sample
from counterfactory.metrics.table import masks

Floats = NDArray[np.float64]


@dataclass
class FeatureSums:
    """Features of originals and counterfactuals, by subset.

    The originals of a subset are those of its rows; those of a flipped subset also include rows
    whose answer did not flip. Of wide features only the default subset is summed: a subset of 2,048
    features takes up to 1.3 GB.
    """

    rows: int  # rows of each side that kid stores
    originals: dict[Subset, BucketMoments] = field(default_factory=dict)
    answers: dict[Subset, BucketMoments] = field(default_factory=dict)
    samples: dict[tuple[Subset, str], Sample] = field(default_factory=dict)

    def add(
        self,
        ids: list[str],
        first: NDArray[np.bool_],
        before: Floats,
        after: Floats,
        numbers: Mapping[str, Floats],
    ) -> None:
        """Add a shard. ids (B,); first: whether it is its query's first answer; before, after:
        features (B,D); numbers: with `correct` and `flipped`.
        """
        if not ids:
            return
        keys, chosen = hashes(ids), masks(numbers)
        bucket = (keys % np.uint64(BUCKETS)).astype(np.int64)
        for subset in SUBSETS if before.shape[1] <= fid.WIDE else (FIGURES["fid"].subset,):
            given = chosen["correct" if "correct" in subset else "all"] & first
            for side, rows, features in (("x", given, before), ("y", chosen[subset], after)):
                moments = self.originals if side == "x" else self.answers
                moments.setdefault(subset, BucketMoments(features.shape[1])).put(
                    features[rows], bucket[rows]
                )
                more = kid.update(features[rows], keys[rows], self.rows)
                held = self.samples.get((subset, side))
                self.samples[subset, side] = more if held is None else held + more

    def figure(self, metric: str, subset: Subset) -> Estimate | None:
        """Return one figure; None where the subset was not summed."""
        if not self.originals:
            return NOTHING
        if subset not in self.originals:
            return None
        if metric in ("kid", "kid_apart"):
            sides = self.samples[subset, "x"], self.samples[subset, "y"]
            return kid.compute(*sides, apart=metric == "kid_apart")
        close = fid.fid if metric == "fid" else fid.sfid
        return close(self.originals[subset], self.answers[subset])


@dataclass
class AttributeCorrelations:
    """Correlations with the query attribute: those of changes, by subset, and those of the oracle's
    attributes of originals.
    """

    query: int
    threshold: float
    changes: dict[Subset, CorrelationSums] = field(default_factory=dict)
    seen: CorrelationSums | None = None

    def add(
        self,
        before: Floats,
        after: Floats,
        first: NDArray[np.bool_],
        numbers: Mapping[str, Floats],
        weights: Floats,
    ) -> None:
        """Add a shard. before, after: the oracle's probabilities (B,A); weights: (B,R) of the
        bootstrap.
        """
        if not len(before):
            return
        moved, chosen = signed_changes(before, after, self.threshold), masks(numbers)
        for subset in SUBSETS:
            rows = chosen[subset]
            more = correlation.update(moved[rows], self.query, weights[rows])
            self.changes[subset] = self.changes[subset] + more if subset in self.changes else more
        labels = (before[first] > self.threshold).astype(np.float64)
        more = correlation.update(labels, self.query, np.zeros((len(labels), 0)))
        self.seen = more if self.seen is None else self.seen + more

    def difference(
        self, subset: Subset, labels: CorrelationSums | None, *, target: bool
    ) -> Difference | None:
        """Return the correlation difference of a subset; None where it has no rows.

        labels: sums over the data set's labels; None: use what the oracle sees in originals.
        """
        data = labels if labels is not None else self.seen
        if data is None or subset not in self.changes:
            return None
        return correlation.compute(self.changes[subset], data, self.query, target=target)


def correlation_part(
    found: Difference | None, names: list[str], query: int, labels: str | None
) -> dict[str, Any] | None:
    """Return the correlation difference attribute by attribute, for the table's JSON."""
    if found is None:
        return None
    return {
        "query": names[query],
        "names": names,
        "changes": [float(v) for v in found.changes],
        "data": [float(v) for v in found.data],
        "difference": [
            abs(float(c) - float(d)) for c, d in zip(found.changes, found.data, strict=True)
        ],
        "labels": labels or "the oracle, of the originals",
    }
