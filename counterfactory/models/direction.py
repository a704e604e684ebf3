"""Directions of a latent space along which a classifier's decision changes, one for each pair of
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from counterfactory.models.attribution import FOREIGN, Size, sample_of
from counterfactory.models.latent_linear import LatentLinear


class Directions(LatentLinear):
    """Linear scores of classes on whitened latents; the difference of two classes' weights is the
    direction from one to the other.

    Whitened: each coordinate in standard deviations from its mean, since coordinates that hardly
    vary would else dominate. Fitted on a classifier's answers alone, so it needs no gradients
    (Sobieski & Biecek 2024, arXiv 2404.12488, find such directions for diffusion autoencoders).

    latent: length of a latent; classes: number of classes.
    """

    def __init__(self, *, latent: int, classes: int) -> None:
        if latent < 1 or classes < 2:
            raise ValueError(
                f"expected latent of at least 1 and classes of at least 2, got {(latent, classes)}"
            )
        super().__init__(latent, classes, "directions")

    def forward(self, latents: Tensor) -> Tensor:
        """Return scores (B,K) of latents (B,...), whose differences are like log-odds."""
        return self.scores(latents)


class DirectionWrapper(nn.Module):
    """Directions with the classes' names and a check of the encoder that they were fitted with."""

    def __init__(self, network: nn.Module, *, classes: Sequence[str]) -> None:
        super().__init__()
        if not isinstance(network, Directions):
            raise ValueError(
                "expected target counterfactory.models.direction.Directions, got"
                f" {type(network).__name__}"
            )
        if len(classes) != len(network.bias):
            raise ValueError(f"expected {len(network.bias)} names in classes, got {len(classes)}")
        self.network, self.classes = network, tuple(classes)
        self.known: WeakSet[nn.Module] = WeakSet()

    def forward(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return the way (B,...) from class to class, one standard deviation of the latents long;
        0 where source and target are one class.

        latents: (B,...), for their shape. source, target: (B,) int64.
        """
        way = self.network.weight[target] - self.network.weight[source]
        length = way.norm(dim=1, keepdim=True)
        way = torch.where(length > 0, way / length.clamp(min=1e-12), 0.0) * self.network.std
        return way.view(latents.shape).to(latents.dtype)

    def spread(self, latents: Tensor) -> Tensor:
        """Return the standard deviation of each number of a latent, shaped like one of latents
        (B,...).
        """
        return self.network.std.view(latents.shape[1:]).to(latents.dtype)

    @torch.no_grad()
    def expect(self, encoder: Any, classes: Sequence[str], size: Size) -> None:
        """Raise ValueError where the encoder is not the one that the directions were fitted with,
        or where the classifier has other classes. Each encoder is checked once.

        size: (height, width) of the images.
        """
        if tuple(classes) != self.classes:
            raise ValueError(
                f"expected a classifier of the classes {', '.join(self.classes)}, which the"
                f" directions were fitted on, got {', '.join(classes)}"
            )
        if encoder in self.known:
            return
        found = self.network.normal(sample_of(encoder, size, self.network.sample.device))
        away = float((found[0] - self.network.sample).abs().mean())
        if not away < FOREIGN:
            raise ValueError(
                "expected the autoencoder, and the image size, that the directions were fitted"
                f" with, got others: the latent of one picture is {away:.2f} standard deviations"
                " away: `counterfactory train direction` fits them to an autoencoder"
            )
        self.known.add(encoder)
