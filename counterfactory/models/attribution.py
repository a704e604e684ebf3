"""Light predictors of image descriptors on an encoder's latents: what a counterfactual's
importances are read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# mean distance of one picture's latent, in standard deviations, that rounding does not explain
FOREIGN = 0.1
Size = tuple[int, int]


class Descriptors(nn.Module):
    """One linear predictor per descriptor on standardised latents: logistic for a binary
    descriptor, ridge for a continuous one (Goldwasser & Hooker 2025, arXiv 2504.15479).

    latent: how many numbers a latent has; descriptors: how many there are; continuous: the places
    of those that are not binary.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    sample: Tensor

    def __init__(self, *, latent: int, descriptors: int, continuous: Sequence[int] = ()) -> None:
        super().__init__()
        if min(latent, descriptors) < 1 or not all(
            0 <= place < descriptors for place in continuous
        ):
            raise ValueError(
                "expected latent and descriptors of at least 1 and continuous below descriptors,"
                f" got {(latent, descriptors, list(continuous))}"
            )
        self.continuous = tuple(continuous)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))
        self.register_buffer("weight", torch.zeros(descriptors, latent))
        self.register_buffer("bias", torch.zeros(descriptors))
        # of one known picture: whose latents these are
        self.register_buffer("sample", torch.zeros(latent))

    def standardise(self, latents: Tensor) -> None:
        """Take mean and standard deviation from latents (N,L)."""
        spread = latents.double().std(0, correction=0)
        self.mean.copy_(latents.double().mean(0))
        # what hardly varies stays near 0
        self.std.copy_(spread.clamp(min=max(1e-3 * float(spread.max()), 1e-4)))

    def normal(self, latents: Tensor) -> Tensor:
        """Latents (B,...) as (B,L), in standard deviations from the mean."""
        flat = latents.flatten(1).float()
        if flat.shape[1] != len(self.mean):
            raise ValueError(
                f"expected latents of {len(self.mean)} numbers, as the predictors were fitted on,"
                f" got {flat.shape[1]}"
            )
        return (flat - self.mean) / self.std

    def scores(self, latents: Tensor) -> Tensor:
        """(B,D) of latents (B,...): log-odds of binary descriptors; of continuous ones the standard
        deviations, of the data they were fitted on, from their mean."""
        return self.normal(latents) @ self.weight.T + self.bias

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """What importances are differences of, (B,D): probabilities of binary descriptors, else the
        scores.
        """
        found = scores.sigmoid()
        for place in self.continuous:
            found[:, place] = scores[:, place]
        return found

    def forward(self, latents: Tensor) -> Tensor:
        """The predictors' output for latents (B,...): (B,D), as `to_probabilities` returns it."""
        return self.to_probabilities(self.scores(latents))


class AttributionWrapper(nn.Module):
    """Descriptors with their names, and the encoder that they know."""

    def __init__(self, network: nn.Module, *, descriptors: Sequence[str]) -> None:
        super().__init__()
        if not isinstance(network, Descriptors):
            raise ValueError(
                "expected target counterfactory.models.attribution.Descriptors, got"
                f" {type(network).__name__}"
            )
        if len(descriptors) != len(network.bias):
            raise ValueError(
                f"expected {len(network.bias)} names in classes, got {len(descriptors)}"
            )
        self.network, self.descriptors = network, tuple(descriptors)

    def forward(self, latents: Tensor) -> Tensor:
        """(B,D) as Descriptors gives them."""
        told: Tensor = self.network(latents)
        return told

    @torch.no_grad()
    def expect(self, encoder: Any, size: Size) -> None:
        """ValueError where the encoder gives latents of another size than the predictors were
        fitted on, or other ones of one picture: they would make nothing of them. size: (height,
        width) of the images."""
        found = self.network.normal(sample_of(encoder, size, self.network.sample.device))
        away = float((found[0] - self.network.sample).abs().mean())
        if not away < FOREIGN:
            raise ValueError(
                "expected the encoder, and the image size, that the predictors were fitted with,"
                f" got others: the latent of one picture is {away:.2f} standard deviations away:"
                " `counterfactory train attribution` fits them to an encoder"
            )


def sample_of(encoder: Any, size: Size, device: torch.device) -> Tensor:
    """The latent (1,...) of a picture that anybody can draw: three ramps."""
    height, width = size
    down = torch.linspace(0, 1, height, device=device)[:, None].expand(height, width)
    across = torch.linspace(0, 1, width, device=device)[None, :].expand(height, width)
    latent: Tensor = encoder.encode(torch.stack([down, across, (down + across) / 2])[None])
    return latent
