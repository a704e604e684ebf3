"""Verdicts of known evidence: one attribute fits, several do, none does; places, spread effects."""

from __future__ import annotations

from typing import Any

import pytest

from counterfactory.metrics.decides import Fit, Place, decide, name_places
from counterfactory.metrics.estimate import NOTHING, Estimate


def about(value: float, width: float = 0.05, n: int = 64) -> Estimate:
    return Estimate(value, value - width, min(value + width, 1.0), n)


def fit(name: str, similarity: float, rate: float, width: float = 0.05) -> Fit:
    return Fit(name, about(similarity, width), about(rate))


MOUTH = [Place("mouth", about(0.9)), Place("hair", about(0.02))]


def verdict(fits: list[Fit], **other: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "n": 64,
        "causal": ["Smiling"],
        "places": MOUTH,
        "spread": False,
        **other,
    }
    return decide(None, fits=fits, **given)


def test_one_attribute_fits() -> None:
    fits = [fit("Blond", 0.3, 0.6), fit("Smiling", 0.97, 0.9), fit("Bangs", 0.6, 0.05)]
    found = verdict(fits)
    assert (found["depends_on"], found["spurious"], found["alike"]) == ("Smiling", False, [])
    # Bangs has the next map, but changed in few flips
    assert found["verdict"] == (
        "Decisions depend on Smiling, as expected."
        " Its effect map is the classifier's (cosine 0.97, next Blond 0.30)."
        " Decisions lie at: mouth (90 % of the effect)."
    )
    wrong = verdict(fits, causal=["Blond"])
    assert (wrong["depends_on"], wrong["spurious"]) == ("Smiling", True)
    assert "not on Blond: the classifier relies on a spurious attribute." in wrong["verdict"]
    assert verdict(fits, causal=[])["spurious"] is None


def test_attributes_that_cannot_be_told_apart() -> None:
    pair = [fit("Smiling", 0.99, 0.36), fit("Patch", 0.98, 0.34), fit("Hair", 0.1, 0.3)]
    found = verdict(pair, places=[Place("cell 1,1", about(0.7))])
    assert found["alike"] == ["Smiling", "Patch"]
    assert (found["depends_on"], found["spurious"]) == (None, None)
    assert "cannot tell Smiling and Patch apart" in found["verdict"]
    assert "cell 1,1 (70 % of the effect)" in found["verdict"]
    assert verdict(pair, causal=["Hair"])["spurious"] is True  # neither of them should decide
    assert verdict(pair, causal=["Smiling", "Patch"])["spurious"] is False
    apart = [fit("Smiling", 0.99, 0.5, 0.01), fit("Patch", 0.85, 0.5, 0.01)]
    assert verdict(apart)["depends_on"] == "Smiling"


def test_an_attribute_that_hardly_moves_is_not_what_decides() -> None:
    found = verdict([fit("Smiling", 0.9, 0.1), fit("Blond", 0.2, 0.9)])
    assert found["depends_on"] is None
    assert (
        "The map of Smiling is the classifier's (cosine 0.90), but the oracle sees it change in"
        " only 10 % of the flips." in found["verdict"]
    )


def test_no_attribute_fits() -> None:
    found = verdict([fit("Smiling", 0.1, 0.9), fit("Blond", 0.2, 0.9)])
    assert (found["depends_on"], found["spurious"]) == (None, True)
    assert found["verdict"].endswith("Decisions do not depend on Smiling.")
    unsure = verdict([fit("Smiling", 0.7, 0.9, 0.2), fit("Blond", 0.2, 0.9)])
    assert unsure["spurious"] is None


@pytest.mark.parametrize(
    ("share", "spurious", "words"),
    [
        (0.9, False, "as expected"),
        (0.1, True, "the classifier relies on something else"),
        (0.5, None, "Decisions lie at"),
    ],
)
def test_regions_without_an_oracle(share: float, spurious: bool | None, words: str) -> None:
    places = [Place("mouth", about(share, 0.08)), Place("hair", about(1 - share))]
    places.sort(key=lambda p: -(p.share.value or 0))
    found = verdict([], places=places, expected=["mouth"])
    assert found["spurious"] is spurious
    assert words in found["verdict"]


def test_a_spread_effect_has_no_place_and_tells_its_kinds() -> None:
    kinds = [Place("colour", about(0.6)), Place("coarse", about(0.3)), Place("fine", about(0.1))]
    found = verdict([], spread=True, kinds=kinds, expected=["mouth"])
    assert (found["where"], found["spread"], found["spurious"]) == (None, True, None)
    assert found["verdict"] == (
        "The effect is spread over the image, it has no place."
        " By kind of change: colour (60 %), coarse (30 %), fine (10 %)."
    )


def test_places_are_named_until_they_have_most_of_the_effect() -> None:
    both = [Place("hair", about(0.4)), Place("skin", about(0.3)), Place("nose", about(0.1))]
    assert name_places(both) == "hair (40 %), skin (30 %)"
    assert name_places([Place("a", about(0.1))] * 5) is None
    assert name_places([]) is None
    assert name_places([Place("a", NOTHING)]) is None


def test_no_flips() -> None:
    found = decide(None, n=0, fits=[], causal=["Smiling"], places=[], spread=None)
    assert found["verdict"].startswith("No row was flipped")
    assert {"top", "rate", "where", "alike", "spread", "spurious"} <= set(found)


def test_an_effect_in_several_places_names_the_first() -> None:
    several = [Place(name, about(0.15)) for name in ("mouth", "hair", "skin", "nose")]
    found = verdict([], places=several, spread=None)
    assert found["where"] is None
    assert found["verdict"] == (
        "No place holds most of the effect. The first are mouth (15 %), hair (15 %), skin (15 %)."
    )
