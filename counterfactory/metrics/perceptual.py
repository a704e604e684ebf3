"""Perceptual distances of counterfactuals: to their originals, and to each other."""

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
    """Return the network's distance of each pair, float64 (B,).

    a, b: (B,3,H,W) in [0,1]. network: two such batches, at most `batch` pairs at a time, to (b,).
    ValueError where the shapes differ or the network does not return one distance per pair.
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
    """Return the mean distance over all pairs of answers to one query, and over all pairs of
    flipped answers.

    answers: (k,3,H,W). flipped: (k,) bool. Returns None for a mean over fewer than two answers.
    sigma_L of Jeanneret et al., "Diffusion Models for Counterfactual Explanations", ACCV 2022.
    """
    listed = list(combinations(range(len(answers)), 2))
    pairs = torch.tensor(listed, dtype=torch.int64, device=answers.device).view(-1, 2)
    found = distances(network, answers[pairs[:, 0]], answers[pairs[:, 1]], batch)
    both = flipped.cpu()[pairs.cpu()].all(1)
    every, valid = (float(some.mean()) if len(some) else None for some in (found, found[both]))
    return every, valid


def measure(pairs: Pairs) -> dict[str, Any]:
    """Return the column lpips of a batch.

    Where rows have several answers, also returns lpips_diversity and lpips_diversity_flipped (of
    the flipped answers). Both have a value at a row's first answer and None at its others.
    """
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
