"""How much of an image's latent a counterfactual moves."""

from __future__ import annotations

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs, finite_pairs


def latent_ratio(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """LPR: share of latent coordinates that move by more than the tolerance, float64 (B,) within
    [0,1].

    before, after: (B,...), both images encoded again by one encoder, so that methods without
    latents compare (Yang et al., "Generative Counterfactuals for Neural Networks via
    Attribute-Informed Perturbation", eq. 8).
    """
    if before.shape != after.shape or before.ndim < 2:
        raise ValueError(
            f"expected latents of one shape (B,...), got {tuple(before.shape)} and"
            f" {tuple(after.shape)}"
        )
    return ((after.double() - before.double()).abs() > tolerance).flatten(1).double().mean(1).cpu()


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """The column lpr of a batch, NaN where a latent is not finite."""
    encode = pairs.networks["lpr"]
    before, after = finite_pairs(encode(pairs.original), encode(pairs.counterfactual))
    ratio = latent_ratio(before, after, pairs.settings["lpr_tolerance"])
    return {"lpr": ratio.where(before.flatten(1).isfinite().all(1).cpu(), torch.nan)}
