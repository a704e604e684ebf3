"""Effect maps: games whose effects are known, exact Shapley values, and honest intervals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from math import comb, log

import numpy as np
import pytest
from numpy.typing import NDArray

from counterfactory.metrics import effects
from counterfactory.metrics.effects import (
    GROUPS,
    SPREAD,
    SPREAD_ROWS,
    EffectSums,
    concentration,
    estimate,
    group_of,
    is_spread,
    maps,
    region_shares,
    replicates,
    shapley,
    shares,
    similarity,
    update,
)
from counterfactory.metrics.estimate import Estimate

Floats = NDArray[np.float64]
DATA = np.ones((1, GROUPS))


def draw(rows: int, mixtures: int, parts: int, seed: int) -> NDArray[np.bool_]:
    """Sets of parts with their complements, every number of parts as likely."""
    rng = np.random.default_rng(seed)
    half = rng.random((rows, mixtures // 2, parts)) < rng.random((rows, mixtures // 2, 1))
    return np.concatenate([half, ~half], 1)


def measure(
    play: Callable[[NDArray[np.bool_]], Floats],
    on: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
    **kept: Floats,
) -> EffectSums:
    """The sums of mixtures `on` (B,M,C) of games; play: sets (B,m,C) to worths (B,m,F)."""
    rows, _, parts = on.shape
    ends = np.stack([np.zeros((rows, parts)), np.ones((rows, parts))], 1).astype(np.bool_)
    groups = np.arange(rows) % GROUPS if groups is None else groups
    return update(on, play(on), play(ends), groups, **kept)


def additive(weights: Floats, start: float = -3.0) -> Callable[[NDArray[np.bool_]], Floats]:
    """Games that add weights (C,F) or those of each row (B,C,F)."""
    return lambda on: start + on.astype(np.float64) @ weights


def of_sets(worths: Floats) -> Callable[[NDArray[np.bool_]], Floats]:
    """A game by a table (2^C,) of the worth of each set."""

    def play(on: NDArray[np.bool_]) -> Floats:
        return worths[(on << np.arange(on.shape[-1])).sum(-1)][..., None]

    return play


def by_permutations(worths: Floats) -> Floats:
    """Shapley's own formula: the mean of what each part adds, over all orders of arrival."""
    parts = int(log(len(worths), 2))
    found = np.zeros(parts)
    orders = list(permutations(range(parts)))
    for order in orders:
        here = 0
        for part in order:
            found[part] += worths[here | 1 << part] - worths[here]
            here |= 1 << part
    return found / len(orders)


def every_set(parts: int, times: Callable[[int], int]) -> NDArray[np.bool_]:
    """Each set of parts as often as `times` says for its size, (1,M,parts)."""
    found = [
        np.isin(np.arange(parts), chosen)
        for size in range(parts + 1)
        for chosen in combinations(range(parts), size)
        for _ in range(times(size))
    ]
    return np.stack(found)[None]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_shapley_is_the_mean_over_all_orders(parts: int) -> None:
    worths = np.random.default_rng(parts).normal(size=(3, 2**parts))
    found = shapley(worths)
    for row, told in zip(worths, found, strict=True):
        assert told == pytest.approx(by_permutations(row))
    assert found.sum(1) == pytest.approx(worths[:, -1] - worths[:, 0])


def test_shapley_of_known_games() -> None:
    needs_both = shapley(np.array([[0.0, 0.0, 0.0, 6.0]]))
    assert needs_both.tolist() == [[3.0, 3.0]]
    glove = [0, 0, 0, 0, 0, 1, 1, 1]  # part 2 is the left glove, parts 0 and 1 are right ones
    assert shapley(np.array(glove, dtype=np.float64)) == pytest.approx([1 / 6, 1 / 6, 4 / 6])


def test_an_additive_games_effects_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.array([[4.0, -1.0], [0.0, 2.0], [-0.5, 0.0], [1.5, 0.0], [0.0, 0.0], [2.0, 7.0]])
    on = draw(40, 16, 6, seed=1)
    near = maps(measure(additive(weights), on), DATA)[0]
    assert near == pytest.approx(weights, abs=0.3), "the prior counts as one row of forty"
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    exact = maps(measure(additive(weights), on), DATA)[0]
    assert exact == pytest.approx(weights, abs=1e-6)
    assert shares(exact[:, 0]) == pytest.approx(weights[:, 0] / 7, abs=1e-6)


