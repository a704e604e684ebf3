"""How different a perceptual network finds images: from their originals, and from each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from counterfactory.metrics.estimate import Measure

MEASURES = (
    Measure("lpips", "lpips", "mean", "all", "lower"),
    # Over queries of several answers: sigma_L of DiME and ACE, not the distance to the original
    # that is called LPIPS.
    Measure("lpips_diversity", "lpips_diversity", "mean", "all", "higher"),
)
OF_FLIPPED = Measure("lpips_diversity", "lpips_diversity_flipped", "mean", "flipped", "higher")
Distance = Callable[[Tensor, Tensor], Tensor]


def distances(network: Distance, a: Tensor, b: Tensor, batch: int = 64) -> Tensor:
    """The network's distance of each pair, float64 (B,); a, b: (B,3,H,W) in [0,1]; network: two
    such to (b,).
    """
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"expected images of one shape (B,3,H,W), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    found = [
        network(a[at : at + batch], b[at : at + batch]).double().cpu()
        for at in range(0, len(a), batch)
    ]
    if any(part.ndim != 1 for part in found):
        raise ValueError(
            f"expected one distance per pair, got {[tuple(part.shape) for part in found]}"
        )
    return torch.cat([torch.zeros(0, dtype=torch.float64), *found])


def diversity(
    network: Distance, answers: Tensor, flipped: Tensor, batch: int = 64
) -> tuple[float | None, float | None]:
    """Mean distance over all pairs of the answers to one query, (k,3,H,W), and over those of its
    flipped ones, (k,) bool; None where there are fewer than two. (sigma_L; Jeanneret et al.,
    "Diffusion Models for Counterfactual Explanations", ACCV 2022.)"""
    listed = list(combinations(range(len(answers)), 2))
    pairs = torch.tensor(listed, dtype=torch.int64, device=answers.device).view(-1, 2)
    found = distances(network, answers[pairs[:, 0]], answers[pairs[:, 1]], batch)
    both = flipped.cpu()[pairs.cpu()].all(1)
    every, valid = (float(some.mean()) if len(some) else None for some in (found, found[both]))
    return every, valid
