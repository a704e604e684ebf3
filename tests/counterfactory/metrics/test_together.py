"""Attributes that go together: phi of tables whose value is known, and what is reported."""

from __future__ import annotations

import numpy as np
import pytest

from counterfactory.metrics.together import (
    Pair,
    class_columns,
    describe,
    find_pairs,
    phi,
    update,
)


def table(both: int, first: int, second: int, neither: int) -> np.ndarray:
    """Rows (B,2) with these counts of (1,1), (1,0), (0,1) and (0,0)."""
    cells = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], np.float64)
    return np.repeat(cells, [both, first, second, neither], axis=0)


def test_phi_of_a_known_table() -> None:
    # (30 * 50 - 10 * 10) / sqrt(40 * 60 * 40 * 60)
    assert phi(update(table(30, 10, 10, 50)))[0, 1] == pytest.approx(1400 / 2400)
    assert phi(update(table(0, 20, 20, 0)))[0, 1] == -1


@pytest.mark.parametrize(
    ("counts", "value"),
    [((90, 10, 10, 90), 0.8), ((10, 90, 90, 10), -0.8), ((179, 21, 21, 179), 0)],
)
def test_a_pair_is_reported_from_point_eight(counts: tuple[int, ...], value: float) -> None:
    sums = update(table(*counts))
    found = find_pairs(sums, ["Old", "Grey"])
    if not value:
        assert phi(sums)[0, 1] == pytest.approx(0.79)
        assert found == []
        return
    (pair,) = found
    assert (pair.a, pair.b, pair.n, pair.of_class) == ("Old", "Grey", 200, False)
    assert pair.phi == pytest.approx(value)
    assert pair.low < pair.phi < pair.high
    assert pair.high - pair.low < 0.15


def test_a_perfect_pair_has_an_interval_and_few_rows_make_no_pair() -> None:
    (pair,) = find_pairs(update(table(8, 0, 0, 8)), ["a", "b"])
    assert (pair.phi, pair.high) == (1, 1)
    assert 0.6 < pair.low < 0.8
    assert find_pairs(update(table(7, 0, 0, 90)), ["a", "b"]) == []


def test_constant_and_unknown_columns_divide_by_nothing() -> None:
    rows = np.stack([np.ones(40), np.arange(40) % 2.0, np.full(40, np.nan)], 1)
    with np.errstate(all="raise"):
        assert np.isfinite(phi(update(rows))).all()
        assert find_pairs(update(rows), ["one", "both", "unknown"]) == []
        assert find_pairs(update(rows[:0]), ["one", "both", "unknown"]) == []


def test_batches_add_and_a_missing_cell_leaves_only_its_pairs_out() -> None:
    rows = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(np.float64)
    rows[:, 1] = rows[:, 0]
    rows[:9, 1] = np.nan
    whole, parts = update(rows), update(rows[:13]) + update(rows[13:])
    assert np.array_equal(whole.both, parts.both)
    assert np.array_equal(whole.ones, parts.ones)
    known = rows[9:]
    assert phi(whole)[0, 1] == pytest.approx(1)
    assert phi(whole)[1, 2] == pytest.approx(np.corrcoef(known[:, 1], known[:, 2])[0, 1])
    assert phi(whole)[0, 2] == pytest.approx(np.corrcoef(rows[:, 0], rows[:, 2])[0, 1])
    assert [(p.a, p.b, p.n) for p in find_pairs(whole, ["x", "y", "z"])] == [("x", "y", 51)]


def test_the_class_pairs_with_what_does_not_define_it() -> None:
    labels = np.arange(60) % 3.0
    names, columns = class_columns(labels, ["cat", "dog", "eel"])
    assert names == ["cat", "dog", "eel"]
    fur, whiskers = labels < 2, labels == 0
    sums = update(np.concatenate([columns, np.stack([fur, whiskers, whiskers], 1)], 1))
    found = find_pairs(sums, [*names, "Fur", "Whiskers", "Cat"], 3, ["whiskers"])
    assert [(p.a, p.b, p.phi, p.of_class) for p in found] == [
        ("Whiskers", "Cat", 1, False),
        ("eel", "Fur", -1, True),
    ]
    names, columns = class_columns(np.array([0, 1, np.nan]), ["no", "yes"])
    assert names == ["yes"]
    np.testing.assert_array_equal(columns, [[0], [1], [np.nan]])


def test_what_it_means_is_one_sentence_each() -> None:
    pairs = [Pair("a", b, 0.9, 0.8, 1.0, 50) for b in "bcdef"]
    ((text, advice),) = describe(pairs)
    assert text.startswith("a and b (phi 0.90), a and c (phi 0.90), a and d (phi 0.90) and 2 other")
    assert "may change both" in text
    assert "method.core: true" in advice
    ((text, advice),) = describe([Pair("old", "Grey", -0.9, -1.0, -0.8, 50, True)])
    assert (
        text == "class old and Grey (phi -0.90) go together: the classifier may have learned either"
    )
    assert "interventions" in advice
    assert describe([]) == []
