"""How different a perceptual network finds images: from their originals, and from each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from counterfactory.metrics.flips import flips
from counterfactory.metrics.pairs import Pairs

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


def measure(pairs: Pairs) -> dict[str, Any]:
    """The column lpips of a batch, and where rows have several answers lpips_diversity and that of
    the answers that flipped, at a row's first answer, None at its others."""
    network, ids = pairs.networks["lpips"], pairs.ids
    found: dict[str, Any] = {
        "lpips": distances(network, pairs.original, pairs.counterfactual, pairs.size)
    }
    if len(set(ids)) == len(ids):
        return found
    flipped = flips(pairs.scores, pairs.target)[0]
    every: list[float | None] = [None] * len(ids)
    valid = every.copy()
    for query in dict.fromkeys(ids):
        mine = [i for i, name in enumerate(ids) if name == query]
        answers = pairs.counterfactual[mine]
        every[mine[0]], valid[mine[0]] = diversity(network, answers, flipped[mine], pairs.size)
    return {**found, "lpips_diversity": every, "lpips_diversity_flipped": valid}
