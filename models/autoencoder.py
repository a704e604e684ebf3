"""A convolutional variational autoencoder whose latent vector is meant to be moved by gradient."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU around a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, before)
        self.conv1 = nn.Conv2d(before, after, 3, 1, 1)
        self.norm2 = nn.GroupNorm(8, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B,after,H,W)."""
        change: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = change + self.short(x)
        return out


class Autoencoder(nn.Module):
    """Images (B,3,size,size) in [0,1] to a latent vector (B,latent) and back.

    The image is folded 2x2 into channels at both ends, so that every convolution runs at half the side or less;
    `widths` are the channels at size/2, size/4, ... The encoder gives mean and log-variance; `encode` is the mean,
    deterministic. `attributes` > 0 adds a linear head on the latent, a training aid that makes labelled attributes
    directions of the latent.
    """

    def __init__(
        self, *, size: int = 64, latent: int = 128, widths: tuple[int, ...] = (24, 48, 64, 128), attributes: int = 0
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        self.side = size >> len(widths)
        if self.side << len(widths) != size:
            raise ValueError(f"expected size divisible by {2 ** len(widths)}, got {size}")
        self.size, self.top = size, widths[-1]
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, 1, 1)]
        for before, after in pairwise(widths):
            encoder += [nn.Conv2d(before, after, 4, 2, 1), Block(after, after)]
        self.encoder = nn.Sequential(*encoder, nn.GroupNorm(8, self.top), nn.SiLU(), nn.Flatten())
        self.moments = nn.Linear(self.top * self.side**2, 2 * latent)
        self.start = nn.Linear(latent, self.top * self.side**2)
        decoder: list[nn.Module] = []
        for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            decoder += [Block(before, before), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1)]
        decoder += [Block(widths[0], widths[0]), nn.GroupNorm(8, widths[0]), nn.SiLU()]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], 12, 3, 1, 1), nn.PixelShuffle(2))
        self.probe = nn.Linear(latent, attributes) if attributes else None

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, (B,latent) each."""
        mean, log_variance = self.moments(self.encoder(images * 2 - 1)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def encode(self, images: Tensor) -> Tensor:
        """Latent means (B,latent)."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,size,size) in [0,1]."""
        start = self.start(latents).unflatten(1, (self.top, self.side, self.side))
        return torch.sigmoid(self.decoder(start).float())
