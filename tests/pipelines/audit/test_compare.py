"""The comparison of two audits on made-up measurements whose differences are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from counterfactory.metrics import alarms
from pipelines.audit.compare import Comparison, compare
from pipelines.audit.effects import Effects, place_shares, to_effects
from pipelines.audit.measure import Answers, Measured

PARTS, MIXTURES = 16, 12
REGIONS = ("mouth", "hair")


def answers(rows: int, **given: Any) -> Answers:
    """Rows that all flipped, half of each class, none of whose attributes changed."""
    made = Answers(
        classes=["dark", "bright"] * (rows // 2),
        groups=[""] * rows,
        flipped=np.ones(rows, dtype=np.bool_),
        distance=np.random.default_rng(rows).uniform(0.1, 0.2, rows),
        attributes=["Smiling"],
        changed=np.zeros((rows, 1)),
        weights=np.ones(rows),
    )
    return replace(made, **given)


def changed(rows: int, share: float) -> np.ndarray:
    return (np.arange(rows) < round(share * rows)).astype(float)[:, None]


def named(tests: list[Comparison], kind: str, name: str) -> Comparison:
    return next(test for test in tests if (test.kind, test.name) == (kind, name))


def compared(now: Answers, reference: Answers, level: float = 0.01) -> list[Comparison]:
    return compare(Measured(now, None), Measured(reference, None), level, 0.1)


def test_a_rate_must_move_by_more_than_ten_points() -> None:
    for share, alarm in ((0.09, False), (0.12, True)):
        found = named(
            compared(answers(4000, changed=changed(4000, share)), answers(4000)),
            "attribute",
            "Smiling",
        )
        assert found.difference == pytest.approx(share)
        assert found.adjusted is not None
        assert found.adjusted < 1e-9
        assert found.alarm is alarm


def test_fewer_than_eight_flips_are_not_tested_and_do_not_count() -> None:
    few = answers(40, flipped=np.arange(40) < 14)  # seven of each class
    tests = compared(few, answers(40))
    untested = [test for test in tests if test.p is None]
    assert [test.kind for test in untested] == ["distance", "distance"]
    assert untested[0].note == (
        "not tested: 7 flips here and 20 in the reference, expected 8 or more"
    )
    assert named(tests, "flip_rate", "flip rate").alarm
    # two tests are left, so the smaller p-value is doubled
    flips = named(tests, "flip_rate", "flip rate")
    assert flips.adjusted == pytest.approx(2 * (flips.p or 0))


def test_weighted_rows_count_as_the_rows_that_they_are_worth() -> None:
    weights = np.where(np.arange(40) < 20, 1.8, 0.2)
    now = answers(40, changed=changed(40, 0.5), weights=weights)
    found = named(compared(now, answers(40)), "attribute", "Smiling")
    assert found.value == pytest.approx(0.9)
    worth = round(alarms.effective(weights))
    assert worth == 24
    assert found.p == pytest.approx(alarms.fisher_midp(round(0.9 * worth), worth, 0, 40))


def test_a_distance_is_compared_within_its_class_and_group() -> None:
    groups = ["north", "north", "south", "south"] * 20
    farther = answers(80, groups=groups)
    moved = np.array([g == "south" for g in groups]) & np.array(
        [c == "dark" for c in farther.classes]
    )
    now = replace(farther, distance=farther.distance + moved)
    tests = compared(now, answers(80, groups=groups))
    alarmed = [(test.kind, test.name) for test in tests if test.alarm]
    assert alarmed == [("distance", "dark, south")]
    assert len([test for test in tests if test.kind == "distance"]) == 4


def effects_table(rows: int, where: int, seed: int = 0) -> pa.Table:
    """Rows whose classifier reads one part of the change; the first half of the parts is mouth."""
    rng = np.random.default_rng(seed)
    on = rng.random((rows, MIXTURES, PARTS)) < 0.5
    places = np.zeros((PARTS, 2))
    places[: PARTS // 2, 0] = places[PARTS // 2 :, 1] = 1
    outcomes = 4.0 * on[:, :, where] - 2 + rng.normal(0, 0.3, (rows, MIXTURES))
    return pa.table(
        {
            "id": [f"{seed}-{i}" for i in range(rows)],
            "k": [0] * rows,
            "log_odds_before": [[-2.0, 0.0]] * rows,
            "log_odds_after": [[2.0, 0.0]] * rows,
            "mixtures": [np.packbits(row, axis=1).tobytes() for row in on],
            "log_odds": np.stack([outcomes, np.zeros_like(outcomes)], -1)
            .reshape(rows, -1)
            .tolist(),
            "changed": [[1 / PARTS] * PARTS] * rows,
            "places": [places.ravel().tolist()] * rows,
            "kinds": [[0.0, 1.0, 3.0]] * rows,
        }
    )


def effects_of(
    table: pa.Table, weights: np.ndarray | None = None, regions: Any = REGIONS
) -> Effects:
    each = np.ones(table.num_rows) if weights is None else weights
    found = to_effects(table, each, tuple(regions), (4, 4))
    assert found is not None
    return found


@pytest.mark.parametrize("regions", [REGIONS, ()])
def test_an_effect_that_went_elsewhere_is_noticed(regions: tuple[str, ...]) -> None:
    one, same, other = (
        Measured(answers(60), effects_of(effects_table(60, part, seed), regions=regions))
        for part, seed in ((1, 1), (1, 2), (14, 3))
    )
    assert not any(test.alarm for test in compare(same, one, 0.01, 0.1))
    alarmed = {test.name for test in compare(other, one, 0.01, 0.1) if test.alarm}
    assert alarmed == ({"mouth", "hair"} if regions else {"upper left", "lower centre"})


def test_rows_with_twice_the_weight_count_as_two_rows() -> None:
    table = effects_table(40, 1)
    double = pa.concat_tables([table, table.slice(0, 20)])
    weights = np.where(np.arange(40) < 20, 2.0, 1.0)
    one = np.ones((1, 64))
    found = place_shares(effects_of(table, weights), one)
    expected = place_shares(effects_of(double), one)
    for name in REGIONS:
        # the ridge counts rows, whose number the weights do not change
        assert found[name][0] == pytest.approx(expected[name][0], abs=2e-3)


def test_an_audit_whose_rows_hardly_flip_says_so() -> None:
    few = Measured(answers(40), effects_of(effects_table(5, 1)))
    tests = compare(few, Measured(answers(40), effects_of(effects_table(40, 1))), 0.01, 0.1)
    found = named(tests, "effect", "")
    assert found.note.startswith("not tested: 5 flips here and 40 in the reference")
