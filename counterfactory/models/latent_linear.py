"""Linear functions of an encoder's latents, in standard deviations from their mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LatentLinear(nn.Module):
    """Scores of standardised latents, fitted on the latents of one encoder.

    latent: length of a latent; outputs: number of scores; fitted: what it is, for errors.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    sample: Tensor

    def __init__(self, latent: int, outputs: int, fitted: str) -> None:
        super().__init__()
        self.fitted = fitted
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))
        self.register_buffer("weight", torch.zeros(outputs, latent))
        self.register_buffer("bias", torch.zeros(outputs))
        # latent of one known picture, which identifies the encoder
        self.register_buffer("sample", torch.zeros(latent))

    def standardise(self, latents: Tensor) -> None:
        """Set mean and standard deviation from latents (N,L)."""
        spread = latents.double().std(0, correction=0)
        self.mean.copy_(latents.double().mean(0))
        # a number that hardly varies stays near 0
        self.std.copy_(spread.clamp(min=max(1e-3 * float(spread.max()), 1e-4)))

    def normal(self, latents: Tensor) -> Tensor:
        """Return latents (B,...) as (B,L), in standard deviations from the mean; ValueError where L
        differs.
        """
        flat = latents.flatten(1).float()
        if flat.shape[1] != len(self.mean):
            raise ValueError(
                f"expected latents of {len(self.mean)} numbers, as the {self.fitted} were fitted"
                f" on, got {flat.shape[1]}"
            )
        return (flat - self.mean) / self.std

    def scores(self, latents: Tensor) -> Tensor:
        """Return the scores (B,K) of latents (B,...)."""
        return self.normal(latents) @ self.weight.T + self.bias
