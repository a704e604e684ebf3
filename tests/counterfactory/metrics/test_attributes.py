"""Attribute changes by hand."""

import numpy as np
import pytest

from counterfactory.metrics.attributes import (
    AttributeSums,
    causal_share,
    changes,
    numbers_changed,
    update,
)

BEFORE = np.array([[0.9, 0.1, 0.2], [0.9, 0.4, 0.2], [0.1, 0.6, 0.9], [0.5, 0.5, 0.5]])
AFTER = np.array([[0.1, 0.9, 0.2], [0.6, 0.45, 0.2], [0.9, 0.6, 0.9], [0.51, 0.5, 0.1]])


def test_share_counts_crossings_of_the_threshold() -> None:
    changed = changes(BEFORE, AFTER, 0.5)
    assert changed.tolist() == [
        [True, True, False],
        [False] * 3,
        [True, False, False],
        [True, False, False],
    ]
    share, right, wrong = causal_share(changed, [0])
    # a row in which nothing changed has no share
    np.testing.assert_array_equal(share, [0.5, np.nan, 1.0, 1.0])
    assert (right.tolist(), wrong.tolist()) == ([1, 0, 1, 1], [1, 0, 0, 0])
    assert causal_share(changed, [0, 1])[0][0] == 1.0
    assert causal_share(changed, [])[0][0] == 0.0


def test_sums_by_hand_and_by_parts() -> None:
    whole = update(BEFORE, AFTER, 0.5)
    assert (whole.n, whole.unchanged, whole.changed.tolist()) == (4, 1, [3, 1, 0])
    assert whole.shift == pytest.approx([-0.8 - 0.3 + 0.8 + 0.01, 0.8 + 0.05, -0.4])
    parts = sum((update(BEFORE[[i]], AFTER[[i]], 0.5) for i in (2, 0, 3, 1)), AttributeSums.zero(3))
    assert (parts.n, parts.unchanged, parts.changed.tolist()) == (4, 1, [3, 1, 0])
    assert parts.shift == pytest.approx(whole.shift)
    assert whole.mirrored().shift == pytest.approx(-whole.shift)


def test_no_rows() -> None:
    none = update(BEFORE[:0], AFTER[:0], 0.5)
    assert (none.n, none.unchanged, none.changed.tolist(), none.shift.tolist()) == (
        0,
        0,
        [0, 0, 0],
        [0, 0, 0],
    )


def test_shapes_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"expected probabilities of one shape \(B,A\), got \(4, 3\) and \(3, 3\)"
    ):
        changes(BEFORE, AFTER[:3], 0.5)


def test_numbers_changed_with_and_without_the_target() -> None:
    changed = np.array([[True, False, True], [False, False, False], [True, True, True]])
    every, others = numbers_changed(changed, 0)
    assert (every.tolist(), others.tolist()) == ([2, 0, 3], [1, 0, 2])
    every, others = numbers_changed(changed, None)
    assert every.tolist() == [2, 0, 3]
    assert np.isnan(others).all()
    assert numbers_changed(changed[:0], 1)[1].shape == (0,)
