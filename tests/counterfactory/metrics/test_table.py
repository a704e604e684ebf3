"""The table's sums: subsets by hand, and one shard against seven."""

import math

import numpy as np
import pytest

from counterfactory.metrics import table
from counterfactory.metrics.estimate import SUBSETS, Measure
from counterfactory.metrics.means import bootstrap_weights

MEASURES = (
    Measure("flip_rate", "flipped", "rate", "all", "higher"),
    Measure("l1", "l1", "mean", "all", "lower"),
)


def columns(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {name: rng.integers(0, 2, rows).astype(float) for name in ("correct", "flipped")}
    found["correct"][rng.random(rows) < 0.2] = np.nan
    return {**found, "l1": rng.random(rows)}


def weights(rows: int) -> np.ndarray:
    return bootstrap_weights([str(i) for i in range(rows)], 300)


def test_subsets_by_hand() -> None:
    c = columns(60)
    sums = table.update(MEASURES, c, weights(60))
    for subset, keep in {
        "all": [True] * 60,
        "correct": [v == 1 for v in c["correct"]],
        "flipped": [v == 1 for v in c["flipped"]],
        "correct & flipped": [
            a == 1 and b == 1 for a, b in zip(c["correct"], c["flipped"], strict=True)
        ],
    }.items():
        kept = [float(v) for v, k in zip(c["l1"], keep, strict=True) if k]
        found = table.compute(sums, MEASURES[1], subset)  # type: ignore[arg-type]
        assert found.n == len(kept)
        assert found.value == pytest.approx(math.fsum(kept) / len(kept))
        assert found.low < found.value < found.high  # type: ignore[operator]


def test_one_shard_is_seven_shards() -> None:
    c, w = columns(211), weights(211)
    whole = table.update(MEASURES, c, w)
    parts = table.zero(MEASURES, 300)
    for part in np.array_split(np.random.default_rng(1).permutation(211), 7):
        parts = table.add(
            parts, table.update(MEASURES, {k: v[part] for k, v in c.items()}, w[part])
        )
    for measure in MEASURES:
        for subset in SUBSETS:
            a, b = table.compute(whole, measure, subset), table.compute(parts, measure, subset)
            assert (a.n, a.note) == (b.n, b.note)
            assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-12)


def test_no_rows_and_one_row() -> None:
    none = table.add(
        table.zero(MEASURES, 300),
        table.update(MEASURES, {k: v[:0] for k, v in columns(3).items()}, weights(3)[:0]),
    )
    assert all(table.compute(none, m, s).note == "n = 0" for m in MEASURES for s in SUBSETS)
    one = {"correct": np.array([np.nan]), "flipped": np.array([1.0]), "l1": np.array([0.5])}
    sums = table.update(MEASURES, one, weights(1))
    assert [table.compute(sums, MEASURES[1], s).n for s in SUBSETS] == [1, 0, 1, 0]
    values = [table.compute(sums, m, s) for m in MEASURES for s in SUBSETS]
    assert not any(
        isinstance(v, float) and math.isnan(v) for e in values for v in (e.value, e.low, e.high)
    )


def test_tables_of_other_measures_do_not_add() -> None:
    with pytest.raises(ValueError, match="expected sums of one table"):
        table.add(table.zero(MEASURES, 3), table.zero(MEASURES[:1], 3))
