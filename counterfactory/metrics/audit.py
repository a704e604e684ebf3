"""Verdict on the attribute that decisions depended on, where the intervals allow one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.rates import RateSums, compute

# Keys of a verdict that has no rows behind it; `where`, `spread` and `alike` need interventions.
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("depends_on", "spurious", "top", "rate", "low", "high", "runner_up")),
    **dict.fromkeys(("runner_up_rate", "margin", "unchanged", "where", "spread")),
}
UNEXPLAINED = 0.25  # an attribute whose whole interval is below this explains no flips


@dataclass(frozen=True)
class Changed:
    """How often an attribute changed among the flipped rows, with its 95 % interval."""

    name: str
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} ({_percent(self.rate)} of flips)"

    def above(self, other: Changed) -> bool:
        """Return whether this interval is above the other's, without overlap.

        This is stricter than a test of the difference, for any dependence between the two. It makes
        up for the choice of the highest of many rates.
        """
        return self.low > other.high


def audit(names: Sequence[str], causal: Sequence[str], sums: AttributeSums) -> dict[str, Any]:
    """Return the verdict on flipped rows.

    names: the oracle's attributes (A,). causal: the names that should decide; may be empty.
    ValueError where names or causal do not fit. In the result, depends_on and spurious are None
    where the rows do not decide. top is the attribute that changed most often, rate its rate, and
    margin the difference to the runner-up's rate. unchanged is the share of flips in which no
    attribute changed by the oracle.
    """
    if len(names) != len(sums.changed) or not set(causal) <= set(names):
        raise ValueError(
            f"expected causal attributes among {len(sums.changed)} names, got {list(causal)} and"
            f" {list(names)}"
        )
    if sums.n == 0:
        verdict = "No row was flipped, so nothing can be said about what decisions depend on."
        return {**NOTHING, "alike": [], "expected": list(causal), "n": 0, "verdict": verdict}
    found = [
        _changed(name, RateSums(sums.n, int(hits), sums.again))
        for name, hits in zip(names, sums.changed, strict=True)
    ]
    ranked = sorted(found, key=lambda c: -c.rate)
    top, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    decided, spurious, verdict = _verdict(ranked, set(causal), sums)
    return {
        **NOTHING,
        "alike": [],
        "depends_on": top.name if decided else None,
        "spurious": spurious,
        "top": top.name,
        "rate": top.rate,
        "low": top.low,
        "high": top.high,
        "runner_up": runner_up.name if runner_up else None,
        "runner_up_rate": runner_up.rate if runner_up else None,
        "margin": top.rate - runner_up.rate if runner_up else None,
        "unchanged": sums.unchanged / sums.n,
        "expected": list(causal),
        "n": sums.n,
        "verdict": verdict,
    }


def _changed(name: str, sums: RateSums) -> Changed:
    span = compute(sums)
    assert span.value is not None  # there are rows
    assert span.low is not None
    assert span.high is not None
    return Changed(name, span.value, span.low, span.high)


def _verdict(
    ranked: list[Changed], causal: set[str], sums: AttributeSums
) -> tuple[bool, bool | None, str]:
    """Return whether the rows decide, whether the attribute is spurious (None where not known), and
    the sentence of the verdict."""
    top = ranked[0]
    by_top = (
        f"Decisions were flipped {'mostly' if top.low > 0.5 else 'most often'} by changing {top}"
    )
    right = [c for c in ranked if c.name in causal]
    wrong = [c for c in ranked if c.name not in causal]
    if sums.unchanged == sums.n and top.high < UNEXPLAINED:
        return False, None, "No attribute explains the flips: none changed in any of them."
    if top.high < UNEXPLAINED:
        none = _percent(sums.unchanged / sums.n)
        return (
            False,
            None,
            (
                f"No attribute explains the flips: the one that changed most often, {top.name},"
                f" changed in {_percent(top.rate)} of them, and none changed in {none}."
            ),
        )
    if not wrong:
        return True, False, f"{by_top}, as expected."
    if not right:
        if len(wrong) > 1 and not top.above(wrong[1]):
            return False, None, _undecided(top, wrong[1], sums)
        return (
            True,
            None,
            f"{by_top}; no attribute is named as the one that should decide (score.causal).",
        )
    if wrong[0].above(right[0]):
        # The sentence also names spurious attributes whose intervals overlap the first's.
        tied = "".join(f" or {c}" for c in wrong[1:3] if not top.above(c))
        return (
            True,
            True,
            (
                f"{by_top}{tied}, not {right[0].name} ({_percent(right[0].rate)}): "
                "the classifier relies on a spurious attribute."
            ),
        )
    if right[0].above(wrong[0]):
        return (
            True,
            False,
            (
                f"{by_top}, as expected; of the other attributes {wrong[0].name} changed most often"
                f" ({_percent(wrong[0].rate)})."
            ),
        )
    first, second = sorted((right[0], wrong[0]), key=lambda c: -c.rate)
    return False, None, _undecided(first, second, sums)


def _undecided(first: Changed, second: Changed, sums: AttributeSums) -> str:
    def quote_share(c: Changed) -> str:
        return f"{c.name} changed in {_percent(c.rate)} ({100 * c.low:.0f} to {_percent(c.high)})"

    what = f"flipped {'answer' if sums.again else 'row'}{'' if sums.n == 1 else 's'}"
    return (
        f"Undecided: {quote_share(first)} and {quote_share(second)} of {sums.n} {what}, too close"
        " to tell which one decides."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
