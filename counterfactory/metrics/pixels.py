"""How far a counterfactual is from its original, in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs


def pixel_distances(original: Tensor, counterfactual: Tensor) -> dict[str, Tensor]:
    """l1 (mean absolute change), l2 (its root mean square), linf (its maximum), and sparsity (share
    of pixels that move by more than 1/255 in a channel), each (B,) float64 within [0,1].

    images: (B,3,H,W) in [0,1] on the 8-bit grid. l1 and l2 are means over pixels and channels, not
    sums, so that sizes compare.
    """
    # Whole levels: in floats, a change by just 1/255 would fall on either side of 1/255. float32
    # holds them and their squares exactly, and sums of them in float64 are exact too.
    levels = (counterfactual - original).float().mul(255).round().abs()
    count = levels.shape[1:].numel()
    return {
        "l1": (levels.sum((1, 2, 3), dtype=torch.float64) / (255 * count)).cpu(),
        "l2": (levels.square().sum((1, 2, 3), dtype=torch.float64) / count).sqrt().div(255).cpu(),
        "linf": (levels.amax((1, 2, 3)).double() / 255).cpu(),
        "sparsity": (levels.amax(1) > 1).double().mean((1, 2)).cpu(),
    }


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """The columns l1, l2, linf and sparsity of a batch."""
    return pixel_distances(pairs.original, pairs.counterfactual)
