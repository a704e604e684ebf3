"""The search for cores, on outcomes that are sums over parts, so that every core is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from counterfactory.interventions.core import (
    KEPT,
    find_cores,
    least_log_odds,
    own_maps,
    sizes_up_to,
)
from counterfactory.interventions.switches import draw_switches

PARTS = 64
EFFECTS = torch.zeros(3, PARTS, dtype=torch.float64)
EFFECTS[0, [5, 9]] = torch.tensor([6.0, 3.0], dtype=torch.float64)
EFFECTS[1, 10:22] = torch.arange(12, 0, -1, dtype=torch.float64)
EFFECTS[2] = 0.1
ALL = torch.ones(3, dtype=torch.bool)


class Linear:
    """Passes where the effects of the parts that are on reach `needed`; counts its questions."""

    def __init__(self, effects: Tensor, needed: list[float]) -> None:
        self.effects, self.needed = effects, torch.tensor(needed, dtype=torch.float64)
        self.asked = torch.zeros(len(effects), dtype=torch.int64)
        self.calls = 0

    def __call__(self, rows: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.asked += torch.bincount(rows, minlength=len(self.asked))
        found = (self.effects[rows] * on).sum(1)
        return found, found >= self.needed[rows] - 1e-9


def places(on: Tensor) -> list[int]:
    return on.nonzero()[:, 0].tolist()


def test_a_core_is_the_parts_of_most_effect() -> None:
    ask = Linear(EFFECTS, [9.0, 11.5, 6.4])
    found = find_cores(ask, EFFECTS, ALL, 1.0)
    assert places(found.on[0]) == [5, 9]
    assert places(found.on[1]) == [10]
    assert found.on[2].all()  # where every part is needed, the core is the whole change
    assert found.log_odds[:2].tolist() == [9.0, 12.0]
    assert found.asked.tolist() == ask.asked.tolist()


def test_sizes_are_searched_by_bisection() -> None:
    assert sizes_up_to(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert sizes_up_to(5) == [1, 2, 3, 4, 5]
    assert sizes_up_to(1) == [1]
    ask = Linear(EFFECTS, [9.0, 11.5, 6.4])
    find_cores(ask, EFFECTS, ALL, 1.0)
    assert ask.calls <= 4  # all rows in one call: the logarithm of 12 sizes
    assert int(ask.asked.max()) <= 4


def test_parts_that_are_known_to_pass_are_not_asked_about() -> None:
    ask = Linear(EFFECTS, [9.0, 11.5, 6.4])
    known = torch.tensor([2, 4, 64])
    found = find_cores(ask, EFFECTS, ALL, 1.0, known)
    assert found.on.sum(1).tolist() == [2, 1, 64]
    assert ask.asked.tolist()[:2] == [1, 2]  # 1 part; 2 parts and 1 part


@pytest.mark.parametrize("row", [0, 1])
def test_a_margin_adds_the_next_parts(row: int) -> None:
    ask = Linear(EFFECTS, [5.0, 11.5, 0.05])
    bare, wide = (find_cores(ask, EFFECTS, ALL, margin) for margin in (1.0, 1.25))
    reached = (EFFECTS * wide.on).sum(1)[row]
    assert reached >= 1.25 * (EFFECTS * bare.on).sum(1)[row]
    assert wide.on[row].sum() == bare.on[row].sum() + 1
    assert bool((wide.on[row] | ~bare.on[row]).all())


def test_a_margin_that_no_longer_passes_is_left_out() -> None:
    def ask(rows: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        return on.sum(1).double(), on.sum(1) <= 2  # a part further undoes the flip

    order = torch.tensor([[3.0, 2.0, 1.0, 0.5]], dtype=torch.float64)
    found = find_cores(ask, order, ALL[:1], 3.0, torch.tensor([2]))
    assert int(found.on.sum()) <= 2


def test_a_row_whose_whole_change_fails_has_no_core_and_is_not_asked() -> None:
    ask = Linear(EFFECTS, [9.0, 99.0, 6.4])
    found = find_cores(ask, EFFECTS, torch.tensor([True, False, True]))
    assert not found.on[1].any()
    assert ask.asked[1] == 0
    assert found.log_odds[1].isnan()
    assert places(found.on[0]) == [5, 9]


@pytest.mark.parametrize(
    ("threshold", "whole", "least"),
    [
        (0.0, 5.0, 0.0),  # any flip
        (0.9, 50.0, KEPT * 2.1972),  # log 9
        (0.9, 1.0, KEPT),  # the answer did not reach its threshold
        (0.9, -1.0, 0.0),
    ],
)
def test_a_core_needs_most_of_the_threshold(threshold: float, whole: float, least: float) -> None:
    found = least_log_odds(threshold, torch.tensor([whole], dtype=torch.float64))
    assert float(found[0]) == pytest.approx(least, abs=1e-4)


def measured(effects: Tensor, mixtures: int, prior: Tensor | None = None) -> Tensor:
    """A row's own map, from mixtures whose outcomes are sums of the effects, minus 4."""
    rows = len(effects)
    on = draw_switches(torch.arange(rows), mixtures, effects.shape[1])
    outcome: Callable[[Tensor], Tensor] = lambda on: (effects[:, None] * on).sum(2) - 4  # noqa: E731
    ends = torch.stack([torch.full((rows,), -4.0), effects.sum(1) - 4], 1)
    return own_maps(on, outcome(on), ends.double(), torch.ones(rows, effects.shape[1]), prior)


def test_a_row_s_own_map_finds_the_part_that_decides() -> None:
    found = measured(EFFECTS[:2], 120)
    assert int(found[0].argmax()) == 5
    exact = measured(EFFECTS[:2], 600)
    assert torch.corrcoef(torch.stack([exact[1], EFFECTS[1]]))[0, 1] > 0.9


def test_a_map_that_was_expected_stays_where_mixtures_agree_with_it() -> None:
    assert torch.allclose(measured(EFFECTS, 8, EFFECTS), EFFECTS, atol=1e-9)


def test_a_part_that_does_not_change_has_no_effect() -> None:
    on = draw_switches(torch.arange(1), 16, 4)
    outcomes = on[..., 0].double() + on[..., 1].double()
    amounts = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    ends = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    found = own_maps(on, outcomes, ends, amounts)[0]
    assert abs(float(found[0])) < 1e-3
    assert int(found.argmax()) == 1


def test_a_row_s_map_is_the_same_beside_others() -> None:
    together = measured(EFFECTS, 16)
    on = draw_switches(torch.arange(3), 16, PARTS)
    outcomes = (EFFECTS[:, None] * on).sum(2) - 4
    ends = torch.stack([torch.full((3,), -4.0), EFFECTS.sum(1) - 4], 1).double()
    alone = own_maps(on[2:], outcomes[2:], ends[2:], torch.ones(1, PARTS))
    assert torch.equal(alone[0], together[2])
