"""A small autoencoder of images by region: an encoder to a style vector per region, and a decoder
from mask and styles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shares(masks: Tensor, regions: int, side: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the share of each region in every place, (B,R,h,w) in [0,1], from masks (B,H,W) of
    indices below R.
    """
    one_hot = (masks[:, None] == torch.arange(regions, device=masks.device)[:, None, None]).to(
        dtype
    )
    return one_hot if one_hot.shape[-2:] == side else F.adaptive_avg_pool2d(one_hot, side)


def places(share: Tensor) -> Tensor:
    """Return position features of every place, (B,8,h,w).

    They are x and y in the picture, from -1 to 1, and 1, u, v, u^2, uv and v^2, where (u, v) is the
    position in the place's own region, measured from the region's middle in its standard
    deviations. So the pattern that a style draws moves and grows with its region.
    """
    height, width = share.shape[-2:]
    y, x = (
        torch.linspace(-1, 1, n, device=share.device, dtype=share.dtype) for n in (height, width)
    )
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    area = share.sum((2, 3)).clamp(min=1e-3)
    middle = torch.einsum("brhw,chw->brc", share, grid) / area[..., None]
    square = torch.einsum("brhw,chw->brc", share, grid.square()) / area[..., None]
    spread = (square - middle.square()).clamp(min=1e-4).sqrt()
    frame = torch.einsum("brhw,brc->bchw", share, torch.cat([middle, spread], 2))
    u, v = ((grid - frame[:, :2]) / frame[:, 2:].clamp(min=1e-2)).clamp(-3, 3).unbind(1)
    return torch.stack(
        [
            *grid.expand(len(share), -1, -1, -1).unbind(1),
            torch.ones_like(u),
            u,
            v,
            u * u,
            u * v,
            v * v,
        ],
        1,
    )


def local_norm(x: Tensor) -> Tensor:
    """Return each place's channels divided by their root mean square (Karras et al. 2018, 4.2).

    Unlike batch or group norm, it transfers nothing from one place to another, and so nothing from
    one region to another.
    """
    return x * ((x * x).mean(1, keepdim=True) + 1e-6).rsqrt()


class Block(nn.Module):
    """3x3 convolutions beside a shortcut, each after a norm that the styles scale and shift (Zhu et
    al. 2020, SEAN: a region's style goes to every place of the region).
    """

    def __init__(self, channels: int, style: int, convolutions: int = 2) -> None:
        super().__init__()
        self.told = nn.ModuleList(nn.Conv2d(style, 2 * channels, 1) for _ in range(convolutions))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(convolutions)
        )

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        """Return a tensor shaped like x (B,C,h,w); styles (B,S,h,w)."""
        change = x
        for told, convolution in zip(self.told, self.convolutions, strict=True):
            scale, shift = told(styles).chunk(2, dim=1)
            change = convolution(F.silu(torch.addcmul(shift, local_norm(change), 1 + scale)))
        return x + change


