"""How much of an image's latent a counterfactual moves."""

from __future__ import annotations

from torch import Tensor

from counterfactory.metrics.estimate import Measure


def measures(tolerance: float) -> tuple[Measure, ...]:
    """LPR's, which prints its tolerance: as an exact l0 it would be near 1 after any gradient
    descent.
    """
    return (
        Measure(
            "lpr",
            "lpr",
            "mean",
            "all",
            "lower",
            f"share of latents moved by more than {tolerance:g}",
        ),
    )


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
