"""The audit says what the intervals support, and no more."""

import numpy as np
import pytest

from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.audit import audit

NAMES = ["Smiling", "Blond_Hair", "Bangs"]


def sums(n: int, *changed: int, unchanged: int = 0) -> AttributeSums:
    return AttributeSums(n, unchanged, np.array(changed), np.zeros(len(changed)))


def test_a_spurious_attribute_is_named() -> None:
    found = audit(NAMES, ["Smiling"], sums(100, 1, 93, 4))
    assert (found["depends_on"], found["spurious"], found["runner_up"]) == (
        "Blond_Hair",
        True,
        "Bangs",
    )
    assert found["margin"] == pytest.approx(0.89)
    assert (
        found["verdict"]
        == "Decisions were flipped mostly by changing Blond_Hair (93 % of flips), not Smiling (1"
        " %): "
        "the classifier relies on a spurious attribute."
    )


def test_the_expected_attribute_is_confirmed() -> None:
    found = audit(NAMES, ["Smiling"], sums(200, 96, 14, 2))
    assert (found["depends_on"], found["spurious"]) == ("Smiling", False)
    assert (
        found["verdict"]
        == "Decisions were flipped most often by changing Smiling (48 % of flips), as expected; "
        "of the other attributes Blond_Hair changed most often (7 %)."
    )


def test_overlapping_intervals_are_undecided() -> None:
    found = audit(NAMES, ["Smiling"], sums(20, 10, 13, 0))
    assert (found["depends_on"], found["spurious"], found["top"]) == (None, None, "Blond_Hair")
    assert found["verdict"].startswith("Undecided: Blond_Hair changed in 65 %")
    assert "of 20 flipped rows" in found["verdict"]
    assert audit(NAMES, ["Smiling"], sums(2000, 1000, 1300, 0))["depends_on"] == "Blond_Hair"


def test_one_row_decides_nothing() -> None:
    found = audit(NAMES, ["Smiling"], sums(1, 0, 1, 0))
    assert found["depends_on"] is None
    assert "of 1 flipped row," in found["verdict"]


def test_spurious_ones_that_go_together_are_named_together() -> None:
    found = audit(NAMES, ["Smiling"], sums(100, 2, 90, 88))
    assert found["spurious"] is True
    assert (
        "Blond_Hair (90 % of flips) or Bangs (88 % of flips), not Smiling (2 %)" in found["verdict"]
    )


def test_flips_that_change_nothing_are_not_explained() -> None:
    found = audit(NAMES, ["Smiling"], sums(200, 3, 6, 1, unchanged=190))
    assert (found["depends_on"], found["spurious"]) == (None, None)
    assert (
        found["verdict"]
        == "No attribute explains the flips: the one that changed most often, Blond_Hair, changed"
        " in 3 % of them, and none changed in 95 %."
    )
    nothing = audit(NAMES, ["Smiling"], sums(200, 0, 0, 0, unchanged=200))
    assert nothing["verdict"] == "No attribute explains the flips: none changed in any of them."


def test_without_expected_attributes_nothing_is_called_spurious() -> None:
    found = audit(NAMES, [], sums(100, 1, 93, 4))
    assert (found["depends_on"], found["spurious"]) == ("Blond_Hair", None)
    assert audit(NAMES, [], sums(100, 90, 93, 4))["depends_on"] is None
    assert audit(NAMES, NAMES, sums(100, 90, 93, 4))["spurious"] is False


def test_no_flips() -> None:
    found = audit(NAMES, ["Smiling"], AttributeSums.zero(3))
    assert (found["depends_on"], found["rate"], found["n"]) == (None, None, 0)
    assert found["verdict"].startswith("No row was flipped")


def test_unknown_causal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected causal attributes among 3 names, got"):
        audit(NAMES, ["Hat"], sums(1, 0, 0, 0))