def test_rows_of_other_effects_have_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(1.0, 0.5, (3000, 5, 1))
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    found = maps(measure(additive(weights), draw(3000, 16, 5, seed=3)), DATA)[0]
    assert found == pytest.approx(weights.mean(0), abs=0.04)
    assert found.sum() == pytest.approx(weights.mean(0).sum(), abs=1e-9)


def test_shapleys_kernel_makes_effects_of_any_game_shapley_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lundberg & Lee 2017, theorem 2: (d - 1) / (C(d,s) s (d - s)) of each set of size s."""
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    worths = np.random.default_rng(4).normal(size=64)
    on = every_set(6, lambda size: {1: 12, 2: 3, 3: 2, 4: 3, 5: 12}.get(size, 0))
    assert all(
        weight == pytest.approx(72 * 5 / (comb(6, size) * size * (6 - size)))
        for size, weight in {1: 12, 2: 3, 3: 2}.items()
    )
    found = maps(measure(of_sets(worths), on), DATA)[0, :, 0]
    assert found == pytest.approx(by_permutations(worths), abs=1e-6)


def equal_sizes(size: int) -> int:
    """How often each set of a size is needed so that every size is as frequent."""
    return 60 // comb(6, size)


def test_games_of_pairs_have_shapley_values_where_sizes_are_as_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    rng = np.random.default_rng(5)
    alone, pairs = rng.normal(size=6), np.triu(rng.normal(size=(6, 6)), 1)
    bits = np.arange(64)[:, None] >> np.arange(6) & 1
    worths = bits @ alone + np.einsum("si,ij,sj->s", bits, pairs, bits)
    found = maps(measure(of_sets(worths), every_set(6, equal_sizes)), DATA)[0, :, 0]
    assert found == pytest.approx(by_permutations(worths), abs=1e-6)
    assert found == pytest.approx(alone + (pairs + pairs.T).sum(1) / 2, abs=1e-6)


def test_effects_of_any_game_are_least_squares_and_near_shapley_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    weights = np.array([3.0, 2.0, 1.0, 1.0, 0.5, 0.0])
    bits = np.arange(64)[:, None] >> np.arange(6) & 1
    worths = 10 / (1 + np.exp(-1.5 * (bits @ weights - 4)))  # saturates at both ends
    on = every_set(6, equal_sizes)
    found = maps(measure(of_sets(worths), on), DATA)[0, :, 0]
    exact = by_permutations(worths)
    assert found.sum() == pytest.approx(worths[-1] - worths[0], abs=1e-9)
    assert np.abs(found - exact).sum() < 0.1 * exact.sum()
    assert np.argsort(found).tolist() == np.argsort(exact).tolist()
    # The same least squares by Lagrange's equations, with an intercept, over the sets themselves.
    design = np.concatenate([on[0], np.zeros((1, 6)), np.ones((1, 6))]).astype(np.float64)
    wide = np.concatenate([design, np.ones((len(design), 1))], 1)
    worth = worths[(design.astype(np.int64) << np.arange(6)).sum(1)]
    border = np.array([[1.0] * 6 + [0.0]])
    system = np.block([[wide.T @ wide, border.T], [border, np.zeros((1, 1))]])
    wanted = np.concatenate([wide.T @ worth, [worths[-1] - worths[0]]])
    assert found == pytest.approx(np.linalg.solve(system, wanted)[:6], abs=1e-6)


def test_drawn_sets_approach_the_effects_of_all_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "RIDGE", 0.0)
    worths = np.random.default_rng(7).normal(size=64)
    worths[-1] = worths[0] + 8
    limit = maps(measure(of_sets(worths), every_set(6, equal_sizes)), DATA)[0, :, 0]
    apart = [
        np.abs(maps(measure(of_sets(worths), draw(rows, 16, 6, seed=8)), DATA)[0, :, 0] - limit)
        for rows in (20, 4000)
    ]
    assert apart[1].max() < 0.05
    assert apart[1].max() < apart[0].max()


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_effects_always_add_up_to_the_whole(rows: int) -> None:
    rng = np.random.default_rng(rows)
    on = draw(rows, 4, 9, seed=rows)
    ends = rng.normal(size=(rows, 2, 3))
    sums = update(on, rng.normal(size=(rows, 4, 3)), ends, np.arange(rows) % GROUPS)
    assert maps(sums, DATA)[0].sum(0) == pytest.approx((ends[:, 1] - ends[:, 0]).mean(0))


def test_shards_in_any_order_are_one_batch() -> None:
    rng = np.random.default_rng(9)
    ids = [f"face-{i}" for i in range(60)]
    on, outcomes = draw(60, 6, 10, seed=9), rng.normal(size=(60, 6, 2))
    ends, changed = rng.normal(size=(60, 2, 2)), rng.random((60, 10))
    places = rng.random((60, 10, 3))

    def of(rows: NDArray[np.int64]) -> EffectSums:
        groups = group_of([ids[row] for row in rows])
        return update(on[rows], outcomes[rows], ends[rows], groups, changed[rows], places[rows])

    whole = of(np.arange(60))
    order = rng.permutation(60)
    merged = EffectSums.zero(10, 2, 3)
    for part in np.split(order, [7, 7, 31]):  # one shard has no row
        merged = merged + of(part)
    assert merged.rows == whole.rows == 60
    for name in ("n", "gram", "cross", "total", "changed", "places"):
        assert np.allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    weights = replicates(50)
    assert np.allclose(maps(merged, weights), maps(whole, weights), atol=1e-9, equal_nan=True)


def test_sums_of_other_shapes_do_not_add() -> None:
    with pytest.raises(ValueError, match=r"expected sums of 64 parts.*got 1,"):
        EffectSums.zero(64, 1) + EffectSums.zero(1, 1)
    with pytest.raises(ValueError, match="2 regions"):
        EffectSums.zero(64, 1, 2) + EffectSums.zero(64, 1, 1)


def test_a_group_is_the_ids_alone_and_groups_are_of_one_size() -> None:
    ids = [f"img_{i:06d}" for i in range(6400)]
    groups = group_of(ids)
    assert groups.tolist() == group_of(ids[::-1]).tolist()[::-1]
    counts = np.bincount(groups, minlength=GROUPS)
    assert len(counts) == GROUPS
    assert (np.abs(counts - 100) < 50).all()
    assert group_of([]).shape == (0,)


def test_replicates_begin_with_the_data_and_repeat() -> None:
    weights = replicates(300)
    assert weights.shape == (301, GROUPS)
    assert (weights[0] == 1).all()
    assert np.array_equal(weights, replicates(300))
    assert not np.array_equal(weights[1:], replicates(300, seed=1)[1:])
    assert weights[1:].mean() == pytest.approx(1.0, abs=0.03)
    assert weights[1:].var() == pytest.approx(1.0, abs=0.05)


def cells_that_decide(rows: int, parts: int, decide: int, seed: int) -> EffectSums:
    """Rows whose first `decide` of `parts` parts carry the effect: other sizes in each row, noise
    in each mixture, small effects of no direction elsewhere.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(0.0, 0.05, (rows, parts, 1))
    weights[:, :decide] += rng.uniform(4, 10, (rows, 1, 1)) / decide
    play = additive(weights)
    on = draw(rows, 16, parts, seed=seed + 10_000)
    ends = np.stack([np.zeros((rows, parts)), np.ones((rows, parts))], 1).astype(np.bool_)
    outcomes = play(on) + rng.normal(0.0, 0.5, (rows, 16, 1))
    return update(on, outcomes, play(ends), rng.integers(0, GROUPS, rows))


