"""Similarity of the two images of a pair: the cosine of a network's outputs for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from counterfactory.metrics.pairs import Pairs

VERIFIED = 0.5  # the cosine above which two faces count as one person's


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return the cosine of each pair of outputs, float64 (B,) in [-1,1]; 0 for a zero vector.

    before, after: (B,D). ValueError where the shapes differ.
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(
            f"expected features of one shape (B,D), got {tuple(before.shape)} and"
            f" {tuple(after.shape)}"
        )
    return F.cosine_similarity(before.double(), after.double(), dim=1, eps=1e-30).clamp(-1, 1).cpu()


def verified(cosines: Tensor, threshold: float = VERIFIED) -> Tensor:
    """Return 1 where two faces are the same person (the cosine is above the threshold), else 0,
    float64 (B,); NaN where the cosine is NaN."""
    return (cosines > threshold).to(torch.float64).where(~cosines.isnan(), torch.nan)


def measure_s3(pairs: Pairs) -> dict[str, Tensor]:
    """Return the column s3 of a batch: cosines of SimSiam's projector (ACE, CVPR 2023)."""
    return {"s3": _cosines(pairs, "s3")}


def measure_faces(pairs: Pairs) -> dict[str, Tensor]:
    """Return the column fs of a batch."""
    return {"fs": _cosines(pairs, "fs")}


def verified_of(
    columns: Mapping[str, NDArray[np.float64]], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `verified` of the column fs."""
    return np.asarray(verified(torch.tensor(columns["fs"])))


def _cosines(pairs: Pairs, name: str) -> Tensor:
    network: Any = pairs.networks[name]
    return cosine(network(pairs.original).flatten(1), network(pairs.counterfactual).flatten(1))
