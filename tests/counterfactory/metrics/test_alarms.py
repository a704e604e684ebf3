"""The tests of an audit, against SciPy and against their own definitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from counterfactory.metrics import alarms


@pytest.mark.parametrize(
    ("hits", "n", "other_hits", "other_n"),
    [(3, 20, 9, 25), (0, 30, 10, 30), (50, 400, 20, 390), (1, 9, 0, 8), (7, 7, 0, 9)],
)
def test_mid_p_is_less_likely_tables_and_half_of_those_as_likely(
    hits: int, n: int, other_hits: int, other_n: int
) -> None:
    law = stats.hypergeom(n + other_n, hits + other_hits, n)
    p = law.pmf(np.arange(n + 1))
    own = p[hits]
    expected = p[p < own * (1 - 1e-7)].sum() + p[np.isclose(p, own, rtol=1e-7)].sum() / 2
    found = alarms.fisher_midp(hits, n, other_hits, other_n)
    assert found == pytest.approx(expected, rel=1e-9)
    exact = stats.fisher_exact([[hits, n - hits], [other_hits, other_n - other_hits]])[1]
    assert found < exact


def test_mid_p_of_a_known_table() -> None:
    # 3 of 3 against 0 of 3: the two extreme tables of 20 are as likely, half of each counts
    assert alarms.fisher_midp(3, 3, 0, 3) == pytest.approx(1 / 20)
    assert alarms.fisher_midp(0, 5, 0, 9) == pytest.approx(0.5)
    assert alarms.fisher_midp(0, 0, 3, 9) == 1.0


def test_mid_p_keeps_its_level_on_average_and_is_less_careful_than_the_exact_test() -> None:
    """The chance of p <= .05 under one rate, summed over all tables of 40 against 40."""
    chance = exact = 0.0
    for a, b in product(range(41), repeat=2):
        weight = stats.binom.pmf(a, 40, 0.2) * stats.binom.pmf(b, 40, 0.2)
        if weight < 1e-9:
            continue
        chance += weight * (alarms.fisher_midp(a, 40, b, 40) <= 0.05)
        exact += weight * (stats.fisher_exact([[a, 40 - a], [b, 40 - b]])[1] <= 0.05)
    assert exact < chance
    assert 0.03 < chance < 0.055


def test_mid_p_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="got 5 of 3 and 0 of 2"):
        alarms.fisher_midp(5, 3, 0, 2)


@pytest.mark.parametrize("seed", range(4))
def test_mann_whitney_is_scipys_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 6 + seed, 9 + seed).astype(float)
    other = rng.integers(1, 9, 31).astype(float)
    expected = stats.mannwhitneyu(first, other, method="asymptotic").pvalue
    assert alarms.mann_whitney(first, other) == pytest.approx(expected, rel=1e-9)
    assert alarms.mann_whitney(other, first) == pytest.approx(expected, rel=1e-9)


def test_mann_whitney_without_a_difference_or_without_values() -> None:
    same = np.ones(9)
    assert alarms.mann_whitney(same, same) == 1.0
    assert alarms.mann_whitney(np.zeros(0), same) == 1.0
    with pytest.raises(ValueError, match="finite"):
        alarms.mann_whitney(np.array([np.nan]), same)


def test_mann_whitney_is_careful_in_the_tail_of_few_values() -> None:
    first, other = np.arange(8.0), np.arange(8.0) + 100
    exact = stats.mannwhitneyu(first, other, method="exact").pvalue
    assert exact == pytest.approx(1.55e-4, rel=0.01)
    assert exact < alarms.mann_whitney(first, other) < 1e-3


def test_holm_of_the_usual_example() -> None:
    # four tests: .005 x 4, .01 x 3, .03 x 2, and .04 not below the one before
    assert alarms.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert alarms.holm([0.7, 0.9]) == [1.0, 1.0]
    assert alarms.holm([]) == []


@pytest.mark.parametrize("freedom", [1, 3, 62])
@pytest.mark.parametrize("t", [0.0, 0.7, 2.1, 5.0])
def test_students_tails_are_scipys(t: float, freedom: float) -> None:
    assert alarms.student(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-3)


def test_the_difference_of_two_bootstraps() -> None:
    rng = np.random.default_rng(0)
    here, there = (np.append(m, rng.normal(m, s, 4000)) for m, s in ((0.5, 0.03), (0.3, 0.04)))
    apart, error, p = alarms.difference(here, there, 63)
    assert apart == pytest.approx(0.2)
    assert error == pytest.approx(0.05, rel=0.05)
    assert p == pytest.approx(2 * stats.t.sf(4, 63), rel=0.3)
    assert alarms.difference(here[:2], there, 63)[2] == 1.0
    assert alarms.difference(np.full(9, 0.4), np.full(9, 0.4), 63)[2] == 1.0


def test_flips_needed_as_in_the_design_with_14_tests() -> None:
    assert alarms.flips_needed(0.02, 0.12, 0.001, tests=14) == 356
    assert alarms.flips_needed(0.1, 0.3, 0.001, tests=14) == 218
    assert alarms.flips_needed(0.02, 0.12, 0.001) == 270
    with pytest.raises(ValueError, match="different shares"):
        alarms.flips_needed(0.1, 0.1, 0.01)


def test_that_many_flips_have_the_stated_power() -> None:
    """The power of the mid-p test itself, summed over all tables."""
    n = alarms.flips_needed(0.1, 0.3, 0.01)
    tables = (
        (a, b, stats.binom.pmf(a, n, 0.1) * stats.binom.pmf(b, n, 0.3))
        for a, b in product(range(n + 1), repeat=2)
    )
    power = sum(w for a, b, w in tables if w > 1e-7 and alarms.fisher_midp(a, n, b, n) <= 0.01)
    assert power == pytest.approx(0.9, abs=0.02)


def test_a_years_alarms_are_shared_by_its_audits() -> None:
    each = alarms.alpha_of(0.05, 52)
    assert each == pytest.approx(0.000986, rel=1e-3)
    assert 1 - (1 - each) ** 52 == pytest.approx(0.05)


def test_weighted_rows_are_worth_fewer() -> None:
    assert alarms.effective(np.ones(30)) == pytest.approx(30)
    assert alarms.effective(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert alarms.effective(np.zeros(0)) == 0.0
