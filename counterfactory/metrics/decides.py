"""What decisions depend on, by the experiment: the place of the effect, and the attribute whose
map is the classifier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterfactory.metrics.audit import NOTHING, UNEXPLAINED
from counterfactory.metrics.estimate import Estimate

ALIKE = 0.8  # an attribute whose map is this similar to the classifier's may be what it reads
NAMED = 0.6  # regions are named until they have this share of the effect


@dataclass(frozen=True)
class Fit:
    """An attribute of the oracle. similarity: of its map to the classifier's. rate: how often it
    changed among the flipped rows.
    """

    name: str
    similarity: Estimate
    rate: Estimate

    @property
    def moves(self) -> bool:
        """Return whether the flips may be this attribute's: its rate is not clearly small."""
        return self.rate.high is None or self.rate.high >= UNEXPLAINED

    @property
    def fits(self) -> bool:
        return self.moves and (self.similarity.value or 0.0) >= ALIKE

    def __str__(self) -> str:
        return f"{self.name} {self.similarity.value or 0.0:.2f}"


@dataclass(frozen=True)
class Place:
    """Where decisions lie. share: of the effect, in the place. name: a region's or a cell's."""

    name: str
    share: Estimate

    def __str__(self) -> str:
        return f"{self.name} ({100 * (self.share.value or 0.0):.0f} %)"


def decide(
    base: dict[str, Any] | None,
    *,
    n: int,
    fits: Sequence[Fit],
    causal: Sequence[str],
    places: Sequence[Place],
    spread: bool | None,
    kinds: Sequence[Place] = (),
    expected: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the verdict of an audit with the experiment's evidence.

    base: `audit`'s verdict on how often attributes changed, None without an oracle. n: flipped
    rows. fits: the oracle's attributes. causal: those that should decide. places: of the effect,
    the largest share first. spread: whether the effect has no place, None where that is not known.
    kinds: shares of the effect by kind of change. expected: regions where decisions should lie.

    Adds to the base: `where`, `spread`, `alike` (attributes that cannot be told apart), and
    replaces `depends_on`, `spurious` and `verdict`.
    """
    result = dict(base) if base else {**NOTHING, "expected": list(causal), "n": n}
    result |= {"where": None, "spread": spread, "alike": []}
    if n == 0:
        result["verdict"] = "No row was flipped, so nothing can be said about what decides."
        return result
    named = name_places(places)
    result["where"] = None if spread else named
    lies = _lies(named, spread, kinds, places)
    good = sorted((f for f in fits if f.fits), key=lambda f: -(f.similarity.value or 0.0))
    if not fits:
        result |= _by_place(places, expected, spread)
        result["verdict"] = f"{lies}{_expected_place(result['spurious'], expected)}"
        return result
    if not good:
        best = max(fits, key=lambda f: f.similarity.value or 0.0)
        right = [f for f in fits if f.name in causal]
        far = bool(right) and all(
            f.similarity.high is not None and f.similarity.high < ALIKE for f in right
        )
        result |= {"depends_on": None, "spurious": True if far else None}
        result["verdict"] = f"{lies} {_no_fit(best)}" + (
            f" Decisions do not depend on {_names(right)}." if far else ""
        )
        return result
    first, rest = good[0], [f for f in good[1:] if not _apart(good[0], f)]
    if rest:
        group = [first, *rest]
        result["alike"] = [f.name for f in group]
        wrong = [f for f in group if f.name not in causal]
        result["depends_on"] = None
        result["spurious"] = None if not causal or 0 < len(wrong) < len(group) else bool(wrong)
        result["verdict"] = (
            f"{lies} The oracle cannot tell {_names(group)} apart: the map of each is the"
            f" classifier's ({', '.join(str(f) for f in group)})."
        )
        return result
    others = [f for f in fits if f is not first and f.moves]
    others.sort(key=lambda f: -(f.similarity.value or 0.0))
    next_ = f", next {others[0]}" if others else ""
    like = f"Its effect map is the classifier's (cosine {first.similarity.value:.2f}{next_})."
    result["depends_on"] = first.name
    result["spurious"] = None if not causal else first.name not in causal
    if not causal:
        told = ". No attribute is named as the one that should decide (score.causal)."
    elif result["spurious"]:
        told = f", not on {' or '.join(causal)}: the classifier relies on a spurious attribute."
    else:
        told = ", as expected."
    result["verdict"] = f"Decisions depend on {first.name}{told} {like} {lies}"
    return result


def name_places(places: Sequence[Place]) -> str | None:
    """Return the places that hold NAMED of the effect together as text; None where the first ones
    do not.
    """
    told, total = [], 0.0
    for place in places[:3]:
        told.append(str(place))
        total += place.share.value or 0.0
        if total >= NAMED:
            return ", ".join(told)
    return None


def _no_fit(best: Fit) -> str:
    """Return what is said of the attribute with the most similar map, which does not explain it."""
    cosine = f"(cosine {best.similarity.value or 0.0:.2f})"
    if (best.similarity.value or 0.0) < ALIKE:
        return (
            f"No attribute of the oracle has its effect there: the nearest is {best.name} {cosine}."
        )
    return (
        f"The map of {best.name} is the classifier's {cosine}, but the oracle sees it change in"
        f" only {100 * (best.rate.value or 0.0):.0f} % of the flips."
    )


def _lies(
    named: str | None, spread: bool | None, kinds: Sequence[Place], places: Sequence[Place]
) -> str:
    kind = f" By kind of change: {', '.join(str(k) for k in kinds)}." if kinds else ""
    if spread:
        return f"The effect is spread over the image, it has no place.{kind}"
    if named:
        return f"Decisions lie at: {named.replace(' %)', ' % of the effect)', 1)}."
    first = f" The first are {', '.join(map(str, places[:3]))}." if places else ""
    return f"No place holds most of the effect.{first}{kind}"


def _by_place(
    places: Sequence[Place], expected: Sequence[str], spread: bool | None
) -> dict[str, Any]:
    """Return whether the regions that should decide do, without an oracle."""
    mine = [p for p in places if p.name in expected]
    if not mine or spread:
        return {"depends_on": None, "spurious": None}
    low = sum(p.share.low or 0.0 for p in mine)
    high = sum(p.share.high if p.share.high is not None else 1.0 for p in mine)
    return {"depends_on": None, "spurious": False if low > 0.5 else True if high < 0.5 else None}


def _expected_place(spurious: bool | None, expected: Sequence[str]) -> str:
    if spurious is None:
        return ""
    regions = " and ".join(expected)
    if spurious:
        return f" Less than half is at {regions}: the classifier relies on something else."
    return f" Most of it is at {regions}, as expected."


def _apart(first: Fit, other: Fit) -> bool:
    """Return whether the first attribute's map is clearly more similar than the other's."""
    if first.similarity.low is None or other.similarity.high is None:
        return False
    return other.similarity.high < first.similarity.low


def _names(fits: Sequence[Fit]) -> str:
    return " and ".join(f.name for f in fits)
