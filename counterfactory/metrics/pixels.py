"""Pixel distances of a counterfactual to its original."""

from __future__ import annotations

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs


def pixel_distances(original: Tensor, counterfactual: Tensor) -> dict[str, Tensor]:
    """Return l1 (mean absolute change), l2 (root mean square), linf (maximum) and sparsity (share
    of pixels that change by more than 1/255 in at least one channel), each (B,) float64 in [0,1].

    original, counterfactual: (B,3,H,W) in [0,1] on the 8-bit grid. l1 and l2 are means over pixels
    and channels, not sums, so images of different sizes are comparable.
    """
    # Whole levels, because in floats a change of exactly 1/255 can be above or below 1/255. Levels
    # and their squares are exact in float32, and their sums are exact in float64.
    levels = (counterfactual - original).float().mul(255).round().abs()
    count = levels.shape[1:].numel()
    return {
        "l1": (levels.sum((1, 2, 3), dtype=torch.float64) / (255 * count)).cpu(),
        "l2": (levels.square().sum((1, 2, 3), dtype=torch.float64) / count).sqrt().div(255).cpu(),
        "linf": (levels.amax((1, 2, 3)).double() / 255).cpu(),
        "sparsity": (levels.amax(1) > 1).double().mean((1, 2)).cpu(),
    }


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """Return the columns l1, l2, linf and sparsity of a batch."""
    return pixel_distances(pairs.original, pairs.counterfactual)
