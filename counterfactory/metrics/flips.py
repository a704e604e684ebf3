"""Whether the decision moved: by the classifier that was asked, and by a second one
that never was."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterfactory.metrics.estimate import Measure

Floats = NDArray[np.float64]
CONFIDENT = 0.75  # the probability of the target that counts as a confident flip
MEASURES = (
    Measure("flip_rate", "flipped", "rate", "all", "higher"),
    Measure("flip_rate[p>0.75]", "confident", "rate", "all", "higher"),
    Measure("p_target", "p_target", "mean", "all", "higher", "probability"),
    Measure("second_agrees", "second_agrees", "rate", "flipped", "higher"),
    Measure("second_agrees_on_originals", "second_base", "rate", "all", None),
)
# Of a row with several answers, at the first of them.
ANY = Measure("flip_rate[any]", "any_flipped", "rate", "all", "higher")


def flips(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Is each stored counterfactual classified as its target, (B,) bool, and with what probability,
    (B,) float64.

    scores: (B,K), whose softmax over K is the probability; target: (B,) int64. Without a finite
    probability there is no flip. The paper of AIP
    prints the flip rate's condition as F(x0) = y*; it means F(x*).
    """
    p = scores.double().softmax(1)
    p_target = p.gather(1, target[:, None])[:, 0]
    return (p.argmax(1) == target) & p_target.isfinite(), p_target


def agreement(scores: Tensor, wanted: Tensor) -> Tensor:
    """1 where a second classifier predicts the class wanted, else 0, (B,) float64.

    With the counterfactuals' scores and targets, over the flipped rows: do the flips convince a
    model that was never attacked? With the originals' scores and the first model's predictions: how
    often the two agree anyway.
    """
    return (scores.argmax(1) == wanted).to(torch.float64)


def first_of(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Is each its row's first, (B,)."""
    found = np.zeros(len(rows), np.bool_)
    found[np.unique(rows, return_index=True)[1]] = True
    return found


def any_flipped(flipped: Floats, rows: NDArray[np.int64]) -> Floats:
    """1 or 0 at each row's first answer, NaN at its others, (B,): did any of its answers flip."""
    hit = np.zeros(int(rows.max()) + 1 if len(rows) else 0)
    np.maximum.at(hit, rows, flipped)
    return np.where(first_of(rows), hit[rows], np.nan)
