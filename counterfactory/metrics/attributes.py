"""Attributes that changed besides the decision, as an oracle of attributes predicts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.pairs import Pairs, finite_pairs
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AttributeSums(Sums):
    """Number of answers (n), of answers in which nothing changed, and of changes by attribute (A,);
    summed change of the probability by attribute (A,).

    again: number of the n that are further answers to a row already counted.
    """

    n: int
    unchanged: int
    changed: NDArray[np.int64]
    shift: Floats
    again: int = 0

    @classmethod
    def zero(cls, attributes: int) -> AttributeSums:
        return cls(0, 0, np.zeros(attributes, np.int64), np.zeros(attributes))

    def mirrored(self) -> AttributeSums:
        """Return the sums of the same answers in the other direction."""
        return replace(self, shift=-self.shift)


def changes(before: Floats, after: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return which attributes crossed the threshold, (B,A) bool.

    before, after: the oracle's probabilities (B,A). ValueError where the shapes differ.
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(
            f"expected probabilities of one shape (B,A), got {before.shape} and {after.shape}"
        )
    return np.asarray((before > threshold) != (after > threshold))


def causal_share(
    changed: NDArray[np.bool_], causal: Sequence[int]
) -> tuple[Floats, Floats, Floats]:
    """Return three values per row, (B,) each: the share of the changed attributes that are causal
    (NaN where none changed), the number of changed causal attributes, and of changed other ones.

    changed: (B,A) bool. causal: columns of the attributes that should decide.
    """
    is_causal = np.zeros(changed.shape[1], dtype=np.bool_)
    is_causal[list(causal)] = True
    right = changed[:, is_causal].sum(1).astype(np.float64)
    wrong = changed[:, ~is_causal].sum(1).astype(np.float64)
    share = np.full(len(changed), np.nan)
    np.divide(right, right + wrong, out=share, where=right + wrong > 0)
    return share, right, wrong


def numbers_changed(changed: NDArray[np.bool_], query: int | None) -> tuple[Floats, Floats]:
    """Return two numbers per row, (B,) each: of changed attributes, and of changed attributes
    without the query attribute (NaN where query is None).

    changed: (B,A) bool. query: a column. Their means are MNAC (Rodriguez et al., "Beyond Trivial
    Counterfactual Explanations with Diverse Valuable Explanations", ICCV 2021). The paper counts
    the target, too.
    """
    every = changed.sum(1).astype(np.float64)
    return every, np.full(len(changed), np.nan) if query is None else every - changed[:, query]


def measure(pairs: Pairs) -> dict[str, Any]:
    """Return the oracle's probabilities of a batch and the numbers of changed attributes.

    Where causal attributes are named, also returns their number, that of the others, and the causal
    share. Values are NaN where a probability is not finite.
    """
    asked = finite_pairs(
        *(pairs.ask("oracle", images) for images in (pairs.original, pairs.counterfactual))
    )
    before, after = (seen.double().numpy() for seen in asked)
    missing = np.isnan(before).any(1)  # of these rows no change is known
    changed = changes(before, after, pairs.settings["threshold"])
    every, others = (
        np.where(missing, np.nan, numbers) for numbers in numbers_changed(changed, pairs.query)
    )
    found: dict[str, Any] = {
        "attributes_before": before,
        "attributes_after": after,
        "changed_all": every,
        "changed_others": np.ma.masked_invalid(others),
    }
    if pairs.causal:
        share, right, wrong = causal_share(changed, pairs.causal)
        found["changed_causal"] = np.where(missing, np.nan, right)
        found["changed_spurious"] = np.where(missing, np.nan, wrong)
        found["causal_share"] = np.ma.masked_invalid(share)  # none where no attribute changed
    return found


def update(
    before: Floats, after: Floats, threshold: float, rows: NDArray[np.int64] | None = None
) -> AttributeSums:
    """Return the sums of a batch; before, after: the oracle's probabilities (B,A).

    rows: (B,) the row that each answer belongs to, where rows have several answers.
    """
    changed = changes(before, after, threshold)
    again = 0 if rows is None else len(rows) - len(np.unique(rows))
    return AttributeSums(
        len(changed),
        int((~changed.any(1)).sum()),
        changed.sum(0).astype(np.int64),
        (after - before).sum(0),
        again,
    )