class PerRegion(nn.Module):
    """A separate linear layer for every region: (B,R,inputs) to (B,R,outputs)."""

    def __init__(self, regions: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(regions, inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(regions, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,R,outputs)."""
        return torch.einsum("bri,rio->bro", x, self.weight) + self.bias


class SemanticNet(nn.Module):
    """An autoencoder from images (B,3,size,size) in [0,1] under masks (B,size,size) to styles
    (B,R,style), and back under the same masks.

    The encoder averages convolutional features over each region (SEAN), and computes their moments
    in the region's own coordinates. The decoder sees the image only through the styles; each style
    becomes quadratic functions over its region. So the bend of a mouth is a number in both parts.
    As in a VAE, the styles are noisy in training, with a spread learnt per coordinate, so that
    small steps from a style also decode to an image.

    widths: channels at a quarter, half and the whole of the side. A region that is absent from a
    mask has a style of zeros. attributes: None where the network is not trained; only training
    needs the noise of the styles. Above 0 it adds a linear head on the styles, a training aid:
    features that decide an attribute, such as the bend of a mouth, are then encoded much earlier in
    training than the decoder alone would need them.
    """

    def __init__(
        self,
        *,
        regions: int,
        size: int = 64,
        style: int = 12,
        told: int = 10,
        encoder: tuple[int, int, int] = (16, 24, 24),
        moments: int = 8,
        widths: tuple[int, int, int] = (24, 32, 16),
        attributes: int | None = None,
    ) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"expected size divisible by 4, got {size}")
        self.regions, self.size = regions, size
        first, second, third = encoder
        self.stem = nn.Conv2d(3 + regions + 8, first, 3, 2, 1)
        self.fine = nn.Conv2d(first, second, 3, 1, 1)
        self.coarse = nn.Conv2d(second, third, 3, 2, 1)
        self.moments = nn.Conv2d(second, moments, 1)
        self.head = PerRegion(regions, 6 * moments + third, style)
        self.log_variance = (
            None if attributes is None else nn.Parameter(torch.full((regions, style), -4.0))
        )
        quarter, half, whole = widths
        # SEAN's layer per region, applied before the styles are placed in their regions
        self.spell = PerRegion(regions, style, told * 6)
        self.start = nn.Conv2d(regions + 8, quarter, 3, 1, 1)
        self.low = Block(quarter, told)
        self.middle = nn.Conv2d(quarter, half, 3, 1, 1)
        self.high = Block(half, told)
        self.fold = nn.Conv2d(half, 4 * whole, 1)
        self.top = Block(whole, told, 1)
        self.last = nn.Conv2d(whole, 3, 3, 1, 1)
        self.probe = nn.Linear(regions * style, attributes) if attributes else None

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return styles (B,R,style)."""
        share = shares(masks, self.regions, (self.size, self.size), images.dtype)
        seen = torch.cat([images * 2 - 1, share, places(share)], 1)
        fine = F.silu(self.fine(F.silu(self.stem(seen))))
        coarse = F.silu(self.coarse(fine))
        own = places(shares(masks, self.regions, (self.size // 2, self.size // 2), images.dtype))[
            :, 2:
        ]
        one, u, v, uu, _, vv = own.unbind(1)
        # u^2 v: up at the ends and down in the middle, as in a smile
        basis = torch.stack([one, u, v, uu, vv, uu * v], 1)
        moments = (self.moments(fine).float()[:, :, None] * basis[:, None]).flatten(1, 2)
        pooled = [average(x.float(), masks, self.regions) for x in (moments, coarse)]
        there = (share.sum((2, 3)) > 0)[..., None]
        styles: Tensor = self.head(torch.cat(pooled, 2)).float() * there
        return styles

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
        """Return images (B,3,size,size) in [0,1]."""
        spelt, size = self.spell(styles).unflatten(2, (-1, 6)), self.size
        share = shares(masks, self.regions, (size // 4, size // 4), styles.dtype)
        x = self.low(self.start(torch.cat([share, places(share)], 1)), spread_out(spelt, share))
        share = shares(masks, self.regions, (size // 2, size // 2), styles.dtype)
        x = self.high(self.middle(F.interpolate(x, scale_factor=2.0)), spread_out(spelt, share))
        share = shares(masks, self.regions, (size, size), styles.dtype)
        x = self.top(
            F.pixel_shuffle(self.fold(x), 2),
            torch.einsum("brs,brhw->bshw", spelt[..., 0], share.to(spelt)),
        )
        return torch.sigmoid(self.last(F.silu(x)).float())


def spread_out(spelt: Tensor, share: Tensor) -> Tensor:
    """Return styles at their places, (B,S,h,w): the quadratic functions (B,R,S,6) over each region;
    share (B,R,h,w).
    """
    weights = torch.einsum("brsk,brhw->bskhw", spelt, share.to(spelt))
    told: Tensor = (weights * places(share)[:, None, 2:].to(weights)).sum(2)
    return told


def average(x: Tensor, masks: Tensor, regions: int) -> Tensor:
    """Return means of maps (B,C,h,w) over each region, (B,R,C); zeros where the region is absent
    from a mask.
    """
    share = shares(masks, regions, (x.shape[-2], x.shape[-1]), x.dtype)
    return torch.einsum("bchw,brhw->brc", x, share) / share.sum((2, 3)).clamp(min=1e-3)[..., None]


class SemanticWrapper(nn.Module):
    """A network with `encode` and `decode` under masks as a SemanticAutoencoder, for images of one
    size.
    """

    def __init__(
        self, network: nn.Module, *, regions: Sequence[str], size: int | None = None
    ) -> None:
        super().__init__()
        for name in ("encode", "decode"):
            if not callable(getattr(network, name, None)):
                raise ValueError(
                    f"expected a network with a method `{name}`, got {type(network).__name__}"
                    " without"
                )
        self.network: Any = network
        self.regions, self.size = tuple(regions), size

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return styles (B,R,S) float32; masks (B,H,W) int64, indices into the regions.

        ValueError where the images have another size, or the number of styles is not that of
        regions.
        """
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            got = tuple(images.shape[-2:])
            raise ValueError(
                f"expected images of {self.size} x {self.size} px (data.size), got {got}"
            )
        styles: Tensor = self.network.encode(images, masks)
        if styles.shape[1] != len(self.regions):
            raise ValueError(
                f"expected a style for each of {len(self.regions)} regions, got {styles.shape[1]}"
            )
        return styles.float()

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(styles, masks)
        return images.float().clamp(0, 1)
