"""How alike a network finds the two images of a pair: the cosine of its outputs for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from counterfactory.metrics.estimate import Measure

VERIFIED = 0.5  # the cosine above which two faces count as one person's
# of SimSiam's projector (ACE, CVPR 2023)
S3 = (Measure("s3", "s3", "mean", "correct", "higher", "cosine"),)
FACES = (
    Measure("fva", "verified", "rate", "flipped", "higher"),
    Measure("fs", "fs", "mean", "flipped", "higher", "cosine"),
)


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of each pair of outputs, float64 (B,) within [-1,1]; before, after: (B,D). Nothing is
    like a zero vector: its cosine is 0."""
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(
            f"expected features of one shape (B,D), got {tuple(before.shape)} and"
            f" {tuple(after.shape)}"
        )
    return F.cosine_similarity(before.double(), after.double(), dim=1, eps=1e-30).clamp(-1, 1).cpu()


def verified(cosines: Tensor, threshold: float = VERIFIED) -> Tensor:
    """1 where two faces are one person's, else 0, float64 (B,); NaN where the cosine is."""
    return (cosines > threshold).to(torch.float64).where(~cosines.isnan(), torch.nan)
