"""Whether the decision changed: by the classifier that the method used, and by a second one that
it did not use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterfactory.metrics.pairs import Pairs

Floats = NDArray[np.float64]
CONFIDENT = 0.75  # the probability of the target that counts as a confident flip


def flips(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each stored counterfactual is classified as its target, (B,) bool, and the
    probability of the target, (B,) float64.

    scores: (B,K), whose softmax over K is the probability. target: (B,) int64. A row without a
    finite probability is not flipped. The paper of AIP prints the flip rate's condition as F(x0) =
    y*; it means F(x*).
    """
    p = scores.double().softmax(1)
    p_target = p.gather(1, target[:, None])[:, 0]
    return (p.argmax(1) == target) & p_target.isfinite(), p_target


def agreement(scores: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 where a second classifier predicts the wanted class, else 0, (B,) float64.

    With the counterfactuals' scores and targets, over the flipped rows, it measures whether the
    flips also convince a model that the method did not use. With the originals' scores and the
    first model's predictions, it measures how often the two models agree on originals.
    """
    return (scores.argmax(1) == wanted).to(torch.float64)


def first_of(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each answer is the first of its row, (B,)."""
    found = np.zeros(len(rows), np.bool_)
    found[np.unique(rows, return_index=True)[1]] = True
    return found


def any_flipped(flipped: Floats, rows: NDArray[np.int64]) -> Floats:
    """Return whether any answer to a row flipped, (B,): 1 or 0 at its first answer, else NaN."""
    hit = np.zeros(int(rows.max()) + 1 if len(rows) else 0)
    np.maximum.at(hit, rows, flipped)
    return np.where(first_of(rows), hit[rows], np.nan)


def measure(pairs: Pairs) -> dict[str, Any]:
    """Return the columns flipped and p_target of a batch, computed on the stored images."""
    flipped, p_target = flips(pairs.scores, pairs.target)
    return {"flipped": flipped, "p_target": p_target}


def measure_second(pairs: Pairs) -> dict[str, Any]:
    """Return the columns second_p_target, second_agrees and second_base of a batch.

    They are the second classifier's probability of the target, and whether it agrees on the
    counterfactual and on the original; NaN where its probability is not finite.
    """
    before, after = (pairs.ask("second", x) for x in (pairs.original, pairs.counterfactual))
    p_before, p_after = flips(before, pairs.source)[1], flips(after, pairs.target)[1]
    return {
        "second_p_target": p_after,
        "second_agrees": agreement(after, pairs.target).where(p_after.isfinite(), torch.nan),
        "second_base": agreement(before, pairs.source).where(p_before.isfinite(), torch.nan),
    }


def confident_of(columns: Mapping[str, Floats], rows: NDArray[np.int64]) -> Floats:
    """Return 1 where the probability of the target is above 0.75, else 0, (B,)."""
    return (columns["p_target"] > CONFIDENT).astype(np.float64)


def any_flipped_of(columns: Mapping[str, Floats], rows: NDArray[np.int64]) -> Floats:
    """Return `any_flipped` of the column flipped."""
    return any_flipped(columns["flipped"], rows)