def test_an_interval_covers_the_share_it_is_of() -> None:
    weights = replicates(100)
    inside = []
    for trial in range(60):
        sums = cells_that_decide(64, 12, 3, seed=trial)
        found = estimate(shares(maps(sums, weights)[..., 0])[:, 0], 64)
        assert found.low is not None
        assert found.high is not None
        inside.append(found.low <= 1 / 3 <= found.high)
    assert 0.85 <= np.mean(inside) <= 1.0


def test_one_cell_that_decides_is_concentrated_and_none_is_chance() -> None:
    weights = replicates(60)
    for rows in (8, 64):
        values, spread = [], []
        for trial in range(10):
            values.append(concentration(cells_that_decide(rows, 64, 1, trial), DATA)[0])
            spread.append(concentration(cells_that_decide(rows, 64, 64, trial), DATA)[0])
        assert np.mean(values) == pytest.approx(1.0, abs=0.2 if rows == 8 else 0.05)
        assert np.mean(spread) == pytest.approx(6 / 64, abs=0.2 if rows == 8 else 0.05)
    found = estimate(concentration(cells_that_decide(64, 64, 1, 77), weights), 64)
    assert found.low is not None
    assert found.low > 0.8


@pytest.mark.parametrize(
    ("low", "high", "spread"),
    [
        (0.1, SPREAD - 0.01, True),
        (SPREAD + 0.01, 1.1, False),
        (0.2, 0.8, None),
        (0.1, SPREAD, None),
        (SPREAD, 0.9, None),
        (None, None, None),
    ],
)
def test_spread_is_what_the_interval_says(
    low: float | None, high: float | None, spread: bool | None
) -> None:
    found = Estimate(0.4, low, high, SPREAD_ROWS)
    assert is_spread(found) is spread
    fewer = is_spread(Estimate(0.4, low, high, SPREAD_ROWS - 1))
    assert fewer is (None if spread else spread), "few rows may miss the parts of a place"
    assert is_spread(found, [Estimate(0.4, 0.3, 0.5, 9), Estimate(0.4, None, None, 1)]) is spread
    assert is_spread(found, [Estimate(0.4, 0.3, 0.5, 9), Estimate(0.8, 0.65, 0.9, 9)]) is False


