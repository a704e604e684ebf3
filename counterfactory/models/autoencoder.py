"""A convolutional variational autoencoder, whose latent vector methods change by gradient."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU beside a shortcut.

    style > 0: length of a vector that scales and shifts the second norm's channels (as in Dhariwal
    & Nichol 2021), so that a property of the whole image, such as a colour, need not pass through
    the coarse layers.
    """

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.style = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Return a tensor shaped like x (B,C,H,W); style (B,S)."""
        change: Tensor = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.style is not None and style is not None:
            scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
            change = change * (1 + scale) + shift
        out: Tensor = x + self.conv2(F.silu(change))
        return out


class Decoder(nn.Module):
    """A network from latent vectors (B,latent) to images (B,3,size,size) before the sigmoid.

    Every level adds a learned map to its input. Faces are aligned, so the position of a part
    contains much information about which part it is.
    """

    def __init__(self, *, size: int, latent: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.top, self.side = widths[-1], size >> len(widths)
        self.start = nn.Linear(latent, self.top * self.side**2)
        self.blocks = nn.ModuleList(Block(width, latent) for width in reversed(widths))
        self.maps = nn.ParameterList(
            torch.zeros(1, width, self.side << level, self.side << level)
            for level, width in enumerate(reversed(widths))
        )
        self.grow = nn.ModuleList(
            nn.Conv2d(before, after, 3, 1, 1) for after, before in pairwise(widths)
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], 12, 3, 1, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (B,3,size,size) before the sigmoid."""
        x: Tensor = self.start(latents).unflatten(1, (self.top, self.side, self.side))
        for level, (block, position) in enumerate(zip(self.blocks, self.maps, strict=True)):
            if level:
                x = self.grow[-level](F.interpolate(x, scale_factor=2.0))
            x = block(x + position, latents)
        return F.pixel_shuffle(self.last(F.silu(self.norm(x))), 2)


class Autoencoder(nn.Module):
    """A VAE from images (B,3,size,size) in [0,1] to a latent vector (B,latent) and back.

    The image is folded 2x2 into channels at both ends, so that every convolution runs at half the
    side or less; `widths` are the channels at size/2, size/4, ... The encoder computes mean and
    log-variance; `encode` returns the mean, which is deterministic. `attributes` > 0 adds a linear
    head on the latent, a training aid: it makes labelled attributes directions of the latent.
    """

    def __init__(
        self,
        *,
        size: int = 64,
        latent: int = 128,
        widths: tuple[int, ...] = (32, 48, 64, 96),
        attributes: int = 0,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        side = size >> len(widths)
        if side << len(widths) != size:
            raise ValueError(f"expected size divisible by {2 ** len(widths)}, got {size}")
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, 1, 1)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), Block(after)]
        self.latent_shape = (latent,)
        self.encoder = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Flatten())
        self.moments = nn.Linear(widths[-1] * side**2, 2 * latent)
        # start with little noise on the latent; training adjusts it from there
        with torch.no_grad():
            self.moments.weight[latent:] *= 0.1
            self.moments.bias[latent:] = -6.0
        self.decoder = Decoder(size=size, latent=latent, widths=widths)
        self.probe = nn.Linear(latent, attributes) if attributes else None

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, (B,latent) each."""
        mean, log_variance = self.moments(self.encoder(images * 2 - 1)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the encoder's blocks, finest first; each (B,C,H,W)."""
        x, out = images * 2 - 1, []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, Block):
                out.append(x)
        return out

    def encode(self, images: Tensor) -> Tensor:
        """Return latent means (B,latent)."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,size,size) in [0,1]."""
        return torch.sigmoid(self.decoder(latents).float())
