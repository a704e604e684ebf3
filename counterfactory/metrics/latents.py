"""LPR: the share of an image's latent that a counterfactual changes."""

from __future__ import annotations

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs, finite_pairs


def latent_ratio(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Return LPR, the share of latent coordinates that change by more than the tolerance, float64
    (B,) in [0,1].

    before, after: (B,...), the latents of both images by one encoder. Encoding the images again
    makes methods without latents comparable. ValueError where the shapes differ. Yang et al.,
    "Generative Counterfactuals for Neural Networks via Attribute-Informed Perturbation", eq. 8.
    """
    if before.shape != after.shape or before.ndim < 2:
        raise ValueError(
            f"expected latents of one shape (B,...), got {tuple(before.shape)} and"
            f" {tuple(after.shape)}"
        )
    return ((after.double() - before.double()).abs() > tolerance).flatten(1).double().mean(1).cpu()


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """Return the column lpr of a batch, NaN where a latent is not finite."""
    encode = pairs.networks["lpr"]
    before, after = finite_pairs(encode(pairs.original), encode(pairs.counterfactual))
    ratio = latent_ratio(before, after, pairs.settings["lpr_tolerance"])
    return {"lpr": ratio.where(before.flatten(1).isfinite().all(1).cpu(), torch.nan)}
