"""Linear predictors of image descriptors on an encoder's latents, from which a counterfactual's
importances are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.models.latent_linear import LatentLinear

# mean distance of one picture's latent, in standard deviations, that is more than rounding
FOREIGN = 0.1
Size = tuple[int, int]


class Descriptors(LatentLinear):
    """One linear predictor per descriptor on standardised latents: logistic for a binary
    descriptor, ridge for a continuous one (Goldwasser & Hooker 2025, arXiv 2504.15479).

    latent: length of a latent; descriptors: their number; continuous: indices of the descriptors
    that are not binary.
    """

    def __init__(self, *, latent: int, descriptors: int, continuous: Sequence[int] = ()) -> None:
        if min(latent, descriptors) < 1 or not all(
            0 <= place < descriptors for place in continuous
        ):
            raise ValueError(
                "expected latent and descriptors of at least 1 and continuous below descriptors,"
                f" got {(latent, descriptors, list(continuous))}"
            )
        super().__init__(latent, descriptors, "predictors")
        self.continuous = tuple(continuous)

    def scores(self, latents: Tensor) -> Tensor:
        """Return scores (B,D) of latents (B,...).

        Binary descriptors have log-odds. Continuous ones have the distance from their mean in
        standard deviations, both of the data they were fitted on.
        """
        return super().scores(latents)

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """Return the values (B,D) whose differences are importances: probabilities of binary
        descriptors, scores of continuous ones.
        """
        found = scores.sigmoid()
        for place in self.continuous:
            found[:, place] = scores[:, place]
        return found

    def forward(self, latents: Tensor) -> Tensor:
        """Return the predictors' output (B,D) for latents (B,...), as `to_probabilities` returns
        it.
        """
        return self.to_probabilities(self.scores(latents))


class AttributionWrapper(nn.Module):
    """Descriptors with their names and a check of the encoder that they were fitted with."""

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
        """Return the output (B,D) of Descriptors."""
        told: Tensor = self.network(latents)
        return told

    @torch.no_grad()
    def expect(self, encoder: Any, size: Size) -> None:
        """Raise ValueError where the encoder is not the one that the predictors were fitted with.

        Its latents then have another length, or it returns another latent for one known picture,
        and the predictions would be meaningless. size: (height, width) of the images.
        """
        found = self.network.normal(sample_of(encoder, size, self.network.sample.device))
        away = float((found[0] - self.network.sample).abs().mean())
        if not away < FOREIGN:
            raise ValueError(
                "expected the encoder, and the image size, that the predictors were fitted with,"
                f" got others: the latent of one picture is {away:.2f} standard deviations away:"
                " `counterfactory train attribution` fits them to an encoder"
            )


def sample_of(encoder: Any, size: Size, device: torch.device) -> Tensor:
    """Return the encoder's latent (1,...) of a fixed synthetic picture: three ramps."""
    height, width = size
    down = torch.linspace(0, 1, height, device=device)[:, None].expand(height, width)
    across = torch.linspace(0, 1, width, device=device)[None, :].expand(height, width)
    latent: Tensor = encoder.encode(torch.stack([down, across, (down + across) / 2])[None])
    return latent