def test_the_look_says_whether_a_concentrated_effect_has_a_place() -> None:
    concentrated = Estimate(0.7, 0.6, 0.8, 64)
    assert is_spread(concentrated, look=Estimate(0.1, None, None, 64)) is False
    assert is_spread(concentrated, look=Estimate(0.65, None, None, 64)) is True  # a blur
    assert is_spread(concentrated, look=Estimate(0.65, None, None, SPREAD_ROWS - 1)) is None
    wide = Estimate(0.3, 0.2, 0.4, 64)  # a smile on a photograph
    assert is_spread(wide, look=Estimate(0.05, None, None, 64)) is False
    frame = [Estimate(0.9, 0.8, 1.0, 64)]
    assert is_spread(wide, frame, Estimate(0.6, None, None, 64)) is False


@pytest.mark.parametrize(("decide", "spread"), [(1, False), (6, False), (24, True), (64, True)])
def test_effects_are_said_to_have_a_place_or_none(decide: int, spread: bool) -> None:
    weights = replicates(60)
    for rows, clear in ((16, 0.4), (64, 1.0)):
        said = [
            is_spread(
                estimate(concentration(cells_that_decide(rows, 64, decide, s), weights), rows)
            )
            for s in range(10)
        ]
        assert (not spread) not in said
        assert said.count(spread) >= clear * len(said)
    alone = cells_that_decide(1, 64, decide, 0)
    assert is_spread(estimate(concentration(alone, weights), 1)) is None


def test_few_rows_have_figures_and_no_false_interval() -> None:
    weights = replicates(60)
    one = measure(additive(np.full((12, 1), 0.5)), draw(1, 16, 12, seed=0))
    alone = estimate(shares(maps(one, weights)[..., 0])[:, 0], 1)
    assert (alone.value, alone.low, alone.note) == (
        pytest.approx(1 / 12),
        None,
        "n = 1: no interval",
    )
    nothing = estimate(concentration(one, weights), 1)
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 1)
    for rows in (2, 3):
        sums = cells_that_decide(rows, 12, 1, seed=rows)
        share = estimate(shares(maps(sums, weights)[..., 0])[:, 0], rows)
        assert share.value is not None
        assert share.low is not None
        assert share.high is not None
        assert share.low < share.high
        halves = estimate(concentration(sums, weights), rows)
        assert halves.value is not None
        assert halves.low is None, "a half with a group or two has hardly a variance"
    same = np.zeros(3, dtype=np.int64)  # three answers to one row
    sums = measure(additive(np.ones((12, 1))), draw(3, 16, 12, seed=0), same)
    share = estimate(shares(maps(sums, weights)[..., 0])[:, 0], 3)
    assert (share.low, share.high, share.note) == (None, None, "no interval")
    assert estimate(concentration(sums, weights), 3).value is None


