"""How different a perceptual network finds images: from their originals, and from each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from metrics.estimate import Measure

MEASURES = (
    Measure("lpips", "lpips", "mean", "all", "lower"),
    # Over queries of several answers: sigma_L of DiVE and ACE, not the distance to the original that is called LPIPS.
    Measure("lpips_diversity", "lpips_diversity", "mean", "all", "higher"),
)
Distance = Callable[[Tensor, Tensor], Tensor]


def distances(network: Distance, a: Tensor, b: Tensor, batch: int = 64) -> Tensor:
    """The network's distance of each pair, float64 (B,); a, b: (B,3,H,W) in [0,1]; network: two such to (b,)."""
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"expected images of one shape (B,3,H,W), got {tuple(a.shape)} and {tuple(b.shape)}")
    found = [network(a[at : at + batch], b[at : at + batch]).double().cpu() for at in range(0, len(a), batch)]
    if any(part.ndim != 1 for part in found):
        raise ValueError(f"expected one distance per pair, got {[tuple(part.shape) for part in found]}")
    return torch.cat([torch.zeros(0, dtype=torch.float64), *found])


def diversity(network: Distance, answers: Tensor, batch: int = 64) -> float | None:
    """Mean distance over all pairs of the answers to one query, (k,3,H,W); None where there are fewer than two."""
    pairs = list(combinations(range(len(answers)), 2))
    if not pairs:
        return None
    left, right = (torch.tensor(side, device=answers.device) for side in zip(*pairs, strict=True))
    return float(distances(network, answers[left], answers[right], batch).mean())
