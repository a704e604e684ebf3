"""Whether the decision moved: by the classifier that was asked, and by a second one
that never was."""

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


def measure(pairs: Pairs) -> dict[str, Any]:
    """Columns flipped and p_target of a batch, of the stored images."""
    flipped, p_target = flips(pairs.scores, pairs.target)
    return {"flipped": flipped, "p_target": p_target}


def measure_second(pairs: Pairs) -> dict[str, Any]:
    """What the second classifier finds: of the target, and of the originals; NaN where it gives no
    finite probability."""
    before, after = (pairs.ask("second", x) for x in (pairs.original, pairs.counterfactual))
    p_before, p_after = flips(before, pairs.source)[1], flips(after, pairs.target)[1]
    return {
        "second_p_target": p_after,
        "second_agrees": agreement(after, pairs.target).where(p_after.isfinite(), torch.nan),
        "second_base": agreement(before, pairs.source).where(p_before.isfinite(), torch.nan),
    }


def confident_of(columns: Mapping[str, Floats], rows: NDArray[np.int64]) -> Floats:
    """1 where the probability of the target counts as a confident flip, else 0, (B,)."""
    return (columns["p_target"] > CONFIDENT).astype(np.float64)


def any_flipped_of(columns: Mapping[str, Floats], rows: NDArray[np.int64]) -> Floats:
    """`any_flipped` of the column flipped."""
    return any_flipped(columns["flipped"], rows)
