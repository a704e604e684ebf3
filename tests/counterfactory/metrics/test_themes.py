"""Groups of changes whose causes are planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from counterfactory.metrics.themes import (
    LEAST_ROWS,
    LOOKS,
    WEIGHTS,
    Themes,
    describe,
    exemplars,
    find_themes,
)

SIZE, CELL = 32, 4
GRID = (8, 8)


def row(rng: np.random.Generator, cell: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Features of a picture of noise whose cell, and half of the one to its right, turn towards a
    colour.
    """
    before = rng.integers(60, 190, (SIZE, SIZE, 3), dtype=np.uint8)
    top, left = cell // 8 * CELL, cell % 8 * CELL
    here = (slice(top, top + CELL), slice(left, left + CELL + 2))
    after = before.copy()
    after[here] = (before[here] * 0.3 + np.array(colour) * 0.7).astype(np.uint8)
    effect = rng.normal(0, 0.2, 64)
    effect[cell] += 4
    return describe(before, after, effect, GRID)


def hair(rng: np.random.Generator) -> np.ndarray:
    """The top turns yellow."""
    return row(rng, int(rng.integers(10, 12)), (250, 240, 60))


def mouth(rng: np.random.Generator) -> np.ndarray:
    """A cell below the middle turns dark red."""
    return row(rng, int(rng.integers(43, 45)), (90, 0, 0))


def anything(rng: np.random.Generator) -> np.ndarray:
    """Any cell turns to any colour."""
    colour = rng.integers(0, 256, 3)
    return row(rng, int(rng.integers(0, 63)), (int(colour[0]), int(colour[1]), int(colour[2])))


def made(*kinds: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([kind(rng) for kind in kinds])


def found(features: np.ndarray, most: int = 6) -> Themes:
    names = [f"row-{place}" for place in range(len(features))]
    return find_themes(features, names, names, most)


def test_two_planted_causes_are_two_themes_with_their_rows() -> None:
    themes = found(made(*[hair] * 45, *[mouth] * 30))
    assert themes.labels.tolist() == [0] * 45 + [1] * 30
    assert themes.stability.value is not None
    assert themes.stability.value > 0.95
    assert themes.stability.low is None or themes.stability.low > 0.9
    assert themes.separation is not None
    assert themes.separation > 0.5
    assert len(themes.alike) == 2
    assert themes.why == ""


@pytest.mark.parametrize("cause", [hair, mouth])
def test_one_cause_is_one_theme(cause: Any) -> None:
    for seed in range(5):
        themes = found(made(*[cause] * 60, seed=seed))
        assert set(themes.labels.tolist()) == {0}
        assert themes.stability.value is None
        assert themes.separation is None


def test_three_causes_are_three_themes_the_largest_first() -> None:
    def brow(rng: np.random.Generator) -> np.ndarray:
        return row(rng, 26, (30, 30, 200))

    labels = found(made(*[brow] * 15, *[hair] * 40, *[mouth] * 25)).labels.tolist()
    assert labels == [2] * 15 + [0] * 40 + [1] * 25


def test_changes_anywhere_are_no_theme() -> None:
    for seed in range(5):
        themes = found(made(*[anything] * 80, seed=seed))
        assert set(themes.labels.tolist()) == {-1}
        assert themes.alike == []
        assert "do not group" in themes.why


def test_order_of_the_rows_does_not_matter() -> None:
    features = made(*[hair] * 25, *[mouth] * 25, *[anything] * 6)
    names = [f"row-{place}" for place in range(len(features))]
    first = find_themes(features, names, names)
    shuffled = np.random.default_rng(3).permutation(len(features))
    again = find_themes(
        features[shuffled], [names[at] for at in shuffled], [names[at] for at in shuffled]
    )
    assert (again.labels == first.labels[shuffled]).all()
    assert again.stability == first.stability
    assert again.separation == first.separation


def test_few_rows_are_not_grouped() -> None:
    few = found(made(*[hair] * (LEAST_ROWS - 1)))
    assert (few.labels == -1).all()
    assert few.why == f"fewer than {LEAST_ROWS} rows"
    assert found(np.zeros((0, 9 * 64 + 4))).alike == []
    assert (found(made(*[hair] * LEAST_ROWS)).labels == 0).all()


def test_rows_that_are_all_the_same_are_one_theme() -> None:
    assert (found(np.repeat(made(hair), 30, 0)).labels == 0).all()
    assert "do not group" in found(np.zeros((30, 9 * 64 + 4))).why


def test_no_more_groups_than_asked_for() -> None:
    features = made(*[hair] * 30, *[mouth] * 30)
    assert set(found(features, most=1).labels.tolist()) == {0}
    assert found(features, most=2).labels.max() == 1


def test_exemplars_are_near_the_centre_apart_and_of_different_rows() -> None:
    rng = np.random.default_rng(0)
    near = rng.normal(0, 1, (20, 3))
    far = rng.normal(0, 1, (10, 3)) * 30
    features = np.concatenate([near, far])
    keys = [f"{place:02d}" for place in range(30)]
    ids = [str(place // 2) for place in range(30)]  # two answers to each row
    chosen = exemplars(features, keys, ids, 6)
    assert len(set(chosen)) == 6
    assert len({ids[place] for place in chosen}) == 6
    away = np.linalg.norm(features - features.mean(0), axis=1)
    assert chosen[0] == int(np.argmin(away))
    assert max(chosen) < 20, "none of the far ones"
    gaps = np.linalg.norm(features[chosen][:, None] - features[chosen][None], axis=2)
    nearest = sorted(range(30), key=lambda place: away[place])[:6]
    close = np.linalg.norm(features[nearest][:, None] - features[nearest][None], axis=2)
    assert gaps[np.triu_indices(6, 1)].min() > close[np.triu_indices(6, 1)].min()
    assert exemplars(features[:2], ["b", "a"], ids[:2], 6) == [1], "as far: the lower key"


def test_features_name_what_changed() -> None:
    rng = np.random.default_rng(0)
    yellow, dark = hair(rng), mouth(rng)
    turned = dict(zip(LOOKS, yellow[-4:], strict=True))
    assert turned["light"] > 0.1
    assert turned["blue"] < -0.3
    assert abs(turned["red"]) < 0.3
    assert dict(zip(LOOKS, dark[-4:], strict=True))["light"] < -0.3
    for features in (yellow, dark):
        assert np.linalg.norm(features[:64]) ** 2 == pytest.approx(WEIGHTS[0])
        assert np.linalg.norm(features[64:-4]) ** 2 == pytest.approx(WEIGHTS[1])
        assert np.abs(features[-4:]).sum() <= 1 + 1e-9


def test_a_change_without_effect_has_features_of_zeros() -> None:
    same = np.full((SIZE, SIZE, 3), 90, np.uint8)
    assert not describe(same, same, np.zeros(64), GRID).any()