def test_no_rows_have_no_figures() -> None:
    weights, nothing = replicates(5), EffectSums.zero(9, 2, 3)
    assert nothing.rows == 0
    assert np.isnan(maps(nothing, weights)).all()
    assert np.isnan(concentration(nothing, weights)).all()
    assert np.isnan(region_shares(nothing, weights)).all()
    assert np.isnan(similarity([nothing], weights)).all()
    assert estimate(maps(nothing, weights)[:, 0, 0], 0).value is None
    empty = update(
        np.zeros((0, 4, 9), dtype=np.bool_),
        np.zeros((0, 4, 2)),
        np.zeros((0, 2, 2)),
        np.zeros(0, dtype=np.int64),
    )
    assert empty.rows == 0


def test_a_change_without_an_effect_has_no_shares() -> None:
    assert np.isnan(shares(np.array([1.0, -1.0]))).all()
    assert np.isnan(shares(np.array([-1.0, -1.0]))).all()
    assert shares(np.array([3.0, -1.0])).tolist() == [1.5, -0.5]


def test_similarity_is_one_for_proportional_maps_whatever_their_sign() -> None:
    rng = np.random.default_rng(11)
    weights = replicates(40)
    directions = []
    for sign, seed in ((2.0, 12), (-2.0, 13)):
        first, other = rng.exponential(1.0, (16, 1)), rng.exponential(1.0, (16, 1))
        whole = np.concatenate([first, sign * first, other - other.mean(), 0 * first], 1)
        directions.append(measure(additive(whole), draw(60, 16, 16, seed=seed)))
    found = similarity(directions, weights)
    assert found.shape == (41, 3)
    assert np.allclose(found[:, 0], 1.0)
    assert np.abs(found[:, 1]).max() < 0.5
    assert np.isnan(found[0, 2]) or found[0, 2] == pytest.approx(0.0, abs=1e-6)
    assert np.allclose(
        similarity([*directions, EffectSums.zero(16, 4)], weights), found, equal_nan=True
    )


def test_independent_maps_are_not_similar() -> None:
    rng = np.random.default_rng(14)
    found = []
    for seed in range(20):
        weights = rng.normal(size=(64, 2)) + np.array([0.2, 0.0])
        found.append(similarity([measure(additive(weights), draw(80, 16, 64, seed))], DATA)[0, 0])
    assert np.mean(found) < 0.2


def test_similarity_weighs_directions_by_their_rows() -> None:
    first, second = np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])
    same = measure(additive(np.concatenate([first, first], 1)), every_pair(30))
    other = measure(additive(np.concatenate([first, second], 1)), every_pair(10))
    found = similarity([same, other], DATA)[0, 0]
    assert found == pytest.approx(0.75, abs=0.05)


def every_pair(rows: int) -> NDArray[np.bool_]:
    return np.tile(np.array([[[True, False], [False, True]] * 4]), (rows, 1, 1))


def test_region_shares_sum_to_one_where_regions_cover_everything() -> None:
    rng = np.random.default_rng(15)
    rows, parts, regions = 40, 12, 4
    weights = np.zeros((parts, 1))
    weights[:3, 0] = [4.0, 2.0, 1.0]
    places = rng.dirichlet(np.ones(regions), (rows, parts))
    places[:, 0] = np.eye(regions)[2]  # part 0 lies in region 2
    places[::2, 1] = 0.0  # part 1 changes in every other row, part 5 in none
    places[:, 5] = 0.0
    sums = measure(additive(weights), draw(rows, 16, parts, 16), places=places)
    found = region_shares(sums, replicates(30))
    assert found.shape == (31, regions)
    assert found.sum(1) == pytest.approx(np.ones(31))
    inside = places.sum(0) / np.maximum(places.sum((0, 2))[:, None], 1e-9)
    assert found[0] == pytest.approx((weights / 7 * inside).sum(0), abs=0.03)
    assert found[0, 2] > 4 / 7 - 0.03
